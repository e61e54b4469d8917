use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};

use postrider_core::{Address, DeliveryInfo, Envelope, HeaderValue, Message};
use serde::de::DeserializeOwned;

use super::value::Value;
use crate::{
    codec::{Codec, CodecError, Limits},
    handler::{HandlerError, codes},
    headers,
};

/// A message that is to be sent on, and what surrounds it. Its body is decoded when somebody looks
/// into it, and once.
#[derive(Debug)]
pub struct Inbound {
    envelope: Arc<Envelope>,
    info: DeliveryInfo,
    limits: Limits,
    body: OnceLock<Result<Value, HandlerError>>,
    left: AtomicU64,
}

impl Inbound {
    pub(super) fn new(envelope: &Arc<Envelope>, info: &DeliveryInfo, limits: Limits) -> Self {
        let (envelope, info) = (Arc::clone(envelope), info.clone());
        let (body, left) = (OnceLock::new(), AtomicU64::new(u64::MAX));
        Self { envelope, info, limits, body, left }
    }

    /// Bounds what looking into it may cost from now on, in steps: one is a condition, an entry
    /// passed by, or a byte that is decoded or searched. Without it there is no bound.
    pub(super) fn allow(&self, steps: u64) {
        self.left.store(steps, Ordering::Relaxed);
    }

    /// Pays for a look before it is done.
    pub(super) fn spend(&self, steps: usize) -> Result<(), HandlerError> {
        let left = self.left.load(Ordering::Relaxed).checked_sub(steps as u64);
        self.left.store(left.unwrap_or(0), Ordering::Relaxed);
        if left.is_some() {
            return Ok(());
        }
        let why = "the rules of the router look further into it than they may";
        Err(HandlerError::unsupported(why).with_code(codes::TOO_COSTLY))
    }

    /// The message as it came.
    #[must_use]
    pub fn message(&self) -> &Message {
        &self.envelope.message
    }

    /// Where it was published to.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.envelope.address
    }

    /// The queue it was taken from.
    #[must_use]
    pub fn queue(&self) -> &str {
        &self.info.queue
    }

    /// The decoded body.
    ///
    /// # Errors
    ///
    /// When it cannot be read: it is of no content type that Postrider reads, is damaged, nests too
    /// deep, or has more than 100,000 values. The error has the code
    /// [`UNDECODABLE`](crate::codes::UNDECODABLE), for which a message is dead-lettered at once.
    pub fn body(&self) -> Result<&Value, HandlerError> {
        if self.body.get().is_none() {
            self.spend(self.message().body.len())?;
        }
        let decoded = self
            .body
            .get_or_init(|| self.read().map_err(|error| HandlerError::undecodable(&error)));
        decoded.as_ref().map_err(Clone::clone)
    }

    /// The body as a type of the program's own.
    ///
    /// # Errors
    ///
    /// When it is no such value.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, CodecError> {
        self.read()
    }

    /// The codec of the body.
    ///
    /// # Errors
    ///
    /// [`CodecError::UnknownContentType`].
    pub fn codec(&self) -> Result<Codec, CodecError> {
        Codec::of(self.message().content_type.as_deref(), &self.message().body)
    }

    fn read<T: DeserializeOwned>(&self) -> Result<T, CodecError> {
        self.codec()?.read(&self.message().body, self.limits)
    }

    pub(super) fn int(&self, header: &str) -> Option<i64> {
        self.message().headers.get(header).and_then(HeaderValue::as_int)
    }

    /// The conversation that it belongs to, as [`Context::conversation_id`](crate::Context).
    pub(super) fn conversation(&self) -> Option<&str> {
        let message = self.message();
        let named = message.headers.get(headers::CONVERSATION_ID).and_then(HeaderValue::as_text);
        named.or(message.correlation_id.as_deref()).or(message.message_id.as_deref())
    }

    /// How many routers it came through.
    pub(super) fn hops(&self) -> i64 {
        self.int(headers::HOPS).unwrap_or(0).max(0)
    }
}
