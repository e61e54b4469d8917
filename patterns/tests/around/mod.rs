//! What middleware does with deliveries, one function each; the target says on which brokers.

pub(crate) mod giving_back;
pub(crate) mod pausing;
pub(crate) mod seeing;
pub(crate) mod world;

use world::World;

use crate::suite::Named;

macro_rules! functions {
    ($($room:ident: $($name:ident),+;)+) => {
        &[$($((stringify!($name), |world| Box::pin($room::$name(world))),)+)+]
    };
}

pub(crate) const EVERYWHERE: &[Named<World>] = functions! {
    giving_back:
        a_middleware_gives_a_message_back_without_a_failure,
        what_waits_goes_back_uncounted_when_its_worker_stops;
    pausing:
        an_open_circuit_pauses_consuming_and_fails_nothing,
        a_rate_and_a_number_are_kept_and_fail_nothing;
    seeing:
        a_copy_is_done_with_after_the_first_and_a_failed_message_is_no_duplicate,
        each_try_passes_through_all_and_a_panic_among_them_is_a_failure,
        a_trace_goes_on_in_what_a_handler_publishes;
};
