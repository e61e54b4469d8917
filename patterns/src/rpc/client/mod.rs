mod batch;
mod builder;
mod call;
mod exchange;
mod gather;
mod handle;
mod options;
mod outbox;
mod pending;
mod presence;
mod stream;

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use postrider_core::{Result, Transport};
use serde::{Serialize, de::DeserializeOwned};

use self::exchange::Inner;
pub use self::{
    batch::BatchOptions,
    builder::RpcClientBuilder,
    gather::{Answer, Gather, GatherFailure, Gathered},
    handle::CallHandle,
    options::CallOptions,
    stream::{ReplyStream, StreamOptions},
};
use super::{Request, RpcError, wire};

/// The longest a call may take; a longer timeout is cut to it.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Calls services. It has one reply queue for all of its calls; cloning shares it.
///
/// When the connection is lost, calls whose requests were sent end with [`RpcError::Unknown`], or
/// are sent again where they are idempotent; the client itself goes on as soon as the transport is
/// restored.
#[derive(Debug, Clone)]
pub struct RpcClient {
    inner: Arc<Inner>,
}

/// What an [`RpcClient`] has in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RpcClientStats {
    /// Calls that wait for their replies.
    pub in_flight: usize,
    /// Replies that came when nobody waited for them any more.
    pub late_replies: u64,
    /// Idempotent requests that were sent again because their outcome was unknown.
    pub sent_again: u64,
}

impl RpcClient {
    /// A client with the defaults of [`RpcClientBuilder`]. Cancellation safe, as
    /// [`RpcClientBuilder::connect`].
    ///
    /// # Errors
    ///
    /// As [`RpcClientBuilder::connect`].
    pub async fn new(transport: &Arc<dyn Transport>) -> Result<Self> {
        Self::builder(transport).connect().await
    }

    /// A client to be set up.
    pub fn builder(transport: &Arc<dyn Transport>) -> RpcClientBuilder {
        RpcClientBuilder::new(transport)
    }

    /// Calls the method of `request` at `service` and waits for its reply.
    ///
    /// A service that nobody serves is told before anything is sent; what was heard of a service
    /// counts for 5 seconds. One whose last server went away meanwhile is noticed after 500
    /// milliseconds without a reply, or at the next look: 1, 2, 4 and then every 5 seconds later. A
    /// server that is stopping may still answer what it has in hand, and is waited for.
    ///
    /// When the future is dropped, the call is given up and its server is told: a request that is
    /// not handled yet is not handled at all, and the handler of one that is sees it by
    /// [`Context::cancellation`](crate::Context::cancellation).
    ///
    /// # Errors
    ///
    /// [`RpcError`], whose cases say what is known about the request:
    /// [`Unavailable`](RpcError::Unavailable) when nobody serves it or it could not be sent in time,
    /// [`TimedOut`](RpcError::TimedOut) when it was sent and no reply came in time.
    pub async fn call<R: Request>(&self, service: &str, request: &R) -> Result<R::Reply, RpcError> {
        self.call_with(service, request, CallOptions::default()).await
    }

    /// Calls with options; else as [`call`](Self::call).
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub async fn call_with<R: Request>(
        &self,
        service: &str,
        request: &R,
        options: CallOptions,
    ) -> Result<R::Reply, RpcError> {
        self.call_named(service, R::METHOD, request, of_type::<R>(options)).await
    }

    /// Calls a method by its name, for services whose requests have no type here; else as
    /// [`call`](Self::call).
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub async fn call_named<P, R>(
        &self,
        service: &str,
        method: &str,
        params: &P,
        options: CallOptions,
    ) -> Result<R, RpcError>
    where
        P: Serialize + Sync + ?Sized,
        R: DeserializeOwned,
    {
        let inner = &*self.inner;
        let call = inner.call(service, method, &options)?;
        let request = inner.request(&call, params, &options)?;
        let reply = inner.exchange(&call, request, options.parent.as_ref()).await?;
        wire::decode_reply(&reply.message, inner.limits)
    }

    /// What the client has in hand.
    #[must_use]
    pub fn stats(&self) -> RpcClientStats {
        RpcClientStats {
            in_flight: self.inner.pending.in_flight(),
            late_replies: self.inner.pending.late_replies(),
            sent_again: self.inner.sent_again.load(Ordering::Relaxed),
        }
    }
}

/// What a request's type says about the call of it, unless the options say otherwise.
fn of_type<R: Request>(mut options: CallOptions) -> CallOptions {
    options.idempotent.get_or_insert(R::IDEMPOTENT);
    options
}

impl fmt::Display for RpcClientStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} calls in flight, {} late replies, {} sent again",
            self.in_flight, self.late_replies, self.sent_again
        )
    }
}
