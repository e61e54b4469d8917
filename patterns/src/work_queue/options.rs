use std::{borrow::Cow, time::Duration};

use chrono::{DateTime, Utc};
use postrider_core::{Capabilities, Delay, Error, ErrorKind, Result};

use crate::handler::Context;

/// The highest priority of AMQP, which every broker with priorities takes.
const HIGHEST_PRIORITY: u8 = 9;

/// The longest unique key, in bytes.
const MOST_KEY_BYTES: usize = 255;

/// What one submission differs in.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct SubmitOptions {
    /// The higher goes first. Default: [`DEFAULT_PRIORITY`](super::DEFAULT_PRIORITY). How many the
    /// broker keeps apart is told by
    /// [`Capabilities::priority_levels`]. Those up to 9 are taken
    /// by every broker that has priorities: one with two levels, such as RabbitMQ before 4.3, has 0
    /// to 4 in one and 5 to 9 in the other. A higher one must be a level of its own.
    pub priority: Option<u8>,
    /// How long the task may wait before it expires into the dead-letter queue, in whole
    /// milliseconds, from when its delay is over. Transports over RabbitMQ refuse a task with both.
    /// Default: as its queue says, else for ever.
    pub ttl: Option<Duration>,
    /// How long the task is held back first, in whole milliseconds. Default: not at all.
    pub delay: Option<Duration>,
    /// Until when the task is held back, by the clock of the submitter; a moment that has passed is
    /// now. It is not given together with a delay. Default: not at all.
    pub at: Option<DateTime<Utc>>,
    /// What the task is, of which there should be one at a time; see [`unique`](Self::unique()).
    /// Default: it is no duplicate of any other.
    pub unique: Option<Cow<'static, str>>,
    /// The handler that the task is submitted from. Default: none.
    pub cause: Option<Context>,
}

impl SubmitOptions {
    /// Sets [`priority`](Self::priority).
    #[must_use]
    pub const fn with_priority(mut self, priority: u8) -> Self {
        self.priority = Some(priority);
        self
    }

    /// Sets [`ttl`](Self::ttl).
    #[must_use]
    pub const fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Sets [`delay`](Self::delay).
    #[must_use]
    pub const fn with_delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// Sets [`at`](Self::at): the task is held back until then.
    #[must_use]
    pub const fn at(mut self, moment: DateTime<Utc>) -> Self {
        self.at = Some(moment);
        self
    }

    /// Sets [`unique`](Self::unique): while a task of that key is queued or at work, another of the
    /// same queue is a duplicate: it is acknowledged and not run.
    ///
    /// A broker does not know keys, so it is decided by who knows of both tasks:
    ///
    /// - A [`WorkQueue`](super::WorkQueue) submits no second task while the handle of a tracked one
    ///   has not ended.
    /// - A [`Worker`](super::Worker) passes over a task while another of its key is at its handler,
    ///   and one that was submitted before the other was done. It remembers that for an hour, of
    ///   10,000 keys at most. A task that has failed, for good or until its next try, stands in
    ///   nobody's way.
    ///
    /// Two workers know nothing of each other: tasks of one key that go to both may both be run, at
    /// the same time too. Moments are compared to the millisecond by the clocks of submitter and
    /// worker; in doubt a task is run.
    #[must_use]
    pub fn unique(mut self, key: impl Into<Cow<'static, str>>) -> Self {
        self.unique = Some(key.into());
        self
    }

    /// Sets [`cause`](Self::cause): the task's causation id is the id of that handler's message,
    /// its correlation id that message's conversation.
    #[must_use]
    pub fn caused_by(mut self, context: &Context) -> Self {
        self.cause = Some(context.clone());
        self
    }

    /// How long it is held back from `now` on, in whole milliseconds, never too short.
    pub(super) fn held_back(&self, now: DateTime<Utc>) -> Duration {
        let Some(at) = self.at else { return self.delay.unwrap_or_default() };
        let left = (at - now).to_std().unwrap_or_default();
        let millis = left.as_nanos().div_ceil(1_000_000);
        Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
    }

    pub(super) fn check(&self, capabilities: &Capabilities) -> Result<()> {
        let refuse = |kind, what| Err(Error::new(kind, "submit", what));
        if self.delay.is_some() && self.at.is_some() {
            return refuse(ErrorKind::Invalid, "a task has a delay or a time, not both");
        }
        if (self.delay.is_some() || self.at.is_some())
            && capabilities.delayed_publish == Delay::None
        {
            return refuse(
                ErrorKind::Unsupported,
                "this broker cannot hold a task back; submit it when its time has come",
            );
        }
        if self.unique.as_ref().is_some_and(|key| key.len() > MOST_KEY_BYTES) {
            return refuse(ErrorKind::Invalid, "a unique key has 255 bytes at most");
        }
        match (self.priority, capabilities.priority_levels) {
            (None, _) => Ok(()),
            (Some(_), 0) => refuse(
                ErrorKind::Unsupported,
                "this broker has no priorities; submit the task without one",
            ),
            (Some(priority), levels) if priority > HIGHEST_PRIORITY.max(levels - 1) => {
                let highest = HIGHEST_PRIORITY.max(levels - 1);
                let what = format!("the highest priority is {highest} here, not {priority}");
                Err(Error::new(ErrorKind::Unsupported, "submit", what))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broker(levels: u8) -> Capabilities {
        let mut broker = Capabilities::minimal();
        broker.priority_levels = levels;
        broker
    }

    #[test]
    fn a_priority_beyond_the_real_ones_is_refused() {
        for (levels, priority, is_taken) in [
            (0, 4, false),
            (2, 9, true),
            (2, 10, false),
            (10, 10, false),
            (32, 31, true),
            (32, 32, false),
            (255, 254, true),
        ] {
            let options = SubmitOptions::default().with_priority(priority);
            let checked = options.check(&broker(levels)).map_err(|error| error.kind());
            let wanted = if is_taken { Ok(()) } else { Err(ErrorKind::Unsupported) };
            assert_eq!(checked, wanted, "{priority} of {levels}");
        }
        assert!(SubmitOptions::default().check(&broker(0)).is_ok());
    }

    #[test]
    fn a_time_is_a_delay_that_is_never_too_short() {
        let now = DateTime::UNIX_EPOCH;
        let until = |nanos| {
            let at = now + chrono::TimeDelta::nanoseconds(nanos);
            SubmitOptions::default().at(at).held_back(now).as_millis()
        };
        assert_eq!(until(1_000_000), 1);
        assert_eq!(until(1_000_001), 2);
        assert_eq!(until(-5_000_000_000), 0);
    }

    #[test]
    fn what_contradicts_itself_or_is_too_long_is_refused() {
        let mut broker = broker(32);
        let kind = |options: SubmitOptions, broker: &Capabilities| {
            options.check(broker).map_err(|error| error.kind())
        };
        let at = SubmitOptions::default().at(DateTime::UNIX_EPOCH);
        assert_eq!(kind(at.clone(), &broker), Err(ErrorKind::Unsupported));
        broker.delayed_publish = Delay::Native;
        assert_eq!(kind(at.clone(), &broker), Ok(()));
        assert_eq!(kind(at.with_delay(Duration::ZERO), &broker), Err(ErrorKind::Invalid));
        let long = SubmitOptions::default().unique("k".repeat(256));
        assert_eq!(kind(long, &broker), Err(ErrorKind::Invalid));
    }
}
