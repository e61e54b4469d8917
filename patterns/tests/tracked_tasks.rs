//! Tracked tasks: in memory on virtual time, and, with the feature `live-broker`, over both protocols on
//! each RabbitMQ that the environment names.
//!
//! `cargo test -p postrider-patterns --features live-broker --test tracked_tasks -- amqp10::rabbitmq`
//! runs what has this in its name.

#[path = "common/memory.rs"]
mod memory;
#[path = "common/suite.rs"]
mod suite;
mod tasks;

use std::process::ExitCode;

fn main() -> ExitCode {
    suite::main(tasks::FUNCTIONS, &[])
}
