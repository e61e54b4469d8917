//! What announcers and registries say to each other.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use postrider_core::{
    Address, Binding, Envelope, Exchange, HeaderValue, Message, Queue, Result, Topology,
};
use semver::Version;
use serde::{Deserialize, Serialize};

use super::{Instance, InstanceHealth};
use crate::{
    codec::{Codec, CodecError, Limits},
    headers,
    listening::check_part,
    naming::Naming,
};

const ANNOUNCE: &str = "discovery.announce";
const LEAVE: &str = "discovery.leave";
const PROBE: &str = "discovery.probe";
const ECHO: &str = "discovery.echo";

/// The largest announcement in bytes.
pub(super) const LIMITS: Limits = Limits { max_body_bytes: 16 * 1024 };

/// Which leases make sense. A shorter one would end with every hiccup, a longer one is none.
pub(super) const SHORTEST_LEASE: Duration = Duration::from_secs(1);
pub(super) const LONGEST_LEASE: Duration = Duration::from_secs(3_600);

/// The lease of an announcement that names none.
pub(super) const DEFAULT_LEASE: Duration = Duration::from_secs(15);

/// How long a question or an echo may wait.
const TTL: Duration = Duration::from_secs(10);

/// The words under which an instance hears questions.
const KEY_PROBE: &str = "probe";

fn announce_key(service: &str) -> String {
    format!("announce.{service}")
}

fn probe_key(service: &str) -> String {
    format!("{KEY_PROBE}.{service}")
}

fn echo_key(id: &str) -> String {
    format!("echo.{id}")
}

/// What an instance of `service` needs in order to hear questions by `queue`.
pub(super) fn announcer_topology(naming: &Naming, service: &str, queue: &str) -> Topology {
    let exchange = naming.discovery_exchange();
    let bind = |key: String| Binding::queue(exchange.clone(), queue.to_owned(), key);
    Topology::new()
        .exchange(Exchange::topic(exchange.clone()))
        // Who asked long ago has been told meanwhile.
        .queue(Queue::exclusive(queue.to_owned()).auto_delete().with_max_length(1_000))
        .bind(bind(KEY_PROBE.to_owned()))
        .bind(bind(probe_key(service)))
}

/// What the registry `id` needs in order to hear instances by `queue`: those of all services, or of
/// some.
pub(super) fn registry_topology(
    naming: &Naming,
    id: &str,
    queue: &str,
    services: &[String],
    most_waiting: u64,
) -> Topology {
    let exchange = naming.discovery_exchange();
    let bind = |key: String| Binding::queue(exchange.clone(), queue.to_owned(), key);
    let queue = Queue::exclusive(queue.to_owned()).auto_delete().with_max_length(most_waiting);
    let topology = Topology::new()
        .exchange(Exchange::topic(exchange.clone()))
        .queue(queue.with_max_length_bytes(64 * 1024 * 1024))
        .bind(bind(echo_key(id)));
    if services.is_empty() {
        return topology.bind(bind("announce.#".to_owned()));
    }
    services.iter().fold(topology, |topology, service| topology.bind(bind(announce_key(service))))
}

/// An announcement in its body, or, with nothing but its first three fields, a goodbye.
#[derive(Debug, Serialize, Deserialize)]
struct Body<'a> {
    service: Cow<'a, str>,
    instance: Cow<'a, str>,
    sequence: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    methods: Option<Cow<'a, [String]>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Cow<'a, BTreeMap<String, String>>>,
}

/// What an instance says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Announce {
    pub(super) instance: Instance,
    /// Grows with each word of the instance.
    pub(super) sequence: u64,
    /// How long it is taken for alive without another word.
    pub(super) lease: Duration,
}

impl Announce {
    /// The message, which is worth nothing when the lease is over.
    pub(super) fn message(&self, codec: Codec) -> Result<Message, CodecError> {
        let instance = &self.instance;
        let health = match instance.health {
            InstanceHealth::Healthy => "healthy",
            InstanceHealth::Degraded(_) => "degraded",
            InstanceHealth::Unhealthy(_) => "unhealthy",
        };
        let body = Body {
            service: Cow::Borrowed(&instance.service),
            instance: Cow::Borrowed(&instance.id),
            sequence: self.sequence,
            version: Some(Cow::Owned(instance.version.to_string())),
            lease_ms: Some(u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX)),
            health: Some(Cow::Borrowed(health)),
            reason: instance.health.reason().map(Cow::Borrowed),
            methods: Some(Cow::Borrowed(&instance.methods)),
            metadata: Some(Cow::Borrowed(&instance.metadata)),
        };
        message(ANNOUNCE, codec, &body, self.lease)
    }

    /// The goodbye of this instance.
    pub(super) fn goodbye(&self, codec: Codec) -> Result<Message, CodecError> {
        let body = Body {
            service: Cow::Borrowed(&self.instance.service),
            instance: Cow::Borrowed(&self.instance.id),
            sequence: self.sequence,
            version: None,
            lease_ms: None,
            health: None,
            reason: None,
            methods: None,
            metadata: None,
        };
        message(LEAVE, codec, &body, self.lease)
    }
}

fn message(
    kind: &'static str,
    codec: Codec,
    body: &Body<'_>,
    ttl: Duration,
) -> Result<Message, CodecError> {
    let body = codec.encode_within(body, LIMITS)?;
    Ok(Message::new(body)
        .with_type(kind)
        .with_content_type(codec.content_type())
        .with_ttl(ttl)
        .transient())
}

/// To all registries that want to know of `service`.
pub(super) fn to_all(naming: &Naming, service: &str, message: Message) -> Envelope {
    Envelope::new(Address::exchange(naming.discovery_exchange(), announce_key(service)), message)
}

/// To the instances of one service, or of all: say that you are there, by the queue `reply_to`.
pub(super) fn probe(naming: &Naming, service: Option<&str>, reply_to: &str) -> Envelope {
    let key = service.map_or_else(|| KEY_PROBE.to_owned(), probe_key);
    let message = Message::new("").with_type(PROBE).with_reply_to(reply_to.to_owned());
    let address = Address::exchange(naming.discovery_exchange(), key);
    Envelope::new(address, message.with_ttl(TTL).transient())
}

/// From the registry `id` to itself.
pub(super) fn echo(naming: &Naming, id: &str, number: u64) -> Envelope {
    let number = i64::try_from(number).unwrap_or(i64::MAX);
    let message = Message::new("").with_type(ECHO).with_header(headers::ECHO, number);
    let address = Address::exchange(naming.discovery_exchange(), echo_key(id));
    Envelope::new(address, message.with_ttl(TTL).transient())
}

/// Who is to be answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asker {
    /// One registry, by its queue.
    One(String),
    Everybody,
}

/// Who asks, when a message is a question; without a queue to answer to, all are to be told.
pub(super) fn asked_by(message: &Message) -> Option<Asker> {
    if message.message_type.as_deref() != Some(PROBE) {
        return None;
    }
    let queue = message.reply_to.as_deref().filter(|queue| !queue.is_empty());
    Some(queue.map_or(Asker::Everybody, |queue| Asker::One(queue.to_owned())))
}

/// What a registry hears.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Word {
    Announced(Announce),
    Left {
        service: String,
        instance: String,
    },
    Echo(u64),
    /// Something that later versions may say.
    Other,
}

/// Why a word is not believed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Nonsense {
    Undecodable,
    Invalid,
}

pub(super) fn read(message: &Message) -> Result<Word, Nonsense> {
    match message.message_type.as_deref() {
        Some(ECHO) => {
            let number = message.headers.get(headers::ECHO).and_then(HeaderValue::as_int);
            let number = number.and_then(|number| u64::try_from(number).ok());
            number.map(Word::Echo).ok_or(Nonsense::Invalid)
        }
        Some(ANNOUNCE) => announced(body(message)?).map(Word::Announced).ok_or(Nonsense::Invalid),
        Some(LEAVE) => {
            let body = body(message)?;
            check_names(&body).ok_or(Nonsense::Invalid)?;
            let (service, instance) = (body.service.into_owned(), body.instance.into_owned());
            Ok(Word::Left { service, instance })
        }
        _ => Ok(Word::Other),
    }
}

fn body(message: &Message) -> Result<Body<'_>, Nonsense> {
    let content_type = message.content_type.as_deref();
    Codec::decode_within(content_type, &message.body, LIMITS).map_err(|error| {
        tracing::debug!(%error, "an announcement cannot be read");
        Nonsense::Undecodable
    })
}

fn check_names(body: &Body<'_>) -> Option<()> {
    check_part("service", &body.service).ok()?;
    check_part("instance", &body.instance).ok()
}

fn announced(body: Body<'_>) -> Option<Announce> {
    check_names(&body)?;
    let version = match body.version {
        Some(version) => Version::parse(&version).ok()?,
        None => Version::new(0, 0, 0),
    };
    let lease = body.lease_ms.map_or(DEFAULT_LEASE, Duration::from_millis);
    if !(SHORTEST_LEASE..=LONGEST_LEASE).contains(&lease) {
        return None;
    }
    let reason = || body.reason.as_deref().unwrap_or_default().to_owned();
    let health = match body.health.as_deref() {
        None | Some("healthy") => InstanceHealth::Healthy,
        Some("degraded") => InstanceHealth::Degraded(reason()),
        Some("unhealthy") => InstanceHealth::Unhealthy(reason()),
        Some(_) => return None,
    };
    let instance = Instance {
        service: body.service.into_owned(),
        id: body.instance.into_owned(),
        version,
        methods: body.methods.unwrap_or_default().into_owned(),
        metadata: body.metadata.unwrap_or_default().into_owned(),
        health,
    };
    Some(Announce { instance, sequence: body.sequence, lease })
}
