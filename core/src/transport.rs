//! The connection to one broker.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use crate::{
    Capabilities, Consumer, ConsumerOptions, Env, Health, Plan, Publisher, PublisherOptions,
    QueueInfo, Replies, ReplyOptions, Result, Topology, TransportEvent,
};

/// A connection to one broker, which restores itself when it is lost.
///
/// It is held as `Arc<dyn Transport>`, so that a service picks its broker at run time. When the last
/// handle is dropped, its publishers and consumers included, it closes without time to drain.
///
/// After [`close`](Self::close) every call that needs the broker fails with
/// [`ErrorKind::Closed`](crate::ErrorKind::Closed).
#[async_trait]
pub trait Transport: fmt::Debug + Send + Sync + 'static {
    /// The broker's URL without its secrets, for people.
    fn url(&self) -> &str;

    /// Time, randomness and identity for everything that runs on this transport.
    fn env(&self) -> &Env;

    /// What transport and broker can do.
    fn capabilities(&self) -> &Capabilities;

    /// Says what [`declare`](Self::declare) would do, and changes nothing. Cancellation safe.
    ///
    /// # Errors
    ///
    /// When the broker cannot be asked; a conflict is part of the plan.
    async fn plan(&self, topology: &Topology) -> Result<Plan>;

    /// Creates what is missing of `topology`. It may be called again and again, and what it
    /// declared is restored after a lost connection.
    ///
    /// Not cancellation safe: a part may have been declared. Declaring again completes it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Mismatch`](crate::ErrorKind::Mismatch) when something exists with other
    /// arguments, [`ErrorKind::Locked`](crate::ErrorKind::Locked) for a queue exclusive to another
    /// connection, [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) for a binding whose ends do
    /// not exist, [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) for what no broker takes,
    /// [`ErrorKind::Unauthorized`](crate::ErrorKind::Unauthorized) for names that belong to the
    /// broker, [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable).
    async fn declare(&self, topology: &Topology) -> Result<()>;

    /// Takes away the bindings, queues and exchanges of `topology`, with the messages in them.
    /// What is not there is no error.
    ///
    /// Not cancellation safe: a part may have been removed. Removing again completes it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Locked`](crate::ErrorKind::Locked),
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable).
    async fn remove(&self, topology: &Topology) -> Result<()>;

    /// What a queue holds now; `None` when it does not exist. Cancellation safe.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Locked`](crate::ErrorKind::Locked) for a queue exclusive to another connection,
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable).
    async fn queue_info(&self, queue: &str) -> Result<Option<QueueInfo>>;

    /// Removes the messages that wait in a queue and says how many they were. Unsettled deliveries
    /// stay.
    ///
    /// Not cancellation safe: when the future is dropped, it may have been purged.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound),
    /// [`ErrorKind::Locked`](crate::ErrorKind::Locked),
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable).
    async fn purge(&self, queue: &str) -> Result<u64>;

    /// Opens a publisher. Cancellation safe.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) for options out of range,
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable),
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed).
    async fn publisher(&self, options: PublisherOptions) -> Result<Arc<dyn Publisher>>;

    /// Begins to consume a queue. Cancellation safe: a consumer that nobody gets is stopped.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) when the queue does not exist,
    /// [`ErrorKind::Locked`](crate::ErrorKind::Locked) when another connection or an exclusive
    /// consumer has it, [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) for options out of range,
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable),
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed).
    async fn consumer(&self, queue: &str, options: ConsumerOptions) -> Result<Consumer>;

    /// Begins to take the answers to requests, at an address of its own. Cancellation safe: answers
    /// that nobody gets are not taken any more.
    ///
    /// By default it declares the queue and consumes it; what else a broker has is its transport's.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for a mode that broker or transport
    /// has not, and those of [`declare`](Self::declare) and [`consumer`](Self::consumer).
    async fn replies(&self, options: ReplyOptions) -> Result<Replies> {
        Replies::by_exclusive_queue(self, options).await
    }

    /// What happens to this transport from now on.
    fn events(&self) -> BoxStream<'static, TransportEvent>;

    /// How it fares now.
    fn health(&self) -> Health;

    /// Stops consuming, waits for unsettled deliveries and for verdicts up to `deadline`, and
    /// closes. Until then publishes are taken, so that handlers can finish what they have in hand. What is
    /// unsettled then goes back to its queue, and so does, at once, what consumers had in advance. Where
    /// the broker does not answer, it may take three seconds more. A second call returns at once.
    ///
    /// When the future is dropped, the transport stays as far as it got: it consumes no more and is
    /// closed when its last handle is dropped.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut) when something was left at the
    /// deadline; the transport is closed all the same.
    async fn close(&self, deadline: Duration) -> Result<()>;
}
