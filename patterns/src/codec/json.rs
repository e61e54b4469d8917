use serde::{Deserialize, Serialize};

use super::{Codec, CodecError};

pub(super) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CodecError> {
    serde_json::to_vec(value).map_err(|error| CodecError::encode(Codec::Json, error))
}

/// `serde_json` stops at a depth of 128 by itself.
pub(super) fn decode<'de, T: Deserialize<'de>>(body: &'de [u8]) -> Result<T, CodecError> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value =
        T::deserialize(&mut reader).map_err(|error| CodecError::decode(Codec::Json, error))?;
    reader.end().map_err(|_| CodecError::TrailingBytes(Codec::Json))?;
    Ok(value)
}
