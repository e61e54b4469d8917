//! A queue: what waits in it, who consumes it, and the rules between them.
//!
//! Everything happens in [`State`] under the queue's lock and touches nothing outside it. What must
//! happen outside, such as waking a consumer or routing a dead letter, is gathered in [`Effects`]
//! and done by the broker when the lock is free again.

mod attached;
mod delayed;
mod lane;
mod ledger;
mod spent;
mod state;

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
};

use tokio::time::Instant;

pub(crate) use self::{
    attached::Taken,
    lane::Entry,
    ledger::Ledger,
    state::{Admission, Settled, State},
};
use crate::death::Reason;

/// A declared queue.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) name: Arc<str>,
    /// The how-manieth queue of its broker it is. Of two things that are due at the same moment, the
    /// older queue's comes first, so that a run on a virtual clock goes the same way each time.
    pub(crate) number: u64,
    pub(crate) spec: postrider_core::Queue,
    /// The connection it is exclusive to.
    pub(crate) owner: Option<u64>,
    state: Mutex<State>,
}

impl Queue {
    pub(crate) fn new(
        spec: postrider_core::Queue,
        number: u64,
        owner: Option<u64>,
        now: Instant,
    ) -> Self {
        Self {
            name: Arc::from(&*spec.name),
            number,
            owner,
            state: Mutex::new(State::new(spec.clone(), now)),
            spec,
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is left to do when a queue's lock is free again.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub(crate) wakers: Vec<Waker>,
    pub(crate) dead: Vec<Dead>,
    /// The queue wants to be looked at then.
    pub(crate) timer: Option<Instant>,
    /// Bytes of memory taken (or given back) since the last report.
    pub(crate) memory: isize,
    /// The queue is to be deleted.
    pub(crate) delete: bool,
}

/// A message that left its queue without being acknowledged.
#[derive(Debug)]
pub(crate) struct Dead {
    pub(crate) entry: Entry,
    pub(crate) reason: Reason,
    /// What the consumer that rejected it said.
    pub(crate) text: Option<Cow<'static, str>>,
}
