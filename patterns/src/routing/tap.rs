use std::sync::Arc;

use futures_util::{StreamExt, stream};
use postrider_core::{Address, Envelope, Publisher, PublisherExt};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use super::flow::FlowCounters;

/// How many copies and how many of their bytes may wait; more are dropped.
const MAX_WAITING: usize = 1_000;
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// How many copies may be without a verdict at once.
const WINDOW: usize = 64;

/// A copy on its way, which is counted when it ends, however it ends.
#[derive(Debug)]
struct Copied {
    envelope: Envelope,
    counters: Arc<FlowCounters>,
    delivered: bool,
    _room: OwnedSemaphorePermit,
}

impl Copied {
    fn delivered(mut self) {
        self.delivered = true;
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        let FlowCounters { tapped, tap_dropped, .. } = &*self.counters;
        if self.delivered { tapped } else { tap_dropped }.add(1);
    }
}

/// Where copies are handed in. It never waits.
#[derive(Debug)]
pub(super) struct TapInlet {
    copies: mpsc::Sender<Copied>,
    bytes: Arc<Semaphore>,
    address: Address,
    counters: Arc<FlowCounters>,
}

impl TapInlet {
    pub(super) fn copy(&self, envelope: &Envelope) {
        let size = envelope.message.body.len().clamp(1, MAX_BYTES);
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        let Ok(room) = Arc::clone(&self.bytes).try_acquire_many_owned(size) else {
            return self.counters.tap_dropped.add(1);
        };
        let copy = Copied {
            envelope: Envelope::new(self.address.clone(), envelope.message.clone()),
            counters: Arc::clone(&self.counters),
            delivered: false,
            _room: room,
        };
        // Without room it is dropped here, and counted.
        drop(self.copies.try_send(copy));
    }
}

/// Sends the copies. Dropped, it stops, and the copies that wait are dropped.
#[derive(Debug)]
pub(super) struct Tap {
    task: JoinHandle<()>,
}

impl Tap {
    /// To be called in a runtime.
    pub(super) fn start(
        address: Address,
        publisher: Arc<dyn Publisher>,
        counters: Arc<FlowCounters>,
    ) -> (Self, TapInlet) {
        let (copies, waiting) = mpsc::channel(MAX_WAITING);
        let bytes = Arc::new(Semaphore::new(MAX_BYTES));
        let task = tokio::spawn(send(waiting, publisher));
        (Self { task }, TapInlet { copies, bytes, address, counters })
    }

    /// Lets the copies that wait be sent until `deadline`; the inlet is gone when its router is.
    pub(super) async fn stop(mut self, deadline: Instant) {
        let _ended = timeout_at(deadline, &mut self.task).await;
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn send(mut waiting: mpsc::Receiver<Copied>, publisher: Arc<dyn Publisher>) {
    let copies = stream::poll_fn(move |cx| waiting.poll_recv(cx));
    let sending = copies.for_each_concurrent(WINDOW, |copy| {
        let publisher = &publisher;
        async move {
            match publisher.publish(copy.envelope.clone()).await {
                Ok(()) => copy.delivered(),
                Err(error) => tracing::warn!(%error, "a copy of the wire tap is dropped"),
            }
        }
    });
    sending.await;
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use postrider_core::{Confirm, Message, Result};

    use super::*;

    /// One whose broker never answers.
    #[derive(Debug)]
    struct Silent;

    #[async_trait]
    impl Publisher for Silent {
        async fn send(&self, _envelope: Envelope) -> Result<Confirm> {
            std::future::pending().await
        }

        async fn send_batch(&self, _envelopes: Vec<Envelope>) -> Result<Vec<Confirm>> {
            std::future::pending().await
        }

        async fn flush(&self) -> Result<()> {
            std::future::pending().await
        }
    }

    fn tap() -> (Tap, TapInlet, Arc<FlowCounters>) {
        let counters = Arc::new(FlowCounters::default());
        let address = Address::queue("tap");
        let (tap, inlet) = Tap::start(address, Arc::new(Silent), Arc::clone(&counters));
        (tap, inlet, counters)
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_bounded_in_number_and_bytes() {
        let (_tap, inlet, counters) = tap();
        let envelope = |size| Envelope::new(Address::queue("q"), Message::new(vec![0; size]));
        // The first ones are taken in hand when the task has its turn.
        for _ in 0..MAX_WAITING + 10 {
            inlet.copy(&envelope(1));
        }
        assert_eq!(counters.tap_dropped.get(), 10);

        let (_tap, inlet, counters) = tap();
        for _ in 0..3 {
            inlet.copy(&envelope(MAX_BYTES / 2));
        }
        assert_eq!(counters.tap_dropped.get(), 1);
        // Larger than all room: it gets through alone.
        let (_tap, inlet, counters) = tap();
        inlet.copy(&envelope(MAX_BYTES + 1));
        assert_eq!(counters.tap_dropped.get(), 0);
        inlet.copy(&envelope(0));
        assert_eq!(counters.tap_dropped.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_at_the_end_is_counted_as_dropped() {
        let (tap, inlet, counters) = tap();
        for _ in 0..100 {
            inlet.copy(&Envelope::new(Address::queue("q"), Message::new("x")));
        }
        tokio::task::yield_now().await;
        drop(inlet);
        #[expect(clippy::disallowed_methods, reason = "there is no Env here")]
        tap.stop(Instant::now() + std::time::Duration::from_secs(5)).await;
        // The task ends when it has its turn.
        tokio::task::yield_now().await;
        assert_eq!((counters.tapped.get(), counters.tap_dropped.get()), (0, 100));
    }
}
