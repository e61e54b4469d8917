//! What subscriptions do, one function each; the target says on which brokers.

pub(crate) mod coming;
pub(crate) mod failing;
pub(crate) mod losing;
pub(crate) mod world;

use world::World;

use crate::suite::Named;

macro_rules! functions {
    ($($room:ident: $($name:ident),+;)+) => {
        &[$($((stringify!($name), |world| Box::pin($room::$name(world))),)+)+]
    };
}

pub(crate) const EVERYWHERE: &[Named<World>] = functions! {
    coming:
        instances_of_a_durable_subscription_share_and_ephemeral_ones_get_copies,
        patterns_and_types_come_to_their_handlers_in_their_order,
        causes_and_conversations_flow_from_event_to_event;
    failing:
        unknown_events_go_where_the_policy_says,
        what_cannot_be_read_is_kept_with_the_reason,
        a_poison_event_takes_the_steps_of_its_policy_and_harms_no_other,
        an_ephemeral_subscription_tries_in_its_process_and_keeps_what_it_gives_up;
    losing:
        an_ephemeral_subscription_is_told_of_each_gap_and_goes_on,
        a_durable_subscription_goes_on_and_tells_when_its_queue_is_gone;
};
