//! Where the answers to requests come, and their stream.

use std::{
    borrow::Cow,
    future::pending,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{StreamExt, stream::Stream};
use tokio::sync::watch;

use crate::{
    Consumer, ConsumerOptions, Delivery, Error, ErrorKind, Queue, ReplyMode, Result, Topology,
    Transport,
};

/// How a requester gets its answers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplyOptions {
    /// The queue's name for [`ReplyMode::ExclusiveQueue`]; else what the consumer is called in the
    /// broker's tools.
    pub name: Cow<'static, str>,
    /// By what they come. Default: [`ReplyMode::ExclusiveQueue`].
    pub mode: ReplyMode,
    /// How many answers may be unsettled at once. Default: 1,000. Zero is refused.
    ///
    /// By [`ReplyMode::Direct`] what comes beyond it is lost, so it should be twice what may be under
    /// way: it is renewed when half of it is used.
    pub prefetch: u16,
}

impl ReplyOptions {
    /// The defaults, under this name.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self { name: name.into(), mode: ReplyMode::ExclusiveQueue, prefetch: 1_000 }
    }

    /// Sets [`mode`](Self::mode).
    #[must_use]
    pub const fn with_mode(mut self, mode: ReplyMode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets [`prefetch`](Self::prefetch).
    #[must_use]
    pub const fn with_prefetch(mut self, answers: u16) -> Self {
        self.prefetch = answers;
        self
    }

    /// What a consumer of the answers asks for; for transports.
    #[must_use]
    pub fn consumer(&self) -> ConsumerOptions {
        ConsumerOptions::default().with_prefetch(self.prefetch)
    }
}

/// The answers to requests, as a stream; else as a [`Consumer`].
#[derive(Debug)]
pub struct Replies {
    consumer: Consumer,
    address: ReplyAddress,
}

impl Replies {
    /// Answers that come to `address`; for transports.
    #[must_use]
    pub const fn new(consumer: Consumer, address: ReplyAddress) -> Self {
        Self { consumer, address }
    }

    /// Answers by a queue that is exclusive to the connection; for transports, whose
    /// [`Transport::replies`] does this by default.
    ///
    /// # Errors
    ///
    /// As [`Transport::replies`].
    pub async fn by_exclusive_queue<T>(transport: &T, options: ReplyOptions) -> Result<Self>
    where
        T: Transport + ?Sized,
    {
        if options.mode != ReplyMode::ExclusiveQueue {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "replies",
                "there are no such replies here; take an exclusive queue",
            )
            .with_context("mode", format!("{:?}", options.mode))
            .with_context("url", transport.url().to_owned()));
        }
        let consuming = options.consumer();
        consuming.check()?;
        let name = options.name.to_string();
        let queue = Queue::exclusive(options.name).auto_delete();
        transport.declare(&Topology::new().queue(queue)).await?;
        let consumer = transport.consumer(&name, consuming).await?;
        Ok(Self::new(consumer, ReplyAddress::fixed(name)))
    }

    /// Where they come.
    #[must_use]
    pub const fn address(&self) -> &ReplyAddress {
        &self.address
    }

    /// The next one; as [`Consumer::recv`]. Cancellation safe.
    ///
    /// # Errors
    ///
    /// Inside `Some`, as [`Consumer::recv`].
    pub async fn recv(&mut self) -> Option<Result<Delivery>> {
        self.consumer.recv().await
    }
}

impl Stream for Replies {
    type Item = Result<Delivery>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.consumer.poll_next_unpin(cx)
    }
}

/// The queue that answers go to, as a request has it in [`Message::reply_to`](crate::Message).
///
/// A broker that makes the address makes another after a lost connection; what was sent with the old
/// one is never answered. Cloning shares it.
#[derive(Debug, Clone)]
pub struct ReplyAddress(watch::Receiver<Option<Arc<str>>>);

impl ReplyAddress {
    /// An address that stays.
    pub fn fixed(queue: impl Into<Arc<str>>) -> Self {
        Self(watch::channel(Some(queue.into())).1)
    }

    /// An address that is not known yet, and the means to say it; for transports.
    #[must_use]
    pub fn changing() -> (ReplyAddressSender, Self) {
        let (sender, receiver) = watch::channel(None);
        (ReplyAddressSender(sender), Self(receiver))
    }

    /// The address of the moment. Waits while the connection is lost, when there is none.
    /// Cancellation safe.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`] when the answers have ended and there will be none.
    pub async fn get(&self) -> Result<Arc<str>> {
        let mut watch = self.0.clone();
        let known = watch.wait_for(Option::is_some).await.ok();
        known.and_then(|known| Option::clone(&known)).ok_or_else(|| {
            Error::new(ErrorKind::Closed, "replies", "nobody takes answers any more")
        })
    }

    /// Whether `address` is that of the moment.
    #[must_use]
    pub fn is(&self, address: &str) -> bool {
        self.0.borrow().as_deref() == Some(address)
    }

    /// Waits until it is another than `known`, and gives it; nothing while the connection is lost.
    /// Cancellation safe.
    pub async fn changed(&self, known: Option<&str>) -> Option<Arc<str>> {
        let mut watch = self.0.clone();
        if let Ok(address) = watch.wait_for(|address| address.as_deref() != known).await {
            return Option::clone(&address);
        }
        // It stays as it is.
        pending().await
    }
}

/// Says what a [`ReplyAddress`] is; for transports. When it is dropped, it stays as it is.
#[derive(Debug)]
pub struct ReplyAddressSender(watch::Sender<Option<Arc<str>>>);

impl ReplyAddressSender {
    /// Says the address of the moment, or that there is none.
    pub fn set(&self, address: Option<Arc<str>>) {
        self.0.send_replace(address);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn an_address_is_waited_for_and_is_another_after_a_loss() {
        let (sender, address) = ReplyAddress::changing();
        assert!(address.get().now_or_never().is_none());
        sender.set(Some("first".into()));
        let first = address.get().await.unwrap();
        assert!(address.is("first") && !address.is("second"));
        let mut changed = Box::pin(address.changed(Some(&first)));
        assert!(changed.as_mut().now_or_never().is_none());
        sender.set(None);
        assert_eq!(changed.await, None);
        assert!(!address.is("first") && address.get().now_or_never().is_none());
        sender.set(Some("second".into()));
        assert_eq!(address.changed(None).await.as_deref(), Some("second"));
        sender.set(None);
        drop(sender);
        assert_eq!(address.get().await.unwrap_err().kind(), ErrorKind::Closed);
    }

    #[tokio::test]
    async fn a_fixed_address_stays() {
        let address = ReplyAddress::fixed("mine");
        assert_eq!(&*address.get().await.unwrap(), "mine");
        assert!(address.is("mine"));
        assert!(address.changed(Some("mine")).now_or_never().is_none());
    }
}
