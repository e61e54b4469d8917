use std::{collections::BTreeMap, time::Duration};

use postrider_core::{Capabilities, Delay, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::handler::{ErrorClass, HandlerError};

/// When a failed message is tried again, and when it is given up.
///
/// The first tries come at once, the next ones after growing delays; then the message is
/// dead-lettered. It is plain data and serializes with delays in milliseconds.
///
/// # Example: once a minute, ten times
///
/// ```
/// use std::time::Duration;
/// use postrider_patterns::RetryPolicy;
///
/// let policy = RetryPolicy::default()
///     .with_immediate(0)
///     .with_delayed(10)
///     .with_delay(Duration::from_secs(60), 1.0, Duration::from_secs(60));
/// assert_eq!(policy.max_retries(), 10);
/// ```
///
/// # Example: classes of their own, from a file of settings
///
/// ```
/// use postrider_patterns::{ErrorClass, RetryPolicy, Tries};
///
/// let policy: RetryPolicy = serde_json::from_str(
///     r#"{"classes": {
///         "UNAVAILABLE": {"immediate": 0, "delayed": 12},
///         "INTERNAL": {"immediate": 0, "delayed": 0},
///         "NOT_FOUND": {"immediate": 0, "delayed": 2}
///     }}"#,
/// )?;
/// assert_eq!(policy.tries(ErrorClass::Internal), Tries::NONE);
/// assert_eq!(policy.tries(ErrorClass::Transient), Tries::new(3, 5));
/// assert_eq!(policy.max_retries(), 12);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// How many times a message is tried again at once. Default: 3.
    pub immediate: u32,
    /// How many times after that it is tried again with a delay. Default: 5.
    pub delayed: u32,
    /// The first delay. Default: 1 second.
    #[serde(rename = "first_delay_ms", with = "millis")]
    pub first_delay: Duration,
    /// What each delay is multiplied by to get the next. Default: 2.
    pub factor: f64,
    /// The longest delay. Default: 5 minutes.
    #[serde(rename = "max_delay_ms", with = "millis")]
    pub max_delay: Duration,
    /// How delays are spread. Default: full.
    pub jitter: Jitter,
    /// How often failures of a class are tried again, where that is another number than
    /// [`immediate`](Self::immediate) and [`delayed`](Self::delayed). A class that is not here and
    /// is not [retryable](ErrorClass::is_retryable) is dead-lettered at once. Default: none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub classes: BTreeMap<ErrorClass, Tries>,
}

/// How often a message is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tries {
    /// How many times at once.
    pub immediate: u32,
    /// How many times after that with a delay.
    pub delayed: u32,
}

impl Tries {
    /// Not at all: it is dead-lettered.
    pub const NONE: Self = Self::new(0, 0);

    /// So many at once, so many with a delay.
    #[must_use]
    pub const fn new(immediate: u32, delayed: u32) -> Self {
        Self { immediate, delayed }
    }

    const fn total(self) -> u32 {
        self.immediate.saturating_add(self.delayed)
    }
}

/// How delays are spread, so that what failed together does not come again together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Jitter {
    /// Not at all.
    None,
    /// Uniform between nothing and the whole delay.
    #[default]
    Full,
}

/// What becomes of a failed message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Decision {
    /// It is tried again at once.
    RetryNow,
    /// It is tried again after this time.
    RetryAfter(Duration),
    /// It is given up and kept in the dead-letter queue.
    DeadLetter,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            immediate: 3,
            delayed: 5,
            first_delay: Duration::from_secs(1),
            factor: 2.0,
            max_delay: Duration::from_secs(300),
            jitter: Jitter::Full,
            classes: BTreeMap::new(),
        }
    }
}

impl RetryPolicy {
    /// No second try: what fails is dead-lettered.
    #[must_use]
    pub fn never() -> Self {
        Self::default().with_immediate(0).with_delayed(0)
    }

    /// Sets [`immediate`](Self::immediate).
    #[must_use]
    pub const fn with_immediate(mut self, tries: u32) -> Self {
        self.immediate = tries;
        self
    }

    /// Sets [`delayed`](Self::delayed).
    #[must_use]
    pub const fn with_delayed(mut self, tries: u32) -> Self {
        self.delayed = tries;
        self
    }

    /// Sets [`first_delay`](Self::first_delay), [`factor`](Self::factor) and
    /// [`max_delay`](Self::max_delay).
    #[must_use]
    pub const fn with_delay(mut self, first: Duration, factor: f64, longest: Duration) -> Self {
        self.first_delay = first;
        self.factor = factor;
        self.max_delay = longest;
        self
    }

    /// Sets [`jitter`](Self::jitter).
    #[must_use]
    pub const fn with_jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = jitter;
        self
    }

    /// Sets how often failures of one class are tried again; see [`classes`](Self::classes).
    #[must_use]
    pub fn with_class(mut self, class: ErrorClass, tries: Tries) -> Self {
        self.classes.insert(class, tries);
        self
    }

    /// How often failures of `class` are tried again.
    #[must_use]
    pub fn tries(&self, class: ErrorClass) -> Tries {
        match self.classes.get(&class) {
            Some(tries) => *tries,
            None if class.is_retryable() => Tries::new(self.immediate, self.delayed),
            None => Tries::NONE,
        }
    }

    /// How many times a message is tried again at most, whatever it fails with.
    #[must_use]
    pub fn max_retries(&self) -> u32 {
        let of_all = Tries::new(self.immediate, self.delayed).total();
        self.classes.values().map(|tries| tries.total()).fold(of_all, u32::max)
    }

    /// What becomes of a message that failed with `error` after it had failed `failures_so_far`
    /// times before, for whatever reason. `random` is uniform in `0.0..1.0`.
    #[must_use]
    pub fn decide(&self, error: &HandlerError, failures_so_far: u32, random: f64) -> Decision {
        let tries = self.tries(error.class());
        if failures_so_far >= tries.total() {
            return Decision::DeadLetter;
        }
        // Whoever is overloaded is not asked again at once.
        let at_once = failures_so_far < tries.immediate
            && error.class() != ErrorClass::Throttled
            && error.retry_after().is_none();
        if at_once {
            return Decision::RetryNow;
        }
        let backoff = self.backoff(failures_so_far.saturating_sub(tries.immediate));
        let spread = match self.jitter {
            Jitter::None => backoff,
            Jitter::Full => backoff.mul_f64(random.clamp(0.0, 1.0)),
        };
        Decision::RetryAfter(spread.max(error.retry_after().unwrap_or_default()))
    }

    /// The delay before the `step`-th delayed try, from 0, without jitter.
    fn backoff(&self, step: u32) -> Duration {
        let exponent = i32::try_from(step).unwrap_or(i32::MAX);
        let seconds = self.first_delay.as_secs_f64() * self.factor.powi(exponent);
        Duration::try_from_secs_f64(seconds)
            .map_or(self.max_delay, |delay| delay.min(self.max_delay))
    }

    /// How long a message waits between all of its tries at most, jitter at its worst.
    pub(crate) fn longest_wait(&self) -> Duration {
        // Nobody counts further; a loop over all of them could be long.
        const COUNTED: u32 = 1_000;
        let tries = self.classes.values().map(|tries| tries.delayed);
        let delayed = tries.fold(self.delayed, u32::max);
        let rest = self.backoff(COUNTED).saturating_mul(delayed.saturating_sub(COUNTED));
        (0..delayed.min(COUNTED)).fold(rest, |sum, step| sum.saturating_add(self.backoff(step)))
    }

    /// Refuses a policy that makes no sense.
    pub(crate) fn check_alone(&self) -> Result<()> {
        if self.factor.is_finite() && self.factor >= 1.0 {
            return Ok(());
        }
        let complaint = format!("the factor of a retry policy is 1 or more, not {}", self.factor);
        Err(Error::new(ErrorKind::Invalid, "start", complaint))
    }

    /// How often a message can have failed that did not crash its process. Unknown where giving back
    /// is counted too.
    pub(crate) fn most_failures(&self, capabilities: &Capabilities) -> Option<u32> {
        capabilities.uncounted_release.then(|| self.max_retries())
    }

    /// Refuses a policy that makes no sense, or that queue or broker cannot carry out.
    pub(crate) fn check(&self, delivery_limit: u32, capabilities: &Capabilities) -> Result<()> {
        self.check_alone()?;
        let refuse = |kind, message: String| Err(Error::new(kind, "start", message));
        if self.max_retries() >= delivery_limit {
            return refuse(
                ErrorKind::Invalid,
                format!(
                    "a retry policy of {} retries needs a queue whose delivery limit is above \
                     that, and this one's is {delivery_limit}; raise the limit or retry less",
                    self.max_retries()
                ),
            );
        }
        let is_delayed = self.delayed > 0 || self.classes.values().any(|tries| tries.delayed > 0);
        if is_delayed && capabilities.delayed_retry == Delay::None {
            return refuse(
                ErrorKind::Unsupported,
                "this broker cannot delay a retry; set the policy's delayed tries to 0".to_owned(),
            );
        }
        Ok(())
    }
}

mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests;
