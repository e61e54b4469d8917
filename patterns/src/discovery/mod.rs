//! Who is there: services announce themselves over the broker, and everybody can know them.
//!
//! Each instance of a service holds an [`Announcer`]: name, version, methods, metadata and health
//! are told at the start, with each change, with each heartbeat and to everybody who asks. A
//! [`Registry`] has the live instances of all services or of some, tells what changes, and picks
//! one.
//!
//! - **Who leaves is gone at once, who dies when the lease is over**, by the registry's own clock
//!   from when it heard of it last (plus a second); clocks of machines are never compared. An old
//!   heartbeat brings nobody back who left.
//! - **A newcomer asks**, and knows everybody about half a second later.
//! - **A registry knows whether it hears.** When its connection is lost or the broker stands still,
//!   it takes nobody for dead. It says that it is [out of touch](RegistryState::OutOfTouch);
//!   afterwards it asks again, and all leases begin anew.
//! - **It is bounded**, and what makes no sense is counted and left. It trusts what makes sense:
//!   who may publish to the exchange may announce anything.
//!
//! Nothing is stored: a broker that is started anew knows everybody when they are connected again.
//!
//! # Example: two instances, one of them picked
//!
//! ```
//! use std::sync::Arc;
//! use postrider_core::Transport;
//! use postrider_patterns::discovery::{Announcement, Pick, Registry, Version, VersionReq};
//! use postrider_transport_inmemory::InMemory;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let transport: Arc<dyn Transport> = Arc::new(InMemory::connect("memory://")?);
//! let old = Announcement::new("inventory", Version::new(1, 4, 0)).start(&transport).await?;
//! let new = Announcement::new("inventory", Version::new(2, 0, 0))
//!     .methods(["reserve"])
//!     .metadata("zone", "north")
//!     .start(&transport)
//!     .await?;
//!
//! let registry = Registry::new(&transport).await?;
//! registry.current().await?;
//! assert_eq!(registry.instances("inventory").len(), 2);
//! let pick = Pick::round_robin().version(VersionReq::parse("^2")?);
//! let picked = registry.pick("inventory", &pick).ok_or("nobody")?;
//! assert_eq!((&*picked.id, &*picked.metadata["zone"]), (new.id(), "north"));
//!
//! new.leave().await?;
//! old.leave().await?;
//! # Ok(())
//! # }
//! ```

mod announcement;
mod announcing;
mod changes;
mod following;
mod instance;
mod pick;
mod registry;
mod roster;
mod wire;

pub use announcement::{Announcement, Announcer};
pub use changes::{Change, Changes};
pub use instance::{Instance, InstanceHealth};
pub use pick::{Pick, Picked};
pub use registry::{Registry, RegistryBuilder, RegistryState, RegistryStats};
pub use semver::{Version, VersionReq};
