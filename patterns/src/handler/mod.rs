//! What every handler is given and gives back: [`Context`] and [`HandlerError`].
//!
//! A handler is an `async fn` from a typed value and a [`Context`] to a `Result`. The class of its
//! error decides what becomes of the message: try again, dead-letter, or answer. Any standard error
//! turns into a [`HandlerError`] by `?`.
//!
//! # Example: errors and their classes
//!
//! ```
//! use postrider_patterns::{ErrorClass, HandlerError};
//!
//! fn parse(text: &str) -> Result<u32, HandlerError> {
//!     if text.is_empty() {
//!         return Err(HandlerError::rejected("EMPTY_ORDER", "an order needs a line"));
//!     }
//!     Ok(text.parse()?)
//! }
//!
//! assert_eq!(parse("").unwrap_err().code(), "EMPTY_ORDER");
//! assert_eq!(parse("x").unwrap_err().class(), ErrorClass::Internal);
//! ```

mod context;
mod error;

pub use context::Context;
pub(crate) use error::class_of;
pub use error::{ErrorClass, HandlerError, UnknownClass};

/// The codes that Postrider itself gives to failures, as they stand on the wire.
pub mod codes {
    /// A request names a method that the service does not have.
    pub const UNKNOWN_METHOD: &str = "UNKNOWN_METHOD";
    /// A request wants one reply of a method that answers by a stream.
    pub const STREAM_REQUIRED: &str = "STREAM_REQUIRED";
    /// The parameters of a request are not what its method takes.
    pub const INVALID_PARAMS: &str = "INVALID_PARAMS";
    /// A body cannot be decoded.
    pub const UNDECODABLE: &str = "UNDECODABLE";
    /// A task has a type that its worker has no handler for.
    pub const UNKNOWN_TASK: &str = "UNKNOWN_TASK";
    /// An event has a type that its subscription has no handler for.
    pub const UNKNOWN_EVENT: &str = "UNKNOWN_EVENT";
    /// No rule of a router is for the message.
    pub const NO_ROUTE: &str = "NO_ROUTE";
    /// The rules of a router look further into a message than they may.
    pub const TOO_COSTLY: &str = "TOO_COSTLY";
    /// A message came through more routers than it may, which may go in a circle.
    pub const TOO_MANY_HOPS: &str = "TOO_MANY_HOPS";
    /// A message has not the key by which it is put into a partition or a group.
    pub const NO_KEY: &str = "NO_KEY";
    /// A message that is to be split has no id.
    pub const NO_ID: &str = "NO_ID";
    /// A message has more parts than are made.
    pub const TOO_MANY_PARTS: &str = "TOO_MANY_PARTS";
    /// The group of a part did not become complete.
    pub const INCOMPLETE: &str = "INCOMPLETE";
    /// A task was done, and its result cannot be sent to its submitter.
    pub const RESULT_UNSENDABLE: &str = "RESULT_UNSENDABLE";
    /// An event stands behind another one of its key that was given up.
    pub const KEY_PARKED: &str = "KEY_PARKED";
    /// An event was delivered as often as its queue allows, and its process ended each time.
    pub const DELIVERY_LIMIT: &str = "DELIVERY_LIMIT";
    /// A handler panicked.
    pub const PANIC: &str = "PANIC";
    /// A middleware gave the message back to its queue, uncounted.
    pub const GIVEN_BACK: &str = "GIVEN_BACK";
    /// A request was not begun, because a middleware of the server let no more of them pass in time.
    pub const NOT_BEGUN: &str = "NOT_BEGUN";
    /// A middleware of the server took a request as done without its method.
    pub const NOT_ANSWERED: &str = "NOT_ANSWERED";
    /// A handler did not end within its time.
    pub const HANDLER_TIMEOUT: &str = "HANDLER_TIMEOUT";
}
