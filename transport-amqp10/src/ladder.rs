//! The delay queues of a connection: see [`postrider_rabbitmq::delay`].

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use postrider_core::{
    Address, Delay, Envelope, Error, ErrorKind, PublisherOptions, Result, Verdict,
};
use postrider_rabbitmq::delay::{self, Retried};
use tokio::time::{Instant, sleep};

use crate::{admin::Admin, link::Link, message::Delivered, publisher::Sender};

/// For how long a rung that was declared is used without declaring it again.
const FRESH: Duration = Duration::from_secs(30);

/// How long after its rung was looked at a message may be sent.
const LATEST_SEND: Duration = Duration::from_secs(500);

/// How long a failed message is held here at most, when a delay is not to be had of the broker.
const LONGEST_HOLD: Duration = Duration::from_secs(30);

/// How many rungs are remembered.
const REMEMBERED: usize = 1_024;

/// The rungs of a connection.
#[derive(Debug, Default)]
pub(crate) struct Ladder {
    /// When each was declared.
    fresh: Mutex<HashMap<String, Instant>>,
    /// Sends what is retried.
    sender: OnceLock<Sender>,
}

impl Ladder {
    /// Makes ready what a message with a delay needs, and addresses it to its rung.
    pub(crate) async fn on_rung(
        &self,
        link: &Link,
        envelope: Envelope,
        deadline: Instant,
    ) -> Result<Envelope> {
        if envelope.message.ttl.is_some() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "publish",
                "over AMQP 1.0 a message cannot have both a delay and a time to live; \
                 give the queue a time to live instead",
            )
            .with_context("address", envelope.address.to_string()));
        }
        let rung = self.rung(link, &envelope.address, envelope.delay, deadline).await?;
        Ok(Envelope::new(Address::queue(rung), envelope.message))
    }

    /// The name of a rung that is there.
    async fn rung(
        &self,
        link: &Link,
        address: &Address,
        delay: Duration,
        deadline: Instant,
    ) -> Result<String> {
        let now = link.env().now();
        let queue = delay::rung(address, delay).filter(|_| deadline <= now + LATEST_SEND);
        let Some(queue) = queue else {
            return Err(Error::new(
                ErrorKind::Invalid,
                "publish",
                "a delay may be up to 49 days over AMQP 1.0, and the publisher's timeout with it \
                 up to 8 minutes",
            )
            .with_context("address", address.to_string()));
        };
        let name = queue.name.to_string();
        {
            let fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
            if fresh.get(&name).is_some_and(|declared| now < *declared + FRESH) {
                return Ok(name);
            }
        }
        let connection = link.connection_to_publish(deadline).await?;
        Admin::new(&connection, "publish", deadline).declare_rung(&queue).await?;
        let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        if fresh.len() >= REMEMBERED {
            fresh.retain(|_, declared| now < *declared + FRESH);
        }
        if fresh.len() < REMEMBERED {
            fresh.insert(name.clone(), now);
        }
        Ok(name)
    }

    fn sender(&self, link: &Arc<Link>) -> Result<&Sender> {
        if self.sender.get().is_none() {
            let made = Sender::new(link, PublisherOptions::default())?;
            // Another may have been quicker; then this one ends.
            let _second = self.sender.set(made);
        }
        self.sender.get().ok_or_else(|| crate::error::closed("settle"))
    }
}

/// Publishes the copy of a failed message that comes after `after`, or its dead letter when it
/// failed too often. The original is still unsettled: it is lost in no case, and doubled when its
/// ack is lost.
pub(crate) async fn retry(link: &Arc<Link>, delivered: &Delivered, after: Duration) -> Result<()> {
    if link.capabilities().delayed_retry == Delay::None {
        sleep(after.min(LONGEST_HOLD)).await;
        let why = "this broker delays nothing; it was held back here";
        return Err(Error::new(ErrorKind::Unsupported, "settle", why));
    }
    let sender = link.ladder().sender(link)?;
    let spec = link.record().queue(&delivered.info.queue).cloned();
    let (envelope, info) = (&delivered.envelope, &delivered.info);
    match delay::retried(spec.as_ref(), envelope, info, after, link.env().timestamp()) {
        Retried::Gone => Ok(()),
        Retried::Dead(letter) => match sender.send(link, letter).await?.await {
            // As the broker does with a dead letter that nobody gets.
            Verdict::Accepted | Verdict::Unroutable => Ok(()),
            verdict => verdict.into_result(),
        },
        Retried::Again(copy) => {
            let deadline = link.operation_deadline().min(link.env().now() + LATEST_SEND);
            let copy = link.ladder().on_rung(link, copy, deadline).await?;
            sender.send(link, copy).await?.await.into_result()
        }
    }
}
