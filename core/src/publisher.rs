//! Publishing in two phases: send, then the verdict.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use futures_util::stream::{Stream, StreamExt};

use crate::{Confirm, Envelope, Result, Verdict};

/// How a publisher behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublisherOptions {
    /// How many messages may be sent and without a verdict at once. Default: 1,000. Zero is
    /// refused.
    pub window: usize,
    /// How long a send waits for room, for a lost connection or for a broker that takes no
    /// publishes, and how long its verdict may take. Default: 30 seconds.
    pub timeout: Duration,
}

impl Default for PublisherOptions {
    fn default() -> Self {
        Self { window: 1_000, timeout: Duration::from_secs(30) }
    }
}

impl PublisherOptions {
    /// Sets [`window`](Self::window).
    #[must_use]
    pub const fn with_window(mut self, messages: usize) -> Self {
        self.window = messages;
        self
    }

    /// Sets [`timeout`](Self::timeout).
    #[must_use]
    pub const fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

/// Sends messages to any address; shared by as many tasks as like. For implementers: users call
/// [`PublisherExt`] too.
#[async_trait]
pub trait Publisher: fmt::Debug + Send + Sync + 'static {
    /// Sends one message; waits only for room in the window. The [`Confirm`] gives the broker's
    /// verdict on this very message, whatever else is under way.
    ///
    /// Not cancellation safe: when the future is dropped, the message may have been sent.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) for names, sizes or times outside the
    /// protocol's limits, [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) when it could
    /// not be sent in time, [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for a delay
    /// that the broker has no means for, [`ErrorKind::Closed`](crate::ErrorKind::Closed). Nothing
    /// was sent then.
    async fn send(&self, envelope: Envelope) -> Result<Confirm>;

    /// Sends several messages in their order, as one step where the client has one.
    ///
    /// Not cancellation safe, as [`send`](Self::send).
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), and then none was sent: what goes wrong with a message later is
    /// told by its own confirm.
    async fn send_batch(&self, envelopes: Vec<Envelope>) -> Result<Vec<Confirm>>;

    /// Waits until every message sent before has its verdict. Cancellation safe.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut) after the publisher's timeout.
    async fn flush(&self) -> Result<()>;
}

/// What users call on a [`Publisher`]. Implemented for all of them; do not implement it.
pub trait PublisherExt: Publisher {
    /// Sends a message and waits for its verdict.
    ///
    /// Not cancellation safe: when the future is dropped, the message may have been sent.
    ///
    /// # Errors
    ///
    /// Those of [`Publisher::send`], and every verdict but `Accepted`, as
    /// [`Verdict::into_result`] gives it.
    fn publish(&self, envelope: Envelope) -> impl Future<Output = Result<()>> + Send {
        async move {
            let address = envelope.address.clone();
            self.send(envelope)
                .await?
                .await
                .into_result()
                .map_err(|error| error.with_context("address", address.to_string()))
        }
    }

    /// Sends a stream of messages with up to `window` verdicts outstanding (at least one), and
    /// gives the verdicts in the messages' order.
    fn publish_all<'a, S>(
        &'a self,
        envelopes: S,
        window: usize,
    ) -> impl Stream<Item = Result<Verdict>> + Send + 'a
    where
        S: Stream<Item = Envelope> + Send + 'a,
    {
        envelopes
            .then(move |envelope| self.send(envelope))
            .map(|sent| async move {
                match sent {
                    Ok(confirm) => Ok(confirm.await),
                    Err(error) => Err(error),
                }
            })
            .buffered(window.max(1))
    }
}

impl<P: Publisher + ?Sized> PublisherExt for P {}
