use std::{collections::BTreeMap, time::Duration};

use postrider_core::{Consumer, ConsumerOptions, Delivery, Error, ErrorKind, Result};
use tokio::time::{Instant, sleep, timeout};

use super::DeadLetters;

/// How long nothing may come before the queue is looked at: somebody else may have what was there.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// How long a consumer may take to be gone.
const STOPPING: Duration = Duration::from_millis(50);

/// How often it is looked whether the broker has what was given back.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// How long nothing may come though there is something, as over a lost connection.
const PATIENCE: Duration = Duration::from_secs(30);

/// Goes once through the dead letters that are there when it begins.
///
/// What is not settled is held until the end and then released in its order, after the consumer is
/// gone: released before, it would come again at once.
pub(super) struct Walk<'a> {
    letters: &'a DeadLetters,
    consumer: Option<Consumer>,
    held: BTreeMap<u64, Delivery>,
    window: usize,
    seen: u64,
    unseen: u64,
}

/// A dead letter on the way, and the how-manieth it is.
pub(super) struct Letter {
    pub(super) number: u64,
    pub(super) delivery: Delivery,
}

impl<'a> Walk<'a> {
    /// Begins, with up to `window` dead letters in hand.
    pub(super) async fn begin(letters: &'a DeadLetters, window: u16) -> Result<Self> {
        let unseen = letters.count().await?;
        // No more than there are, so that none that comes later gets in between.
        let window = u16::try_from(unseen).unwrap_or(u16::MAX).min(window);
        let consumer = if window == 0 {
            None
        } else {
            let options = ConsumerOptions::default().with_prefetch(window);
            Some(letters.transport.consumer(&letters.queue, options).await?)
        };
        let window = usize::from(window);
        Ok(Self { letters, consumer, held: BTreeMap::new(), window, seen: 0, unseen })
    }

    /// The next one; none when all were seen, when somebody else has the rest, and when there is no
    /// room in the window.
    pub(super) async fn next(&mut self) -> Result<Option<Letter>> {
        let Some(consumer) = &mut self.consumer else { return Ok(None) };
        let patience = self.letters.transport.env().deadline(PATIENCE);
        let mut was_empty = false;
        while self.unseen > 0 && self.held.len() < self.window {
            match timeout(LOOK_AFTER, consumer.recv()).await {
                Ok(Some(delivery)) => {
                    let delivery = delivery?;
                    match came_before(&self.held, &delivery) {
                        // The connection was lost, and the queue has given it out anew.
                        Some(number) => drop(self.held.insert(number, delivery)),
                        None => {
                            self.unseen -= 1;
                            self.seen += 1;
                            return Ok(Some(Letter { number: self.seen, delivery }));
                        }
                    }
                }
                Ok(None) => {
                    let why = "the transport was closed on the way";
                    return Err(Error::new(ErrorKind::Closed, "dead letters", why));
                }
                // Once is not enough: the rest may be on its way here, and this process be slow.
                Err(_elapsed) if was_empty => break,
                Err(_elapsed) => was_empty = !self.letters.has_more(patience).await?,
            }
        }
        Ok(None)
    }

    /// It is given back at the end, in its place.
    pub(super) fn stays(&mut self, letter: Letter) {
        self.held.insert(letter.number, letter.delivery);
    }

    /// How many may be in hand beside those that stay.
    pub(super) fn room(&self) -> usize {
        self.window - self.held.len()
    }

    pub(super) fn now(&self) -> Instant {
        self.letters.transport.env().now()
    }

    /// Gives back what stays and waits, for a moment, until the broker has it; says how many there
    /// were that were not seen. Without the wait a run after this one would find less than there
    /// is.
    pub(super) async fn end(mut self) -> u64 {
        let expected = self.unseen + self.held.len() as u64;
        drop(self.consumer.take());
        if self.seen > self.held.len() as u64 {
            // There is credit left, and over AMQP 1.0 RabbitMQ may hear of its end after it has
            // heard of what is given back: that would come here again, and go behind the rest.
            sleep(STOPPING).await;
        }
        self.release();
        let patience = self.now() + LOOK_AFTER;
        while matches!(self.letters.count().await, Ok(ready) if ready < expected)
            && self.now() < patience
        {
            sleep(LOOK_AGAIN).await;
        }
        self.unseen
    }

    fn release(&mut self) {
        drop(self.consumer.take());
        for delivery in std::mem::take(&mut self.held).into_values() {
            delivery.release();
        }
    }
}

impl Drop for Walk<'_> {
    fn drop(&mut self) {
        self.release();
    }
}

/// The number of a delivery of the same message that is held, whose connection is gone.
fn came_before(held: &BTreeMap<u64, Delivery>, delivery: &Delivery) -> Option<u64> {
    if !delivery.info().redelivered || delivery.message().message_id.is_none() {
        return None;
    }
    let same = |before: &Delivery| {
        before.info().attempt < delivery.info().attempt && before.message() == delivery.message()
    };
    held.iter().find(|(_, before)| same(before)).map(|(number, _)| *number)
}

impl DeadLetters {
    /// Whether it is worth waiting for more.
    async fn has_more(&self, patience: Instant) -> Result<bool> {
        let is_late = self.transport.env().now() >= patience;
        match self.count().await {
            Ok(count) if is_late && count > 0 => {
                let why = "there are dead letters that do not come; somebody else may hold them";
                Err(Error::new(ErrorKind::TimedOut, "dead letters", why)
                    .with_context("queue", self.queue.clone()))
            }
            Ok(count) => Ok(count > 0),
            Err(error) if error.is_retryable() && !is_late => Ok(true),
            Err(error) => Err(error),
        }
    }
}
