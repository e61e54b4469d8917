use std::{borrow::Cow, sync::Arc};

use postrider_core::Envelope;
use serde::{Serialize, de::DeserializeOwned};

use super::wire::{self, EventHead};
use crate::codec::{Codec, CodecError, Limits};

/// Something that happened, as a type with a name.
///
/// # Example: an event with a version and an aggregate
///
/// ```
/// use std::borrow::Cow;
/// use postrider_patterns::Event;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct UserRegistered { user_id: String }
///
/// impl Event for UserRegistered {
///     const TYPE: &'static str = "user.registered";
///     const VERSION: u32 = 2;
///
///     fn aggregate_id(&self) -> Option<Cow<'_, str>> {
///         Some(Cow::Borrowed(&self.user_id))
///     }
/// }
/// ```
pub trait Event: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Its name on the wire and its routing key: words parted by dots.
    const TYPE: &'static str;

    /// The version of its data. Default: 1.
    const VERSION: u32 = 1;

    /// What it is about. Default: nothing.
    fn aggregate_id(&self) -> Option<Cow<'_, str>> {
        None
    }
}

/// An event whose data is not decoded yet. Cloning is cheap but for its head.
#[derive(Debug, Clone)]
pub struct RawEvent {
    head: EventHead,
    envelope: Arc<Envelope>,
    codec: Codec,
    limits: Limits,
}

impl RawEvent {
    /// Reads the head of an event. What a plain client leaves out of the body is taken from the
    /// properties: the type from the type or the routing key, the id from the message id.
    pub(super) fn read(envelope: &Arc<Envelope>, limits: Limits) -> Result<Self, CodecError> {
        let message = &envelope.message;
        let codec = Codec::of(message.content_type.as_deref(), &message.body)?;
        let mut head: EventHead = codec.read(&message.body, limits)?;
        if head.event_type.is_none() {
            let named = message.message_type.as_deref();
            let named = named.unwrap_or_else(|| envelope.address.routing_key());
            head.event_type = Some(named.to_owned());
        }
        if head.event_id.is_none() {
            head.event_id = message.message_id.as_deref().map(str::to_owned);
        }
        Ok(Self { head, envelope: Arc::clone(envelope), codec, limits })
    }

    /// The event's id; a plain client may send none.
    #[must_use]
    pub fn event_id(&self) -> Option<&str> {
        self.head.event_id.as_deref()
    }

    /// The event's type.
    #[must_use]
    pub fn event_type(&self) -> &str {
        self.head.event_type.as_deref().unwrap_or_default()
    }

    /// What the event is about.
    #[must_use]
    pub fn aggregate_id(&self) -> Option<&str> {
        self.head.aggregate_id.as_deref()
    }

    /// The version of its data; 1 where none is given.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.head.version.unwrap_or(1)
    }

    /// Reads the data.
    ///
    /// # Errors
    ///
    /// [`CodecError`] when it is no `T`.
    pub fn data<T: DeserializeOwned>(&self) -> Result<T, CodecError> {
        wire::decode_data(self.codec, self.limits, &self.envelope.message.body)
    }

    /// Reads the metadata.
    ///
    /// # Errors
    ///
    /// [`CodecError`] when it is no `T`.
    pub fn metadata<T: DeserializeOwned>(&self) -> Result<T, CodecError> {
        wire::decode_metadata(self.codec, self.limits, &self.envelope.message.body)
    }
}
