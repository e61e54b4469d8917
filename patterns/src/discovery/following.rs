//! The task of a registry: it hears instances, asks, and proves to itself that it hears.
//!
//! The proof is an echo: a message to itself over the exchange. Its queue is in order, so when the
//! echo comes, everything that was published before it has come. Leases end by echoes and not by
//! the clock alone. So nobody is taken for dead because the connection is, because the broker takes
//! nothing, or because this process was busy.

use std::{sync::Arc, time::Duration};

use postrider_core::{Env, Message};
use tokio::time::{Instant, sleep_until};

use super::{
    announcing::ANSWER_WITHIN,
    registry::{RegistryState, Shared},
    roster::{self, GRACE},
    wire::{self, Nonsense, Word},
};
use crate::{
    listening::{Heard, Listening},
    naming::Naming,
    telling::Telling,
};

/// How long an echo may take before the registry is out of touch. Not longer than the grace after a
/// lease, which is there for words that come so late.
const PATIENCE: Duration = GRACE;

/// After which time an echo is lost, and everything is declared anew.
const LOST_AFTER: Duration = Duration::from_secs(10);

/// How often there is an echo when no lease is about to end.
const PULSE: Duration = Duration::from_secs(5);

/// The shortest time between two echoes.
const BREATH: Duration = Duration::from_millis(100);

/// How long answers are waited for.
const ANSWERS: Duration = Duration::from_millis(2 * ANSWER_WITHIN.as_millis() as u64);

pub(super) struct Following {
    shared: Arc<Shared>,
    env: Env,
    naming: Naming,
    id: String,
    queue: String,
    services: Vec<String>,
    telling: Telling,
    echo: Option<Echo>,
    /// The number of the last echo.
    number: u64,
    asked_at: Instant,
    next_echo: Instant,
}

/// An echo that has not come yet.
struct Echo {
    sent_at: Instant,
}

impl Following {
    pub(super) fn new(
        shared: Arc<Shared>,
        env: Env,
        naming: Naming,
        (id, queue): (String, String),
        services: Vec<String>,
        telling: Telling,
    ) -> Self {
        let now = env.now();
        Self {
            shared,
            env,
            naming,
            id,
            queue,
            services,
            telling,
            echo: None,
            number: 0,
            asked_at: now,
            next_echo: now + ANSWERS,
        }
    }

    pub(super) async fn run(mut self, mut listening: Listening) {
        self.ask();
        loop {
            tokio::select! {
                biased;
                () = sleep_until(self.wake()) => self.tick(&listening),
                heard = listening.next() => match heard {
                    Some(Heard::Message(envelope)) => self.hear(&envelope.message),
                    Some(Heard::Lost) => {
                        self.echo = None;
                        self.next_echo = self.env.now() + LOST_AFTER;
                        self.out_of_touch();
                    }
                    Some(Heard::Back) => {
                        // Something was missed, however short it was.
                        self.out_of_touch();
                        self.send_echo();
                    }
                    None => break,
                },
            }
        }
        self.become_state(RegistryState::Closed);
    }

    fn state(&self) -> RegistryState {
        *self.shared.state.borrow()
    }

    fn become_state(&self, state: RegistryState) {
        self.shared.state.send_if_modified(|known| std::mem::replace(known, state) != state);
    }

    fn out_of_touch(&self) {
        if self.state() != RegistryState::OutOfTouch {
            self.shared.stats().out_of_touch += 1;
            self.become_state(RegistryState::OutOfTouch);
        }
    }

    fn wake(&self) -> Instant {
        match &self.echo {
            None => self.next_echo,
            Some(echo) if self.state() == RegistryState::OutOfTouch => echo.sent_at + LOST_AFTER,
            Some(echo) => echo.sent_at + PATIENCE,
        }
    }

    fn tick(&mut self, listening: &Listening) {
        let now = self.env.now();
        match &self.echo {
            None => self.send_echo(),
            Some(echo) if now < echo.sent_at + LOST_AFTER => self.out_of_touch(),
            Some(_) => {
                self.echo = None;
                self.next_echo = now + LOST_AFTER;
                self.out_of_touch();
                listening.renew();
            }
        }
    }

    fn send_echo(&mut self) {
        self.number += 1;
        self.telling.tell(wire::echo(&self.naming, &self.id, self.number));
        self.echo = Some(Echo { sent_at: self.env.now() });
    }

    fn ask(&mut self) {
        let ask = |service| self.telling.tell(wire::probe(&self.naming, service, &self.queue));
        if self.services.is_empty() {
            ask(None);
        } else {
            self.services.iter().for_each(|service| ask(Some(service)));
        }
        self.asked_at = self.env.now();
        self.next_echo = self.asked_at + ANSWERS;
        self.become_state(RegistryState::Asking);
    }

    fn hear(&mut self, message: &Message) {
        let now = self.env.now();
        match wire::read(message) {
            Ok(Word::Announced(announce)) => {
                let over = now + announce.lease + GRACE;
                let heard = self.shared.roster().announced(announce, now);
                {
                    let mut stats = self.shared.stats();
                    match heard {
                        roster::Heard::Stale => stats.stale += 1,
                        roster::Heard::Full => stats.beyond_bounds += 1,
                        _ => stats.announcements += 1,
                    }
                }
                if matches!(heard, roster::Heard::Joined | roster::Heard::Changed) {
                    self.next_echo = self.next_echo.min(over);
                    self.changed();
                }
            }
            Ok(Word::Left { service, instance }) => {
                if self.shared.roster().left(service, instance, now) {
                    self.shared.stats().left += 1;
                    self.changed();
                }
            }
            Ok(Word::Echo(number)) => self.hear_echo(number, now),
            Ok(Word::Other) => {}
            Err(Nonsense::Undecodable) => self.shared.stats().undecodable += 1,
            Err(Nonsense::Invalid) => self.shared.stats().invalid += 1,
        }
    }

    fn hear_echo(&mut self, number: u64, now: Instant) {
        let Some(echo) = self.echo.take_if(|_| number == self.number) else { return };
        if now > echo.sent_at + PATIENCE {
            self.out_of_touch();
        }
        if self.state() == RegistryState::OutOfTouch {
            self.shared.roster().begin_anew(now);
            self.ask();
            return;
        }
        let expired = self.shared.roster().heard_all_until(echo.sent_at, now);
        if expired > 0 {
            self.shared.stats().expired += expired as u64;
            self.changed();
        }
        if self.state() == RegistryState::Asking && echo.sent_at >= self.asked_at + ANSWERS {
            self.become_state(RegistryState::Current);
        }
        let next =
            self.shared.roster().next_deadline().map_or(now + PULSE, |over| over.min(now + PULSE));
        self.next_echo = next.max(now + BREATH);
    }

    fn changed(&self) {
        self.shared.revision.send_modify(|revision| *revision += 1);
    }
}
