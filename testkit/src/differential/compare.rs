//! Whether two sides showed the same, but for the known differences.

use postrider_core::{Capabilities, QueueKind};

use super::{
    differences::{
        CLASSIC_COUNTS, COUNTED_RELEASE, DEAD_LETTER_COUNTS, REDELIVERED_DEAD, REJECT_REASON,
    },
    observe::{Seen, SeenDelivery, SeenMessage},
    run::Protocol,
};

const REASON_HEADER: &str = "postrider-reason";

/// What the comparison has to know beyond the two sights.
#[derive(Debug, Clone, Copy)]
pub(super) struct Eyes<'a> {
    pub(super) reference: &'a Capabilities,
    pub(super) subject: &'a Capabilities,
    pub(super) protocol: Protocol,
}

impl Eyes<'_> {
    /// The names of the differences that were forgiven; the two sights when one is left.
    pub(super) fn compare(
        self,
        reference: &Seen,
        subject: &Seen,
        kind_of: impl Fn(&str) -> QueueKind,
    ) -> Result<Vec<&'static str>, String> {
        let mut forgiven = Vec::new();
        let same = match (reference, subject) {
            (Seen::Deliveries(reference), Seen::Deliveries(subject)) => {
                reference.len() == subject.len()
                    && reference.iter().zip(subject).all(|pair| match pair {
                        (SeenDelivery::Message(one), SeenDelivery::Message(other)) => {
                            self.is_same(one, other, kind_of(&one.queue), &mut forgiven)
                        }
                        (one, other) => one == other,
                    })
            }
            (one, other) => one == other,
        };
        if same {
            Ok(forgiven)
        } else {
            Err(format!("reference: {reference:#?}\nsubject: {subject:#?}"))
        }
    }

    fn is_same(
        self,
        reference: &SeenMessage,
        subject: &SeenMessage,
        kind: QueueKind,
        forgiven: &mut Vec<&'static str>,
    ) -> bool {
        let (mut one, mut other) = (reference.clone(), subject.clone());
        if self.reference.reject_reason != self.subject.reject_reason {
            let before = one.headers.len() + other.headers.len();
            one.headers.retain(|(name, _)| name != REASON_HEADER);
            other.headers.retain(|(name, _)| name != REASON_HEADER);
            if one.headers.len() + other.headers.len() < before {
                forgiven.push(REJECT_REASON.name);
            }
        }
        let inexact = kind == QueueKind::Classic && !self.subject.exact_attempts;
        let counts_returns = kind == QueueKind::Quorum
            && self.reference.uncounted_release
            && !self.subject.uncounted_release;
        let is_dead = one.headers.iter().any(|(name, _)| name == "x-death");
        let counted = |message: &SeenMessage| {
            let attempt = if inexact { message.attempt.min(2) } else { message.attempt };
            (attempt, message.failures)
        };
        let (least, most) = (counted(&one), counted(&other));
        let is_more = most.0 >= least.0 && (inexact || counts_returns || most.1 >= least.1);
        if is_dead && self.protocol == Protocol::Amqp10 && other.redelivered && is_more {
            if (one.attempt, one.failures, one.redelivered)
                != (other.attempt, other.failures, other.redelivered)
            {
                forgiven.push(REDELIVERED_DEAD.name);
            }
            (other.attempt, other.failures) = (one.attempt, one.failures);
            other.redelivered = one.redelivered;
        }
        // Deliveries before the death shine through.
        let shining = other.failures.max(u32::from(inexact)) + 1;
        if is_dead && other.redelivered && other.attempt > one.attempt && other.attempt == shining {
            forgiven.push(DEAD_LETTER_COUNTS.name);
            (other.attempt, other.redelivered) = (one.attempt, one.redelivered);
        }
        if (one.attempt, one.failures) != (other.attempt, other.failures) {
            let least = if is_dead { 0 } else { one.failures };
            if inexact && other.failures <= one.failures {
                forgiven.push(CLASSIC_COUNTS.name);
                (one.attempt, other.attempt) = (one.attempt.min(2), other.attempt.min(2));
                other.failures = one.failures;
            } else if counts_returns && (least..subject.attempt).contains(&other.failures) {
                forgiven.push(COUNTED_RELEASE.name);
                other.failures = one.failures;
            }
        }
        one == other
    }
}
