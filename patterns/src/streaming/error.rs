use std::{io, time::Duration};

use thiserror::Error;

use super::codes;
use crate::{
    codec::CodecError,
    handler::{ErrorClass, class_of},
};

/// How a transfer failed, for either side.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StreamError {
    /// Nobody receives for the service, or not any more.
    #[error("service '{service}' takes no stream: {reason}")]
    Unavailable {
        /// The service that was asked.
        service: String,
        /// How that is known.
        reason: String,
    },
    /// The other side failed, or said no.
    #[error("the other side ended the stream, {code}: {message}")]
    Refused {
        /// What is to be done about it.
        class: ErrorClass,
        /// What it is, for programs: one of the [codes](super::codes), a code of the receiver's
        /// domain, or the text of the class.
        code: String,
        /// What it is, for people.
        message: String,
    },
    /// A checksum, the hash or the content of a repeated chunk is not what it should be.
    #[error("the stream is corrupt: {0}")]
    Corrupt(String),
    /// The other side sent what the protocol does not allow: a wrong offset, too many bytes, a
    /// chunk beyond its credit.
    #[error("the other side broke the protocol: {0}")]
    BrokenProtocol(String),
    /// The payload is longer than the receiver takes.
    #[error("the stream has more than the {limit} bytes that are taken")]
    TooLarge {
        /// The most bytes that are taken.
        limit: u64,
    },
    /// Chunks stayed missing however often they were asked for.
    #[error("chunks are missing from {first} on, after they were asked for {rounds} times")]
    ChunksMissing {
        /// The first of them, from 0.
        first: u64,
        /// How often they were asked for.
        rounds: u32,
    },
    /// Nothing was heard of the other side. The transfer can be taken up again.
    #[error("nothing was heard of the other side for {after:?}")]
    IdleTimeout {
        /// How long.
        after: Duration,
    },
    /// The sender called it off.
    #[error("the stream was aborted: {reason}")]
    Aborted {
        /// Why, for people.
        reason: String,
    },
    /// The receiver lacks what the source cannot give a second time.
    #[error(
        "the receiver needs the stream from byte {offset} on, and the source cannot go back there"
    )]
    NotResumable {
        /// From where, in bytes.
        offset: u64,
    },
    /// The source of the payload, or the file it goes to, failed.
    #[error("{what}: {source}")]
    Io {
        /// What failed.
        what: String,
        /// How.
        source: io::Error,
    },
    /// Another transfer writes the same file.
    #[error("another transfer writes '{0}'")]
    Busy(String),
    /// The description of the stream cannot be written or read.
    #[error("stream: {0}")]
    Codec(#[from] CodecError),
    /// The transport failed.
    #[error(transparent)]
    Transport(#[from] postrider_core::Error),
    /// One of the sides stopped. The transfer can be taken up again.
    #[error("the transfer was interrupted: {0}")]
    Interrupted(String),
}

impl StreamError {
    pub(super) fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }

    /// What is to be done about it.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Unavailable { .. } => ErrorClass::Unavailable,
            Self::Refused { class, .. } => *class,
            // What is wrong on the way may be right when it is sent again.
            Self::Corrupt(_) | Self::ChunksMissing { .. } => ErrorClass::Transient,
            Self::BrokenProtocol(_) | Self::TooLarge { .. } | Self::Codec(_) => ErrorClass::Invalid,
            Self::IdleTimeout { .. } => ErrorClass::DeadlineExceeded,
            Self::Aborted { .. } | Self::Interrupted(_) => ErrorClass::Cancelled,
            Self::NotResumable { .. } => ErrorClass::Unsupported,
            Self::Io { .. } => ErrorClass::Internal,
            Self::Busy(_) => ErrorClass::Conflict,
            Self::Transport(error) => class_of(error.kind()),
        }
    }

    /// What failed, for programs: one of the [codes](super::codes), the other side's own code, or
    /// the text of the class.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Refused { code, .. } => code,
            Self::Corrupt(_) => codes::CORRUPT,
            Self::BrokenProtocol(_) => codes::BROKEN_PROTOCOL,
            Self::TooLarge { .. } => codes::TOO_LARGE,
            Self::ChunksMissing { .. } => codes::CHUNKS_MISSING,
            Self::IdleTimeout { .. } => codes::IDLE_TIMEOUT,
            Self::Aborted { .. } => codes::ABORTED,
            Self::NotResumable { .. } => codes::NOT_RESUMABLE,
            Self::Busy(_) => codes::BUSY,
            Self::Interrupted(_) => codes::INTERRUPTED,
            other => other.class().as_str(),
        }
    }

    /// Whether the same transfer, by its id, can be taken up where it ended.
    #[must_use]
    pub const fn is_resumable(&self) -> bool {
        matches!(
            self,
            Self::IdleTimeout { .. }
                | Self::Interrupted(_)
                | Self::Unavailable { .. }
                | Self::Transport(_)
                | Self::Busy(_)
        )
    }
}

/// For a reader, whose errors are those of I/O. The stream error is inside.
impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        let kind = match &error {
            StreamError::Corrupt(_) | StreamError::BrokenProtocol(_) => io::ErrorKind::InvalidData,
            StreamError::IdleTimeout { .. } => io::ErrorKind::TimedOut,
            StreamError::Aborted { .. } => io::ErrorKind::ConnectionAborted,
            StreamError::TooLarge { .. } => io::ErrorKind::FileTooLarge,
            StreamError::Io { source, .. } => source.kind(),
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
