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
        [now, now, now, after(1), after(2), after(4), after(8), after(16), Decision::DeadLetter]
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
