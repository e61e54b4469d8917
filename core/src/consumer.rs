//! A stream of deliveries from one queue.

use std::{
    borrow::Cow,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::{
    StreamExt,
    stream::{BoxStream, Stream},
};

use crate::{Delivery, Result};

/// How a queue is consumed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerOptions {
    /// How many deliveries may be unsettled at once. Default: 200. Zero is refused.
    pub prefetch: u16,
    /// A name for the consumer in the broker's tools. Default: one is made.
    pub name: Option<Cow<'static, str>>,
    /// Whether the queue is refused to every other consumer. Default: false.
    pub exclusive: bool,
}

impl Default for ConsumerOptions {
    fn default() -> Self {
        Self { prefetch: 200, name: None, exclusive: false }
    }
}

impl ConsumerOptions {
    /// Sets [`prefetch`](Self::prefetch).
    #[must_use]
    pub const fn with_prefetch(mut self, deliveries: u16) -> Self {
        self.prefetch = deliveries;
        self
    }

    /// Sets [`name`](Self::name).
    #[must_use]
    pub fn with_name(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets [`exclusive`](Self::exclusive).
    #[must_use]
    pub const fn exclusive(mut self) -> Self {
        self.exclusive = true;
        self
    }
}

/// The deliveries of one queue, as a stream.
///
/// It goes on over lost connections. It ends after the transport was closed, or after an error
/// that says why, such as a queue that was deleted.
///
/// Dropping it stops consuming: what it had taken in advance goes back to the queue, and deliveries
/// already handed out can still be settled.
pub struct Consumer(BoxStream<'static, Result<Delivery>>);

impl Consumer {
    /// A consumer over a transport's stream, which must stop consuming when it is dropped.
    pub fn new(deliveries: impl Stream<Item = Result<Delivery>> + Send + 'static) -> Self {
        Self(deliveries.boxed())
    }

    /// The next delivery, or `None` when the consumer has ended.
    ///
    /// Cancellation safe: a call given up takes no delivery with it.
    ///
    /// # Errors
    ///
    /// Inside `Some`: why consuming ended, for example
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) for a queue that was deleted. `None`
    /// follows.
    pub async fn recv(&mut self) -> Option<Result<Delivery>> {
        self.0.next().await
    }
}

impl Stream for Consumer {
    type Item = Result<Delivery>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx)
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").finish_non_exhaustive()
    }
}
