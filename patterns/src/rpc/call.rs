use std::time::Duration;

use tokio::time::Instant;

use super::RpcError;

/// One call, and the texts of its failures.
pub(super) struct Call<'a> {
    pub(super) service: &'a str,
    pub(super) method: &'a str,
    pub(super) queue: String,
    pub(super) timeout: Duration,
    pub(super) until: Instant,
}

impl Call<'_> {
    fn unavailable(&self, sent: bool, reason: String) -> RpcError {
        RpcError::Unavailable { service: self.service.to_owned(), reason, sent }
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

    /// It had no time left before the broker took it.
    pub(super) fn not_sent(&self) -> RpcError {
        let reason = format!("the broker took no request within {:?}", self.timeout);
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
            service: self.service.to_owned(),
            method: self.method.to_owned(),
            after: self.timeout,
        }
    }
}
