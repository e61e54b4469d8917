//! What users of other frameworks ran into, shown not to happen here: in memory on virtual time, and,
//! with the feature `live-broker`, over both protocols on each RabbitMQ that the environment names.
//! `docs/complaints.md` has the list, with the complaints that other suites answer.
//!
//! `cargo test -p postrider-patterns --features live-broker --test complaints -- amqp10::rabbitmq`
//! runs what has this in its name.

#[path = "complaints/functions.rs"]
mod functions;
#[path = "common/memory.rs"]
mod memory;
#[path = "common/suite.rs"]
mod suite;
#[path = "complaints/world.rs"]
mod world;

use std::process::ExitCode;

use suite::Named;
use world::World;

macro_rules! functions {
    ($($name:ident),+ $(,)?) => {
        &[$((stringify!($name), |world| Box::pin(functions::$name(world))),)+]
    };
}

const FUNCTIONS: &[Named<World>] = functions![
    a_stop_loses_nothing_and_repeats_nothing,
    as_many_are_handled_at_once_as_was_asked_for,
    a_forged_count_takes_no_try_away,
    each_subscription_has_a_copy_and_its_instances_share_it,
    headers_of_any_type_jam_nothing,
    what_is_published_while_its_subscriber_is_away_waits_for_it,
    a_bus_without_its_exchange_says_so,
    a_worker_goes_on_after_every_loss,
    a_worker_whose_queue_is_gone_says_so,
    a_delayed_task_comes_once_and_not_early,
    a_failed_message_is_not_taken_for_a_duplicate,
    a_policy_beyond_the_brokers_limit_is_refused,
    a_slow_task_holds_up_only_its_own_place,
];

const OVER_A_NETWORK: &[Named<World>] =
    functions![nothing_hangs_that_starts_or_publishes_while_the_broker_is_away];

fn main() -> ExitCode {
    suite::main_with(FUNCTIONS, &[], OVER_A_NETWORK)
}
