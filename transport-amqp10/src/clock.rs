//! Waiting for a moment that may not be set.

use tokio::time::{Instant, sleep_until};

/// Waits until `deadline`, or for ever. Cancellation safe.
pub(crate) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
