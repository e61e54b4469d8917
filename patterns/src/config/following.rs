//! The task of a reader: it hears new values, looks at what is kept, and reports.

use std::{future::pending, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use postrider_core::{Envelope, Message, Result, Transport};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    ConfigReport,
    applying::{Applying, Outcome},
    keeper,
    wire::{self, Setting},
};
use crate::{
    codec::Codec,
    listening::{Heard, Listening},
    telling::Telling,
};

/// Within which time a question is answered, each instance at a moment of its own.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// How soon it is looked again, at first, as long as no value was seen.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(5);

type Peek = BoxFuture<'static, Result<Option<Arc<Envelope>>>>;

pub(super) struct Following<T> {
    pub(super) applying: Applying<T>,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) setting: Setting,
    pub(super) instance: String,
    pub(super) codec: Codec,
    pub(super) refresh: Duration,
    /// The next pause as long as no value was seen.
    pub(super) look_again: Duration,
    pub(super) telling: Telling,
    pub(super) listening: Listening,
    pub(super) stop: CancellationToken,
}

impl<T: DeserializeOwned + Send + Sync + 'static> Following<T> {
    /// Looks at what is kept.
    pub(super) async fn begin(&mut self) -> Result<()> {
        if let Some(kept) = self.peek().await? {
            self.applying.consider(&kept.message);
        }
        self.report(false);
        Ok(())
    }

    pub(super) async fn run(mut self) {
        let mut peeking: Peek = pending().boxed();
        let mut refresh_at = self.next_refresh();
        let mut answer_at: Option<Instant> = None;
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    self.report(true);
                    return;
                }
                kept = &mut peeking => {
                    peeking = pending().boxed();
                    match kept {
                        Ok(Some(kept)) => self.consider(&kept.message),
                        Ok(None) => {}
                        Err(error) => tracing::debug!(%error, "what is kept cannot be seen now"),
                    }
                }
                () = sleep_until(refresh_at) => {
                    peeking = self.peek();
                    refresh_at = self.next_refresh();
                }
                () = sleep_until(answer_at.unwrap_or(refresh_at)), if answer_at.is_some() => {
                    answer_at = None;
                    self.report(false);
                }
                heard = self.listening.next() => match heard {
                    Some(Heard::Message(envelope)) if wire::is_question(&envelope.message) => {
                        answer_at.get_or_insert(self.soon());
                    }
                    Some(Heard::Message(envelope)) => self.consider(&envelope.message),
                    Some(Heard::Lost) => {}
                    // A value or a question may have been missed.
                    Some(Heard::Back) => {
                        peeking = self.peek();
                        answer_at.get_or_insert(self.soon());
                    }
                    None => return,
                },
            }
        }
    }

    fn peek(&self) -> Peek {
        let (transport, keeper) = (Arc::clone(&self.transport), self.setting.keeper());
        async move { keeper::peek(&transport, &keeper).await }.boxed()
    }

    fn consider(&mut self, message: &Message) {
        if matches!(self.applying.consider(message), Outcome::Applied | Outcome::Rejected) {
            self.report(false);
        }
    }

    fn report(&self, left: bool) {
        let report = ConfigReport {
            instance: self.instance.clone(),
            version: self.applying.version(),
            rejected: self.applying.rejection(),
        };
        match self.setting.report(&report, left, self.codec) {
            Ok(envelope) => self.telling.tell(envelope),
            // Its parts are bounded.
            Err(error) => tracing::error!(%error, "a report cannot be written"),
        }
    }

    fn next_refresh(&mut self) -> Instant {
        let env = self.transport.env();
        let pause = if self.applying.has_seen_one() {
            self.refresh
        } else {
            // It may be that too many looked at once.
            let pause = self.look_again.min(self.refresh);
            self.look_again = pause * 2;
            pause
        };
        env.now() + pause.mul_f64(0.9 + 0.2 * env.random_unit())
    }

    fn soon(&self) -> Instant {
        let env = self.transport.env();
        env.now() + ANSWER_WITHIN.mul_f64(env.random_unit())
    }
}
