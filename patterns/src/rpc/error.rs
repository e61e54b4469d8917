use std::time::Duration;

use thiserror::Error;

use super::{DomainError, RejectionDetail};
use crate::{
    codec::CodecError,
    handler::{ErrorClass, class_of},
};

/// How a call failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RpcError {
    /// Nobody serves it, or it could not be reached in time.
    ///
    /// Before the request was sent, nothing was handled, nor will be: a request that the broker did
    /// not take in time is past its deadline. Afterwards it may have been handled by a server that
    /// went away; and one that lies in the service's queue is run by a server that returns within
    /// the call's timeout, which is the request's time to live.
    #[error("service '{service}' is unavailable: {reason}")]
    Unavailable {
        /// The service that was called.
        service: String,
        /// How that is known.
        reason: String,
        /// Whether the request was sent. The class is [`ErrorClass::Unknown`] then, else
        /// [`ErrorClass::Unavailable`].
        sent: bool,
    },
    /// The request was sent and no reply came in time. It may have been handled all the same. A
    /// call without any time is not sent; `after` is zero then.
    #[error("no reply to '{method}' of service '{service}' within {after:?}")]
    TimedOut {
        /// The service that was called.
        service: String,
        /// The method that was called.
        method: String,
        /// How long was waited.
        after: Duration,
    },
    /// There is too much under way. Nothing was sent, or the service's queue is full.
    #[error("too many calls: {reason}")]
    Throttled {
        /// Which bound was hit.
        reason: String,
    },
    /// The request is larger than the broker takes. It was not handled and never will be; a
    /// [stream](crate::streaming) has no such limit.
    #[error("the request has {bytes} bytes, and that is too large: {reason}")]
    TooLarge {
        /// How many bytes its body has.
        bytes: u64,
        /// What the broker takes, or what it said.
        reason: String,
    },
    /// The service said no, for a reason of its domain.
    #[error("rejected, {code}: {message}")]
    Rejected {
        /// The code of the domain, for example `OUT_OF_STOCK`.
        code: String,
        /// What it says to people.
        message: String,
        /// What the service's error holds, where it has a type; [`domain`](Self::domain) reads it.
        detail: Option<RejectionDetail>,
    },
    /// The service failed.
    #[error("the service failed, {code}: {message}")]
    Failed {
        /// What is to be done about it.
        class: ErrorClass,
        /// What failed, for programs: one of [`codes`](crate::codes) or the text of the class.
        code: String,
        /// What failed, for people.
        message: String,
        /// The shortest time until the next try.
        retry_after: Option<Duration>,
    },
    /// The request was sent, and then the connection was lost. It may have been handled.
    #[error("the call's outcome is not known: {cause}")]
    Unknown {
        /// What happened.
        cause: String,
    },
    /// A streamed reply ended before its end. What came before is good, and `resume_from` of its
    /// items did.
    #[error("the stream broke off after {resume_from} items: {reason}")]
    StreamBroken {
        /// The number of the first item that did not come, from 0.
        resume_from: u64,
        /// How that is known.
        reason: String,
    },
    /// The call was cancelled by its own handle. It may have been handled all the same.
    #[error("the call was cancelled")]
    Cancelled,
    /// The parameters cannot be written or the reply cannot be read.
    #[error("call: {0}")]
    Codec(#[from] CodecError),
    /// The transport did not send the request.
    #[error(transparent)]
    Transport(#[from] postrider_core::Error),
}

impl RpcError {
    /// What is to be done about it.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Unavailable { sent: false, .. } => ErrorClass::Unavailable,
            Self::Unavailable { sent: true, .. } => ErrorClass::Unknown,
            Self::TimedOut { .. } => ErrorClass::DeadlineExceeded,
            Self::Throttled { .. } => ErrorClass::Throttled,
            Self::Rejected { .. } => ErrorClass::Rejected,
            Self::Failed { class, .. } => *class,
            Self::Unknown { .. } | Self::StreamBroken { .. } => ErrorClass::Unknown,
            Self::Cancelled => ErrorClass::Cancelled,
            Self::Codec(_) | Self::TooLarge { .. } => ErrorClass::Invalid,
            Self::Transport(error) => class_of(error.kind()),
        }
    }

    /// What failed, for programs: the service's own code, or the text of the class.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Rejected { code, .. } | Self::Failed { code, .. } => code,
            other => other.class().as_str(),
        }
    }

    /// The shortest time until the next try, where the service gave one.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Failed { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The service's own error, where it was rejected with one of type `E`.
    #[must_use]
    pub fn domain<E: DomainError>(&self) -> Option<E> {
        let Self::Rejected { code, detail: Some(detail), .. } = self else { return None };
        // Another error may read as this one; its code says which it is.
        detail.read::<E>().ok().filter(|error| error.code() == *code)
    }
}
