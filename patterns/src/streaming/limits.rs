//! The times that both sides must agree on, and what settings may be.

use std::time::Duration;

use postrider_core::{Error, ErrorKind, Result};

/// How long a side that has nothing to say waits before it gives a sign of life.
pub(super) const KEEPALIVE: Duration = Duration::from_secs(2);

/// How long a sender that hears nothing waits before it offers the stream to other receivers.
pub(super) const SILENCE: Duration = Duration::from_secs(5);

/// A side that gives up sooner than this would do so between two signs of life.
const SHORTEST_IDLE: Duration = Duration::from_secs(6);

pub(super) fn check_idle_timeout(operation: &'static str, timeout: Duration) -> Result<()> {
    if timeout >= SHORTEST_IDLE {
        return Ok(());
    }
    let message = format!(
        "an idle timeout of {timeout:?} would end streams that are alive; it is at least \
         {SHORTEST_IDLE:?}"
    );
    Err(Error::new(ErrorKind::Invalid, operation, message))
}

pub(super) fn check_accept_timeout(operation: &'static str, timeout: Duration) -> Result<()> {
    if !timeout.is_zero() {
        return Ok(());
    }
    let message = "an accept timeout of 0 would end every stream before it is taken; it is longer";
    Err(Error::new(ErrorKind::Invalid, operation, message))
}

/// The longest that any timeout is.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A timeout that can be added to any moment.
pub(super) const fn bounded(timeout: Duration) -> Duration {
    if timeout.as_secs() < LONGEST.as_secs() { timeout } else { LONGEST }
}

/// What a chunk's message has beside its bytes, at most.
const AROUND: u64 = 4_096;

/// Chunks have at least one byte and fit into a message with all that a broker adds.
pub(super) fn check_chunk_size(
    operation: &'static str,
    bytes: u32,
    most: Option<u64>,
) -> Result<()> {
    let most = most.map_or(u64::from(u32::MAX), |most| most.saturating_sub(AROUND));
    if (1..=most).contains(&u64::from(bytes)) {
        return Ok(());
    }
    let message = format!("a chunk has from 1 to {most} bytes on this broker, not {bytes}");
    Err(Error::new(ErrorKind::Invalid, operation, message))
}

/// The most chunks in a window; what is missing of it fits into one frame.
const LARGEST_WINDOW: u32 = 1_024;

pub(super) fn check_window(operation: &'static str, chunks: u32) -> Result<()> {
    if (1..=LARGEST_WINDOW).contains(&chunks) {
        return Ok(());
    }
    let message = format!("a window has from 1 to {LARGEST_WINDOW} chunks, not {chunks}");
    Err(Error::new(ErrorKind::Invalid, operation, message))
}
