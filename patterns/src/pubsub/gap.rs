//! Tells an ephemeral subscription that events may have passed it by.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use futures_util::{
    StreamExt,
    future::BoxFuture,
    stream::{BoxStream, Stream},
};
use postrider_core::{Env, TransportEvent};
use tokio_util::sync::CancellationToken;

use crate::{consuming::catch_panic, handler::HandlerError};

/// A time in which an [ephemeral subscription](super::Subscription::ephemeral) had no queue, so that
/// what was published in it did not reach this instance.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gap {
    /// Why the connection was lost, as far as it is known.
    pub cause: String,
    /// When the loss was noticed, by the clock of this process. The connection may have been dead
    /// for its heartbeat before.
    pub lost_at: DateTime<Utc>,
    /// When the subscription was back.
    pub restored_at: DateTime<Utc>,
}

impl Gap {
    /// From when it was noticed to its end.
    #[must_use]
    pub fn duration(&self) -> Duration {
        (self.restored_at - self.lost_at).to_std().unwrap_or_default()
    }
}

pub(super) type GapHandler =
    Arc<dyn Fn(Gap) -> BoxFuture<'static, Result<(), HandlerError>> + Send + Sync>;

/// Tells `handler` of each gap that `events` speaks of, until `stop`.
pub(super) async fn tell(
    events: BoxStream<'static, TransportEvent>,
    env: Env,
    handler: GapHandler,
    stop: CancellationToken,
) {
    let telling = async {
        let mut gaps = std::pin::pin!(gaps(events, env));
        while let Some(gap) = gaps.next().await {
            if let Err(error) = catch_panic(handler(gap)).await {
                tracing::error!(%error, "a handler of gaps failed");
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = telling => {}
    }
}

fn gaps(events: BoxStream<'static, TransportEvent>, env: Env) -> impl Stream<Item = Gap> {
    let lost: Option<(String, DateTime<Utc>)> = None;
    futures_util::stream::unfold((events, env, lost), |(mut events, env, mut lost)| async move {
        loop {
            let cause = match events.next().await? {
                TransportEvent::Lost { cause } => {
                    lost.get_or_insert_with(|| (cause, env.timestamp()));
                    continue;
                }
                TransportEvent::Restored { .. } => "the connection was lost".to_owned(),
                // What was not heard may have been a loss.
                TransportEvent::Missed { events } => {
                    format!("{events} events of the connection were not heard")
                }
                _ => continue,
            };
            let restored_at = env.timestamp();
            let (cause, lost_at) = lost.take().unwrap_or((cause, restored_at));
            return Some((Gap { cause, lost_at, restored_at }, (events, env, lost)));
        }
    })
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    async fn causes(events: Vec<TransportEvent>) -> Vec<String> {
        let events = stream::iter(events).boxed();
        gaps(events, Env::simulated(7)).map(|gap| gap.cause).collect().await
    }

    fn lost(cause: &str) -> TransportEvent {
        TransportEvent::Lost { cause: cause.to_owned() }
    }

    #[tokio::test]
    async fn each_loss_is_one_gap_and_so_is_what_was_not_heard() {
        let back = TransportEvent::Restored { epoch: 2 };
        let told = causes(vec![lost("reset"), lost("again"), back.clone(), back.clone()]).await;
        assert_eq!(told, ["reset", "the connection was lost"]);
        let told = causes(vec![TransportEvent::Unblocked, TransportEvent::Missed { events: 3 }]);
        assert_eq!(told.await, ["3 events of the connection were not heard"]);
        assert_eq!(causes(vec![lost("and not back yet")]).await, Vec::<String>::new());
    }
}
