//! Whether anybody serves a service, so that a call to nobody fails at once.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use postrider_core::{Env, Publisher, Transport, Verdict};
use tokio::time::Instant;

use super::{call::Call, outbox::Outbox};
use crate::rpc::control;

/// How long a sign of life counts for calls that are to be sent.
const FRESH: Duration = Duration::from_secs(5);

/// How long a call that was sent waits before it asks for its service, and how long such an answer
/// counts for the other calls that wait.
const PATIENCE: Duration = Duration::from_millis(500);

/// The longest time from one such question to the next.
const MOST_PATIENCE: Duration = Duration::from_secs(5);

/// How many services are remembered. Whoever calls more of them asks more often.
const MOST_SERVICES: usize = 1_024;

/// What the broker says about a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Served,
    NoQueue,
    /// Nobody takes from the queue. When requests wait in it and nobody has one in hand, they are
    /// left; else a server that is stopping may still answer.
    NoConsumer {
        left: bool,
    },
}

type Question = Shared<BoxFuture<'static, Answer>>;

enum Sign {
    Told {
        answer: Answer,
        at: Instant,
    },
    /// Those who wait for the answer keep the question. When all of them have gone, nobody knows how
    /// old an answer would be.
    Asking(WeakShared<BoxFuture<'static, Answer>>),
}

/// When a call that waits for its reply asks for its service: the times between grow.
pub(super) struct Patience(Duration);

impl Patience {
    pub(super) const fn new() -> Self {
        Self(PATIENCE)
    }

    /// How long to wait until the next question.
    pub(super) fn next(&mut self) -> Duration {
        let wait = self.0;
        self.0 = (wait * 2).min(MOST_PATIENCE);
        wait
    }
}

/// Remembers which services were heard of lately, and asks the broker about the others: once, however
/// many calls wait for the answer.
pub(super) struct Presence {
    broker: Arc<Broker>,
    env: Env,
    signs: Mutex<HashMap<String, Sign>>,
}

impl Presence {
    pub(super) fn new(
        transport: Arc<dyn Transport>,
        publisher: Arc<dyn Publisher>,
        outbox: Arc<Outbox>,
    ) -> Self {
        let env = transport.env().clone();
        let broker = Arc::new(Broker { transport, publisher, outbox });
        Self { broker, env, signs: Mutex::default() }
    }

    fn signs(&self) -> MutexGuard<'_, HashMap<String, Sign>> {
        self.signs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its service has a consumer, as far as is known before `call` is sent. Cancellation
    /// safe.
    pub(super) async fn check(&self, call: &Call<'_>) -> Answer {
        self.answer(call, |answer, age| answer == Answer::Served && age < FRESH).await
    }

    /// Whether `call`, which was sent [`Patience`] ago, can still be answered. Cancellation safe.
    pub(super) async fn check_again(&self, call: &Call<'_>) -> Answer {
        self.answer(call, |_answer, age| age < PATIENCE).await
    }

    /// What was told of its queue where that is good enough, else what the broker says now.
    async fn answer(&self, call: &Call<'_>, good: impl Fn(Answer, Duration) -> bool) -> Answer {
        let question = match self.question(call, good) {
            Ok(answer) => return answer,
            Err(question) => question,
        };
        let answer = question.await;
        // A reply that came meanwhile tells more than the answer does.
        if let Some(sign @ Sign::Asking(_)) = self.signs().get_mut(&call.queue) {
            *sign = Sign::Told { answer, at: self.env.now() };
        }
        answer
    }

    /// The answer that is there, or the question to wait for.
    fn question(
        &self,
        call: &Call<'_>,
        good: impl Fn(Answer, Duration) -> bool,
    ) -> Result<Answer, Question> {
        let now = self.env.now();
        let mut signs = self.signs();
        match signs.get(&call.queue) {
            Some(Sign::Told { answer, at }) if good(*answer, now.duration_since(*at)) => {
                return Ok(*answer);
            }
            Some(Sign::Asking(question)) => {
                if let Some(question) = question.upgrade() {
                    return Err(question);
                }
            }
            _ => {}
        }
        if signs.len() >= MOST_SERVICES {
            signs.clear();
        }
        let (broker, service) = (Arc::clone(&self.broker), call.service.to_string());
        let queue = call.queue.clone();
        let question = async move { broker.ask(&service, &queue).await }.boxed().shared();
        // It has not been polled to its end, so it can be asked for.
        if let Some(asked) = question.downgrade() {
            signs.insert(call.queue.clone(), Sign::Asking(asked));
        }
        Err(question)
    }

    /// The service gave a sign of life.
    pub(super) fn heard(&self, queue: &str) {
        let told = Sign::Told { answer: Answer::Served, at: self.env.now() };
        let mut signs = self.signs();
        match signs.get_mut(queue) {
            Some(sign) => *sign = told,
            None => {
                signs.insert(queue.to_owned(), told);
            }
        }
    }

    /// The next call must ask.
    pub(super) fn forget(&self, queue: &str) {
        self.signs().remove(queue);
    }
}

/// Who is asked.
struct Broker {
    transport: Arc<dyn Transport>,
    publisher: Arc<dyn Publisher>,
    outbox: Arc<Outbox>,
}

impl Broker {
    async fn ask(&self, service: &str, queue: &str) -> Answer {
        match self.transport.queue_info(queue).await {
            Ok(Some(info)) if info.consumers > 0 => Answer::Served,
            Ok(Some(info)) if info.ready == 0 => Answer::NoConsumer { left: false },
            Ok(Some(info)) => {
                let in_hand = match info.unsettled {
                    Some(unsettled) => unsettled > 0,
                    None => self.may_have_server(service).await,
                };
                Answer::NoConsumer { left: !in_hand }
            }
            Ok(None) => Answer::NoQueue,
            // A broker that does not tell leaves it to the request itself.
            Err(error) => {
                tracing::debug!(%queue, %error, "cannot tell whether the queue is served");
                Answer::Served
            }
        }
    }

    /// Whether a server of ours may have a request in hand, by what one that is stopping still has:
    /// a queue of its own. Of plain services nothing is known.
    async fn may_have_server(&self, service: &str) -> bool {
        let Ok(Some(exchange)) = self.outbox.exchange(service).await else { return true };
        match self.publisher.send(control::hello(exchange)).await {
            Ok(confirm) => confirm.await != Verdict::Unroutable,
            Err(_not_sent) => true,
        }
    }
}

impl fmt::Debug for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presence").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_asks_ever_less_often() {
        let mut patience = Patience::new();
        let waits: Vec<_> = (0..6).map(|_| patience.next().as_millis()).collect();
        assert_eq!(waits, [500, 1_000, 2_000, 4_000, 5_000, 5_000]);
    }
}
