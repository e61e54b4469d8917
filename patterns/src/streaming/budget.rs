use std::sync::Arc;

use postrider_core::{Error, ErrorKind, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What is counted in: a semaphore counts to 2^32 at least, and payloads are larger.
const UNIT: u64 = 1_024;

/// How many bytes all transfers of one side may hold at once.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    semaphore: Arc<Semaphore>,
    units: u32,
}

/// A transfer's share, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Budget {
    pub(super) fn new(operation: &'static str, bytes: u64) -> Result<Self> {
        let most = u64::from(u32::MAX).min(Semaphore::MAX_PERMITS as u64);
        let units = (bytes / UNIT).min(most);
        if units == 0 {
            let message = "the memory of all transfers is at least 1 KiB";
            return Err(Error::new(ErrorKind::Invalid, operation, message));
        }
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        Ok(Self { semaphore: Arc::new(Semaphore::new(units as usize)), units })
    }

    /// How many chunks of `chunk_size` bytes one transfer may hold, at most `wanted`.
    pub(super) fn window(&self, wanted: u32, chunk_size: u32) -> u32 {
        let chunks = u64::from(self.units) * UNIT / u64::from(chunk_size.max(1));
        wanted.min(u32::try_from(chunks).unwrap_or(u32::MAX)).max(1)
    }

    /// Waits for `window` times `chunk_size` bytes, first come, first served. Cancellation safe.
    pub(super) async fn share(&self, window: u32, chunk_size: u32) -> Share {
        let bytes = u64::from(window) * u64::from(chunk_size);
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.units);
        // The semaphore is never closed.
        let permit = Arc::clone(&self.semaphore).acquire_many_owned(units).await.ok();
        Share { _permit: permit }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn shares_add_up_to_the_budget_and_no_transfer_waits_for_more() {
        let budget = Budget::new("test", 1024 * 1024).unwrap();
        assert_eq!(budget.window(16, 65_536), 16);
        assert_eq!(budget.window(64, 65_536), 16);
        assert_eq!(budget.window(64, 16 * 1024 * 1024), 1);
        let share = budget.share(12, 65_536).await;
        assert!(budget.share(5, 65_536).now_or_never().is_none());
        assert!(budget.share(4, 65_536).now_or_never().is_some());
        drop(share);
        // A single chunk that is larger than the budget takes all of it.
        assert!(budget.share(1, 16 * 1024 * 1024).now_or_never().is_some());
        assert!(Budget::new("test", 1_000).is_err());
    }
}
