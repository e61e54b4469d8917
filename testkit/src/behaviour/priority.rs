//! x
use super::Behaviour;
pub(super) fn behaviours() -> Vec<Behaviour> {
    vec![]
}
