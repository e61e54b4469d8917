//! Values to bytes and back: MessagePack by default, JSON beside it, chosen by content type.
//!
//! A sender picks its [`Codec`]; a receiver decodes by the content type that came with the message,
//! so that both may meet on one queue. Decoding is bounded: bodies have a largest size
//! ([`Limits`]), values a greatest depth ([`MAX_DEPTH`]), and bytes after the value are an error.
//!
//! # Example: written in one codec, read by content type
//!
//! ```
//! use postrider_patterns::{Codec, CodecError};
//!
//! # fn main() -> Result<(), CodecError> {
//! let body = Codec::MessagePack.encode(&("CD", 3))?;
//! let (what, count): (String, u32) = Codec::decode(Some("application/msgpack"), &body)?;
//! assert_eq!((what.as_str(), count), ("CD", 3));
//!
//! // A plain client that names no content type sends JSON.
//! let numbers: Vec<u32> = Codec::decode(None, b"[1, 2]")?;
//! assert_eq!(numbers, [1, 2]);
//! # Ok(())
//! # }
//! ```

mod error;
mod json;
mod msgpack;

use std::{fmt, str::FromStr};

use bytes::Bytes;
pub use error::CodecError;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// How deep lists and maps of a decoded value may be nested.
pub const MAX_DEPTH: usize = 128;

/// How values become bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Codec {
    /// MessagePack with named fields; content type `application/msgpack`.
    #[default]
    MessagePack,
    /// JSON; content type `application/json`.
    Json,
}

/// What a body may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The largest body in bytes, both ways. Default: 16 MiB, RabbitMQ's own default.
    pub max_body_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_body_bytes: 16 * 1024 * 1024 }
    }
}

impl Limits {
    /// Sets [`max_body_bytes`](Self::max_body_bytes).
    #[must_use]
    pub const fn with_max_body_bytes(mut self, bytes: usize) -> Self {
        self.max_body_bytes = bytes;
        self
    }

    fn check(self, bytes: usize) -> Result<(), CodecError> {
        if bytes > self.max_body_bytes {
            return Err(CodecError::TooLarge { bytes, limit: self.max_body_bytes });
        }
        Ok(())
    }
}

impl Codec {
    /// The content type that it writes.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::MessagePack => "application/msgpack",
            Self::Json => "application/json",
        }
    }

    /// The bytes of a value, within the default [`Limits`].
    ///
    /// # Errors
    ///
    /// [`CodecError::Encode`] for a value that the format cannot hold, such as a JSON map whose
    /// keys are no text; [`CodecError::TooLarge`].
    pub fn encode<T: Serialize + ?Sized>(self, value: &T) -> Result<Bytes, CodecError> {
        self.encode_within(value, Limits::default())
    }

    /// The bytes of a value, within `limits`.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    pub fn encode_within<T: Serialize + ?Sized>(
        self,
        value: &T,
        limits: Limits,
    ) -> Result<Bytes, CodecError> {
        let body = match self {
            Self::MessagePack => msgpack::encode(value)?,
            Self::Json => json::encode(value)?,
        };
        limits.check(body.len())?;
        Ok(Bytes::from(body))
    }

    /// The value in `body`, read as its content type says, within the default [`Limits`].
    ///
    /// # Errors
    ///
    /// [`CodecError::UnknownContentType`], [`CodecError::TooLarge`], [`CodecError::Decode`] for
    /// what is no such value or nested too deep, [`CodecError::TrailingBytes`].
    pub fn decode<T: DeserializeOwned>(
        content_type: Option<&str>,
        body: &[u8],
    ) -> Result<T, CodecError> {
        Self::decode_within(content_type, body, Limits::default())
    }

    /// The value in `body`, read as its content type says, within `limits`.
    ///
    /// # Errors
    ///
    /// As [`decode`](Self::decode).
    pub fn decode_within<T: DeserializeOwned>(
        content_type: Option<&str>,
        body: &[u8],
        limits: Limits,
    ) -> Result<T, CodecError> {
        Self::of(content_type, body)?.read(body, limits)
    }

    /// The codec of a message: by its content type, or, without one, by its first byte. A body
    /// that begins as a MessagePack map is MessagePack, every other one JSON; the two cannot be
    /// mistaken, because `{` is no MessagePack map.
    ///
    /// Parameters such as `; charset=utf-8` are ignored, a `+json` suffix is JSON, a `+msgpack`
    /// suffix MessagePack.
    ///
    /// # Errors
    ///
    /// [`CodecError::UnknownContentType`].
    pub fn of(content_type: Option<&str>, body: &[u8]) -> Result<Self, CodecError> {
        let Some(content_type) = content_type.map(str::trim).filter(|text| !text.is_empty()) else {
            return Ok(match body.first() {
                Some(0x80..=0x8f | 0xde | 0xdf) => Self::MessagePack,
                _ => Self::Json,
            });
        };
        let media_type = content_type
            .split_once(';')
            .map_or(content_type, |(media_type, _parameters)| media_type)
            .trim_end();
        let is = |known: &[&str]| known.iter().any(|known| media_type.eq_ignore_ascii_case(known));
        if is(&["application/json"]) || ends_with_ignore_case(media_type, "+json") {
            Ok(Self::Json)
        } else if is(&["application/msgpack", "application/x-msgpack", "application/vnd.msgpack"])
            || ends_with_ignore_case(media_type, "+msgpack")
        {
            Ok(Self::MessagePack)
        } else {
            Err(CodecError::UnknownContentType(content_type.to_owned()))
        }
    }

    /// The value in `body`, which may borrow from it.
    pub(crate) fn read<'de, T: Deserialize<'de>>(
        self,
        body: &'de [u8],
        limits: Limits,
    ) -> Result<T, CodecError> {
        limits.check(body.len())?;
        match self {
            Self::MessagePack => msgpack::decode(body),
            Self::Json => json::decode(body),
        }
    }
}

/// The value of a field that may be left out or null: what the type makes of nothing, such as a unit
/// or a struct whose fields all have defaults.
pub(crate) fn read_or_default<T: DeserializeOwned>(value: Option<T>) -> Result<T, CodecError> {
    match value {
        Some(value) => Ok(value),
        None => json::decode(b"null").or_else(|_| json::decode(b"{}")),
    }
}

fn ends_with_ignore_case(text: &str, suffix: &str) -> bool {
    text.len() > suffix.len()
        && text.as_bytes()[text.len() - suffix.len()..].eq_ignore_ascii_case(suffix.as_bytes())
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MessagePack => "msgpack",
            Self::Json => "json",
        })
    }
}

impl FromStr for Codec {
    type Err = CodecError;

    fn from_str(name: &str) -> Result<Self, CodecError> {
        match name {
            "msgpack" | "messagepack" => Ok(Self::MessagePack),
            "json" => Ok(Self::Json),
            other => Err(CodecError::UnknownCodec(other.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{
        collection::btree_map,
        prelude::{any, prop_assert_eq, proptest},
    };

    use super::*;

    #[test]
    fn the_content_type_chooses() {
        let of = |content_type| Codec::of(Some(content_type), b"{}").ok();
        for json in [
            "application/json",
            "application/json; charset=utf-8",
            "Application/JSON",
            "application/cloudevents+json",
        ] {
            assert_eq!(of(json), Some(Codec::Json), "{json}");
        }
        for msgpack in ["application/msgpack", "application/x-msgpack", "application/vnd.msgpack"] {
            assert_eq!(of(msgpack), Some(Codec::MessagePack), "{msgpack}");
        }
        for unknown in ["text/plain", "application/octet-stream", "+json", "json"] {
            assert_eq!(of(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn without_a_content_type_the_first_byte_chooses() {
        let map = BTreeMap::from([("a", 1)]);
        for codec in [Codec::Json, Codec::MessagePack] {
            let body = codec.encode(&map).unwrap();
            assert_eq!(Codec::of(None, &body).unwrap(), codec);
            assert_eq!(Codec::of(Some(" "), &body).unwrap(), codec);
        }
    }

    #[test]
    fn bytes_after_the_value_are_an_error() {
        for codec in [Codec::Json, Codec::MessagePack] {
            let mut body = codec.encode(&1).unwrap().to_vec();
            body.extend_from_slice(&codec.encode(&2).unwrap());
            body.insert(1, b' ');
            let decoded = Codec::decode::<u8>(Some(codec.content_type()), &body);
            assert!(matches!(decoded, Err(CodecError::TrailingBytes(_))), "{decoded:?}");
        }
    }

    #[test]
    fn depth_and_size_are_bounded() {
        let deep_json = "[".repeat(100_000);
        let deep_msgpack = vec![0x91; 100_000];
        for (content_type, body) in
            [("application/json", deep_json.as_bytes()), ("application/msgpack", &deep_msgpack)]
        {
            let decoded = Codec::decode::<serde_json::Value>(Some(content_type), body);
            assert!(matches!(decoded, Err(CodecError::Decode { .. })));
            let limits = Limits::default().with_max_body_bytes(99);
            let decoded = Codec::decode_within::<u8>(Some(content_type), body, limits);
            assert!(matches!(decoded, Err(CodecError::TooLarge { .. })));
        }
        let limits = Limits::default().with_max_body_bytes(3);
        assert!(Codec::Json.encode_within(&1000, limits).is_err());
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(
            value in btree_map(".{0,8}", (any::<i64>(), any::<Option<bool>>(), ".{0,40}"), 0..20),
        ) {
            for codec in [Codec::Json, Codec::MessagePack] {
                let body = codec.encode(&value).unwrap();
                let decoded: BTreeMap<String, (i64, Option<bool>, String)> =
                    Codec::decode(Some(codec.content_type()), &body).unwrap();
                prop_assert_eq!(&decoded, &value);
            }
        }

        #[test]
        fn no_bytes_make_decoding_panic(body: Vec<u8>, json in any::<bool>()) {
            let codec = if json { Codec::Json } else { Codec::MessagePack };
            let _either = Codec::decode::<serde_json::Value>(Some(codec.content_type()), &body);
        }
    }
}
