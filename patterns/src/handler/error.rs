use std::{borrow::Cow, error::Error, fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::codes;
use crate::{
    codec::CodecError,
    error::PublishError,
    rpc::{Detail, DomainError, RpcError},
    streaming::StreamError,
};

/// What kind of failure it is, as far as somebody must act on it.
///
/// Its text form stands on the wire and does not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum ErrorClass {
    /// It may succeed later. Tried again.
    Transient,
    /// Somebody is overloaded and says so. Tried again after a time.
    Throttled,
    /// Somebody else changed the state first. Tried again.
    Conflict,
    /// The message is not what it should be. Dead-lettered at once.
    Invalid,
    /// A business answer: no. An answer to a request; dead-lettered in events and tasks.
    Rejected,
    /// What it is about does not exist. Dead-lettered at once.
    NotFound,
    /// Not allowed. Dead-lettered at once.
    Unauthorized,
    /// It took longer than it may; the work may have been done all the same. Tried again.
    DeadlineExceeded,
    /// It was called off. Tried again; when the handler itself was given up, because its worker or
    /// subscription stops, the message goes back to its queue uncounted.
    Cancelled,
    /// There is no means to do this. Dead-lettered at once.
    Unsupported,
    /// A fault in the program, or an error of unknown kind. Tried again.
    Internal,
    /// It was sent, and what became of it is not known. Tried again.
    Unknown,
    /// Who should do it cannot be reached; nothing was done. Tried again.
    Unavailable,
}

impl ErrorClass {
    /// Every class.
    pub const ALL: [Self; 13] = [
        Self::Transient,
        Self::Throttled,
        Self::Conflict,
        Self::Invalid,
        Self::Rejected,
        Self::NotFound,
        Self::Unauthorized,
        Self::DeadlineExceeded,
        Self::Cancelled,
        Self::Unsupported,
        Self::Internal,
        Self::Unknown,
        Self::Unavailable,
    ];

    /// Its text on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "TRANSIENT",
            Self::Throttled => "THROTTLED",
            Self::Conflict => "CONFLICT",
            Self::Invalid => "INVALID",
            Self::Rejected => "REJECTED",
            Self::NotFound => "NOT_FOUND",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::Cancelled => "CANCELLED",
            Self::Unsupported => "UNSUPPORTED",
            Self::Internal => "INTERNAL",
            Self::Unknown => "UNKNOWN",
            Self::Unavailable => "UNAVAILABLE",
        }
    }

    /// Whether the same message may succeed when it is tried again.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::Transient
                | Self::Throttled
                | Self::Conflict
                | Self::DeadlineExceeded
                | Self::Cancelled
                | Self::Internal
                | Self::Unknown
                | Self::Unavailable
        )
    }
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ErrorClass {
    type Err = UnknownClass;

    fn from_str(text: &str) -> Result<Self, UnknownClass> {
        Self::ALL.into_iter().find(|class| class.as_str() == text).ok_or(UnknownClass)
    }
}

/// A text that is no [`ErrorClass`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no such error class")]
pub struct UnknownClass;

/// How a handler failed: a class to act on, a code for programs, a message for people.
///
/// It is no [`std::error::Error`] itself, so that every standard error can become one by `?`. An
/// error of Postrider keeps its class on the way: an [`RpcError`] that was a rejection is one
/// still. Every other error is [`ErrorClass::Internal`], its message the whole chain of sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandlerError {
    class: ErrorClass,
    code: Cow<'static, str>,
    message: Cow<'static, str>,
    retry_after: Option<Duration>,
    detail: Option<Detail>,
    is_given_back: bool,
    is_held_back: bool,
}

impl HandlerError {
    /// A failure of `class`, whose code is the text of the class.
    pub fn new(class: ErrorClass, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            class,
            code: Cow::Borrowed(class.as_str()),
            message: message.into(),
            retry_after: None,
            detail: None,
            is_given_back: false,
            is_held_back: false,
        }
    }

    /// It may succeed later.
    pub fn transient(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorClass::Transient, message)
    }

    /// Overloaded; come again after `retry_after`.
    pub fn throttled(message: impl Into<Cow<'static, str>>, retry_after: Duration) -> Self {
        Self::new(ErrorClass::Throttled, message).with_retry_after(retry_after)
    }

    /// Somebody else changed the state first.
    pub fn conflict(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorClass::Conflict, message)
    }

    /// The message is not what it should be and never will be.
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorClass::Invalid, message)
    }

    /// A business answer with a code of the domain, for example `OUT_OF_STOCK`.
    pub fn rejected(
        code: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(ErrorClass::Rejected, message).with_code(code)
    }

    /// A business answer whose error has a type: it comes back to the caller of a service as what it
    /// is, by [`RpcError::domain`].
    pub fn domain<E: DomainError>(error: E) -> Self {
        let mut rejected = Self::rejected(error.code(), error.to_string());
        rejected.detail = Some(Detail::new(error));
        rejected
    }

    /// What it is about does not exist.
    pub fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorClass::NotFound, message)
    }

    /// Not allowed.
    pub fn unauthorized(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorClass::Unauthorized, message)
    }

    /// There is no means to do this.
    pub fn unsupported(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorClass::Unsupported, message)
    }

    /// A fault in the program. What it says is not shown to callers unless the server is told so.
    pub fn internal(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorClass::Internal, message)
    }

    pub(crate) fn undecodable(error: &CodecError) -> Self {
        Self::invalid(chain(error)).with_code(codes::UNDECODABLE)
    }

    pub(crate) fn panicked(message: &str) -> Self {
        Self::internal(format!("the handler panicked: {message}")).with_code(codes::PANIC)
    }

    pub(crate) fn timed_out(limit: Duration) -> Self {
        let message = format!("the handler did not end within {limit:?}");
        Self::new(ErrorClass::DeadlineExceeded, message).with_code(codes::HANDLER_TIMEOUT)
    }

    pub(crate) fn given_back() -> Self {
        let message = "the message goes back to its queue; its handler has not run";
        let mut error = Self::new(ErrorClass::Cancelled, message).with_code(codes::GIVEN_BACK);
        error.is_given_back = true;
        error
    }

    /// A request that a middleware lets not pass.
    pub(crate) fn held_back(message: impl Into<Cow<'static, str>>) -> Self {
        let mut error = Self::new(ErrorClass::Throttled, message).with_code(codes::NOT_BEGUN);
        error.is_held_back = true;
        error
    }

    /// Replaces the code.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<Cow<'static, str>>) -> Self {
        self.code = code.into();
        self
    }

    /// Sets the shortest time until the next try.
    #[must_use]
    pub const fn with_retry_after(mut self, time: Duration) -> Self {
        self.retry_after = Some(time);
        self
    }

    /// What is to be done about it.
    #[must_use]
    pub const fn class(&self) -> ErrorClass {
        self.class
    }

    /// What it is, for programs: a code of the domain, or the text of the class.
    #[must_use]
    pub fn code(&self) -> &str {
        &self.code
    }

    /// What it is, for people.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The shortest time until the next try.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Whether a middleware gave the message [back](crate::Next::give_back): it is no failure then.
    #[must_use]
    pub const fn is_given_back(&self) -> bool {
        self.is_given_back
    }

    /// Whether a middleware kept the handler from running, so that it says nothing about what the
    /// handler depends on.
    pub(crate) const fn is_held_back(&self) -> bool {
        self.is_given_back || self.is_held_back
    }

    /// What its domain error holds.
    pub(crate) const fn detail(&self) -> Option<&Detail> {
        self.detail.as_ref()
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for HandlerError {
    fn from(error: E) -> Self {
        let any: &(dyn Error + 'static) = &error;
        let message = chain(any);
        if let Some(error) = any.downcast_ref::<RpcError>() {
            let failed = Self::new(error.class(), message).with_code(error.code().to_owned());
            return match error.retry_after() {
                Some(time) => failed.with_retry_after(time),
                None => failed,
            };
        }
        if let Some(error) = any.downcast_ref::<StreamError>() {
            return Self::new(error.class(), message).with_code(error.code().to_owned());
        }
        let class = if let Some(error) = any.downcast_ref::<PublishError>() {
            error.class()
        } else if let Some(error) = any.downcast_ref::<postrider_core::Error>() {
            class_of(error.kind())
        } else if any.is::<CodecError>() {
            ErrorClass::Invalid
        } else {
            ErrorClass::Internal
        };
        Self::new(class, message)
    }
}

/// The class of a failed transport call inside a handler.
pub(crate) const fn class_of(kind: postrider_core::ErrorKind) -> ErrorClass {
    use postrider_core::ErrorKind;
    match kind {
        ErrorKind::Unavailable | ErrorKind::Closed => ErrorClass::Unavailable,
        ErrorKind::TimedOut => ErrorClass::DeadlineExceeded,
        ErrorKind::Unknown => ErrorClass::Unknown,
        // A queue that is missing or full may be there or have room later.
        ErrorKind::Unroutable | ErrorKind::Rejected | ErrorKind::Locked => ErrorClass::Transient,
        ErrorKind::NotFound => ErrorClass::NotFound,
        ErrorKind::Invalid => ErrorClass::Invalid,
        ErrorKind::Unsupported => ErrorClass::Unsupported,
        ErrorKind::Unauthorized => ErrorClass::Unauthorized,
        _ => ErrorClass::Internal,
    }
}

/// An error and its sources in one line; a source whose text is in its parent's is left out.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let line = error.to_string();
        if !text.contains(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_have_one_text_each() {
        for class in ErrorClass::ALL {
            assert_eq!(class.as_str().parse(), Ok(class));
            let json = serde_json::to_string(&class).unwrap();
            assert_eq!(json, format!("\"{class}\""));
        }
        assert_eq!("transient".parse::<ErrorClass>(), Err(UnknownClass));
    }

    #[test]
    fn errors_of_postrider_keep_their_class_and_others_their_chain() {
        let rejected = RpcError::Rejected {
            code: "OUT_OF_STOCK".to_owned(),
            message: "none left".to_owned(),
            detail: None,
        };
        let error = HandlerError::from(rejected);
        assert_eq!((error.class(), error.code()), (ErrorClass::Rejected, "OUT_OF_STOCK"));

        let error = HandlerError::from(StreamError::Busy("film.mp4".to_owned()));
        assert_eq!((error.class(), error.code()), (ErrorClass::Conflict, "BUSY"));

        let lost = postrider_core::Error::new(
            postrider_core::ErrorKind::Unavailable,
            "send",
            "no connection",
        )
        .with_source(std::io::Error::other("reset by peer"));
        let error = HandlerError::from(lost);
        assert_eq!(error.class(), ErrorClass::Unavailable);
        assert_eq!(error.message(), "send: no connection: reset by peer");

        let error = HandlerError::from(std::io::Error::other("disk"));
        assert_eq!(error.class(), ErrorClass::Internal);
        assert_eq!(error.to_string(), "INTERNAL: disk");
    }
}
