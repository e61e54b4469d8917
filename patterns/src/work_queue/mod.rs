//! Tasks: submitted once, done by one of many workers.
//!
//! A [`WorkQueue`] submits typed tasks to durable queues; [`Worker`]s take them from there, as many
//! at once as they are told. A task that was submitted is kept until a worker is done with it, also
//! when no worker exists yet. It is done at least once; what fails is retried by policy and then
//! kept in the dead-letter queue, and so is what no worker understands and what expired.
//!
//! A submitter that wants to hear of a task keeps its [`TaskHandle`]: status, progress, result, and
//! the means to call it off.
//!
//! # Example: a task and its worker
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use postrider_core::Transport;
//! use postrider_patterns::{SubmitOptions, Task, WorkQueue, Worker};
//! use postrider_transport_inmemory::InMemory;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct SendEmail { to: String }
//!
//! impl Task for SendEmail {
//!     const TYPE: &'static str = "send_email";
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let transport: Arc<dyn Transport> = Arc::new(InMemory::connect("memory://")?);
//! let tasks = WorkQueue::new(&transport).await?;
//! tasks.submit(&SendEmail { to: "ann@example.org".into() }).await?;
//! let urgent = SubmitOptions::default().with_priority(9);
//! tasks.submit_with(&SendEmail { to: "ben@example.org".into() }, urgent).await?;
//!
//! let (sent, mut outbox) = tokio::sync::mpsc::channel(8);
//! let running = Worker::new("send_email")
//!     .on(move |task: SendEmail, _context| {
//!         let sent = sent.clone();
//!         async move { Ok(sent.send(task.to).await?) }
//!     })
//!     .concurrency(1)
//!     .start(&transport)
//!     .await?;
//! assert_eq!(outbox.recv().await.as_deref(), Some("ben@example.org"));
//! assert_eq!(outbox.recv().await.as_deref(), Some("ann@example.org"));
//! running.stop(Duration::from_secs(5)).await;
//! # Ok(())
//! # }
//! ```

mod control;
mod handle;
mod options;
mod queue;
mod report;
mod reporting;
mod status;
mod task;
mod tracked;
mod tracking;
mod unique;
mod wire;
mod work;
mod worker;

pub use handle::TaskHandle;
pub use options::SubmitOptions;
pub use queue::{WorkQueue, WorkQueueBuilder};
pub(crate) use reporting::ProgressReports;
pub use status::{TaskError, TaskProgress, TaskState, TaskStatus};
pub use task::{Task, TaskWithResult};
pub use worker::Worker;

/// The priority of a task that is given none: the default of AMQP.
pub const DEFAULT_PRIORITY: u8 = 4;
