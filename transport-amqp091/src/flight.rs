//! Which messages of a publishing channel wait for their verdict, and which verdict is whose.
//!
//! The client library hands a returned message to whichever confirm resolves next, so a confirm
//! says only how its own message was acknowledged; what was returned is known by its id.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{BuildHasher, RandomState},
};

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use postrider_rabbitmq::PUBLISH_ID_HEADER;

/// Messages under way on one channel, by their numbers, which count in the order of sending.
#[derive(Debug)]
pub(crate) struct Flight<T> {
    next: u64,
    waiting: BTreeMap<u64, Waiting<T>>,
    /// The numbers of those that are known by their message id, by its hash: two ids with the same
    /// are taken for the same id.
    by_id: HashMap<u64, u64>,
    hasher: RandomState,
    returned: HashSet<u64>,
}

#[derive(Debug)]
struct Waiting<T> {
    id: Option<u64>,
    message: T,
}

/// What becomes of messages under way when the broker closes their channel over one of them.
#[derive(Debug)]
pub(crate) struct Blame<T> {
    /// The one it was, when that is certain.
    pub(crate) guilty: Option<T>,
    /// Those that may have been handled before.
    pub(crate) unknown: Vec<T>,
    /// Those that came after it, which the broker did not look at.
    pub(crate) untouched: Vec<T>,
}

impl<T> Default for Flight<T> {
    fn default() -> Self {
        Self {
            next: 0,
            waiting: BTreeMap::new(),
            by_id: HashMap::new(),
            hasher: RandomState::new(),
            returned: HashSet::new(),
        }
    }
}

impl<T> Flight<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn id(&self, properties: &BasicProperties) -> Option<u64> {
        properties.message_id().as_ref().map(|id| self.hasher.hash_one(id.as_str()))
    }

    /// Enters a message and sees to it that its properties tell it from the others under way.
    pub(crate) fn enter(&mut self, message: T, properties: &mut BasicProperties) -> u64 {
        let number = self.next;
        self.next += 1;
        let id = self.id(properties).filter(|id| !self.by_id.contains_key(id));
        if let Some(id) = id {
            self.by_id.insert(id, number);
        } else {
            let mut headers = properties.headers().clone().unwrap_or_default();
            let value = AMQPValue::LongLongInt(number.cast_signed());
            headers.insert(PUBLISH_ID_HEADER.into(), value);
            *properties = std::mem::take(properties).with_headers(headers);
        }
        self.waiting.insert(number, Waiting { id, message });
        number
    }

    /// Notes that the broker returned the message with these properties.
    pub(crate) fn note_returned(&mut self, properties: &BasicProperties) {
        let own = properties.headers().as_ref().and_then(publish_id);
        let number = own.or_else(|| self.by_id.get(&self.id(properties)?).copied());
        // One that is not waited for any more needs no verdict.
        if let Some(number) = number.filter(|number| self.waiting.contains_key(number)) {
            self.returned.insert(number);
        }
    }

    pub(crate) fn is_waiting(&self, number: u64) -> bool {
        self.waiting.contains_key(&number)
    }

    /// Takes a message whose confirm has come, and says whether it was returned.
    pub(crate) fn leave(&mut self, number: u64) -> Option<(T, bool)> {
        let waiting = self.waiting.remove(&number)?;
        if let Some(id) = &waiting.id {
            self.by_id.remove(id);
        }
        Some((waiting.message, self.returned.remove(&number)))
    }

    /// Takes all messages, in the order of their sending.
    pub(crate) fn take_all(&mut self) -> Vec<T> {
        self.by_id.clear();
        self.returned.clear();
        std::mem::take(&mut self.waiting).into_values().map(|waiting| waiting.message).collect()
    }

    /// Takes all messages after the broker closed the channel over one of those that `suspect`
    /// names. Of several suspects none is known to be the one; what came after the last of them was
    /// not handled.
    pub(crate) fn blame(&mut self, suspect: impl Fn(&T) -> bool) -> Blame<T> {
        let mut unknown = self.take_all();
        let Some(last) = unknown.iter().rposition(&suspect) else {
            return Blame { guilty: None, unknown, untouched: Vec::new() };
        };
        let untouched = unknown.split_off(last + 1);
        let alone = unknown.iter().filter(|message| suspect(message)).count() == 1;
        let guilty = if alone { unknown.pop() } else { None };
        Blame { guilty, unknown, untouched }
    }
}

fn publish_id(headers: &FieldTable) -> Option<u64> {
    match headers.inner().get(PUBLISH_ID_HEADER)? {
        AMQPValue::LongLongInt(number) => Some(number.cast_unsigned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entered(flight: &mut Flight<&'static str>, message: &'static str) -> BasicProperties {
        let mut properties = BasicProperties::default();
        flight.enter(message, &mut properties);
        properties
    }

    #[test]
    fn a_return_marks_its_own_message_whatever_came_with_it() {
        let mut flight = Flight::default();
        let mut first = BasicProperties::default().with_message_id("id".into());
        let mut second = first.clone();
        assert_eq!(flight.enter("first", &mut first), 0);
        assert_eq!(flight.enter("second", &mut second), 1);
        let third = entered(&mut flight, "third");
        assert_eq!(*first.headers(), None, "an id that tells it apart is enough");
        assert!(second.headers().is_some() && third.headers().is_some());
        flight.note_returned(&second);
        flight.note_returned(&third);
        assert_eq!(flight.leave(0), Some(("first", false)));
        assert_eq!(flight.leave(2), Some(("third", true)));
        assert_eq!(flight.leave(1), Some(("second", true)));
        assert_eq!(flight.leave(1), None);
        // The id is free again, and a late return of the past marks nobody.
        let mut again = BasicProperties::default().with_message_id("id".into());
        flight.note_returned(&second);
        let number = flight.enter("again", &mut again);
        assert_eq!(*again.headers(), None);
        assert_eq!(flight.leave(number), Some(("again", false)));
        assert!(flight.is_empty());
    }

    #[test]
    fn only_a_single_suspect_is_guilty_and_what_came_after_is_untouched() {
        let mut flight = Flight::default();
        for message in ["a", "b", "bad", "c"] {
            entered(&mut flight, message);
        }
        let blame = flight.blame(|message| *message == "bad");
        assert_eq!(blame.guilty, Some("bad"));
        assert_eq!((blame.unknown, blame.untouched), (vec!["a", "b"], vec!["c"]));

        for message in ["bad", "b", "bad", "c"] {
            entered(&mut flight, message);
        }
        let blame = flight.blame(|message| *message == "bad");
        assert_eq!(blame.guilty, None);
        assert_eq!((blame.unknown, blame.untouched), (vec!["bad", "b", "bad"], vec!["c"]));

        entered(&mut flight, "a");
        let blame = flight.blame(|message| *message == "bad");
        assert_eq!((blame.guilty, blame.unknown), (None, vec!["a"]));
        assert!(flight.is_empty());
    }
}
