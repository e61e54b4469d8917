use std::{fmt, sync::Arc};

use chrono::{DateTime, Utc};
use postrider_core::HeaderValue;

use super::{DeadMessage, DeadReason};
use crate::handler::ErrorClass;

/// Which dead letters are meant: those that all of its conditions hold for. Without a condition,
/// all.
///
/// # Example: what failed for a missing customer since noon
///
/// ```
/// use chrono::{DateTime, Utc};
/// use postrider_patterns::{DeadLetterFilter, ErrorClass};
///
/// let noon: DateTime<Utc> = "2026-01-01T12:00:00Z".parse()?;
/// let filter = DeadLetterFilter::all()
///     .class(ErrorClass::NotFound)
///     .since(noon)
///     .matching(|dead| dead.error().is_some_and(|error| error.contains("customer")));
/// # drop(filter);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default)]
#[must_use = "pass it to a method of DeadLetters"]
pub struct DeadLetterFilter(Vec<Arc<Condition>>);

type Condition = dyn Fn(&DeadMessage) -> bool + Send + Sync;

impl DeadLetterFilter {
    /// All dead letters.
    pub const fn all() -> Self {
        Self(Vec::new())
    }

    /// Those that failed with this class.
    pub fn class(self, class: ErrorClass) -> Self {
        self.matching(move |dead| dead.class() == Some(class))
    }

    /// Those that failed with this code.
    pub fn code(self, code: impl Into<String>) -> Self {
        let code = code.into();
        self.matching(move |dead| dead.code() == Some(&code))
    }

    /// Those that are here for this reason.
    pub fn reason(self, reason: DeadReason) -> Self {
        self.matching(move |dead| dead.reason() == reason)
    }

    /// Messages of this type: an event type, a task type.
    pub fn message_type(self, message_type: impl Into<String>) -> Self {
        let message_type = message_type.into();
        self.matching(move |dead| dead.message().message_type.as_deref() == Some(&message_type))
    }

    /// The message with this id.
    pub fn message_id(self, id: impl Into<String>) -> Self {
        let id = id.into();
        self.matching(move |dead| dead.message().message_id.as_deref() == Some(&id))
    }

    /// Messages with this ordering key.
    pub fn key(self, key: impl Into<String>) -> Self {
        let key = key.into();
        self.matching(move |dead| dead.message().key.as_deref() == Some(&key))
    }

    /// Messages with this value in this header.
    pub fn header(self, name: impl Into<String>, value: impl Into<HeaderValue>) -> Self {
        let (name, value) = (name.into(), value.into());
        self.matching(move |dead| dead.message().headers.get(&name) == Some(&value))
    }

    /// Those that were given up at this time or later.
    pub fn since(self, time: DateTime<Utc>) -> Self {
        self.matching(move |dead| dead.dead_lettered_at().is_some_and(|at| at >= time))
    }

    /// Those that were given up before this time.
    pub fn before(self, time: DateTime<Utc>) -> Self {
        self.matching(move |dead| dead.dead_lettered_at().is_some_and(|at| at < time))
    }

    /// Those that `condition` holds for. It is asked once for each dead letter that is looked at.
    pub fn matching(
        mut self,
        condition: impl Fn(&DeadMessage) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.0.push(Arc::new(condition));
        self
    }

    /// Whether all conditions hold.
    #[must_use]
    pub fn matches(&self, dead: &DeadMessage) -> bool {
        self.0.iter().all(|condition| condition(dead))
    }
}

impl fmt::Debug for DeadLetterFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetterFilter").field("conditions", &self.0.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use postrider_core::{Address, Envelope, Message};

    use super::*;
    use crate::headers;

    #[test]
    fn every_condition_must_hold() {
        let message = Message::new("")
            .with_type("order.created")
            .with_message_id("7")
            .with_key("customer-3")
            .with_header("tenant", "north")
            .with_header(headers::ERROR_CLASS, "INVALID")
            .with_header(headers::ERROR_CODE, "EMPTY_ORDER")
            .with_header(headers::DEAD_LETTERED_AT, "2026-01-01T12:00:00.000Z");
        let dead = DeadMessage::new(Arc::new(Envelope::new(Address::queue("dead"), message)));
        let at = |hour: u8| format!("2026-01-01T{hour}:00:00Z").parse::<DateTime<Utc>>().unwrap();
        let all = DeadLetterFilter::all;
        let yes = [
            all(),
            all().class(ErrorClass::Invalid).code("EMPTY_ORDER").reason(DeadReason::Failed),
            all().message_type("order.created").message_id("7").key("customer-3"),
            all().header("tenant", "north").since(at(12)).before(at(13)),
        ];
        let no = [
            all().class(ErrorClass::Internal),
            all().code("PANIC"),
            all().reason(DeadReason::Expired),
            all().message_type("order.paid"),
            all().message_id("8"),
            all().key("customer-4"),
            all().header("tenant", "south"),
            all().header("region", "north"),
            all().since(at(13)),
            all().before(at(12)),
            all().matching(|_| false).class(ErrorClass::Invalid),
        ];
        assert!(yes.iter().all(|filter| filter.matches(&dead)));
        assert!(!no.iter().any(|filter| filter.matches(&dead)));
    }
}
