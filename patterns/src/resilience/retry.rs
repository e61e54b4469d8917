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
    /// [`immediate`](Self::immediate) and [`delayed`](Self::delayed). A class that is not here and is
    /// not [retryable](ErrorClass::is_retryable) is dead-lettered at once. Default: none.
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

    /// Refuses a policy that makes no sense.
    pub(crate) fn check_alone(&self) -> Result<()> {
        if self.factor.is_finite() && self.factor >= 1.0 {
            return Ok(());
        }
        let complaint = format!("the factor of a retry policy is 1 or more, not {}", self.factor);
        Err(Error::new(ErrorKind::Invalid, "start", complaint))
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
mod tests {
    use proptest::prelude::{prop_assert, proptest};

    use super::*;

    fn decisions(policy: &RetryPolicy, error: &HandlerError) -> Vec<Decision> {
        (0..=policy.max_retries()).map(|failures| policy.decide(error, failures, 0.5)).collect()
    }

    #[test]
    fn the_default_tries_at_once_then_with_growing_delays_then_gives_up() {
        let policy = RetryPolicy::default().with_jitter(Jitter::None);
        let after = |seconds| Decision::RetryAfter(Duration::from_secs(seconds));
        let now = Decision::RetryNow;
        assert_eq!(
            decisions(&policy, &HandlerError::transient("busy")),
            [
                now,
                now,
                now,
                after(1),
                after(2),
                after(4),
                after(8),
                after(16),
                Decision::DeadLetter
            ]
        );
    }

    #[test]
    fn each_class_has_its_way() {
        let policy = RetryPolicy::default();
        for class in ErrorClass::ALL {
            let decision = policy.decide(&HandlerError::new(class, ""), 0, 0.0);
            let expected = match class {
                ErrorClass::Throttled => Decision::RetryAfter(Duration::ZERO),
                class if class.is_retryable() => Decision::RetryNow,
                _ => Decision::DeadLetter,
            };
            assert_eq!(decision, expected, "{class}");
        }
    }

    #[test]
    fn whoever_is_overloaded_says_when() {
        let policy = RetryPolicy::default();
        let throttled = HandlerError::throttled("full", Duration::from_secs(7));
        let after = Decision::RetryAfter(Duration::from_secs(7));
        assert_eq!(policy.decide(&throttled, 0, 0.9), after);
    }

    #[test]
    fn a_class_may_have_its_own_tries() {
        let policy = RetryPolicy::default()
            .with_jitter(Jitter::None)
            .with_class(ErrorClass::Internal, Tries::NONE)
            .with_class(ErrorClass::NotFound, Tries::new(1, 1))
            .with_class(ErrorClass::Unavailable, Tries::new(0, 12));
        let decide = |class, failures| policy.decide(&HandlerError::new(class, ""), failures, 0.5);
        let after = |seconds| Decision::RetryAfter(Duration::from_secs(seconds));
        assert_eq!(decide(ErrorClass::Internal, 0), Decision::DeadLetter);
        assert_eq!(decide(ErrorClass::NotFound, 0), Decision::RetryNow);
        assert_eq!(decide(ErrorClass::NotFound, 1), after(1));
        assert_eq!(decide(ErrorClass::NotFound, 2), Decision::DeadLetter);
        assert_eq!(decide(ErrorClass::Unavailable, 0), after(1));
        assert_eq!(decide(ErrorClass::Unavailable, 11), after(300));
        // It has failed so often for other reasons.
        assert_eq!(decide(ErrorClass::Transient, 11), Decision::DeadLetter);
        assert_eq!(decide(ErrorClass::Invalid, 0), Decision::DeadLetter);
    }

    #[test]
    fn the_check_knows_the_tries_of_every_class() {
        let mut capabilities = Capabilities::minimal();
        let policy = RetryPolicy::never().with_class(ErrorClass::Unavailable, Tries::new(0, 20));
        let kind = |limit, capabilities: &Capabilities| {
            policy.check(limit, capabilities).err().map(|error| error.kind())
        };
        assert_eq!(kind(20, &capabilities), Some(ErrorKind::Invalid));
        assert_eq!(kind(21, &capabilities), Some(ErrorKind::Unsupported));
        capabilities.delayed_retry = Delay::Ladder;
        assert_eq!(kind(21, &capabilities), None);
    }

    #[test]
    fn a_policy_is_data() {
        let policy: RetryPolicy =
            serde_json::from_str(r#"{"delayed": 2, "first_delay_ms": 250}"#).unwrap();
        assert_eq!(policy.immediate, 3);
        assert_eq!(policy.first_delay, Duration::from_millis(250));
        let json = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<RetryPolicy>(&json).unwrap(), policy);
        assert!(serde_json::from_str::<RetryPolicy>(r#"{"dealyed": 2}"#).is_err());
    }

    #[test]
    fn a_policy_that_cannot_be_carried_out_is_refused() {
        let mut capabilities = Capabilities::minimal();
        let kind = |policy: RetryPolicy, limit, capabilities: &Capabilities| {
            policy.check(limit, capabilities).err().map(|error| error.kind())
        };
        let default = RetryPolicy::default();
        assert_eq!(kind(default.clone(), 20, &capabilities), Some(ErrorKind::Unsupported));
        capabilities.delayed_retry = Delay::Native;
        assert_eq!(kind(default.clone(), 20, &capabilities), None);
        assert_eq!(kind(default.clone(), 8, &capabilities), Some(ErrorKind::Invalid));
        let shrinking = default.with_delay(Duration::ZERO, 0.5, Duration::ZERO);
        assert_eq!(kind(shrinking, 20, &capabilities), Some(ErrorKind::Invalid));
    }

    proptest! {
        #[test]
        fn every_policy_ends_and_keeps_its_bounds(
            immediate in 0_u32..10, delayed in 0_u32..2_000, first in 0_u64..100_000,
            factor in 1.0_f64..100.0, longest in 0_u64..1_000_000, random in 0.0_f64..1.0,
        ) {
            let longest = Duration::from_millis(longest);
            let policy = RetryPolicy::default()
                .with_immediate(immediate)
                .with_delayed(delayed)
                .with_delay(Duration::from_millis(first), factor, longest);
            let error = HandlerError::transient("");
            for failures in 0..policy.max_retries() {
                let in_bounds = match policy.decide(&error, failures, random) {
                    Decision::RetryNow => failures < immediate,
                    Decision::RetryAfter(delay) => failures >= immediate && delay <= longest,
                    _ => false,
                };
                prop_assert!(in_bounds);
            }
            let last = policy.decide(&error, policy.max_retries(), random);
            prop_assert!(last == Decision::DeadLetter);
        }
    }
}
