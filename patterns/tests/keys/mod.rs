//! What subscriptions that are ordered by key do over any broker, one function each.

pub(crate) mod draining;
pub(crate) mod failures;
pub(crate) mod losses;
pub(crate) mod order;
pub(crate) mod world;

use world::World;

use crate::suite::Named;

macro_rules! functions {
    ($($room:ident: $($name:ident),+;)+) => {
        &[$($((stringify!($name), |world| Box::pin($room::$name(world))),)+)+]
    };
}

/// All of them, by their names.
pub(crate) const FUNCTIONS: &[Named<World>] = functions! {
    order:
        each_key_keeps_its_order,
        a_slow_key_holds_up_no_other,
        events_of_plain_clients_and_without_a_key_come_too,
        what_cannot_keep_order_is_refused;
    failures:
        a_failing_event_holds_up_its_key_alone,
        a_given_up_event_parks_its_key_until_it_is_drained,
        a_parked_key_stays_parked_for_the_next_instance,
        a_stop_in_the_midst_of_draining_leaves_the_rest_in_order,
        a_key_that_skips_ahead_leaves_what_failed_behind,
        a_stop_ends_the_waiting_and_leaves_the_order_to_the_next,
        random_failures_invert_no_key;
    draining:
        a_key_goes_on_when_its_letters_are_gone_and_not_before,
        different_events_of_one_id_are_both_drained,
        a_redrive_of_one_drains_one_key;
    losses:
        instances_come_and_go_and_the_order_stays,
        lost_connections_invert_no_key,
        what_is_lost_is_given_up_before_another_has_it,
        what_ends_its_process_each_time_parks_its_key_too;
};

/// More than a thousand dead letters, and half a minute between looks.
pub(crate) const ONLY_IN_MEMORY: &[Named<World>] = functions! {
    draining:
        a_full_partition_is_drained_by_a_redrive;
};
