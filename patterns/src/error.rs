//! What publishing through a pattern can fail with.

use thiserror::Error;

use crate::{
    codec::CodecError,
    handler::{ErrorClass, class_of},
};

/// Why an event or a task was not published.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PublishError {
    /// It cannot be encoded. Nothing was sent.
    #[error("not published: {0}")]
    Codec(#[from] CodecError),
    /// The transport or the broker did not take it. With
    /// [`ErrorKind::Unknown`](postrider_core::ErrorKind::Unknown) it may be stored all the same.
    #[error(transparent)]
    Transport(#[from] postrider_core::Error),
}

impl PublishError {
    /// What is to be done about it.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Codec(_) => ErrorClass::Invalid,
            Self::Transport(error) => class_of(error.kind()),
        }
    }
}
