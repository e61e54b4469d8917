//! Whether anybody serves a service, so that a call to nobody fails at once.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use postrider_core::{Env, Transport};
use tokio::time::Instant;

/// How long a sign of life counts.
const FRESH: Duration = Duration::from_secs(5);

/// How many services are remembered. Whoever calls more of them asks more often.
const MOST_SERVICES: usize = 1_024;

/// What the broker says about a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Served,
    NoQueue,
    NoConsumer,
}

type Question = Shared<BoxFuture<'static, Answer>>;

enum Sign {
    Heard(Instant),
    Asking(Question),
}

/// Remembers which services were heard of lately, and asks the broker about the others: once, however
/// many calls wait for the answer.
pub(super) struct Presence {
    transport: Arc<dyn Transport>,
    env: Env,
    signs: Mutex<HashMap<String, Sign>>,
}

impl Presence {
    pub(super) fn new(transport: Arc<dyn Transport>) -> Self {
        let env = transport.env().clone();
        Self { transport, env, signs: Mutex::default() }
    }

    fn signs(&self) -> MutexGuard<'_, HashMap<String, Sign>> {
        self.signs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `queue` has a consumer, as far as is known. Cancellation safe.
    pub(super) async fn check(&self, queue: &str) -> Answer {
        let Some(question) = self.question(queue) else {
            return Answer::Served;
        };
        let answer = question.await;
        match answer {
            Answer::Served => self.heard(queue),
            Answer::NoQueue | Answer::NoConsumer => self.forget(queue),
        }
        answer
    }

    /// The question to wait for, unless the service was heard of lately.
    fn question(&self, queue: &str) -> Option<Question> {
        let now = self.env.now();
        let mut signs = self.signs();
        match signs.get(queue) {
            Some(Sign::Heard(at)) if now.duration_since(*at) < FRESH => return None,
            Some(Sign::Asking(question)) => return Some(question.clone()),
            _ => {}
        }
        if signs.len() >= MOST_SERVICES {
            signs.clear();
        }
        let question = ask(Arc::clone(&self.transport), queue.to_owned()).boxed().shared();
        signs.insert(queue.to_owned(), Sign::Asking(question.clone()));
        Some(question)
    }

    /// The service gave a sign of life.
    pub(super) fn heard(&self, queue: &str) {
        let now = self.env.now();
        let mut signs = self.signs();
        match signs.get_mut(queue) {
            Some(sign) => *sign = Sign::Heard(now),
            None => {
                signs.insert(queue.to_owned(), Sign::Heard(now));
            }
        }
    }

    /// The next call must ask.
    pub(super) fn forget(&self, queue: &str) {
        self.signs().remove(queue);
    }
}

async fn ask(transport: Arc<dyn Transport>, queue: String) -> Answer {
    match transport.queue_info(&queue).await {
        Ok(Some(info)) if info.consumers > 0 => Answer::Served,
        Ok(Some(_)) => Answer::NoConsumer,
        Ok(None) => Answer::NoQueue,
        // A broker that does not tell leaves it to the request itself.
        Err(error) => {
            tracing::debug!(%queue, %error, "cannot tell whether the queue is served");
            Answer::Served
        }
    }
}

impl fmt::Debug for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presence").finish_non_exhaustive()
    }
}
