//! The queue that keeps the last value: looked into without taking the value away.

use std::{sync::Arc, time::Duration};

use postrider_core::{ConsumerOptions, Envelope, Error, ErrorKind, Result, Transport};
use tokio::time::timeout;

/// How long nothing may come before the queue is looked at: what somebody gives back is on its way.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// How long to wait while others look at the value.
const PATIENCE: Duration = Duration::from_secs(2);

/// The value that is kept; nothing when there is none, or when it does not come because somebody
/// holds it.
///
/// The number of messages would not tell that there is none: one that was looked at a moment ago is
/// on its way back. So it waits for a second when nothing comes.
///
/// Cancellation safe: the value goes back when the future is dropped.
pub(super) async fn peek(
    transport: &Arc<dyn Transport>,
    keeper: &str,
) -> Result<Option<Arc<Envelope>>> {
    let patience = transport.env().deadline(PATIENCE);
    let options = ConsumerOptions::default().with_prefetch(1);
    let mut consumer = match transport.consumer(keeper, options).await {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    loop {
        match timeout(LOOK_AFTER, consumer.recv()).await {
            Ok(Some(delivery)) => {
                let delivery = delivery?;
                let envelope = Arc::clone(delivery.envelope());
                // First, or it would come here again.
                drop(consumer);
                delivery.release();
                return Ok(Some(envelope));
            }
            Ok(None) => {
                return Err(Error::new(ErrorKind::Closed, "config", "the transport was closed"));
            }
            Err(_elapsed) => {
                let info = transport.queue_info(keeper).await?;
                let others_look = info.is_some_and(|info| info.ready > 0 || info.consumers > 1);
                if !others_look || transport.env().now() >= patience {
                    return Ok(None);
                }
            }
        }
    }
}
