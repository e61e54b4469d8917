//! What tests of Postrider are made of.
//!
//! * [`behaviour`] is the suite that every transport passes: one async function for each behaviour of
//!   the contract in `postrider-core`, run against a [`Harness`](harness::Harness), which says how
//!   to reach a broker and which faults it can bring about.
//! * [`differential`] runs generated programs on two brokers side by side and compares what is seen.
//! * [`mock`] holds [`MockTransport`](mock::MockTransport) and
//!   [`MockPublisher`](mock::MockPublisher), for unit tests of code that is written against
//!   `&dyn Transport` or `&dyn Publisher`.
//! * [`proxy`] holds [`FaultProxy`](proxy::FaultProxy), which cuts, resets, stalls and slows
//!   connections to a real broker.
//! * `rabbitmq`, with the feature of that name, is the harness of every transport to RabbitMQ, and
//!   compares it with the in-memory broker.
//!
//! # Example: the suite as a test target of a transport
//!
//! With `harness = false` on the test target in `Cargo.toml`, the whole target is
//!
//! ```no_run
//! use std::{process::ExitCode, sync::Arc};
//!
//! use postrider_testkit::{behaviour, harness::Harness};
//!
//! # fn my_harness() -> Arc<dyn Harness> { unreachable!() }
//! fn main() -> ExitCode {
//!     behaviour::main(&[my_harness()])
//! }
//! ```
//!
//! and `cargo test --test behaviour -- priority` runs the behaviours with `priority` in their name.

pub mod behaviour;
pub mod differential;
pub mod harness;
pub mod mock;
pub mod proxy;
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq;
mod runner;
mod scene;

pub use scene::{Reader, Scene};
