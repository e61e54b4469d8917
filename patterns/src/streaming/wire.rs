//! The frames of a transfer: what each is as a message, and back.

use std::collections::BTreeMap;

use bytes::Bytes;
use postrider_core::{HeaderValue, Message};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::{ContentHash, StreamError, integrity::checksum};
use crate::{
    codec::{Codec, CodecError, Limits},
    handler::ErrorClass,
    headers,
    resilience::shorten,
};

/// The most bytes in the body of a frame that is no chunk.
pub(super) const CONTROL_LIMITS: Limits = Limits { max_body_bytes: 64 * 1024 };

/// The content type of a chunk.
const BYTES: &str = "application/octet-stream";

const OPEN: &str = "stream.open";
const CHUNK: &str = "stream.chunk";
const ALIVE: &str = "stream.alive";
const CLOSE: &str = "stream.close";
const ABORT: &str = "stream.abort";
const BYE: &str = "stream.bye";
const CREDIT: &str = "stream.credit";
const DONE: &str = "stream.done";
const FAIL: &str = "stream.fail";

/// What a stream is, to whoever may receive it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Open {
    pub(super) chunk_size: u32,
    pub(super) length: Option<u64>,
    #[serde(default)]
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) content_type: Option<String>,
    #[serde(default)]
    pub(super) metadata: BTreeMap<String, String>,
    /// Whether the sender may come back to it after a restart.
    #[serde(default)]
    pub(super) resumable: bool,
}

/// A part of the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) seq: u64,
    pub(super) offset: u64,
    pub(super) checksum: u32,
    pub(super) body: Bytes,
}

impl Chunk {
    pub(super) fn new(seq: u64, chunk_size: u32, body: Bytes) -> Self {
        let offset = seq.saturating_mul(u64::from(chunk_size));
        Self { seq, offset, checksum: checksum(&body), body }
    }
}

/// The end of the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Close {
    pub(super) chunks: u64,
    pub(super) length: u64,
    pub(super) hash: ContentHash,
}

/// What a receiver has and wants. All of it is said each time, so that one that is lost is made good
/// by the next.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Credit {
    /// Chunks that it has, from the first without a gap.
    pub(super) received: u64,
    /// How many chunks may be sent, from the first. Zero is a sign of life that grants nothing.
    pub(super) until: u64,
    /// Chunks to send again, as ranges `from..to`.
    #[serde(default)]
    pub(super) missing: Vec<(u64, u64)>,
}

/// How a receiver ended a stream early.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fail {
    pub(super) code: String,
    pub(super) class: ErrorClass,
    pub(super) message: String,
    /// Whether it is worth to offer it again, at once.
    #[serde(default)]
    pub(super) again: bool,
}

impl Fail {
    pub(super) fn of(error: &StreamError, again: bool) -> Self {
        let message = error.to_string();
        Self { code: error.code().to_owned(), class: error.class(), message, again }
    }
}

impl From<Fail> for StreamError {
    fn from(Fail { code, class, message, .. }: Fail) -> Self {
        Self::Refused { class, code, message }
    }
}

/// What a sender says to its receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ToReceiver {
    Chunk(Chunk),
    /// A sign of life, with how many chunks were sent so far.
    Alive {
        sent: u64,
    },
    Close(Close),
    Abort {
        code: String,
        reason: String,
    },
    /// The outcome has arrived.
    Bye,
}

/// What a receiver says to its sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ToSender {
    Credit(Credit),
    /// All of it arrived, this much with this hash, and its handler is done.
    Done {
        length: u64,
        hash: ContentHash,
    },
    Fail(Fail),
}

#[derive(Serialize, Deserialize)]
struct AliveBody {
    sent: u64,
}

#[derive(Serialize, Deserialize)]
struct CloseBody {
    chunks: u64,
    length: u64,
    blake3: String,
}

#[derive(Serialize, Deserialize)]
struct DoneBody {
    length: u64,
    blake3: String,
}

#[derive(Serialize, Deserialize)]
struct AbortBody {
    #[serde(default)]
    code: String,
    #[serde(default)]
    reason: String,
}

fn frame(kind: &'static str, id: Uuid, body: Bytes) -> Message {
    // None outlives its queue, which goes with a connection.
    Message::new(body).with_type(kind).with_correlation_id(id.to_string()).transient()
}

fn control<T: Serialize>(kind: &'static str, id: Uuid, codec: Codec, body: &T) -> Message {
    // Only text that a program was given can make it too large, and that was cut before.
    let body = codec.encode_within(body, CONTROL_LIMITS).unwrap_or_default();
    frame(kind, id, body).with_content_type(codec.content_type())
}

/// The offer of a stream.
pub(super) fn open(id: Uuid, codec: Codec, open: &Open) -> Result<Message, CodecError> {
    let body = codec.encode_within(open, CONTROL_LIMITS)?;
    Ok(frame(OPEN, id, body).with_content_type(codec.content_type()))
}

/// The stream that an offer is for, and what it says.
pub(super) fn read_open(message: &Message) -> Result<(Uuid, Codec, Open), StreamError> {
    if message.message_type.as_deref() != Some(OPEN) {
        return Err(StreamError::BrokenProtocol("this is no offer of a stream".to_owned()));
    }
    let id = stream_id(message).ok_or_else(|| {
        StreamError::BrokenProtocol("the correlation id of an offer is a UUID".to_owned())
    })?;
    let codec = Codec::of(message.content_type.as_deref(), &message.body)?;
    Ok((id, codec, codec.read(&message.body, CONTROL_LIMITS)?))
}

/// The stream that a frame belongs to.
pub(super) fn stream_id(message: &Message) -> Option<Uuid> {
    Uuid::try_parse(message.correlation_id.as_deref()?).ok()
}

impl ToReceiver {
    pub(super) fn message(&self, id: Uuid, codec: Codec) -> Message {
        match self {
            Self::Chunk(chunk) => frame(CHUNK, id, chunk.body.clone())
                .with_content_type(BYTES)
                .with_header(headers::STREAM_SEQ, int(chunk.seq))
                .with_header(headers::STREAM_OFFSET, int(chunk.offset))
                .with_header(headers::STREAM_CRC32C, i64::from(chunk.checksum)),
            Self::Alive { sent } => control(ALIVE, id, codec, &AliveBody { sent: *sent }),
            Self::Close(Close { chunks, length, hash }) => {
                let (chunks, length) = (*chunks, *length);
                control(CLOSE, id, codec, &CloseBody { chunks, length, blake3: hash.to_string() })
            }
            Self::Abort { code, reason } => {
                let (code, reason) = (code.clone(), shorten(reason).to_owned());
                control(ABORT, id, codec, &AbortBody { code, reason })
            }
            Self::Bye => frame(BYE, id, Bytes::new()),
        }
    }

    /// Nothing for a type that is not known: a later version may have more.
    pub(super) fn read(message: &Message) -> Result<Option<Self>, StreamError> {
        Ok(Some(match message.message_type.as_deref() {
            Some(CHUNK) => Self::Chunk(Chunk {
                seq: number(message, headers::STREAM_SEQ)?,
                offset: number(message, headers::STREAM_OFFSET)?,
                checksum: number(message, headers::STREAM_CRC32C)?,
                body: message.body.clone(),
            }),
            Some(ALIVE) => Self::Alive { sent: read::<AliveBody>(message)?.sent },
            Some(CLOSE) => {
                let CloseBody { chunks, length, blake3 } = read(message)?;
                Self::Close(Close { chunks, length, hash: hash(&blake3)? })
            }
            Some(ABORT) => {
                let AbortBody { code, reason } = read(message)?;
                Self::Abort { code, reason }
            }
            Some(BYE) => Self::Bye,
            _ => return Ok(None),
        }))
    }
}

impl ToSender {
    pub(super) fn message(&self, id: Uuid, codec: Codec) -> Message {
        match self {
            Self::Credit(credit) => control(CREDIT, id, codec, credit),
            Self::Done { length, hash } => {
                control(DONE, id, codec, &DoneBody { length: *length, blake3: hash.to_string() })
            }
            Self::Fail(fail) => {
                let fail = Fail { message: shorten(&fail.message).to_owned(), ..fail.clone() };
                control(FAIL, id, codec, &fail)
            }
        }
    }

    /// Nothing for a type that is not known: a later version may have more.
    pub(super) fn read(message: &Message) -> Result<Option<Self>, StreamError> {
        Ok(Some(match message.message_type.as_deref() {
            Some(CREDIT) => Self::Credit(read(message)?),
            Some(DONE) => {
                let DoneBody { length, blake3 } = read(message)?;
                Self::Done { length, hash: hash(&blake3)? }
            }
            Some(FAIL) => Self::Fail(read(message)?),
            _ => return Ok(None),
        }))
    }
}

fn read<T: DeserializeOwned>(message: &Message) -> Result<T, StreamError> {
    let body = Codec::decode_within(message.content_type.as_deref(), &message.body, CONTROL_LIMITS);
    body.map_err(|error| StreamError::BrokenProtocol(error.to_string()))
}

fn hash(text: &str) -> Result<ContentHash, StreamError> {
    text.parse().map_err(|_| StreamError::BrokenProtocol("'blake3' is no such hash".to_owned()))
}

/// Sequence numbers and offsets stay below 2^63: a stream of so many bytes has no end.
fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn number<N: TryFrom<i64>>(message: &Message, header: &str) -> Result<N, StreamError> {
    let value = message.headers.get(header).and_then(HeaderValue::as_int);
    value.and_then(|value| N::try_from(value).ok()).ok_or_else(|| {
        StreamError::BrokenProtocol(format!("the header '{header}' of a chunk is a whole number"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_were() {
        let id = Uuid::from_u128(7);
        let chunk = Chunk::new(3, 4, Bytes::from_static(b"body"));
        assert_eq!(chunk.offset, 12);
        let hash = ContentHash::of(b"all");
        for codec in [Codec::Json, Codec::MessagePack] {
            for frame in [
                ToReceiver::Chunk(chunk.clone()),
                ToReceiver::Alive { sent: 4 },
                ToReceiver::Close(Close { chunks: 4, length: 16, hash }),
                ToReceiver::Abort { code: "ABORTED".to_owned(), reason: "no".to_owned() },
                ToReceiver::Bye,
            ] {
                let message = frame.message(id, codec);
                assert_eq!(stream_id(&message), Some(id));
                assert_eq!(ToReceiver::read(&message).unwrap(), Some(frame));
            }
            let fail = Fail {
                code: "CORRUPT".to_owned(),
                class: ErrorClass::Transient,
                message: "x".to_owned(),
                again: true,
            };
            for frame in [
                ToSender::Credit(Credit { received: 1, until: 17, missing: vec![(2, 4)] }),
                ToSender::Done { length: 16, hash },
                ToSender::Fail(fail),
            ] {
                let message = frame.message(id, codec);
                assert_eq!(ToSender::read(&message).unwrap(), Some(frame));
            }
        }
    }

    #[test]
    fn what_is_no_frame_is_refused_and_what_is_newer_is_passed_over() {
        let id = Uuid::from_u128(7);
        let chunk = ToReceiver::Chunk(Chunk::new(0, 4, Bytes::from_static(b"body")));
        for header in [headers::STREAM_SEQ, headers::STREAM_OFFSET, headers::STREAM_CRC32C] {
            let message = chunk.message(id, Codec::Json);
            for wrong in [HeaderValue::Int(-1), HeaderValue::Bool(true)] {
                let message = message.clone().with_header(header, wrong);
                let error = ToReceiver::read(&message).unwrap_err();
                assert!(matches!(error, StreamError::BrokenProtocol(_)));
            }
        }
        let message = frame("stream.tomorrow", id, Bytes::new());
        assert_eq!(ToReceiver::read(&message).unwrap(), None);
        assert_eq!(ToSender::read(&message).unwrap(), None);
        let bomb = frame(CREDIT, id, Bytes::from(vec![b'['; 1024 * 1024]));
        assert!(ToSender::read(&bomb).is_err());
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let frame = ToReceiver::Abort { code: String::new(), reason: "é".repeat(40_000) };
        let message = frame.message(Uuid::from_u128(7), Codec::Json);
        let read = ToReceiver::read(&message).unwrap();
        let cut = ToReceiver::Abort { code: String::new(), reason: "é".repeat(1_000) };
        assert_eq!(read, Some(cut));
    }
}
