//! What publishers and readers of one setting say to each other.

use std::{borrow::Cow, time::Duration};

use chrono::{DateTime, Utc};
use postrider_core::{
    Address, Binding, Envelope, Exchange, HeaderValue, Message, Queue, Result, Topology,
};
use serde::{Deserialize, Serialize};

use super::{ConfigReport, Rejection};
use crate::{
    codec::{Codec, CodecError, Limits},
    headers,
    listening::check_part,
    naming::Naming,
    resilience::shorten,
};

const VALUE: &str = "config.value";
const ASK: &str = "config.ask";
const REPORT: &str = "config.report";

/// The largest value.
pub(super) const VALUES: Limits = Limits { max_body_bytes: 1024 * 1024 };

/// The largest report.
const REPORTS: Limits = Limits { max_body_bytes: 16 * 1024 };

/// The highest version: what every JSON reader knows exactly.
const LAST_VERSION: u64 = (1 << 53) - 1;

/// How long a question or a report may wait.
const TTL: Duration = Duration::from_secs(10);

/// The names around one setting of one service.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    service: String,
    name: String,
    naming: Naming,
}

impl Setting {
    pub(super) fn new(service: String, name: String, naming: Naming) -> Result<Self> {
        check_part("service", &service)?;
        check_part("name", &name)?;
        if name.contains('.') {
            // The last dot of a key is the one between service and name.
            let why = "the name of a setting must not have a dot";
            let error =
                postrider_core::Error::new(postrider_core::ErrorKind::Invalid, "start", why);
            return Err(error.with_context("name", name));
        }
        Ok(Self { service, name, naming })
    }

    fn key(&self, what: &str) -> String {
        format!("{what}.{}.{}", self.service, self.name)
    }

    /// The queue that keeps the last value.
    pub(super) fn keeper(&self) -> String {
        self.naming.config_queue(&self.service, &self.name)
    }

    /// The queue of one reader or publisher, as `purpose` says.
    pub(super) fn queue_of(&self, purpose: &str, id: &str) -> String {
        self.naming.config_instance_queue(purpose, id)
    }

    /// The queue whose owner may publish.
    pub(super) fn turn(&self) -> String {
        self.queue_of("turn", &format!("{}.{}", self.service, self.name))
    }

    /// What keeps the last value: a classic queue, where what was looked at goes back to its own
    /// place on every version of RabbitMQ, so that the older of two values is the one dropped.
    pub(super) fn kept(&self) -> Topology {
        let exchange = self.naming.config_exchange();
        Topology::new()
            .exchange(Exchange::direct(exchange.clone()))
            .queue(Queue::classic(self.keeper()).with_max_length(1))
            .bind(Binding::queue(exchange, self.keeper(), self.key("value")))
    }

    /// What a reader needs in order to hear of new values and questions by `queue`.
    pub(super) fn read_by(&self, queue: &str) -> Topology {
        let exchange = self.naming.config_exchange();
        let bind = |what: &str| Binding::queue(exchange.clone(), queue.to_owned(), self.key(what));
        // Of many values at once the last is the one that counts.
        let own = Queue::exclusive(queue.to_owned()).auto_delete().with_max_length(100);
        self.kept().queue(own).bind(bind("value")).bind(bind("ask"))
    }

    /// What a publisher needs in order to hear reports by `queue`.
    pub(super) fn published_by(&self, queue: &str, most_waiting: u64) -> Topology {
        let own = Queue::exclusive(queue.to_owned()).auto_delete().with_max_length(most_waiting);
        let exchange = self.naming.config_exchange();
        self.kept().queue(own).bind(Binding::queue(exchange, queue.to_owned(), self.key("report")))
    }

    fn to(&self, what: &str, message: Message) -> Envelope {
        Envelope::new(Address::exchange(self.naming.config_exchange(), self.key(what)), message)
    }

    /// To the keeper and to all readers, by one publish.
    pub(super) fn value(
        &self,
        body: bytes::Bytes,
        codec: Codec,
        stamp: &Stamp,
        now: DateTime<Utc>,
    ) -> Envelope {
        let version = i64::try_from(stamp.version).unwrap_or(i64::MAX);
        let message = Message::new(body)
            .with_type(VALUE)
            .with_content_type(codec.content_type())
            .with_message_id(stamp.id.clone())
            .with_timestamp(now)
            .with_header(headers::CONFIG_VERSION, version);
        self.to("value", message)
    }

    /// To all readers: say what you run.
    pub(super) fn ask(&self) -> Envelope {
        self.to("ask", Message::new("").with_type(ASK).with_ttl(TTL).transient())
    }

    /// To all publishers: what an instance runs.
    pub(super) fn report(
        &self,
        report: &ConfigReport,
        left: bool,
        codec: Codec,
    ) -> Result<Envelope, CodecError> {
        let body = Body {
            instance: Cow::Borrowed(&report.instance),
            version: report.version,
            rejected: report.rejected.as_ref().map(|rejected| Rejected {
                version: rejected.version,
                reason: Cow::Borrowed(shorten(&rejected.reason)),
            }),
            left,
        };
        let message = Message::new(codec.encode_within(&body, REPORTS)?)
            .with_type(REPORT)
            .with_content_type(codec.content_type());
        Ok(self.to("report", message.with_ttl(TTL).transient()))
    }
}

/// Which of two values is the newer one. Two of one version are possible only where a publisher
/// lost its connection while it published; the id decides then, for everybody alike.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stamp {
    pub(super) version: u64,
    pub(super) id: String,
}

impl Stamp {
    /// The version after `version`; nothing when they are used up.
    pub(super) fn after(version: u64, id: String) -> Option<Self> {
        (version < LAST_VERSION).then(|| Self { version: version + 1, id })
    }

    /// The stamp of a message; nothing when it is no value with a version.
    pub(super) fn of(message: &Message) -> Option<Self> {
        if !is_value(message) {
            return None;
        }
        let version = message.headers.get(headers::CONFIG_VERSION).and_then(HeaderValue::as_int)?;
        let version = u64::try_from(version).ok()?;
        let id = message.message_id.as_deref().unwrap_or_default().to_owned();
        (1..=LAST_VERSION).contains(&version).then_some(Self { version, id })
    }
}

pub(super) fn is_value(message: &Message) -> bool {
    message.message_type.as_deref() == Some(VALUE)
}

pub(super) fn is_question(message: &Message) -> bool {
    message.message_type.as_deref() == Some(ASK)
}

#[derive(Debug, Serialize, Deserialize)]
struct Body<'a> {
    instance: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rejected: Option<Rejected<'a>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    left: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Rejected<'a> {
    version: u64,
    reason: Cow<'a, str>,
}

/// A report and whether its instance leaves; nothing when it makes no sense.
pub(super) fn read_report(message: &Message) -> Option<(ConfigReport, bool)> {
    if message.message_type.as_deref() != Some(REPORT) {
        return None;
    }
    let content_type = message.content_type.as_deref();
    let body: Body<'_> = Codec::decode_within(content_type, &message.body, REPORTS).ok()?;
    check_part("instance", &body.instance).ok()?;
    let is_version = |version: u64| version <= LAST_VERSION;
    let rejected = body.rejected.map(|rejected| Rejection {
        version: rejected.version,
        reason: shorten(&rejected.reason).to_owned(),
    });
    if !body.version.is_none_or(is_version)
        || !rejected.as_ref().is_none_or(|rejected| is_version(rejected.version))
    {
        return None;
    }
    let instance = body.instance.into_owned();
    Some((ConfigReport { instance, version: body.version, rejected }, body.left))
}
