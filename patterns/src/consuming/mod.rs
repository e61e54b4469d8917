//! The one consume loop under every server, subscription and worker.
//!
//! It guarantees that a message is settled only after its handler is done, that no more handlers
//! run at once than the concurrency allows, that a panic is caught, and that stopping drains: first
//! no new messages, then the handlers in hand up to a deadline, then the rest goes back to the
//! queue uncounted.
//!
//! # Example: a worker that is stopped
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use postrider_core::Transport;
//! use postrider_patterns::{Task, Worker};
//! use postrider_transport_inmemory::InMemory;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct SendEmail { to: String }
//! impl Task for SendEmail { const TYPE: &'static str = "send_email"; }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let transport: Arc<dyn Transport> = Arc::new(InMemory::connect("memory://")?);
//! let running = Worker::new("send_email")
//!     .on(|_task: SendEmail, _context| async { Ok(()) })
//!     .concurrency(8)
//!     .start(&transport)
//!     .await?;
//! assert!(running.is_running());
//! let report = running.stop(Duration::from_secs(5)).await;
//! assert_eq!(report.released, 0);
//! # Ok(())
//! # }
//! ```

mod counters;
mod held;
mod lanes;
mod ordered;
mod outline;
mod parking;
mod runner;
mod running;
mod shared;

pub(crate) use counters::{Count, Counters};
pub use counters::{Outcome, RunStats};
pub(crate) use ordered::{LONGEST_BLOCK, Order};
pub(crate) use outline::Outline;
pub use parking::KeyFailure;
pub(crate) use parking::{MOST_LETTERS, Parking, drain, is_drain, parked_key};
pub(crate) use runner::{Disposition, Process, Runner, Settings, catch_panic};
pub(crate) use running::{Gauge, State};
pub use running::{Running, StopReport};
pub(crate) use shared::Shared;
