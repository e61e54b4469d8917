//! One process under several consume loops.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use postrider_core::{DeliveryInfo, Envelope};
use tokio_util::sync::CancellationToken;

use super::{Disposition, Outcome, Process};
use crate::handler::HandlerError;

/// A process that stops with the last of its loops: the others still give it messages.
pub(crate) struct Shared<P> {
    process: Arc<P>,
    open: Arc<AtomicUsize>,
}

impl<P: Process> Shared<P> {
    /// One for each of `loops` loops.
    pub(crate) fn among(process: P, loops: usize) -> impl Iterator<Item = Self> {
        let (process, open) = (Arc::new(process), Arc::new(AtomicUsize::new(loops)));
        std::iter::repeat_n((process, open), loops).map(|(process, open)| Self { process, open })
    }
}

impl<P: Process> Process for Shared<P> {
    async fn process(
        &self,
        envelope: &Arc<Envelope>,
        info: &DeliveryInfo,
        cancellation: &CancellationToken,
    ) -> Disposition {
        self.process.process(envelope, info, cancellation).await
    }

    async fn dead_lettered(
        &self,
        envelope: &Arc<Envelope>,
        info: &DeliveryInfo,
        error: &HandlerError,
    ) {
        self.process.dead_lettered(envelope, info, error).await;
    }

    fn stopping(&self) {
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.process.stopping();
        }
    }

    fn settled(&self, envelope: &Envelope, info: &DeliveryInfo, outcome: Outcome) {
        self.process.settled(envelope, info, outcome);
    }
}
