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
}

/// The codec and the type of a task; a body without a type is read by the property of that name.
pub(super) fn decode_head(
    message: &Message,
    limits: Limits,
) -> Result<(Codec, Option<String>), CodecError> {
    let codec = Codec::of(message.content_type.as_deref(), &message.body)?;
    let head: TaskHead = codec.read(&message.body, limits)?;
    let named = || message.message_type.as_deref().map(str::to_owned);
    Ok((codec, head.r#type.or_else(named)))
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
