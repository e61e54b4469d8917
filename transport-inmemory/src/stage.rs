//! How a connection stands.

use std::sync::atomic::{AtomicU8, Ordering};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Up,
    Down,
    Closing,
    Closed,
}

/// The stage of a connection; read for each publish, so it is one atomic number.
#[derive(Debug)]
pub(crate) struct StageCell(AtomicU8);

impl StageCell {
    pub(crate) const fn new(stage: Stage) -> Self {
        Self(AtomicU8::new(stage as u8))
    }

    pub(crate) fn get(&self) -> Stage {
        const ALL: [Stage; 4] = [Stage::Up, Stage::Down, Stage::Closing, Stage::Closed];
        ALL[usize::from(self.0.load(Ordering::Acquire))]
    }

    /// Steps from one stage to another; `false` when it is at a third.
    pub(crate) fn step(&self, from: Stage, to: Stage) -> bool {
        let order = Ordering::AcqRel;
        self.0.compare_exchange(from as u8, to as u8, order, Ordering::Acquire).is_ok()
    }

    pub(crate) fn set(&self, stage: Stage) {
        self.0.store(stage as u8, Ordering::Release);
    }
}
