//! The one error of the transport boundary.

use std::{borrow::Cow, error, fmt};

/// What a transport call returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as far as a caller can act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The broker cannot be reached or takes no publishes now. Nothing was sent.
    Unavailable,
    /// The call took longer than its time limit.
    TimedOut,
    /// It was sent, and what the broker did with it is not known.
    Unknown,
    /// The message reached no queue.
    Unroutable,
    /// The broker refused the message, for example because the queue is full.
    Rejected,
    /// The queue or exchange does not exist.
    NotFound,
    /// The queue or exchange exists with other arguments.
    Mismatch,
    /// The queue is exclusive to another connection or consumer.
    Locked,
    /// The input breaks a rule of the protocol or the broker.
    Invalid,
    /// The broker has no means to do this.
    Unsupported,
    /// The credentials or their permissions do not allow this.
    Unauthorized,
    /// The transport, publisher or consumer was closed.
    Closed,
    /// A fault of the transport or broker itself.
    Internal,
}

impl ErrorKind {
    /// Whether the same call may succeed later without anybody changing anything.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        matches!(self, Self::Unavailable | Self::TimedOut | Self::Unknown | Self::Rejected)
    }
}

/// A failed transport call: the kind, the operation, the context, and the source.
///
/// Its `Display` is one line that says what failed, on what, and what to do. Secrets of a URL never
/// appear in it.
///
/// # Example: decide by kind
///
/// ```
/// use postrider_core::{Error, ErrorKind};
///
/// let error = Error::new(ErrorKind::NotFound, "consume", "there is no such queue; declare it first")
///     .with_context("queue", "orders");
/// assert_eq!(error.to_string(), "consume: there is no such queue; declare it first (queue: orders)");
/// assert!(!error.is_retryable());
/// ```
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    operation: &'static str,
    message: Cow<'static, str>,
    context: Vec<(&'static str, String)>,
    source: Option<Box<dyn error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind` in `operation`, described by `message`.
    pub fn new(
        kind: ErrorKind,
        operation: &'static str,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self(Box::new(Inner {
            kind,
            operation,
            message: message.into(),
            context: Vec::new(),
            source: None,
        }))
    }

    /// Adds what the operation was about, for example `("queue", "orders")`.
    #[must_use]
    pub fn with_context(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.0.context.push((name, value.into()));
        self
    }

    /// Adds the error that caused this one.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same call may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.0.kind.is_retryable()
    }

    /// The call that failed, for example `"declare"`.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// The description alone, without operation and context.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What the operation was about, in the order it was added.
    pub fn context(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.context.iter().map(|(name, value)| (*name, value.as_str()))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.operation, self.0.message)?;
        for (index, (name, value)) in self.context().enumerate() {
            f.write_str(if index == 0 { " (" } else { ", " })?;
            write!(f, "{name}: {value}")?;
        }
        if !self.0.context.is_empty() {
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
