//! The body of a task.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use postrider_core::Message;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    codec::{Codec, CodecError, Limits, read_or_default},
    wire_time,
};

#[derive(Serialize)]
struct TaskBody<'a, P> {
    r#type: &'a str,
    params: &'a P,
    timestamp: String,
    priority: u8,
}

pub(super) fn encode<P: Serialize>(
    codec: Codec,
    limits: Limits,
    task_type: &str,
    params: &P,
    timestamp: DateTime<Utc>,
    priority: u8,
) -> Result<Bytes, CodecError> {
    codec.encode_within(
        &TaskBody { r#type: task_type, params, timestamp: wire_time::text(timestamp), priority },
        limits,
    )
}

#[derive(Deserialize)]
struct TaskHead {
    #[serde(default)]
    r#type: Option<String>,
    #[serde(default)]
    timestamp: Option<String>,
}

/// What a task says of itself.
pub(super) struct Head {
    pub(super) codec: Codec,
    /// A body without a type is read by the property of that name.
    pub(super) task_type: Option<String>,
    /// When it was submitted: to the millisecond from the body, else from the property.
    pub(super) submitted: Option<DateTime<Utc>>,
}

pub(super) fn decode_head(message: &Message, limits: Limits) -> Result<Head, CodecError> {
    let codec = Codec::of(message.content_type.as_deref(), &message.body)?;
    let head: TaskHead = codec.read(&message.body, limits)?;
    let named = || message.message_type.as_deref().map(str::to_owned);
    let in_body = head.timestamp.and_then(|text| DateTime::parse_from_rfc3339(&text).ok());
    let submitted = in_body.map(|moment| moment.to_utc()).or(message.timestamp);
    Ok(Head { codec, task_type: head.r#type.or_else(named), submitted })
}

#[derive(Deserialize)]
struct TaskParams<P> {
    params: Option<P>,
}

pub(super) fn decode_params<P: DeserializeOwned>(
    codec: Codec,
    limits: Limits,
    body: &[u8],
) -> Result<P, CodecError> {
    let body: TaskParams<P> = codec.read(body, limits)?;
    read_or_default(body.params)
}
