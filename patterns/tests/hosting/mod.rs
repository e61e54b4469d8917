//! What the host of a service does, one function each; the target says on which brokers.

pub(crate) mod announcements;
pub(crate) mod plans;
pub(crate) mod recording;
pub(crate) mod stalls;
pub(crate) mod starts;
pub(crate) mod stops;
pub(crate) mod world;

use world::World;

use crate::suite::Named;

macro_rules! functions {
    ($($room:ident: $($name:ident),+;)+) => {
        &[$($((stringify!($name), |world| Box::pin($room::$name(world))),)+)+]
    };
}

pub(crate) const EVERYWHERE: &[Named<World>] = functions! {
    announcements:
        a_service_is_in_the_registry_from_its_start_to_its_stop,
        a_service_is_announced_as_its_parts_fare,
        an_announcement_that_cannot_be_is_refused;
    plans:
        a_plan_is_what_is_declared;
    starts:
        parts_of_all_patterns_run_and_drain_together,
        a_part_that_cannot_start_stops_those_that_did,
        unsafe_combinations_are_refused_before_anything_is_declared;
    stops:
        all_parts_stop_taking_before_one_is_drained,
        what_is_not_done_by_the_deadline_is_reported_and_given_back,
        a_part_that_ended_is_named_and_the_others_go_on,
        a_service_without_a_part_at_work_ends_by_itself;
    stalls:
        a_part_that_gets_nothing_while_messages_wait_is_stalled_until_it_does,
        a_queue_whose_messages_wait_for_their_next_try_is_no_stall,
        who_stands_by_is_not_stalled;
};

/// Long waits, and a table that is the same every time.
pub(crate) const ONLY_IN_MEMORY: &[Named<World>] = functions! {
    plans:
        a_plan_is_a_table_for_people;
    stalls:
        a_worker_whose_places_are_all_taken_is_not_stalled;
};
