//! What users say of the broker where the protocol leaves it open.

use postrider_core::{Error, ErrorKind, Result};

/// A kind of broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Broker {
    /// RabbitMQ 4, which is declared to over AMQP 1.0 itself.
    RabbitMq,
    /// RabbitMQ 3 with its plugin `rabbitmq_amqp1_0`: other addresses, and nothing is declared.
    RabbitMq3,
    /// Another broker, of which nothing is known but the protocol.
    Other,
}

/// How a broker is spoken to. By default a RabbitMQ is known by the product and version that it tells
/// when a connection opens, and whatever else answers is [`Broker::Other`].
///
/// Only RabbitMQ 4 has a standard way to declare things. On other brokers queues are made by their
/// own means, and declaring is [`ErrorKind::Unsupported`], unless the profile says
/// [`provisioned`](Self::provisioned).
///
/// # Example: a broker that has its queues under a prefix, made by an operator
///
/// ```
/// use postrider_transport_amqp10::{Options, Profile};
///
/// let profile = Profile::default()
///     .with_queue_address("queue://{queue}")
///     .with_exchange_address("topic://{exchange}")
///     .provisioned();
/// let options = Options::default().with_profile(profile);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    pub(crate) broker: Option<Broker>,
    pub(crate) queue_address: Option<String>,
    pub(crate) exchange_address: Option<String>,
    pub(crate) provisioned: bool,
}

impl Profile {
    /// Takes the broker for one of this kind, whatever it says.
    #[must_use]
    pub const fn with_broker(mut self, broker: Broker) -> Self {
        self.broker = Some(broker);
        self
    }

    /// How [`Broker::Other`] addresses a queue: a text with `{queue}` in the place of its name.
    /// Default: `{queue}`. The name is not encoded in any way.
    #[must_use]
    pub fn with_queue_address(mut self, template: impl Into<String>) -> Self {
        self.queue_address = Some(template.into());
        self
    }

    /// How [`Broker::Other`] addresses an exchange, or what it has in its place, such as a topic: a
    /// text with `{exchange}`, and with `{key}` where the routing key is a part of the address.
    /// Default: `{exchange}`. The key is the subject of the message in any case.
    #[must_use]
    pub fn with_exchange_address(mut self, template: impl Into<String>) -> Self {
        self.exchange_address = Some(template.into());
        self
    }

    /// Says that the topology is made by other means, where the broker cannot be declared to: then
    /// declaring checks that queues and exchanges can be sent to, and takes bindings for granted.
    /// What is missing is an error, and so is a queue that would go with the connection.
    #[must_use]
    pub const fn provisioned(mut self) -> Self {
        self.provisioned = true;
        self
    }

    /// Takes what another says, where it says something.
    pub(crate) fn overridden_by(self, other: &Self) -> Self {
        Self {
            broker: other.broker.or(self.broker),
            queue_address: other.queue_address.clone().or(self.queue_address),
            exchange_address: other.exchange_address.clone().or(self.exchange_address),
            provisioned: other.provisioned || self.provisioned,
        }
    }

    /// Checks the templates.
    pub(crate) fn check(&self) -> Result<()> {
        let invalid = |why: &'static str| Err(Error::new(ErrorKind::Invalid, "connect", why));
        if self.queue_address.as_ref().is_some_and(|text| text.matches("{queue}").count() != 1) {
            return invalid("the address of a queue must have {queue} in it once");
        }
        if self.exchange_address.as_ref().is_some_and(|text| !text.contains("{exchange}")) {
            return invalid("the address of an exchange must have {exchange} in it");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_must_name_what_it_is_the_address_of() {
        Profile::default().check().unwrap();
        Profile::default().with_queue_address("q/{queue}").check().unwrap();
        for broken in [
            Profile::default().with_queue_address("q"),
            Profile::default().with_queue_address("{queue}{queue}"),
            Profile::default().with_exchange_address("{key}"),
        ] {
            assert_eq!(broken.check().unwrap_err().kind(), ErrorKind::Invalid);
        }
    }
}
