use std::{borrow::Cow, time::Duration};

use tokio::time::Instant;

use crate::rpc::RpcError;

/// One call, and the texts of its failures.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) service: Cow<'a, str>,
    pub(super) method: Cow<'a, str>,
    pub(super) queue: String,
    pub(super) timeout: Duration,
    pub(super) until: Instant,
    pub(super) idempotent: bool,
}

impl Call<'_> {
    /// The same call for a task of its own.
    pub(super) fn into_owned(self) -> Call<'static> {
        let Self { service, method, queue, timeout, until, idempotent } = self;
        let (service, method) = (service.into_owned().into(), method.into_owned().into());
        Call { service, method, queue, timeout, until, idempotent }
    }

    fn unavailable(&self, sent: bool, reason: String) -> RpcError {
        RpcError::Unavailable { service: self.service.to_string(), reason, sent }
    }

    /// Before it was sent: the service has no queue.
    pub(super) fn no_queue(&self) -> RpcError {
        self.unavailable(false, format!("nobody serves it (there is no queue '{}')", self.queue))
    }

    /// Before it was sent: the service has no server.
    pub(super) fn no_consumer(&self) -> RpcError {
        let reason = format!("nobody serves it (queue '{}' has no consumer)", self.queue);
        self.unavailable(false, reason)
    }

    /// Its request to all servers of the service found none.
    pub(super) fn no_instance(&self) -> RpcError {
        self.unavailable(false, "none of its servers takes requests to all of them".to_owned())
    }

    /// It had no time left before the broker took it.
    pub(super) fn not_sent_within(&self, time: Duration) -> RpcError {
        let reason = format!("the broker took no request within {time:?}");
        self.unavailable(false, reason)
    }

    /// After it was sent: it lies in a queue that nobody takes from.
    pub(super) fn left(&self) -> RpcError {
        let reason = format!(
            "nobody serves it any more (queue '{}' has no consumer); the request was sent, and a \
             server that returns in time may run it",
            self.queue
        );
        self.unavailable(true, reason)
    }

    /// After it was sent: its queue was deleted.
    pub(super) fn queue_gone(&self) -> RpcError {
        let reason = format!(
            "nobody serves it any more (queue '{}' is gone); the request was sent and may have \
             been handled",
            self.queue
        );
        self.unavailable(true, reason)
    }

    /// After it was sent: no reply came in time.
    pub(super) fn timed_out(&self) -> RpcError {
        RpcError::TimedOut {
            service: self.service.to_string(),
            method: self.method.to_string(),
            after: self.timeout,
        }
    }
}
