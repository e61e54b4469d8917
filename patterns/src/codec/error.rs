use thiserror::Error;

use super::Codec;

/// Why a value could not be written or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CodecError {
    /// No codec reads this content type.
    #[error("no codec reads content type '{0}'; send application/msgpack or application/json")]
    UnknownContentType(String),
    /// No codec has this name.
    #[error("no codec is named '{0}'; there are msgpack and json")]
    UnknownCodec(String),
    /// The body is larger than the limit.
    #[error("a body of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// The size of the body.
        bytes: usize,
        /// The limit, [`Limits::max_body_bytes`](super::Limits::max_body_bytes).
        limit: usize,
    },
    /// The value cannot be written in this format.
    #[error("the value cannot be written as {codec}: {source}")]
    Encode {
        /// The format.
        codec: Codec,
        /// What the format's own library says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The body is no such value in this format.
    #[error("the body is not what was expected as {codec}: {source}")]
    Decode {
        /// The format.
        codec: Codec,
        /// What the format's own library says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Something follows the value.
    #[error("the body goes on after the end of its {0} value")]
    TrailingBytes(Codec),
}

impl CodecError {
    pub(super) fn encode(
        codec: Codec,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Encode { codec, source: Box::new(source) }
    }

    pub(super) fn decode(
        codec: Codec,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Decode { codec, source: Box::new(source) }
    }
}
