//! Routing: in memory on virtual time, and, with the feature `live-broker`, over both protocols on
//! each RabbitMQ that the environment names.
//!
//! `cargo test -p postrider-patterns --features live-broker --test routing -- amqp10::rabbitmq`
//! runs what has this in its name.

#[path = "common/memory.rs"]
mod memory;
mod routes;
#[path = "common/suite.rs"]
mod suite;

use std::process::ExitCode;

fn main() -> ExitCode {
    suite::main(routes::FUNCTIONS, routes::IN_MEMORY)
}
