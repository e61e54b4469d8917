//! A stream of deliveries from one queue.

use std::{
    borrow::Cow,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use chrono::{DateTime, Utc};
use futures_util::{
    StreamExt,
    stream::{BoxStream, Stream},
};

use crate::{Delivery, Error, ErrorKind, Result, check_name};

/// Where a consumer of a stream queue begins to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamStart {
    /// With what is published from now on.
    Next,
    /// With the oldest message that is kept.
    First,
    /// With the last part that was written, which may hold more than one message.
    Last,
    /// With the message of this offset, or the next that is kept.
    Offset(u64),
    /// With what was written at this time or later, to the second. Earlier messages of the same
    /// part may come too.
    Time(DateTime<Utc>),
}

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
    /// Where a stream is read from; refused for other queues. After a lost connection it is read
    /// on from the first message that was not settled. Default: [`StreamStart::Next`].
    pub start: Option<StreamStart>,
}

impl Default for ConsumerOptions {
    fn default() -> Self {
        Self { prefetch: 200, name: None, exclusive: false, start: None }
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

    /// Checks what no broker takes; for transports.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a prefetch of zero, and those of [`check_name`].
    pub fn check(&self) -> Result<()> {
        check_name("consume", self.name.as_deref().unwrap_or_default())?;
        if self.prefetch == 0 {
            return Err(Error::new(
                ErrorKind::Invalid,
                "consume",
                "a prefetch of 0 would be no limit; ask for at least 1",
            ));
        }
        Ok(())
    }

    /// Sets [`start`](Self::start).
    #[must_use]
    pub const fn starting_at(mut self, start: StreamStart) -> Self {
        self.start = Some(start);
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
