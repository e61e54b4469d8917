//! Fault scenarios: traffic, something that goes wrong in the middle of it, and what must hold after.
//!
//! Each publishes numbered messages and records the verdict of each, consumes and records what came,
//! and compares the two: what was accepted is received, what is unknown may be, nothing else is, and
//! nothing comes twice but by the fault. Consumers consume again by themselves, and afterwards the
//! runner sees to it that no task, thread, connection or queue is left.

mod access;
mod alarm;
mod closes;
mod consumers;
mod deletion;
mod network;
mod restart;
mod restoring;
mod sizes;
mod traffic;
mod verdicts;

use super::{Behaviour, Need};

pub(super) fn behaviours() -> Vec<Behaviour> {
    [
        closes::behaviours(),
        restoring::behaviours(),
        restart::behaviours(),
        network::behaviours(),
        alarm::behaviours(),
        deletion::behaviours(),
        access::behaviours(),
        consumers::behaviours(),
        verdicts::behaviours(),
        sizes::behaviours(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
