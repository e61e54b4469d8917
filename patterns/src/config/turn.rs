//! One publisher of a setting at a time: who owns an exclusive queue has the turn.

use std::{sync::Arc, time::Duration};

use postrider_core::{Error, ErrorKind, Queue, Result, Topology, Transport};
use tokio::time::{Instant, sleep};

/// After which time a turn that was never given back is free.
pub(super) const LONGEST: Duration = Duration::from_secs(30);

/// How long to wait, about, before the next try.
const PAUSE: Duration = Duration::from_millis(100);

/// The pauses between tries to give the turn back.
const GIVING_BACK: [Duration; 3] =
    [Duration::ZERO, Duration::from_millis(500), Duration::from_secs(3)];

#[derive(Debug)]
pub(super) struct Turn {
    transport: Arc<dyn Transport>,
    queue: Topology,
}

impl Turn {
    /// Waits for the turn until `deadline`. It goes with the connection.
    pub(super) async fn take(
        transport: &Arc<dyn Transport>,
        name: &str,
        deadline: Instant,
    ) -> Result<Self> {
        let env = transport.env();
        // A length of its own, so that a second declaration is refused on the same connection too.
        let own = 1 + env.random() % u64::from(u32::MAX >> 1);
        let queue = Queue::exclusive(name.to_owned()).with_expires(LONGEST).with_max_length(own);
        let queue = Topology::new().queue(queue);
        loop {
            match transport.declare(&queue).await {
                Ok(()) => return Ok(Self { transport: Arc::clone(transport), queue }),
                Err(error) if matches!(error.kind(), ErrorKind::Locked | ErrorKind::Mismatch) => {
                    if env.now() >= deadline {
                        let why = "somebody else is publishing it all the time";
                        return Err(Error::new(ErrorKind::TimedOut, "publish", why));
                    }
                }
                Err(error) => return Err(error),
            }
            sleep(PAUSE.mul_f64(0.5 + env.random_unit())).await;
        }
    }

    pub(super) async fn give_back(self) {
        for pause in GIVING_BACK {
            sleep(pause).await;
            match self.transport.remove(&self.queue).await {
                Ok(()) => return,
                // It went with its connection, and somebody else has it.
                Err(error) if matches!(error.kind(), ErrorKind::Locked | ErrorKind::Closed) => {
                    return;
                }
                Err(error) => tracing::debug!(%error, "the turn is not given back yet"),
            }
        }
    }
}
