//! What routing does over any broker, one function each; the target says which broker it is.
#![allow(dead_code)] // Without a live broker nothing is cleared.

pub(crate) mod changes;
pub(crate) mod groups;
pub(crate) mod losses;
pub(crate) mod rules;
pub(crate) mod ways;
pub(crate) mod world;

use futures_util::future::LocalBoxFuture;
use world::World;

pub(crate) type Function = fn(&World) -> LocalBoxFuture<'_, ()>;

macro_rules! functions {
    ($($room:ident: $($name:ident),+;)+) => {
        &[$($((stringify!($name), |world| Box::pin($room::$name(world))),)+)+]
    };
}

/// All of them, by their names.
pub(crate) const FUNCTIONS: &[(&str, Function)] = functions! {
    rules:
        a_message_goes_where_the_first_rule_says,
        every_rule_that_holds_may_be_followed,
        recipients_are_computed,
        a_filter_drops_and_counts,
        a_message_that_no_rule_is_for_is_kept,
        hostile_bodies_are_kept_and_hold_nobody_up,
        a_panic_is_bounded;
    ways:
        several_queues_flow_into_one,
        a_missing_destination_is_waited_for_and_then_given_up,
        routers_in_a_circle_end,
        the_broker_routes_by_headers,
        a_key_has_its_partition,
        a_tap_gets_copies,
        a_tap_that_goes_nowhere_fails_nothing,
        routers_that_are_not_sound_are_refused;
    changes:
        rules_are_changed_while_it_runs,
        a_change_that_is_refused_changes_nothing,
        all_routers_of_a_name_are_told,
        a_table_that_is_kept_survives_a_restart;
    groups:
        what_was_split_is_put_together,
        a_retry_makes_parts_with_the_same_ids,
        what_cannot_be_split_is_kept,
        parts_that_come_twice_count_once,
        groups_end_by_count_or_by_what_is_in_them,
        what_is_not_complete_in_time_is_kept,
        what_is_not_complete_may_be_sent_as_it_is,
        parts_that_would_spoil_a_group_are_kept_alone,
        parts_that_contradict_each_other_make_no_group,
        the_oldest_group_makes_room,
        what_cannot_be_combined_is_kept,
        an_aggregate_that_nobody_takes_leaves_its_parts;
    losses:
        routing_over_lost_connections_loses_nothing,
        a_router_that_is_dropped_leaves_all_to_the_next,
        an_aggregator_that_is_dropped_leaves_its_parts_to_the_next,
        an_aggregator_that_lost_its_parts_to_another_forgets_them,
        splitting_and_aggregating_over_lost_connections_loses_nothing;
};
