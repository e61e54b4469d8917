//! Several servers, subscriptions and workers in one process: started together, watched, drained.
//!
//! A [`Service`] shows its [plan](Service::plan) before it starts and refuses what is unsafe, with
//! the reason, before anything is declared. It starts all of its parts or none. Its
//! [health](ServiceMonitor) comes from what the consume loops really do: a part that ended is named
//! with its error for ever, and one that gets nothing while messages wait for it and it has room is
//! stalled. When it is stopped, all parts
//! stop taking messages first, and then drain within one deadline; the report says of each part
//! what it could not finish.
//!
//! It can [announce](Service::announce) itself to the registries of discovery, where it fares as its
//! parts do.
//!
//! With the feature `admin` it answers `/health`, `/ready` and `/metrics` over HTTP.
//!
//! # Example: two parts, their plan, and a stop
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use postrider_core::Transport;
//! use postrider_patterns::{RpcServer, Service, Task, Worker};
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
//! let emails = Worker::new("send_email").on(|_task: SendEmail, _context| async { Ok(()) });
//! let calls = RpcServer::new("mail")
//!     .method_named("ping", |(): (), _context| async { Ok("pong") });
//! let service = Service::new("mail", &transport)
//!     .worker(emails)
//!     .rpc(calls)
//!     .stop_deadline(Duration::from_secs(5));
//! let plan = service.plan()?;
//! assert_eq!(plan.parts[0].queues, ["send_email"]);
//! println!("{plan}");
//! let running = service.start().await?;
//! assert!(running.monitor().health().is_ready());
//! // In a real program: `running.run_until_signal().await?`.
//! let report = running.run_until(async {}).await;
//! assert!(report.is_clean());
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "admin")]
mod admin;
mod announced;
mod check;
mod health;
mod host;
mod part;
mod plan;
mod running;
mod signals;

pub use health::{PartHealth, PartState, ServiceHealth, ServiceMonitor, ServicePhase};
pub use host::Service;
pub use plan::{PartPlan, ServicePlan};
pub use running::{PartReport, RunningService, ServiceReport};
