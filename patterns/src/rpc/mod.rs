//! Calls: a request to a service, a reply to its caller.
//!
//! An [`RpcClient`] multiplexes any number of calls over one reply queue; an [`RpcServer`] runs the
//! methods of a service. Every call ends: with its reply, with the error that the service gave, at
//! once with [`RpcError::Unavailable`] when nobody serves it (within half a second or so when the
//! last server has just gone), or with [`RpcError::TimedOut`]. A call that was given up leaves
//! nothing behind, and its server is told. Requests are handled at least once: one that is delivered
//! again after a crash, or whose reply could not be published, is run again, unless its method is
//! idempotent and the reply is in the server's [`Inbox`].
//!
//! | to | by |
//! |---|---|
//! | call and wait | [`RpcClient::call`] |
//! | begin a call and wait later | [`RpcClient::call_async`] |
//! | make many calls with one deadline | [`RpcClient::call_batch`] |
//! | ask every server, or several services | [`RpcClient::gather`], [`RpcClient::gather_from`] |
//! | take a reply of many items | [`RpcClient::call_stream`] |
//!
//! # Example: a service and a call
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use postrider_core::Transport;
//! use postrider_patterns::{HandlerError, Request, RpcClient, RpcServer};
//! use postrider_transport_inmemory::InMemory;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Reserve { sku: String, quantity: u32 }
//!
//! impl Request for Reserve {
//!     const METHOD: &'static str = "reserve";
//!     type Reply = u32;
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let transport: Arc<dyn Transport> = Arc::new(InMemory::connect("memory://")?);
//! let server = RpcServer::new("inventory")
//!     .method(|request: Reserve, _context| async move {
//!         if request.quantity > 20 {
//!             return Err(HandlerError::rejected("OUT_OF_STOCK", "20 are left"));
//!         }
//!         Ok(20 - request.quantity)
//!     })
//!     .start(&transport)
//!     .await?;
//!
//! let client = RpcClient::new(&transport).await?;
//! let left = client.call("inventory", &Reserve { sku: "cd-1".into(), quantity: 3 }).await?;
//! assert_eq!(left, 17);
//! server.stop(Duration::from_secs(5)).await;
//! # Ok(())
//! # }
//! ```

mod client;
mod control;
mod domain_error;
mod error;
mod request;
mod server;
mod wire;

use postrider_core::{Error, ErrorKind, Result};

use crate::codec::Limits;

pub use client::{
    Answer, BatchOptions, CallHandle, CallOptions, Gather, GatherFailure, Gathered, ReplyStream,
    RpcClient, RpcClientBuilder, RpcClientStats, StreamOptions,
};
pub(crate) use domain_error::Detail;
pub use domain_error::{DomainError, RejectionDetail};
pub use error::RpcError;
pub use request::Request;
pub use server::{
    Claim, InMemoryInbox, Inbox, InboxKey, MethodDescription, RpcServer, ServiceDescription,
    StoredReply,
};

/// Refuses limits within which nothing could be written.
fn check_limits(operation: &'static str, limits: Limits) -> Result<()> {
    if limits.max_body_bytes > 0 {
        return Ok(());
    }
    let why = "max_body_bytes is at least 1; with 0 no request or reply could be written";
    Err(Error::new(ErrorKind::Invalid, operation, why))
}
