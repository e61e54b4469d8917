//! What service discovery does, one function each; the target says on which brokers.

pub(crate) mod crowds;
pub(crate) mod hostile;
pub(crate) mod losses;
pub(crate) mod picks;
pub(crate) mod who;
pub(crate) mod world;

use world::World;

use crate::suite::Named;

macro_rules! functions {
    ($($room:ident: $($name:ident),+;)+) => {
        &[$($((stringify!($name), |world| Box::pin($room::$name(world))),)+)+]
    };
}

pub(crate) const EVERYWHERE: &[Named<World>] = functions! {
    who:
        an_instance_is_known_with_all_it_says,
        a_newcomer_learns_everybody_at_once,
        who_leaves_is_gone_at_once,
        who_is_dropped_leaves_too,
        who_dies_is_gone_after_its_lease,
        health_is_told_at_once,
        a_restart_is_another_instance,
        some_services_are_heard_and_others_not,
        both_codecs_meet,
        announcements_that_are_not_sound_are_refused;
    picks:
        turns_go_round,
        the_least_pending_is_picked,
        a_key_stays_with_its_instance,
        a_version_is_required,
        health_decides;
    hostile:
        nonsense_is_counted_and_left,
        an_old_heartbeat_brings_nobody_back,
        there_are_bounds;
    losses:
        a_registry_that_lost_its_connection_takes_nobody_for_dead,
        what_happened_meanwhile_is_noticed,
        an_instance_that_lost_its_connection_comes_back,
        a_queue_that_was_deleted_is_made_again;
};

/// A thousand instances, and what stops a whole broker.
pub(crate) const ONLY_IN_MEMORY: &[Named<World>] = functions! {
    crowds:
        a_thousand_answer_in_their_turn,
        a_thousand_die_at_once;
    losses:
        lost_heartbeats_do_not_matter_within_the_lease,
        a_broker_that_stands_still_kills_nobody,
        clocks_do_not_matter;
};
