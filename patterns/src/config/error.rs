use thiserror::Error;

use crate::codec::CodecError;

/// Why a configuration value was not published or not read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// It cannot be written, or what is kept cannot be read as this type. Nothing was sent.
    #[error("config: {0}")]
    Codec(#[from] CodecError),
    /// Somebody else has published meanwhile. Nothing was sent.
    #[error("config: version {current} is in force, and not the one that was meant")]
    Conflict {
        /// The version that is kept; 0 when there is none.
        current: u64,
    },
    /// The transport or the broker did not take it. With
    /// [`ErrorKind::Unknown`](postrider_core::ErrorKind::Unknown) it may be in force all the same.
    #[error(transparent)]
    Transport(#[from] postrider_core::Error),
}
