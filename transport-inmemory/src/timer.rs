//! When the broker must look at a queue again.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::{sync::Notify, time::Instant};

use crate::queue::Queue;

#[derive(Debug)]
struct Appointment {
    at: Instant,
    /// Its queue's number.
    number: u64,
    queue: Weak<Queue>,
}

impl PartialEq for Appointment {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Appointment {}

impl PartialOrd for Appointment {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Appointment {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// The appointments of all queues. Each connection runs a task that keeps them, so that the broker
/// needs no runtime of its own; keeping one twice does no harm.
#[derive(Debug, Default)]
pub(crate) struct Timer {
    appointments: Mutex<BinaryHeap<Reverse<Appointment>>>,
    earlier: Notify,
}

impl Timer {
    fn appointments(&self) -> MutexGuard<'_, BinaryHeap<Reverse<Appointment>>> {
        self.appointments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn schedule(&self, at: Instant, queue: &Arc<Queue>) {
        let mut appointments = self.appointments();
        let is_first = appointments.peek().is_none_or(|Reverse(first)| at < first.at);
        let (number, queue) = (queue.number, Arc::downgrade(queue));
        appointments.push(Reverse(Appointment { at, number, queue }));
        drop(appointments);
        if is_first {
            self.earlier.notify_waiters();
        }
    }

    /// Waits for the next appointment to come. Cancellation safe.
    pub(crate) async fn next_due(&self) {
        loop {
            let earlier = self.earlier.notified();
            let next = self.appointments().peek().map(|Reverse(first)| first.at);
            match next {
                None => earlier.await,
                Some(at) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at) => return,
                        () = earlier => {}
                    }
                }
            }
        }
    }

    /// The queues whose time has come.
    pub(crate) fn take_due(&self, now: Instant) -> Vec<Weak<Queue>> {
        let mut appointments = self.appointments();
        let mut due = Vec::new();
        while appointments.peek().is_some_and(|Reverse(first)| first.at <= now) {
            due.extend(appointments.pop().map(|Reverse(appointment)| appointment.queue));
        }
        due
    }
}
