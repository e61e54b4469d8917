//! What routing does over any broker, one function each; the target says which broker it is.

pub(crate) mod around;
pub(crate) mod changes;
pub(crate) mod groups;
pub(crate) mod logged;
pub(crate) mod losses;
pub(crate) mod parts;
pub(crate) mod rules;
pub(crate) mod ways;
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
        a_queue_that_counts_nothing_is_no_endless_loop,
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
        a_table_that_is_kept_survives_a_restart,
        a_router_without_rules_takes_nothing_before_they_come,
        a_router_may_begin_without_rules,
        a_held_router_stops_at_once,
        a_table_that_would_be_too_large_is_refused,
        a_control_that_has_ended_is_seen_and_its_router_goes_on,
        a_service_shows_a_router_that_waits_and_a_control_that_has_ended;
    around:
        middleware_stands_around_routers_and_splitters,
        one_queue_that_ends_leaves_the_waiting_of_the_others,
        a_router_may_drop_duplicates,
        large_bodies_are_looked_into_on_other_threads,
        a_look_that_costs_too_much_is_given_up,
        an_empty_path_is_the_whole_body,
        fields_without_a_text_are_refused;
    parts:
        copies_of_a_part_take_no_room,
        copies_of_a_part_take_no_bytes,
        a_part_stays_at_the_broker_though_its_copy_was_settled,
        a_group_may_come_over_several_queues,
        parts_are_kept_among_the_dead_letters_of_their_own_queue,
        an_aggregator_that_stops_gives_each_part_back_to_its_queue,
        parents_of_one_id_in_two_queues_do_not_mix,
        parts_carry_no_keys_of_their_parent,
        aggregators_that_are_not_sound_are_refused,
        counts_that_cannot_be_met_are_refused,
        parts_that_disagree_on_their_count_are_all_kept;
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

/// Those that listen on their thread.
pub(crate) const IN_MEMORY: &[Named<World>] = functions! {
    logged:
        a_control_that_ends_unasked_is_logged;
};
