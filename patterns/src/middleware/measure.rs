use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use metrics::{SharedString, counter, gauge, histogram};
use postrider_core::{Confirm, DeliveryInfo, Env, Envelope, Message, Publisher, Result};
use tokio::time::Instant;

use super::{
    Middleware, Next, PublisherMiddleware,
    publisher::{destination, observed, verdict_text},
};
use crate::{
    consuming::Outcome,
    handler::{Context, HandlerError},
};

/// How many values a label has at most; message types and queues may come from others.
const MOST_VALUES: usize = 200;

/// Figures by the facade crate [`metrics`]; whoever runs the program installs a recorder.
///
/// | name | kind | labels | what |
/// |---|---|---|---|
/// | `postrider_consumed_total` | counter | `queue`, `type`, `outcome` | messages settled as `acked`, `retried`, `dead_lettered` or `released` |
/// | `postrider_failures_total` | counter | `queue`, `type`, `class` | tries that failed, by the class of the error |
/// | `postrider_handling_seconds` | histogram | `queue`, `type` | how long a try took, with what is within this middleware |
/// | `postrider_lag_seconds` | histogram | `queue` | from the message's timestamp to its first try |
/// | `postrider_in_flight` | gauge | `queue` | messages within this middleware |
/// | `postrider_published_total` | counter | `destination`, `type`, `outcome` | messages published, by verdict: `accepted`, `rejected`, `unroutable`, `unknown`, or `failed` where they were not sent |
/// | `postrider_publish_seconds` | histogram | `destination` | from the send to its verdict |
///
/// `destination` is the exchange, or the queue in the default exchange. A message without a type
/// has the type `none`. Each label has at most 200 values over the life of a `Measure` and its
/// clones, and `other` beyond, as types may come from anybody and the queue of an ephemeral
/// subscription has a new name at each start. Ephemeral subscriptions retry by themselves, which
/// shows in the failures alone. A message given back is released and no failure.
///
/// # Example
///
/// ```
/// # use std::sync::Arc;
/// # use postrider_core::Transport;
/// use postrider_patterns::{EventBus, Measure, Worker};
///
/// # async fn run(transport: Arc<dyn Transport>) -> Result<(), postrider_core::Error> {
/// let measure = Measure::new();
/// let bus = EventBus::builder(&transport).with(measure.clone()).connect().await?;
/// let worker = Worker::new("send_email").with(measure);
/// # drop((bus, worker));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Measure {
    labels: Arc<Labels>,
}

#[derive(Debug, Default)]
struct Labels {
    queues: Values,
    types: Values,
    destinations: Values,
}

/// The values of one label.
#[derive(Debug, Default)]
struct Values(Mutex<HashSet<Arc<str>>>);

impl Values {
    fn bounded(&self, value: &str) -> SharedString {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = known.get(value) {
            return SharedString::from_shared(Arc::clone(value));
        }
        if known.len() >= MOST_VALUES {
            return SharedString::const_str("other");
        }
        let value = Arc::<str>::from(value);
        known.insert(Arc::clone(&value));
        SharedString::from_shared(value)
    }
}

impl Measure {
    /// One that knows no label yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn queue(&self, queue: &str) -> SharedString {
        self.labels.queues.bounded(queue)
    }

    fn type_of(&self, message: &Message) -> SharedString {
        self.labels.types.bounded(message.message_type.as_deref().unwrap_or("none"))
    }
}

#[async_trait]
impl Middleware for Measure {
    async fn handle(&self, context: &Context, next: Next<'_>) -> Result<(), HandlerError> {
        let (queue, message) = (self.queue(context.queue()), context.message());
        let message_type = self.type_of(message);
        if let Some(published) = message.timestamp.filter(|_| context.attempt() == 1) {
            // Another machine's clock may be ahead.
            let lag = (context.env().timestamp() - published).to_std().unwrap_or_default();
            histogram!("postrider_lag_seconds", "queue" => queue.clone()).record(lag);
        }
        let in_flight = InFlight::begin(queue.clone());
        let began = context.env().now();
        let result = next.run(context).await;
        drop(in_flight);
        let labels = [("queue", queue), ("type", message_type)];
        match &result {
            Err(error) if error.is_given_back() => return result,
            Err(error) => {
                let [queue, message_type] = labels.clone();
                let class = ("class", SharedString::const_str(error.class().as_str()));
                counter!("postrider_failures_total", &[queue, message_type, class]).increment(1);
            }
            Ok(()) => {}
        }
        histogram!("postrider_handling_seconds", &labels).record(context.env().now() - began);
        result
    }

    fn settled(&self, envelope: &Envelope, info: &DeliveryInfo, outcome: Outcome) {
        counter!(
            "postrider_consumed_total",
            "queue" => self.queue(&info.queue),
            "type" => self.type_of(&envelope.message),
            "outcome" => outcome.as_str(),
        )
        .increment(1);
    }
}

/// A message that is being handled, however that ends.
struct InFlight(SharedString);

impl InFlight {
    fn begin(queue: SharedString) -> Self {
        gauge!("postrider_in_flight", "queue" => queue.clone()).increment(1);
        Self(queue)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        gauge!("postrider_in_flight", "queue" => self.0.clone()).decrement(1);
    }
}

impl PublisherMiddleware for Measure {
    fn around(&self, publisher: Arc<dyn Publisher>, env: &Env) -> Arc<dyn Publisher> {
        Arc::new(Measuring { measure: self.clone(), publisher, env: env.clone() })
    }
}

#[derive(Debug)]
struct Measuring {
    measure: Measure,
    publisher: Arc<dyn Publisher>,
    env: Env,
}

/// A message on its way to the broker.
struct Sending {
    destination: SharedString,
    message_type: SharedString,
    began: Instant,
}

impl Measuring {
    fn begin(&self, envelope: &Envelope) -> Sending {
        let labels = &self.measure.labels;
        Sending {
            destination: labels.destinations.bounded(destination(&envelope.address)),
            message_type: self.measure.type_of(&envelope.message),
            began: self.env.now(),
        }
    }

    fn until_verdict(&self, sending: Sending, confirm: Confirm) -> Confirm {
        let env = self.env.clone();
        observed(confirm, move |verdict| {
            let took = env.now() - sending.began;
            let to = sending.destination.clone();
            histogram!("postrider_publish_seconds", "destination" => to).record(took);
            sending.ended(verdict_text(verdict));
        })
    }
}

impl Sending {
    fn ended(self, outcome: &'static str) {
        counter!(
            "postrider_published_total",
            "destination" => self.destination,
            "type" => self.message_type,
            "outcome" => outcome,
        )
        .increment(1);
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Publisher for Measuring {
    async fn send(&self, envelope: Envelope) -> Result<Confirm> {
        let sending = self.begin(&envelope);
        match self.publisher.send(envelope).await {
            Ok(confirm) => Ok(self.until_verdict(sending, confirm)),
            Err(error) => {
                sending.ended("failed");
                Err(error)
            }
        }
    }

    async fn send_batch(&self, envelopes: Vec<Envelope>) -> Result<Vec<Confirm>> {
        let sending: Vec<_> = envelopes.iter().map(|envelope| self.begin(envelope)).collect();
        match self.publisher.send_batch(envelopes).await {
            Ok(confirms) => {
                let pairs = sending.into_iter().zip(confirms);
                Ok(pairs.map(|(sending, confirm)| self.until_verdict(sending, confirm)).collect())
            }
            Err(error) => {
                sending.into_iter().for_each(|sending| sending.ended("failed"));
                Err(error)
            }
        }
    }

    async fn flush(&self) -> Result<()> {
        self.publisher.flush().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_has_a_bounded_number_of_values() {
        let values = Values::default();
        for number in 0..10 * MOST_VALUES {
            values.bounded(&number.to_string());
        }
        assert_eq!(values.0.lock().unwrap().len(), MOST_VALUES);
        assert_eq!((&*values.bounded("7"), &*values.bounded("a new one")), ("7", "other"));
    }
}
