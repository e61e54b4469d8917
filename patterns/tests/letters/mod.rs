//! What retries and dead letters do over any broker, one function each; the targets say which
//! broker it is.
#![allow(dead_code)] // Each target runs a part of it.

pub(crate) mod looking;
pub(crate) mod losses;
pub(crate) mod moving;
pub(crate) mod retries;
pub(crate) mod world;

use futures_util::future::LocalBoxFuture;
use world::World;

pub(crate) type Function = fn(World) -> LocalBoxFuture<'static, ()>;

macro_rules! functions {
    ($($room:ident: $($name:ident),+;)+) => {
        &[$($((stringify!($name), |world| Box::pin($room::$name(world))),)+)+]
    };
}

/// All of them, by their names.
pub(crate) const FUNCTIONS: &[(&str, Function)] = functions! {
    retries:
        a_poison_message_is_kept_after_the_tries_of_its_policy,
        a_poison_message_without_an_id_is_bounded_too,
        a_class_may_have_other_tries,
        a_handler_that_panics_is_kept_after_its_tries,
        a_handler_that_never_returns_is_kept_after_its_tries,
        tries_go_on_counting_in_another_worker,
        tries_are_counted_over_all_instances,
        a_dead_letter_that_finds_no_room_waits_for_it,
        unknown_types_neither_jam_the_queue_nor_vanish,
        what_cannot_be_decoded_is_kept_and_not_acknowledged_away,
        stopping_a_worker_dead_letters_nothing;
    looking:
        looking_takes_nothing_and_keeps_the_order,
        what_the_broker_gave_up_is_seen_like_the_rest,
        a_list_is_filtered,
        a_dead_letter_goes_through_a_file_unharmed,
        a_queue_that_is_not_there_is_an_error;
    moving:
        a_redriven_message_is_as_it_was_and_counted_anew,
        what_does_not_match_stays_in_its_order,
        a_redrive_does_not_chase_its_own_tail,
        a_redrive_keeps_to_its_rate_and_to_its_number,
        another_queue_may_have_them,
        what_cannot_be_moved_stays_and_is_told,
        what_is_thrown_away_is_gone_and_the_rest_is_not,
        a_small_window_moves_many_and_says_what_it_did_not_see;
    losses:
        a_message_that_kills_its_process_comes_to_rest,
        a_redrive_over_lost_connections_loses_nothing,
        what_stays_over_a_lost_connection_is_counted_once;
};

/// Those that need a broker that gives back to the front of a queue without a delivery limit.
/// RabbitMQ 4.0 gives back to its end.
pub(crate) const IN_ORDER: &[&str] = &[
    "looking_takes_nothing_and_keeps_the_order",
    "a_small_window_moves_many_and_says_what_it_did_not_see",
];
