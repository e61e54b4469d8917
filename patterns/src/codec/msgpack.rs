use std::io::ErrorKind;

use rmp_serde::decode::Error as DecodeError;
use serde::{Deserialize, Serialize, de::IgnoredAny};

use super::{Codec, CodecError, MAX_DEPTH};

/// Room for most bodies, so that they need not grow.
const USUAL_BYTES: usize = 128;

/// Structs become maps with named fields, so that fields may be added and left out over time.
pub(super) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut body = Vec::with_capacity(USUAL_BYTES);
    rmp_serde::encode::write_named(&mut body, value)
        .map_err(|error| CodecError::encode(Codec::MessagePack, error))?;
    Ok(body)
}

pub(super) fn decode<'de, T: Deserialize<'de>>(body: &'de [u8]) -> Result<T, CodecError> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(body);
    reader.set_max_depth(MAX_DEPTH);
    let value = T::deserialize(&mut reader)
        .map_err(|error| CodecError::decode(Codec::MessagePack, error))?;
    // The reader does not tell its position, but at the end there is no marker to read.
    match IgnoredAny::deserialize(&mut reader) {
        Err(DecodeError::InvalidMarkerRead(end)) if end.kind() == ErrorKind::UnexpectedEof => {
            Ok(value)
        }
        _ => Err(CodecError::TrailingBytes(Codec::MessagePack)),
    }
}
