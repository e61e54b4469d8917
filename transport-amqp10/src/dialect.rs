//! What differs between brokers that speak AMQP 1.0: addresses, and what can be done at all.

use std::borrow::Cow;

use postrider_core::{Address, Capabilities, Error, ErrorKind, Result};
use postrider_rabbitmq::Version;

use crate::{
    address,
    observed::Observed,
    profile::{Broker, Profile},
    replies,
};

/// The first RabbitMQ with AMQP 1.0 of its own.
const NATIVE: Version = Version { major: 4, minor: 0 };

/// How a queue of RabbitMQ 3 is addressed that is there already.
const V1_QUEUE: &str = "/amq/queue/";

/// How a broker is spoken to.
#[derive(Debug)]
pub(crate) enum Dialect {
    /// RabbitMQ's since version 4.
    RabbitMq(Version),
    Foreign(Foreign),
}

/// That of a broker that cannot be declared to.
#[derive(Debug)]
pub(crate) struct Foreign {
    addresses: Addresses,
    /// Whether what is declared was made by other means.
    pub(crate) provisioned: bool,
    /// Whether a link may leave the address to its messages: the capability `ANONYMOUS-RELAY` of
    /// "Using the AMQP Anonymous Terminus for Message Routing".
    relays: bool,
}

#[derive(Debug)]
enum Addresses {
    /// Those of RabbitMQ 3.
    V1,
    Templates {
        /// What is before the name of a queue, and behind it.
        queue: (String, String),
        exchange: String,
    },
}

impl Dialect {
    /// That of the broker at the other end of a connection.
    pub(crate) fn of(profile: &Profile, observed: &Observed) -> Result<Self> {
        let version = observed.version();
        let broker = profile.broker.unwrap_or(match version {
            Some(version) if version >= NATIVE => Broker::RabbitMq,
            Some(_) => Broker::RabbitMq3,
            None => Broker::Other,
        });
        let addresses = match broker {
            Broker::RabbitMq => {
                return version
                    .filter(|version| *version >= NATIVE)
                    .map(Self::RabbitMq)
                    .ok_or_else(|| {
                        let product = observed.product().unwrap_or("unknown");
                        let why = format!("the broker is no RabbitMQ 4 ({product})");
                        Error::new(ErrorKind::Unsupported, "connect", why)
                    });
            }
            Broker::RabbitMq3 => Addresses::V1,
            Broker::Other => Addresses::of(profile),
        };
        let (provisioned, relays) = (profile.provisioned, observed.relays());
        Ok(Self::Foreign(Foreign { addresses, provisioned, relays }))
    }

    /// What stands for the version of a RabbitMQ; other brokers have none of what came with one.
    pub(crate) const fn version(&self) -> Version {
        match self {
            Self::RabbitMq(version) => *version,
            Self::Foreign(_) => Version { major: 0, minor: 0 },
        }
    }

    pub(crate) const fn foreign(&self) -> Option<&Foreign> {
        match self {
            Self::RabbitMq(_) => None,
            Self::Foreign(foreign) => Some(foreign),
        }
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        let Self::RabbitMq(version) = self else { return Capabilities::minimal() };
        let mut capabilities = version.capabilities();
        // Application properties are simple values: part 3, section 3.2.5.
        capabilities.nested_headers = false;
        capabilities.exclusive_consumers = false;
        capabilities.reply_mode = replies::lightest(*version);
        capabilities
    }

    /// Whether the broker itself says in the header if a delivery is the first; others pass on what
    /// the publisher wrote, which is mostly nothing.
    pub(crate) fn notes_first_acquirer(&self) -> bool {
        self.foreign().is_none() || self.is_v1()
    }

    /// Whether a quorum queue counts every return toward its delivery limit, also those that the header
    /// does not count: releases, and whatever comes back over AMQP 0.9.1.
    pub(crate) fn counts_returns(&self) -> bool {
        matches!(self, Self::RabbitMq(version) if !version.counts_failures_apart())
    }

    /// Whether a quorum queue counts how often a message was handed out, apart from its failures.
    pub(crate) fn counts_acquired(&self) -> bool {
        matches!(self, Self::RabbitMq(version) if version.counts_failures_apart())
    }

    /// Whether one link takes messages to any address.
    pub(crate) const fn relays(&self) -> bool {
        match self {
            Self::RabbitMq(_) => true,
            Self::Foreign(foreign) => foreign.relays,
        }
    }

    /// Whether the broker ends the session of a link that it refuses, with all other links in it, and
    /// cannot be asked before but by a link.
    pub(crate) fn ends_sessions(&self) -> bool {
        self.is_v1()
    }

    fn is_v1(&self) -> bool {
        self.foreign().is_some_and(|foreign| matches!(foreign.addresses, Addresses::V1))
    }

    /// Whether the broker takes messages to this address although there is no such queue, and loses
    /// them.
    pub(crate) fn hides_missing(&self, target: &str) -> bool {
        self.is_v1() && target.starts_with(V1_QUEUE)
    }

    /// Checks that an address can be told to the broker.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] when it would be taken for another.
    pub(crate) fn check(&self, operation: &'static str, address: &Address) -> Result<()> {
        let names = [address.exchange_name(), address.routing_key()];
        // A routing key is no part of an address.
        let names = if names[0].is_empty() { &names[..] } else { &names[..1] };
        if self.is_v1() && names.iter().any(|name| name.contains(SLASH)) {
            let why = "RabbitMQ 3 takes '%2F' in a name for a slash";
            let error = Error::new(ErrorKind::Invalid, operation, why);
            return Err(error.with_context("address", address.to_string()));
        }
        Ok(())
    }

    /// Where a queue is consumed.
    pub(crate) fn queue(&self, name: &str) -> String {
        match self {
            Self::RabbitMq(_) => address::queue(name),
            Self::Foreign(foreign) => foreign.queue(name),
        }
    }

    /// Where a message is sent.
    pub(crate) fn target(&self, address: &Address) -> String {
        match self {
            Self::RabbitMq(_) => address::target(address),
            Self::Foreign(foreign) => foreign.target(address),
        }
    }

    /// The subject of a message, which brokers route by that have no key in their addresses.
    pub(crate) fn subject<'a>(&self, address: &'a Address) -> Option<&'a str> {
        let is_foreign = self.foreign().is_some();
        Some(address.routing_key()).filter(|_| is_foreign && !address.exchange_name().is_empty())
    }

    /// Where replies go. Since 4.2 RabbitMQ turns the address into the queue's name for who consumes
    /// it over AMQP 0.9.1, and back; before, that is the only name that both know.
    pub(crate) fn reply_to(&self, queue: &str) -> String {
        match self {
            Self::RabbitMq(version) if !version.converts_reply_addresses() => queue.to_owned(),
            _ => self.queue(queue),
        }
    }

    /// The queue that an address names; what is no address is the queue's name itself.
    pub(crate) fn queue_of<'a>(&self, address: &'a str) -> Cow<'a, str> {
        match self {
            Self::RabbitMq(_) => address::queue_of(address),
            Self::Foreign(foreign) => foreign.queue_of(address),
        }
    }
}

/// What stands for a slash in a name of RabbitMQ 3. Nothing else is encoded there, so that this itself
/// is the one thing that no name may have in it.
const SLASH: &str = "%2F";

/// A name in an address of RabbitMQ 3, which takes each character for a byte.
fn v1_name(name: &str) -> String {
    name.bytes().map(char::from).collect::<String>().replace('/', SLASH)
}

/// The name in an address of RabbitMQ 3.
fn from_v1_name(name: &str) -> Option<String> {
    let name = name.replace(SLASH, "/");
    let bytes = name.chars().map(u8::try_from).collect::<Result<Vec<_>, _>>().ok()?;
    String::from_utf8(bytes).ok()
}

impl Addresses {
    fn of(profile: &Profile) -> Self {
        let queue = profile.queue_address.as_deref().unwrap_or("{queue}");
        let (before, behind) = queue.split_once("{queue}").unwrap_or((queue, ""));
        let exchange = profile.exchange_address.as_deref().unwrap_or("{exchange}");
        Self::Templates {
            queue: (before.to_owned(), behind.to_owned()),
            exchange: exchange.to_owned(),
        }
    }
}

impl Foreign {
    fn queue(&self, name: &str) -> String {
        match &self.addresses {
            Addresses::V1 => format!("{V1_QUEUE}{}", v1_name(name)),
            Addresses::Templates { queue: (before, behind), .. } => {
                format!("{before}{name}{behind}")
            }
        }
    }

    fn target(&self, address: &Address) -> String {
        match (address.exchange_name(), &self.addresses) {
            ("", _) => self.queue(address.routing_key()),
            (exchange, Addresses::V1) => format!("/exchange/{}", v1_name(exchange)),
            // The key first, so that none is looked for in a name.
            (name, Addresses::Templates { exchange, .. }) => exchange
                .split("{exchange}")
                .map(|part| part.replace("{key}", address.routing_key()))
                .collect::<Vec<_>>()
                .join(name),
        }
    }

    fn queue_of<'a>(&self, address: &'a str) -> Cow<'a, str> {
        let name = match &self.addresses {
            Addresses::V1 => {
                let name = address.strip_prefix(V1_QUEUE).and_then(from_v1_name);
                return name.map_or(Cow::Borrowed(address), Cow::Owned);
            }
            Addresses::Templates { queue: (before, behind), .. } => address
                .strip_prefix(before.as_str())
                .and_then(|name| name.strip_suffix(behind.as_str())),
        };
        Cow::Borrowed(name.unwrap_or(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialect(profile: &Profile) -> Dialect {
        Dialect::of(profile, &Observed::default()).unwrap()
    }

    #[test]
    fn addresses_are_what_the_profile_says() {
        let plain = dialect(&Profile::default());
        let there = Address::exchange("events", "a.b");
        assert_eq!((&*plain.queue("a/b"), &*plain.target(&there)), ("a/b", "events"));
        assert_eq!(
            (plain.subject(&there), plain.subject(&Address::queue("q"))),
            (Some("a.b"), None)
        );
        assert_eq!(plain.queue_of("a/b"), "a/b");
        let prefixed = dialect(
            &Profile::default()
                .with_queue_address("queue://{queue}?x")
                .with_exchange_address("topic://{exchange}/{key}"),
        );
        assert_eq!(prefixed.queue("q"), "queue://q?x");
        assert_eq!(prefixed.queue_of("queue://q?x"), "q");
        assert_eq!(prefixed.queue_of("other"), "other");
        assert_eq!(prefixed.target(&there), "topic://events/a.b");
        assert_eq!(prefixed.target(&Address::exchange("{key}", "k")), "topic://{key}/k");
        let old = dialect(&Profile::default().with_broker(Broker::RabbitMq3));
        assert_eq!(old.queue("a/b é%"), "/amq/queue/a%2Fb \u{c3}\u{a9}%");
        assert_eq!(old.queue_of("/amq/queue/\u{e9}"), "/amq/queue/\u{e9}");
        old.check("publish", &there).unwrap();
        old.check("publish", &Address::queue("a%2Fb")).unwrap_err();
        assert_eq!(old.queue_of(&old.queue("a/b é%")), "a/b é%");
        assert!(old.hides_missing(&old.queue("q")) && !old.hides_missing(&old.target(&there)));
        assert_eq!((&*old.target(&there), old.subject(&there)), ("/exchange/events", Some("a.b")));
    }

    #[test]
    fn who_says_nothing_of_itself_is_a_stranger() {
        let stranger = dialect(&Profile::default());
        assert!(stranger.foreign().is_some() && !stranger.relays());
        assert_eq!(stranger.capabilities(), Capabilities::minimal());
        let profile = Profile::default().with_broker(Broker::RabbitMq);
        let refused = Dialect::of(&profile, &Observed::default()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
    }
}
