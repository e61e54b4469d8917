//! The dead letters of a queue: seen, counted, moved back, thrown away, kept as tests.
//!
//! [`DeadLetters`] looks at what a queue's handlers, or the broker, gave up. Looking takes nothing
//! away and leaves the order as it was; on RabbitMQ 4.0, what was looked at goes behind the rest.
//! [`redrive`](DeadLetters::redrive) publishes dead letters again, as they were before they failed,
//! and takes each from the dead letters when the broker has it; [`discard`](DeadLetters::discard)
//! takes them away for good. A [`DeadLetterFilter`] says which are meant, and what it does not
//! match stays where it is. Every run ends: it sees at most what is there when it begins, so that
//! what fails again at once is not moved again.
//!
//! # Example: a bug was fixed, its victims are tried again
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use postrider_core::Transport;
//! use postrider_patterns::{
//!     DeadLetterFilter, DeadLetters, ErrorClass, HandlerError, RedriveOptions, Task, WorkQueue,
//!     Worker,
//! };
//! use postrider_transport_inmemory::InMemory;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Convert { amount: u32, currency: String }
//! impl Task for Convert { const TYPE: &'static str = "convert"; }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let transport: Arc<dyn Transport> = Arc::new(InMemory::connect("memory://")?);
//! let tasks = WorkQueue::new(&transport).await?;
//! let buggy = Worker::new("convert")
//!     .on(|task: Convert, _| async move {
//!         Err(HandlerError::invalid(format!("what is {}?", task.currency)))
//!     })
//!     .start(&transport)
//!     .await?;
//! tasks.submit(&Convert { amount: 7, currency: "EUR".into() }).await?;
//!
//! let letters = DeadLetters::of(&transport, buggy.queue());
//! while letters.count().await? == 0 {
//!     tokio::time::sleep(Duration::from_millis(1)).await;
//! }
//! for dead in letters.peek(10).await? {
//!     assert_eq!(dead.class(), Some(ErrorClass::Invalid));
//!     assert_eq!(dead.error(), Some("what is EUR?"));
//! }
//! buggy.stop(Duration::from_secs(5)).await;
//!
//! let filter = DeadLetterFilter::all().class(ErrorClass::Invalid);
//! let report = letters.redrive(&filter, RedriveOptions::default()).await?;
//! assert_eq!((report.done, report.stayed), (1, 0));
//! assert_eq!(letters.count().await?, 0);
//! # Ok(())
//! # }
//! ```

mod death;
mod filter;
mod fixture;
mod message;
mod redrive;
mod walk;

use std::sync::Arc;

use postrider_core::{
    Address, Envelope, Error, ErrorKind, PublisherExt, PublisherOptions, Result, Transport,
};
use tokio::time::Instant;

pub use self::{
    death::{DeadReason, Death},
    filter::DeadLetterFilter,
    message::DeadMessage,
    redrive::{DeadLetterReport, RedriveOptions},
};
use self::{redrive::Redriving, walk::Walk};
use crate::{naming::Naming, resilience::dead_letter_topology};

/// The dead letters of one queue.
///
/// Whatever it does holds dead letters in hand until it ends, and meanwhile nobody else sees those.
/// A run should be done within the consumer timeout of the broker, which on RabbitMQ is 30 minutes.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    transport: Arc<dyn Transport>,
    naming: Naming,
    /// Whose dead letters.
    of: String,
    /// Where they are.
    queue: String,
    window: u16,
}

impl DeadLetters {
    /// The dead letters of `queue`, the queue that [`Running::queue`](crate::Running::queue) tells.
    /// For an ephemeral subscription, of its name.
    #[must_use]
    pub fn of(transport: &Arc<dyn Transport>, queue: impl Into<String>) -> Self {
        let (naming, of) = (Naming::default(), queue.into());
        let queue = naming.dead_letter_queue(&of);
        Self { transport: Arc::clone(transport), naming, of, queue, window: 1_000 }
    }

    /// Sets the names of queues. Default: those of the wire format.
    #[must_use]
    pub fn with_naming(mut self, naming: Naming) -> Self {
        self.queue = naming.dead_letter_queue(&self.of);
        self.naming = naming;
        self
    }

    /// Sets how many dead letters are in hand, and in memory, at once. Default: 1,000.
    ///
    /// What a filter does not match is in hand until the run ends. When there is no room for more,
    /// the run ends and reports how many it did not see. 0 is taken for 1.
    #[must_use]
    pub fn with_window(mut self, letters: u16) -> Self {
        self.window = letters.max(1);
        self
    }

    /// The queue whose dead letters they are.
    pub(crate) fn home_queue(&self) -> &str {
        &self.of
    }

    pub(crate) fn now(&self) -> Instant {
        self.transport.env().now()
    }

    /// The queue that they are in.
    #[must_use]
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// The queue that a dead letter goes back to: the one that the broker or Postrider noted, where
    /// its dead letters do come here. Whoever may publish can write any other name.
    fn home(&self, dead: &DeadMessage) -> Option<String> {
        let by_broker = dead.deaths().into_iter().next().map(|death| death.queue);
        let mut noted = by_broker.into_iter().chain(dead.noted_queue().map(str::to_owned));
        noted.find(|queue| self.naming.dead_letter_queue(queue) == self.queue)
    }

    /// How many there are, without those that somebody has in hand. Cancellation safe.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] when no such queue was ever declared, and what
    /// [`Transport::queue_info`] fails with.
    pub async fn count(&self) -> Result<u64> {
        match self.transport.queue_info(&self.queue).await? {
            Some(info) => Ok(info.ready),
            None => {
                let why = "there is no such queue of dead letters";
                Err(Error::new(ErrorKind::NotFound, "dead letters", why)
                    .with_context("queue", self.queue.clone()))
            }
        }
    }

    /// The first `most` of them, at most as many as the [window](Self::with_window), in their
    /// order. They stay where they are.
    ///
    /// Cancellation safe: when the future is dropped, all go back.
    ///
    /// # Errors
    ///
    /// Those of [`count`](Self::count) and [`Transport::consumer`]; [`ErrorKind::TimedOut`] when
    /// for 30 seconds none comes of those that there are; [`ErrorKind::Closed`].
    pub async fn peek(&self, most: u16) -> Result<Vec<DeadMessage>> {
        self.look(&DeadLetterFilter::all(), most.min(self.window)).await
    }

    /// Those that match, of the first that the [window](Self::with_window) has room for, in their
    /// order. They stay where they are.
    ///
    /// Cancellation safe, as [`peek`](Self::peek).
    ///
    /// # Errors
    ///
    /// As [`peek`](Self::peek).
    pub async fn list(&self, filter: &DeadLetterFilter) -> Result<Vec<DeadMessage>> {
        self.look(filter, self.window).await
    }

    async fn look(&self, filter: &DeadLetterFilter, window: u16) -> Result<Vec<DeadMessage>> {
        let mut walk = Walk::begin(self, window).await?;
        let mut found = Vec::new();
        while let Some(letter) = walk.next().await? {
            let dead = DeadMessage::new(Arc::clone(letter.delivery.envelope()));
            if filter.matches(&dead) {
                found.push(dead);
            }
            walk.stays(letter);
        }
        walk.end().await;
        Ok(found)
    }

    /// Publishes those that match once more, as they were before they failed
    /// ([`DeadMessage::original`]), and takes each away when the broker has it. Message id and
    /// idempotency key stay the same; attempts are counted anew. What cannot be published stays,
    /// and is reported.
    ///
    /// At least once: when the connection is lost in between, or the verdict on a publish, a
    /// message may have been published and be a dead letter still, or again. The run goes on when
    /// the connection is back.
    ///
    /// Not cancellation safe: when the future is dropped, what is under way, at most 64 messages,
    /// may have been published and go back as well. Nothing is lost.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for options out of range, and what ends a run: what
    /// [`peek`](Self::peek) fails with, and a publisher that cannot send. How many were moved
    /// before is in the context of the error.
    pub async fn redrive(
        &self,
        filter: &DeadLetterFilter,
        options: RedriveOptions,
    ) -> Result<DeadLetterReport> {
        options.check()?;
        Redriving::begin(self, options).await?.run(filter).await
    }

    /// Throws away those that match. Cancellation safe: what was not thrown away yet stays.
    ///
    /// A connection that is lost in between brings back what the broker has not heard of.
    ///
    /// # Errors
    ///
    /// As [`peek`](Self::peek).
    pub async fn discard(&self, filter: &DeadLetterFilter) -> Result<DeadLetterReport> {
        let mut report = DeadLetterReport::default();
        let mut walk = Walk::begin(self, self.window).await?;
        while let Some(letter) = walk.next().await? {
            if filter.matches(&DeadMessage::new(Arc::clone(letter.delivery.envelope()))) {
                letter.delivery.ack();
                report.done += 1;
            } else {
                walk.stays(letter);
                report.stayed += 1;
            }
        }
        report.unseen = walk.end().await;
        Ok(report)
    }

    /// Puts a dead letter here as it is, with its reason: one that was read from a file, or comes
    /// from another broker. The queue is declared where it is missing.
    ///
    /// Not cancellation safe: when the future is dropped, it may have been put here.
    ///
    /// # Errors
    ///
    /// What [`Transport::declare`] and publishing fail with; after [`ErrorKind::Unknown`] it may be
    /// here all the same.
    pub async fn import(&self, dead: &DeadMessage) -> Result<()> {
        self.transport.declare(&dead_letter_topology(&self.naming, &self.of)).await?;
        let publisher = self.transport.publisher(PublisherOptions::default()).await?;
        let message = dead.message().clone();
        publisher.publish(Envelope::new(Address::queue(self.queue.clone()), message)).await
    }
}

#[cfg(test)]
mod tests {
    use postrider_core::{HeaderValue, Headers, Message};
    use postrider_transport_inmemory::InMemory;

    use super::*;
    use crate::headers;

    fn home(origin: &str, died_in: Option<&str>) -> Option<String> {
        let transport: Arc<dyn Transport> = Arc::new(InMemory::connect("memory://").unwrap());
        let mut message = Message::new("").with_header(headers::ORIGIN_QUEUE, origin.to_owned());
        if let Some(queue) = died_in {
            let death: Headers =
                [("queue", HeaderValue::from(queue.to_owned())), ("reason", "expired".into())]
                    .into_iter()
                    .collect();
            message.headers.set("x-death", vec![HeaderValue::Map(death)]);
        }
        let dead = DeadMessage::new(Arc::new(Envelope::new(Address::queue("d"), message)));
        DeadLetters::of(&transport, "orders").home(&dead)
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_letter_goes_home_and_nowhere_else() {
        let orders = Some("orders".to_owned());
        assert_eq!(home("orders", None), orders);
        assert_eq!(home("payroll", None), None);
        assert_eq!(home("payroll", Some("orders")), orders);
        assert_eq!(home("payroll", Some("audit")), None);
        assert_eq!(home("orders", Some("audit")), orders);
        assert_eq!(home("orders.partition.3", None), None);
    }
}
