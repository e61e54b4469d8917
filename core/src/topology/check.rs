//! What RabbitMQ 4.3 refuses to declare, with its reasons in plain words.

use std::{collections::HashMap, time::Duration};

use super::{Binding, Difference, Exchange, Queue, QueueKind, Topology};
use crate::{
    Error, ErrorKind, HeaderValue, Result, check_declared_name, check_name, message::MAX_MILLIS,
};

impl Topology {
    /// Checks every part, and that no queue or exchange is there in two forms.
    ///
    /// # Errors
    ///
    /// Those of [`Queue::check`], [`Exchange::check`] and [`Binding::check`], and
    /// [`ErrorKind::Mismatch`] with the argument in which two forms differ.
    pub fn check(&self) -> Result<()> {
        let twice = |name: &str, difference: Difference| {
            let argument = difference.argument;
            let message = format!("the topology has '{name}' twice, with different {argument}");
            Err(Error::new(ErrorKind::Mismatch, "declare", message)
                .with_context("argument", argument))
        };
        let mut queues = HashMap::new();
        for queue in &self.queues {
            queue.check()?;
            let same = queues.insert(&*queue.name, queue);
            if let Some(difference) = same.and_then(|known| Difference::of_queues(queue, known)) {
                return twice(&queue.name, difference);
            }
        }
        let mut exchanges = HashMap::new();
        for exchange in &self.exchanges {
            exchange.check()?;
            let same = exchanges.insert(&*exchange.name, exchange);
            if let Some(difference) =
                same.and_then(|known| Difference::of_exchanges(exchange, known))
            {
                return twice(&exchange.name, difference);
            }
        }
        self.bindings.iter().try_for_each(Binding::check)
    }
}

impl Queue {
    /// Checks everything that a broker would close a channel for, so that a transport can refuse
    /// it before the wire.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] with the argument to change, and those of [`check_declared_name`].
    pub fn check(&self) -> Result<()> {
        check_declared_name("declare", &self.name)?;
        let invalid = |argument: &'static str, why: &'static str| {
            Err(Error::new(ErrorKind::Invalid, "declare", why)
                .with_context("queue", self.name.clone())
                .with_context("argument", argument))
        };
        if self.kind == QueueKind::Classic {
            if !self.durable && !self.exclusive {
                return invalid(
                    "durable",
                    "a transient queue must be exclusive (RabbitMQ 4.3); make it durable",
                );
            }
        } else {
            if !self.durable {
                return invalid("durable", "only a classic queue can be transient");
            }
            if self.exclusive {
                return invalid("exclusive", "only a classic queue can be exclusive");
            }
            if self.max_priority.is_some() {
                return invalid(
                    "max_priority",
                    "a quorum queue has its priorities without being asked; leave it out",
                );
            }
        }
        if self.kind != QueueKind::Quorum && self.delivery_limit.is_some() {
            return invalid("delivery_limit", "only quorum queues have a delivery limit");
        }
        if let Some(delay) = self.retry_delay {
            if self.kind != QueueKind::Quorum {
                return invalid("retry_delay", "only quorum queues have a retry delay");
            }
            if delay.shortest.as_millis() == 0 {
                return invalid("retry_delay", "the retry delay must be at least a millisecond");
            }
            if delay.longest < delay.shortest {
                return invalid("retry_delay", "the longest retry delay is below the shortest");
            }
        }
        let too_long =
            |time: Option<Duration>| time.is_some_and(|time| time.as_millis() > MAX_MILLIS);
        if too_long(self.expires) {
            return invalid("expires", "the time without use is longer than 49 days");
        }
        if too_long(self.message_ttl) {
            return invalid("message_ttl", "the time to live is longer than 49 days");
        }
        if too_long(self.retry_delay.map(|delay| delay.longest)) {
            return invalid("retry_delay", "the retry delay is longer than 49 days");
        }
        if self.expires.is_some_and(|unused| unused.as_millis() == 0) {
            return invalid("expires", "the time without use must be at least a millisecond");
        }
        if let Some(dead_letter) = &self.dead_letter {
            check_name("declare", &dead_letter.exchange)?;
            check_name("declare", dead_letter.routing_key.as_deref().unwrap_or_default())?;
        }
        Ok(())
    }
}

impl Exchange {
    /// Checks the names against the limits of the protocol.
    ///
    /// # Errors
    ///
    /// Those of [`check_declared_name`] and [`check_name`].
    pub fn check(&self) -> Result<()> {
        check_declared_name("declare", &self.name)?;
        check_name("declare", self.alternate.as_deref().unwrap_or_default())
    }
}

impl Binding {
    /// Checks what a broker would refuse before it looks for the two ends.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unauthorized`] for a binding of the default exchange, [`ErrorKind::Invalid`]
    /// for a key outside the protocol's limits or an `x-match` that means nothing.
    pub fn check(&self) -> Result<()> {
        if self.exchange.is_empty() {
            return Err(Error::new(
                ErrorKind::Unauthorized,
                "declare",
                "the default exchange routes to each queue by its name and takes no bindings",
            )
            .with_context("binding", self.to_string()));
        }
        check_name("declare", &self.key)?;
        if let Some(name) = self.arguments.too_long_name() {
            check_name("declare", name)?;
        }
        match self.arguments.get("x-match").map(HeaderValue::as_text) {
            None | Some(Some("all" | "any" | "all-with-x" | "any-with-x")) => Ok(()),
            Some(_) => Err(Error::new(
                ErrorKind::Invalid,
                "declare",
                "x-match must be all, any, all-with-x or any-with-x",
            )
            .with_context("binding", self.to_string())),
        }
    }
}
