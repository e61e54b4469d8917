use std::time::Duration;

use futures_util::{StreamExt, stream::BoxStream};
use postrider_core::TransportEvent;
use tokio::time;

use super::Scene;

/// Waiting for what has to happen.
impl Scene {
    /// Waits until a queue has this many messages ready, and sees that it stays so.
    ///
    /// # Panics
    ///
    /// When that does not happen.
    pub async fn settles_at(&self, queue: &str, ready: u64) {
        self.eventually(&format!("'{queue}' has {ready} ready"), async || {
            let info = self.info(queue).await;
            if info.ready == ready { Ok(()) } else { Err(format!("{info:?}")) }
        })
        .await;
        time::sleep(self.quiet()).await;
        let info = self.info(queue).await;
        assert_eq!(info.ready, ready, "'{queue}' must stay at {ready} ready: {info:?}");
    }

    /// Waits until a queue has this many consumers.
    ///
    /// # Panics
    ///
    /// When that does not happen.
    pub async fn has_consumers(&self, queue: &str, consumers: u32) {
        self.eventually(&format!("'{queue}' has {consumers} consumers"), async || {
            let info = self.info(queue).await;
            if info.consumers == consumers { Ok(()) } else { Err(format!("{info:?}")) }
        })
        .await;
    }

    /// Waits until a queue is gone.
    ///
    /// # Panics
    ///
    /// When it stays.
    pub async fn is_gone(&self, queue: &str) {
        self.eventually(&format!("'{queue}' is gone"), async || {
            match self.transport().queue_info(queue).await {
                Ok(None) => Ok(()),
                // A queue of a connection that is being closed may be locked until it is gone.
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// Reads and acks all that a queue holds, and sees that it is `expected`, in this order.
    ///
    /// # Panics
    ///
    /// When it is not.
    pub async fn holds<T: AsRef<str>>(&self, queue: &str, expected: &[T]) {
        let mut reader = self.read(queue, 100).await;
        let bodies = reader.bodies(expected.len()).await;
        let expected: Vec<&str> = expected.iter().map(AsRef::as_ref).collect();
        assert_eq!(bodies, expected, "what '{queue}' holds, in order");
        reader.is_silent().await;
    }

    /// Asks `condition` again and again until it is met; it says what it saw instead.
    ///
    /// # Panics
    ///
    /// When it is not met in time.
    pub async fn eventually<T>(
        &self,
        what: &str,
        mut condition: impl AsyncFnMut() -> Result<T, String>,
    ) -> T {
        let deadline = self.env().now() + self.patience();
        loop {
            match condition().await {
                Ok(value) => return value,
                Err(seen) => assert!(
                    self.env().now() < deadline,
                    "not within {:?}: {what}; last seen: {seen}",
                    self.patience()
                ),
            }
            time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits for something that must happen.
    ///
    /// # Panics
    ///
    /// When it takes too long.
    pub async fn soon<T>(&self, what: &str, future: impl Future<Output = T>) -> T {
        in_time(self.patience(), future)
            .await
            .unwrap_or_else(|| panic!("not within {:?}: {what}", self.patience()))
    }

    /// Waits for the event that `wanted` picks, passing over others.
    ///
    /// # Panics
    ///
    /// When it does not come.
    pub async fn event<T>(
        &self,
        events: &mut BoxStream<'static, TransportEvent>,
        what: &str,
        wanted: impl Fn(&TransportEvent) -> Option<T>,
    ) -> T {
        let mut seen = Vec::new();
        let waiting = async {
            while let Some(event) = events.next().await {
                if let Some(value) = wanted(&event) {
                    return Some(value);
                }
                seen.push(event);
            }
            None
        };
        match in_time(self.patience(), waiting).await {
            Some(Some(value)) => value,
            Some(None) => panic!("the events ended before {what}; seen: {seen:?}"),
            None => panic!("not within {:?}: {what}; seen: {seen:?}", self.patience()),
        }
    }

    /// Waits until the connection is restored, for the `epoch`th connection or a later one.
    ///
    /// # Panics
    ///
    /// When it is not.
    pub async fn restored(&self, events: &mut BoxStream<'static, TransportEvent>, epoch: u64) {
        self.event(events, "the event Restored", |event| match event {
            TransportEvent::Restored { epoch: now } if *now >= epoch => Some(()),
            _ => None,
        })
        .await;
    }
}

/// What `future` gives within `limit`.
///
/// Unlike tokio's timeout it does not ask the future once more when the time is over: who was not
/// woken must not get through by that, least of all on a virtual clock, where waiting is free.
async fn in_time<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = time::sleep(limit) => None,
        value = future => Some(value),
    }
}
