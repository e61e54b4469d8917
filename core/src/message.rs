//! What is sent: a body of bytes, properties and typed headers.

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::{Error, ErrorKind, HeaderValue, Headers, MAX_NAME_BYTES, Result};

/// How many levels of lists and maps a header may have, itself being the first. Whoever reads a message
/// goes through them level by level, so that without a limit a message ends its reader.
pub const MAX_HEADER_LEVELS: usize = 32;

/// How many bytes the headers of a message may have in all, causation id and key included. AMQP 0.9.1
/// takes them in one frame, 128 KiB on RabbitMQ, which adds some of its own on a message's way.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;

/// The longest time in a message: the 32 bits of milliseconds of an AMQP 1.0 header.
pub(crate) const MAX_MILLIS: u128 = u32::MAX as u128;

/// A body with its properties and headers.
///
/// Every property but the body is optional, because a peer may be a plain AMQP client in another
/// language. Setters take the message by value, so that a message reads as one expression.
///
/// # Example: a message with properties and a header
///
/// ```
/// use std::time::Duration;
/// use postrider_core::Message;
///
/// let message = Message::new(r#"{"total": 1177}"#)
///     .with_content_type("application/json")
///     .with_type("order.created")
///     .with_ttl(Duration::from_secs(60))
///     .with_header("tenant", "north");
/// assert!(message.durable);
/// assert_eq!(message.message_type.as_deref(), Some("order.created"));
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Message {
    /// The payload. Cloning shares it.
    pub body: Bytes,
    /// A unique id, a UUIDv7 as text where Postrider sets it.
    pub message_id: Option<Cow<'static, str>>,
    /// The conversation this message belongs to; in a reply, the request it answers.
    pub correlation_id: Option<Cow<'static, str>>,
    /// The message that caused this one.
    pub causation_id: Option<Cow<'static, str>>,
    /// The queue that an answer should go to.
    pub reply_to: Option<Cow<'static, str>>,
    /// The media type of the body, for example `application/msgpack`.
    pub content_type: Option<Cow<'static, str>>,
    /// The name of what the body is, for example `order.created`.
    pub message_type: Option<Cow<'static, str>>,
    /// When it was made. AMQP 0.9.1 keeps whole seconds only.
    pub timestamp: Option<DateTime<Utc>>,
    /// How long it may wait in a queue before it expires, in whole milliseconds.
    pub ttl: Option<Duration>,
    /// Its priority: the higher goes first, where the queue has priorities.
    pub priority: Option<u8>,
    /// Whether it outlives a restart of the broker in a durable queue. Default: true.
    pub durable: bool,
    /// What must stay in order: messages of one key.
    pub key: Option<Cow<'static, str>>,
    /// When the answer is of no use any more.
    pub deadline: Option<DateTime<Utc>>,
    /// Everything else.
    pub headers: Headers,
}

impl Message {
    /// A durable message with this body and no other property.
    pub fn new(body: impl Into<Bytes>) -> Self {
        Self {
            body: body.into(),
            message_id: None,
            correlation_id: None,
            causation_id: None,
            reply_to: None,
            content_type: None,
            message_type: None,
            timestamp: None,
            ttl: None,
            priority: None,
            durable: true,
            key: None,
            deadline: None,
            headers: Headers::new(),
        }
    }

    /// Sets [`message_id`](Self::message_id).
    #[must_use]
    pub fn with_message_id(mut self, id: impl Into<Cow<'static, str>>) -> Self {
        self.message_id = Some(id.into());
        self
    }

    /// Sets [`correlation_id`](Self::correlation_id).
    #[must_use]
    pub fn with_correlation_id(mut self, id: impl Into<Cow<'static, str>>) -> Self {
        self.correlation_id = Some(id.into());
        self
    }

    /// Sets [`causation_id`](Self::causation_id).
    #[must_use]
    pub fn with_causation_id(mut self, id: impl Into<Cow<'static, str>>) -> Self {
        self.causation_id = Some(id.into());
        self
    }

    /// Sets [`reply_to`](Self::reply_to).
    #[must_use]
    pub fn with_reply_to(mut self, queue: impl Into<Cow<'static, str>>) -> Self {
        self.reply_to = Some(queue.into());
        self
    }

    /// Sets [`content_type`](Self::content_type).
    #[must_use]
    pub fn with_content_type(mut self, content_type: impl Into<Cow<'static, str>>) -> Self {
        self.content_type = Some(content_type.into());
        self
    }

    /// Sets [`message_type`](Self::message_type).
    #[must_use]
    pub fn with_type(mut self, message_type: impl Into<Cow<'static, str>>) -> Self {
        self.message_type = Some(message_type.into());
        self
    }

    /// Sets [`timestamp`](Self::timestamp).
    #[must_use]
    pub fn with_timestamp(mut self, timestamp: DateTime<Utc>) -> Self {
        self.timestamp = Some(timestamp);
        self
    }

    /// Sets [`ttl`](Self::ttl).
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Sets [`priority`](Self::priority).
    #[must_use]
    pub fn with_priority(mut self, priority: u8) -> Self {
        self.priority = Some(priority);
        self
    }

    /// Sets [`durable`](Self::durable) to false: the message may be lost when the broker restarts.
    #[must_use]
    pub fn transient(mut self) -> Self {
        self.durable = false;
        self
    }

    /// Sets [`key`](Self::key).
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Cow<'static, str>>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets [`deadline`](Self::deadline).
    #[must_use]
    pub fn with_deadline(mut self, deadline: DateTime<Utc>) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Sets one header, replacing the value it had.
    #[must_use]
    pub fn with_header(
        mut self,
        name: impl Into<Cow<'static, str>>,
        value: impl Into<HeaderValue>,
    ) -> Self {
        self.headers.set(name, value);
        self
    }

    /// Checks the properties against the limits of the protocols.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a text property or header name over 255 bytes, a header with a
    /// floating-point number that is not finite or with more than [`MAX_HEADER_LEVELS`] levels, headers
    /// of more than [`MAX_HEADER_BYTES`] in all, or a time to live over 2^32 - 1 milliseconds.
    pub fn check(&self, operation: &'static str) -> Result<()> {
        // First, because what is asked after it goes through all levels.
        if self.headers.is_deeper_than(MAX_HEADER_LEVELS) {
            return Err(Error::new(
                ErrorKind::Invalid,
                operation,
                format!("lists and maps in a header may have {MAX_HEADER_LEVELS} levels"),
            ));
        }
        let as_headers = [&self.causation_id, &self.key];
        let bytes = self.headers.wire_bytes()
            + as_headers.iter().filter_map(|text| text.as_deref()).map(str::len).sum::<usize>();
        if bytes > MAX_HEADER_BYTES {
            return Err(Error::new(
                ErrorKind::Invalid,
                operation,
                format!("the headers have {bytes} bytes in all; {MAX_HEADER_BYTES} are possible"),
            ));
        }
        let texts = [
            ("message_id", &self.message_id),
            ("correlation_id", &self.correlation_id),
            ("reply_to", &self.reply_to),
            ("content_type", &self.content_type),
            ("message_type", &self.message_type),
        ];
        let too_long = texts
            .iter()
            .filter_map(|(property, text)| text.as_deref().map(|text| (*property, text)))
            .chain(self.headers.too_long_name().map(|name| ("header name", name)))
            .find(|(_, text)| text.len() > MAX_NAME_BYTES);
        if let Some((property, text)) = too_long {
            let bytes = text.len();
            return Err(Error::new(
                ErrorKind::Invalid,
                operation,
                format!("{property} has {bytes} bytes, the protocol takes {MAX_NAME_BYTES}"),
            ));
        }
        if !self.headers.iter().all(|(_, value)| value.is_finite()) {
            return Err(Error::new(
                ErrorKind::Invalid,
                operation,
                "a header that is a floating-point number must be finite",
            ));
        }
        if self.ttl.is_some_and(|ttl| ttl.as_millis() > MAX_MILLIS) {
            return Err(Error::new(
                ErrorKind::Invalid,
                operation,
                "the message's time to live is longer than 49 days",
            ));
        }
        Ok(())
    }
}
