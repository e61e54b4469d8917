//! The task that says that an instance is there.

use std::{collections::BTreeSet, time::Duration};

use postrider_core::{Address, Env, Envelope, Message, Result};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    InstanceHealth,
    wire::{self, Announce, Asker},
};
use crate::{
    codec::Codec,
    listening::{Heard, Listening},
    naming::Naming,
    telling::Telling,
};

/// Within which time a question is answered: each instance at a moment of its own, so that a
/// thousand of them do not answer at once.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// From so many on who ask at the same time, one answer goes to all.
const MANY: usize = 8;

pub(super) struct Announcing {
    pub(super) announce: Announce,
    pub(super) heartbeat: Duration,
    pub(super) naming: Naming,
    pub(super) codec: Codec,
    pub(super) env: Env,
    pub(super) telling: Telling,
    pub(super) listening: Listening,
    pub(super) health: watch::Receiver<InstanceHealth>,
    pub(super) stop: CancellationToken,
}

/// Who is to be told.
#[derive(Debug, Default)]
struct Askers {
    queues: BTreeSet<String>,
    all: bool,
    /// When they are told.
    at: Option<Instant>,
}

impl Askers {
    fn add(&mut self, asker: Asker, at: Instant) {
        match asker {
            Asker::One(queue) if self.queues.len() < MANY => {
                self.queues.insert(queue);
            }
            _ => self.all = true,
        }
        self.at.get_or_insert(at);
    }
}

impl Announcing {
    /// Announces it for the first time.
    pub(super) async fn begin(&mut self) -> Result<()> {
        let Some(message) = self.word() else { return Ok(()) };
        let service = &self.announce.instance.service;
        self.telling.tell_surely(wire::to_all(&self.naming, service, message)).await
    }

    /// Says that it is there until it is stopped, and says goodbye.
    pub(super) async fn run(mut self) -> Result<()> {
        let mut askers = Askers::default();
        let mut beat = self.next_beat();
        loop {
            let answer_at = askers.at.unwrap_or(beat);
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return self.leave().await,
                () = sleep_until(beat) => {
                    self.tell_all();
                    beat = self.next_beat();
                }
                () = sleep_until(answer_at), if askers.at.is_some() => {
                    let askers = std::mem::take(&mut askers);
                    if askers.all {
                        self.tell_all();
                        beat = self.next_beat();
                    } else {
                        self.answer(askers.queues);
                    }
                }
                Ok(()) = self.health.changed() => {
                    self.announce.instance.health = self.health.borrow_and_update().clone();
                    self.tell_all();
                    beat = self.next_beat();
                }
                heard = self.listening.next() => match heard {
                    Some(Heard::Message(envelope)) => {
                        if let Some(asker) = wire::asked_by(&envelope.message) {
                            askers.add(asker, self.soon());
                        }
                    }
                    Some(Heard::Lost) => {}
                    // Whoever asked meanwhile was not heard.
                    Some(Heard::Back) => askers.add(Asker::Everybody, self.soon()),
                    None => return Ok(()),
                },
            }
        }
    }

    fn next_beat(&self) -> Instant {
        self.env.now() + self.heartbeat.mul_f64(0.9 + 0.2 * self.env.random_unit())
    }

    fn soon(&self) -> Instant {
        self.env.now() + ANSWER_WITHIN.mul_f64(self.env.random_unit())
    }

    /// The next announcement.
    fn word(&mut self) -> Option<Message> {
        self.announce.sequence += 1;
        match self.announce.message(self.codec) {
            Ok(message) => Some(message),
            Err(error) => {
                // What makes it too large is refused before.
                tracing::error!(%error, "an announcement cannot be written");
                None
            }
        }
    }

    fn tell_all(&mut self) {
        if let Some(message) = self.word() {
            let service = &self.announce.instance.service;
            self.telling.tell(wire::to_all(&self.naming, service, message));
        }
    }

    fn answer(&mut self, queues: BTreeSet<String>) {
        let Some(message) = self.word() else { return };
        for queue in queues {
            self.telling.tell(Envelope::new(Address::queue(queue), message.clone()));
        }
    }

    async fn leave(mut self) -> Result<()> {
        self.announce.sequence += 1;
        let Ok(goodbye) = self.announce.goodbye(self.codec) else { return Ok(()) };
        let service = &self.announce.instance.service;
        self.telling.tell_surely(wire::to_all(&self.naming, service, goodbye)).await
    }
}
