//! The behaviour suite with its fault scenarios on RabbitMQ, on each broker that the environment
//! names.
//!
//! `scripts/brokers up` starts them and `scripts/brokers env` prints the variables;
//! `cargo test -p postrider-transport-amqp10 --features live-broker --test behaviour --
//! rabbitmq-4.3::priority` runs what has this in its name.

mod login;

use std::{process::ExitCode, time::Duration};

use postrider_testkit::rabbitmq;

fn main() -> ExitCode {
    rabbitmq::main(login::connect, Some(Duration::from_secs(3)))
}
