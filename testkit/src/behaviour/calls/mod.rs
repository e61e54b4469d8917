//! Calls: what RPC promises over any transport. Its rooms go through what can happen to a call, and
//! once more with direct replies where the broker has them.

mod duplicates;
mod ends;
mod gathering;
mod losses;
mod overload;
mod service;
mod stopping;
mod streams;

use super::Behaviour;

pub(super) fn behaviours() -> Vec<Behaviour> {
    let behaviours: Vec<_> = [
        ends::behaviours(),
        duplicates::behaviours(),
        losses::behaviours(),
        stopping::behaviours(),
        overload::behaviours(),
        gathering::behaviours(),
        streams::behaviours(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let direct: Vec<_> = behaviours.iter().map(Behaviour::direct).collect();
    behaviours.into_iter().chain(direct).collect()
}
