//! Calls: what RPC promises over any transport. Its rooms go through what can happen to a call.

mod duplicates;
mod ends;
mod gathering;
mod losses;
mod overload;
mod service;
mod streams;

use super::Behaviour;

pub(super) fn behaviours() -> Vec<Behaviour> {
    [
        ends::behaviours(),
        duplicates::behaviours(),
        losses::behaviours(),
        overload::behaviours(),
        gathering::behaviours(),
        streams::behaviours(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
