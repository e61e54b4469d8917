//! The keys of a partition whose event was given up, and what waits behind it.
//!
//! They are known by the partition's dead letters alone: each says which key it parks, and its number
//! among those of its key. So they outlive whoever has the partition, and since only that instance
//! writes there, it need not look again until it may have lost the partition.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use postrider_core::{Address, DeliveryInfo, Envelope, ErrorKind, HeaderValue, Message, Result};
use tokio::{
    sync::{MappedMutexGuard, Mutex, MutexGuard, Notify},
    time::{Instant, sleep, timeout},
};

use crate::{
    dead_letters::{DeadLetterFilter, DeadLetters, DeadMessage},
    handler::HandlerError,
    headers,
    resilience::Keeper,
};

/// How many dead letters a partition may have before events that fail wait instead.
pub(crate) const MOST_LETTERS: u64 = 1_000;

/// How many are looked at: those, and what else comes there: what the broker gave up, and what was
/// kept while events that fail [skip ahead](KeyFailure::SkipAhead).
const WINDOW: u16 = 20_000;

/// How long it is waited for letters that somebody seems to have in hand. After that they are gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long it waits before it looks again where that failed, and where there is no room.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_FOR_ROOM: Duration = Duration::from_secs(30);

/// How long letters that were in hand when a connection was lost may take to be back.
const COMING_BACK: Duration = Duration::from_secs(2);

/// The type of the message that has the letters of its key handled.
pub(crate) const DRAIN: &str = "postrider.drain_key";

/// What becomes of a key whose event is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum KeyFailure {
    /// Its later events follow the one that failed into the dead letters, in their order, until the
    /// key is [drained](crate::EventBus::drain_key).
    #[default]
    BlockKey,
    /// The event is dead-lettered alone, and its key goes on without it.
    SkipAhead,
}

/// The dead letters of one partition, and the keys that they park.
pub(crate) struct Parking {
    letters: DeadLetters,
    keeper: Keeper,
    policy: KeyFailure,
    /// An event that failed as often for the broker gets no other chance: the next one is the
    /// broker's, who would dead-letter it alone.
    delivery_limit: u32,
    known: Mutex<Option<Known>>,
    /// How many letters were known when all was forgotten.
    expected: AtomicU64,
    /// Held by the drain at work: there is one at a time.
    draining: Mutex<()>,
    /// Held by whoever looks for orders to drain keys; when somebody looked last.
    looking: Mutex<Option<Instant>>,
    /// Letters were taken away.
    freed: Notify,
}

#[derive(Debug, Default)]
struct Known {
    /// Those that are being kept are among them.
    letters: u64,
    keys: HashMap<String, Parked>,
}

/// A key that is parked.
#[derive(Debug, Clone, Copy, Default)]
struct Parked {
    letters: usize,
    /// How many more are on their way to the broker.
    keeping: usize,
    /// The number of the next one.
    next: i64,
}

/// What an event that is to be kept is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The number among the letters of its key.
    Number(i64),
    /// Its key is not parked, so that it follows nothing.
    NotParked,
    /// There are so many letters that more could not be looked at.
    Full,
}

/// What was found where there is no room.
pub(super) enum Look<'a> {
    /// There is room now.
    Room,
    /// Keys that are to be drained, which makes room; nobody else looks meanwhile.
    Orders(BTreeSet<String>, MutexGuard<'a, Option<Instant>>),
    Nothing,
}

/// The message that has the letters of `key` handled, for the partition that the key is in.
pub(crate) fn drain(key: &str) -> Message {
    Message::new("").with_type(DRAIN).with_key(key.to_owned())
}

/// Whether a message is one.
pub(crate) fn is_drain(message: &Message) -> bool {
    message.message_type.as_deref() == Some(DRAIN)
}

/// The key that a dead letter of the partition `of` parks. What the broker gave up there parks none,
/// whatever it says of itself.
pub(crate) fn parked_key<'a>(letter: &'a DeadMessage, of: &str) -> Option<&'a str> {
    letter.code()?;
    let key = letter.message().headers.get(headers::PARKED_KEY)?.as_text()?;
    let is_of_broker = letter.deaths().first().is_some_and(|death| death.queue == of);
    (!is_of_broker).then_some(key)
}

fn number(letter: &DeadMessage) -> i64 {
    let number = letter.message().headers.get(headers::PARKED_NUMBER);
    number.and_then(HeaderValue::as_int).unwrap_or(0)
}

impl Parking {
    pub(crate) fn new(
        letters: DeadLetters,
        keeper: Keeper,
        policy: KeyFailure,
        delivery_limit: u32,
    ) -> Self {
        let letters = letters.with_window(WINDOW);
        Self {
            letters,
            keeper,
            policy,
            delivery_limit,
            known: Mutex::default(),
            expected: AtomicU64::new(0),
            draining: Mutex::default(),
            looking: Mutex::default(),
            freed: Notify::new(),
        }
    }

    pub(super) fn now(&self) -> DateTime<Utc> {
        self.keeper.now()
    }

    pub(super) const fn is_last_chance(&self, info: &DeliveryInfo) -> bool {
        info.failures >= self.delivery_limit
    }

    /// Somebody else may have had the partition since.
    pub(super) async fn forget(&self) {
        if let Some(known) = self.known.lock().await.take() {
            self.expected.store(known.letters, Ordering::Relaxed);
        }
    }

    fn parked_key<'a>(&self, letter: &'a DeadMessage) -> Option<&'a str> {
        parked_key(letter, self.letters.home_queue())
    }

    async fn has_room(&self) -> bool {
        if self.known().await.letters < MOST_LETTERS {
            return true;
        }
        // While letters are gone through, they are in hand and not counted.
        let (Ok(_no_drain), Ok(_no_look)) = (self.draining.try_lock(), self.looking.try_lock())
        else {
            return false;
        };
        let count = match self.letters.count().await {
            Ok(count) => count,
            // Whoever keeps the next one declares it anew.
            Err(error) if error.kind() == ErrorKind::NotFound => 0,
            Err(_unknown) => return false,
        };
        let mut known = self.known().await;
        let keeping: usize = known.keys.values().map(|parked| parked.keeping).sum();
        known.letters = count + keeping as u64;
        known.letters < MOST_LETTERS
    }

    /// A place for an event among the letters, for [`keep`](Self::keep); of one that `follows` those
    /// of its key only while there are any. Cancellation safe.
    pub(super) async fn place(&self, key: Option<&str>, follows: bool) -> Place {
        if self.policy == KeyFailure::SkipAhead {
            return if follows { Place::NotParked } else { Place::Number(0) };
        }
        let is_missing =
            |known: &Known| follows && key.is_some_and(|key| !known.keys.contains_key(key));
        if is_missing(&*self.known().await) {
            return Place::NotParked;
        }
        if !self.has_room().await {
            return Place::Full;
        }
        let mut known = self.known().await;
        // It may have been drained meanwhile.
        if is_missing(&known) {
            return Place::NotParked;
        }
        known.letters += 1;
        let Some(key) = key else { return Place::Number(0) };
        let parked = known.keys.entry(key.to_owned()).or_default();
        let number = parked.next;
        parked.next = number.saturating_add(1);
        parked.keeping += 1;
        Place::Number(number)
    }

    /// Looks, where there is no room, whether keys are to be drained: the orders lie among the
    /// letters, because nothing more comes out of a partition whose front waits. One at a time
    /// looks, and not more often than makes sense.
    pub(super) async fn look_for_orders(&self) -> Look<'_> {
        let Ok(mut looking) = self.looking.try_lock() else { return Look::Nothing };
        if self.known().await.letters < MOST_LETTERS {
            return Look::Room;
        }
        let now = self.letters.now();
        if looking.is_some_and(|last| now < last + PAUSE_FOR_ROOM) {
            return Look::Nothing;
        }
        *looking = Some(now);
        let queue = self.letters.queue();
        tracing::error!(queue, "too many dead letters: what fails keeps its key waiting");
        let orders = DeadLetterFilter::all().matching(|letter| is_drain(letter.message()));
        let orders = self.list(&orders).await;
        let keys = orders.iter().filter_map(|order| order.message().key.clone());
        let keys: BTreeSet<_> = keys.map(String::from).collect();
        if keys.is_empty() { Look::Nothing } else { Look::Orders(keys, looking) }
    }

    /// Is done when letters were taken away since it was made, or after a while.
    pub(super) fn freed(&self) -> impl Future<Output = ()> {
        let freed = self.freed.notified();
        async move {
            let _in_time = timeout(PAUSE_FOR_ROOM, freed).await;
        }
    }

    /// Keeps a dead letter at its [place](Self::place), as [`Keeper::keep`]; the last of its key,
    /// which is parked by it.
    pub(super) async fn keep(
        &self,
        number: i64,
        key: Option<&str>,
        envelope: &Envelope,
        info: &DeliveryInfo,
        error: &HandlerError,
    ) -> Result<()> {
        let key = key.filter(|_| self.policy == KeyFailure::BlockKey);
        let parked = key.map(|key| (key, number));
        let kept = self.keeper.keep_parked(envelope, info, error, parked).await;
        if self.policy == KeyFailure::SkipAhead {
            return kept;
        }
        let mut known = self.known().await;
        if kept.is_err() {
            known.letters = known.letters.saturating_sub(1);
        }
        if let Some(key) = key
            && let Some(parked) = known.keys.get_mut(key)
        {
            parked.keeping = parked.keeping.saturating_sub(1);
            parked.letters += usize::from(kept.is_ok());
            if parked.letters + parked.keeping == 0 {
                known.keys.remove(key);
            }
        }
        kept
    }

    /// Waits until no other drain is at work.
    pub(super) async fn turn_to_drain(&self) -> MutexGuard<'_, ()> {
        self.draining.lock().await
    }

    /// The letters of a key, in their order, and whether they are all that is known of.
    pub(super) async fn letters_of(&self, key: &str) -> (Vec<DeadMessage>, bool) {
        let expected = self.known().await.keys.get(key).map_or(0, |parked| parked.letters);
        let of_key = self.of_key(key);
        let mut waited = Duration::ZERO;
        loop {
            let mut letters = self.list(&of_key).await;
            let are_all = letters.len() >= expected;
            if are_all || waited >= PATIENCE {
                letters.sort_by_key(number);
                return (letters, are_all);
            }
            sleep(PAUSE).await;
            waited += PAUSE;
        }
    }

    /// Takes letters of a key away that were handled, and, when the drain has `ended`, the orders to
    /// drain it among them. `false` when not all letters were there to be taken, for some time: they
    /// are gone, or somebody has them in hand.
    ///
    /// # Errors
    ///
    /// The transport was closed.
    pub(super) async fn remove(
        &self,
        key: &str,
        handled: &[DeadMessage],
        ended: bool,
    ) -> Result<bool> {
        let id = |letter: &DeadMessage| (number(letter), letter.message().message_id.clone());
        let ids: HashSet<_> = handled.iter().map(id).collect();
        let (of_key, of) = (key.to_owned(), self.letters.home_queue().to_owned());
        let orders = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&orders);
        let meant = DeadLetterFilter::all().matching(move |letter| {
            let message = letter.message();
            if is_drain(message) {
                let is_meant = ended && message.key.as_deref() == Some(&*of_key);
                counted.fetch_add(is_meant.into(), Ordering::Relaxed);
                return is_meant;
            }
            parked_key(letter, &of) == Some(&of_key) && ids.contains(&id(letter))
        });
        let (mut taken, mut waited) = (0, Duration::ZERO);
        let are_gone = loop {
            match self.letters.discard(&meant).await {
                Ok(report) => {
                    taken += report.done.saturating_sub(orders.swap(0, Ordering::Relaxed));
                    if taken >= handled.len() as u64 {
                        break true;
                    }
                    if waited >= PATIENCE {
                        break false;
                    }
                }
                // With their queue they are gone.
                Err(error) if error.kind() == ErrorKind::NotFound => break true,
                Err(error) if !error.is_retryable() && error.kind() != ErrorKind::TimedOut => {
                    return Err(error);
                }
                Err(error) => {
                    orders.store(0, Ordering::Relaxed);
                    tracing::warn!(%error, "letters that were handled could not be taken away yet");
                }
            }
            sleep(PAUSE).await;
            waited += PAUSE;
        };
        let mut known = self.known().await;
        known.letters = known.letters.saturating_sub(handled.len() as u64);
        if let Some(parked) = known.keys.get_mut(key) {
            parked.letters = parked.letters.saturating_sub(handled.len());
        }
        drop(known);
        self.freed.notify_waiters();
        Ok(are_gone)
    }

    /// Lets a key go on, if none of its letters is left.
    pub(super) async fn open(&self, key: &str) -> bool {
        let mut known = self.known().await;
        let is_done = |parked: &Parked| parked.letters + parked.keeping == 0;
        let is_open = known.keys.get(key).is_none_or(is_done);
        if is_open {
            known.keys.remove(key);
        }
        is_open
    }

    /// Looks anew how many letters a key has: not all that were known of were there. What is kept
    /// meanwhile counts beside them.
    pub(super) async fn recount(&self, key: &str) {
        let letters = |known: &Known| known.keys.get(key).map_or(0, |parked| parked.letters);
        let expected = letters(&*self.known().await);
        let found = self.list(&self.of_key(key)).await.len();
        if let Some(parked) = self.known().await.keys.get_mut(key) {
            parked.letters = parked.letters.saturating_sub(expected.saturating_sub(found));
        }
    }

    fn of_key(&self, key: &str) -> DeadLetterFilter {
        let (key, of) = (key.to_owned(), self.letters.home_queue().to_owned());
        DeadLetterFilter::all().matching(move |letter| parked_key(letter, &of) == Some(&key))
    }

    /// The envelope of a letter as its handler gets it.
    pub(super) fn original(letter: &DeadMessage, queue: &str) -> Arc<Envelope> {
        let address = letter.origin_address().unwrap_or_else(|| Address::queue(queue.to_owned()));
        Arc::new(Envelope::new(address, letter.original()))
    }

    async fn known(&self) -> MappedMutexGuard<'_, Known> {
        let mut known = self.known.lock().await;
        if known.is_none() {
            *known = Some(self.look().await);
        }
        MutexGuard::map(known, Option::get_or_insert_default)
    }

    async fn look(&self) -> Known {
        let expected = self.expected.load(Ordering::Relaxed);
        let mut waited = Duration::ZERO;
        // What was in hand at the loss may be on its way back.
        while expected > 0 && waited < COMING_BACK {
            match self.letters.count().await {
                Ok(count) if count >= expected => break,
                Err(error) if error.kind() == ErrorKind::NotFound => break,
                _fewer_or_unknown => {}
            }
            sleep(COMING_BACK / 20).await;
            waited += COMING_BACK / 20;
        }
        if let Ok(count) = self.letters.count().await {
            // They are in these hands until it is done, or dropped.
            self.expected.fetch_max(count, Ordering::Relaxed);
        }
        let letters = self.list(&DeadLetterFilter::all()).await;
        self.expected.store(0, Ordering::Relaxed);
        let mut known = Known { letters: letters.len() as u64, keys: HashMap::new() };
        for letter in &letters {
            if let Some(key) = self.parked_key(letter) {
                let parked = known.keys.entry(key.to_owned()).or_default();
                parked.letters += 1;
                parked.next = number(letter).saturating_add(1).max(parked.next);
            }
        }
        known
    }

    /// All that match. It tries until it succeeds: without it no key may go on.
    async fn list(&self, filter: &DeadLetterFilter) -> Vec<DeadMessage> {
        let queue = self.letters.queue();
        loop {
            match self.letters.count().await {
                Err(error) if error.kind() == ErrorKind::NotFound => return Vec::new(),
                Ok(count) if count > u64::from(WINDOW) => {
                    tracing::error!(queue, count, "too many dead letters to tell which keys wait");
                    sleep(PAUSE_FOR_ROOM).await;
                }
                Ok(_few) => match self.letters.list(filter).await {
                    Ok(letters) => return letters,
                    Err(error) => {
                        tracing::warn!(queue, %error, "dead letters could not be looked at yet");
                        sleep(PAUSE).await;
                    }
                },
                Err(error) => {
                    tracing::warn!(queue, %error, "dead letters could not be counted yet");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}
