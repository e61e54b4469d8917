//! What happens when handling fails: retries by policy, then the dead-letter queue.
//!
//! A [`RetryPolicy`] is data; its decision is a pure function of the error's class, the failures so
//! far and one random number. It guarantees that every message ends: done, or, after a bounded
//! number of tries, in the dead-letter queue with body and headers untouched and the reason beside
//! them. A message that kills its process is bounded by the queue's delivery limit, which is above
//! what the policy uses; both meet in the same dead-letter queue.
//!
//! # Example: what the default policy decides
//!
//! ```
//! use std::time::Duration;
//! use postrider_patterns::{Decision, ErrorClass, HandlerError, RetryPolicy, Tries};
//!
//! let policy = RetryPolicy::default();
//! let busy = HandlerError::transient("the database is restarting");
//! assert_eq!(policy.decide(&busy, 0, 0.5), Decision::RetryNow);
//! assert_eq!(policy.decide(&busy, 3, 0.5), Decision::RetryAfter(Duration::from_millis(500)));
//! assert_eq!(policy.decide(&busy, 8, 0.5), Decision::DeadLetter);
//!
//! let poison = HandlerError::invalid("no such currency");
//! assert_eq!(policy.decide(&poison, 0, 0.5), Decision::DeadLetter);
//! ```

mod dead_letter;
mod retry;
mod retrying;

pub(crate) use dead_letter::{Keeper, shorten};
pub use dead_letter::{dead_letter_route, dead_letter_topology};
pub use retry::{Decision, Jitter, RetryPolicy, Tries};
pub(crate) use retrying::{By, Retrying};
