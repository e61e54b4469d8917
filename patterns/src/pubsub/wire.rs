//! The body of an event.

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};

use crate::codec::{Codec, CodecError, Limits, read_or_default};

/// What is written. The order of its fields is the order on the wire.
#[derive(Serialize)]
pub(super) struct EventBody<'a, T> {
    pub(super) event_id: &'a str,
    pub(super) event_type: &'a str,
    pub(super) aggregate_id: Option<&'a str>,
    pub(super) data: &'a T,
    pub(super) timestamp: &'a str,
    pub(super) version: u32,
    pub(super) metadata: Metadata<'a>,
}

/// Who published the event, and what it belongs to.
#[derive(Serialize)]
pub(super) struct Metadata<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) correlation_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) causation_id: Option<&'a str>,
}

pub(super) fn encode<T: Serialize>(
    codec: Codec,
    limits: Limits,
    body: &EventBody<'_, T>,
) -> Result<Bytes, CodecError> {
    codec.encode_within(body, limits)
}

/// What must be readable of an event before its data is. The timestamp is for people and may be of
/// any type.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct EventHead {
    #[serde(default, deserialize_with = "text_or_number")]
    pub(super) event_id: Option<String>,
    #[serde(default)]
    pub(super) event_type: Option<String>,
    #[serde(default, deserialize_with = "text_or_number")]
    pub(super) aggregate_id: Option<String>,
    #[serde(default)]
    pub(super) version: Option<u32>,
}

/// Ids are text; plain clients also send numbers.
fn text_or_number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Id {
        Text(String),
        Number(i64),
    }
    Ok(Option::<Id>::deserialize(from)?.map(|id| match id {
        Id::Text(text) => text,
        Id::Number(number) => number.to_string(),
    }))
}

#[derive(Deserialize)]
struct Data<T> {
    data: Option<T>,
}

pub(super) fn decode_data<T: DeserializeOwned>(
    codec: Codec,
    limits: Limits,
    body: &[u8],
) -> Result<T, CodecError> {
    let body: Data<T> = codec.read(body, limits)?;
    read_or_default(body.data)
}

#[derive(Deserialize)]
struct MetadataOf<T> {
    metadata: Option<T>,
}

pub(super) fn decode_metadata<T: DeserializeOwned>(
    codec: Codec,
    limits: Limits,
    body: &[u8],
) -> Result<T, CodecError> {
    let body: MetadataOf<T> = codec.read(body, limits)?;
    read_or_default(body.metadata)
}
