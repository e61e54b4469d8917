//! The workloads that are measured, each beside its twin: the same work on what Postrider is built
//! on.
//!
//! - `cargo run --release -p postrider-benches --bin compare`: the in-memory broker beside tokio's
//!   channels;
//! - `cargo run --release -p postrider-benches --features live-broker --bin rabbitmq`: RabbitMQ
//!   through Postrider beside lapin, on the broker of `POSTRIDER_AMQP_URL`;
//! - `cargo run --release -p postrider-benches --features live-broker --bin streams`: a gigabyte as a
//!   stream beside the same bytes as plain messages, with the memory of each side. All run
//!   interleaved rounds, see [`rounds`].

pub mod echo;
pub mod in_memory;
#[cfg(feature = "live-broker")]
pub mod rabbitmq;
pub mod rounds;

/// The body of every message: 256 bytes.
/// It is copied for each, as a program makes a new body for each message.
pub(crate) static BODY: [u8; 256] = [b'x'; 256];
