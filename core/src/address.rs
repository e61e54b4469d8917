//! Where a message goes, and the message with its destination.

use std::{borrow::Cow, fmt, time::Duration};

use crate::{
    Capabilities, Delay, Error, ErrorKind, HeaderValue, Message, Result, check_name,
    message::MAX_MILLIS,
};

/// Where a publish goes: a queue, or an exchange with a routing key.
///
/// # Example: both forms
///
/// ```
/// use postrider_core::Address;
///
/// assert_eq!(Address::queue("orders").to_string(), "queue 'orders'");
/// let address = Address::exchange("event_bus", "order.created");
/// assert_eq!(address.to_string(), "exchange 'event_bus' with key 'order.created'");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A queue by its name.
    Queue(Cow<'static, str>),
    /// An exchange by its name, and the key that it routes by.
    Exchange {
        /// The exchange; the empty name is the default exchange, which routes to the queue that
        /// has the routing key's name.
        exchange: Cow<'static, str>,
        /// The routing key; it may be empty.
        routing_key: Cow<'static, str>,
    },
}

impl Address {
    /// The queue `name`.
    pub fn queue(name: impl Into<Cow<'static, str>>) -> Self {
        Self::Queue(name.into())
    }

    /// The exchange `exchange` with `routing_key`.
    pub fn exchange(
        exchange: impl Into<Cow<'static, str>>,
        routing_key: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::Exchange { exchange: exchange.into(), routing_key: routing_key.into() }
    }

    /// The exchange as the protocol names it: empty for a queue.
    #[must_use]
    pub fn exchange_name(&self) -> &str {
        match self {
            Self::Queue(_) => "",
            Self::Exchange { exchange, .. } => exchange,
        }
    }

    /// The routing key as the protocol names it: for a queue, its name.
    #[must_use]
    pub fn routing_key(&self) -> &str {
        match self {
            Self::Queue(name) => name,
            Self::Exchange { routing_key, .. } => routing_key,
        }
    }

    /// Checks both names against the limits of the protocol, and that a queue is named at all.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid), as [`check_name`], and for the queue or the
    /// key of the default exchange that is empty.
    pub fn check(&self, operation: &'static str) -> Result<()> {
        if self.exchange_name().is_empty() && self.routing_key().is_empty() {
            let why = "a message must go to a queue that has a name, or to an exchange";
            return Err(Error::new(ErrorKind::Invalid, operation, why));
        }
        check_name(operation, self.exchange_name())?;
        check_name(operation, self.routing_key())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(name) => write!(f, "queue '{name}'"),
            Self::Exchange { exchange, routing_key } => {
                write!(f, "exchange '{exchange}' with key '{routing_key}'")
            }
        }
    }
}

/// A message, where it goes, and how long the broker should hold it before that.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Envelope {
    /// The destination; on a delivery, the address it was published to.
    pub address: Address,
    /// What is sent.
    pub message: Message,
    /// How long it waits before it becomes visible in its queue. Default: zero; on a delivery it is
    /// zero. Needs [`Capabilities::delayed_publish`](crate::Capabilities::delayed_publish).
    pub delay: Duration,
}

impl Envelope {
    /// `message` for `address`, without delay.
    #[must_use]
    pub const fn new(address: Address, message: Message) -> Self {
        Self { address, message, delay: Duration::ZERO }
    }

    /// Sets [`delay`](Self::delay).
    #[must_use]
    pub const fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Checks everything that a broker would close a channel for, so that a transport can refuse it
    /// before the wire: names, the lengths of short properties, times, the body's size, and means
    /// that the broker lacks.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] or [`ErrorKind::Unsupported`], with what to change.
    pub fn check(&self, operation: &'static str, capabilities: &Capabilities) -> Result<()> {
        self.address.check(operation)?;
        self.message.check(operation)?;
        let is_lost = |(name, value): &(&str, &HeaderValue)| {
            matches!(value, HeaderValue::List(_) | HeaderValue::Map(_)) && !name.starts_with("x-")
        };
        if !capabilities.nested_headers
            && let Some((name, _)) = self.message.headers.iter().find(is_lost)
        {
            let why =
                "this broker takes a list or a map only in a header whose name begins with 'x-'";
            let error = Error::new(ErrorKind::Unsupported, operation, why);
            return Err(error.with_context("header", name.to_owned()));
        }
        let complaint = match capabilities.max_message_size {
            Some(most) if self.message.body.len() as u64 > most => Error::new(
                ErrorKind::Invalid,
                operation,
                format!("the body has {} bytes, the broker takes {most}", self.message.body.len()),
            ),
            _ if self.delay.as_millis() > MAX_MILLIS => {
                Error::new(ErrorKind::Invalid, operation, "the delay is longer than 49 days")
            }
            _ if !self.delay.is_zero() && capabilities.delayed_publish == Delay::None => {
                Error::new(
                    ErrorKind::Unsupported,
                    operation,
                    "this broker cannot hold a message back; send it without a delay",
                )
            }
            _ => return Ok(()),
        };
        Err(complaint.with_context("address", self.address.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_must_have_somewhere_to_go() {
        for nowhere in [Address::queue(""), Address::exchange("", "")] {
            let refused = nowhere.check("publish").unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Invalid);
        }
        Address::exchange("e", "").check("publish").unwrap();
        Address::exchange("", "q").check("publish").unwrap();
    }

    #[test]
    fn lists_that_would_be_lost_are_refused() {
        let list = || HeaderValue::List(vec![HeaderValue::Int(1)]);
        let with = |name: &'static str| {
            Envelope::new(Address::queue("q"), Message::new("x").with_header(name, list()))
        };
        let mut capabilities = Capabilities::minimal();
        let refused = with("list").check("publish", &capabilities).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
        assert!(refused.to_string().contains("list"), "{refused}");
        with("x-list").check("publish", &capabilities).unwrap();
        capabilities.nested_headers = true;
        with("list").check("publish", &capabilities).unwrap();
    }
}
