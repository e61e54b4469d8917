//! What configuration does, one function each; the target says on which brokers.

pub(crate) mod crowds;
pub(crate) mod hostile;
pub(crate) mod losses;
pub(crate) mod publishers;
pub(crate) mod rejections;
pub(crate) mod values;
pub(crate) mod world;

use world::World;

use crate::suite::Named;

macro_rules! functions {
    ($($room:ident: $($name:ident),+;)+) => {
        &[$($((stringify!($name), |world| Box::pin($room::$name(world))),)+)+]
    };
}

pub(crate) const EVERYWHERE: &[Named<World>] = functions! {
    values:
        a_newcomer_gets_the_last_value,
        a_change_reaches_every_instance,
        a_default_holds_until_there_is_a_value,
        who_waits_for_the_first_value_gets_it,
        settings_do_not_mix,
        both_codecs_meet,
        what_is_not_sound_is_refused;
    publishers:
        versions_grow_by_one,
        publishers_take_turns,
        a_version_is_compared_and_set,
        a_publish_that_is_given_up_is_done_all_the_same,
        a_turn_goes_with_its_connection;
    rejections:
        an_invalid_value_is_rejected_with_its_reason,
        a_value_of_another_type_is_rejected,
        who_runs_what_is_known;
    hostile:
        nonsense_is_counted_and_left,
        nonsense_in_the_keeper_is_replaced,
        an_old_value_changes_nothing;
    losses:
        a_reader_that_lost_its_connection_catches_up,
        a_publisher_that_lost_its_connection_goes_on,
        a_keeper_that_was_deleted_does_not_begin_anew,
        what_was_missed_is_found,
        a_value_that_was_held_does_not_come_back;
};

/// Many instances, long waits, and what stops a whole broker.
pub(crate) const ONLY_IN_MEMORY: &[Named<World>] = functions! {
    crowds:
        a_thousand_start_and_change_at_once,
        what_a_publisher_remembers_is_bounded;
    publishers:
        a_turn_that_is_not_given_back_is_free_in_the_end;
    losses:
        a_broker_that_takes_nothing_is_told_of;
};
