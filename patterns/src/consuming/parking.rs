//! The keys of a partition whose event was given up, and what waits behind it.
//!
//! They are known by the partition's dead letters alone: each says which key it parks, and its number
//! among those of its key. So they outlive whoever has the partition, and since only that instance
//! writes there, it need not look again until it may have lost the partition.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use postrider_core::{Address, DeliveryInfo, Envelope, ErrorKind, HeaderValue, Message, Result};
use tokio::{
    sync::{MappedMutexGuard, Mutex, MutexGuard},
    time::sleep,
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
    /// Held by the drain at work: there is one at a time.
    draining: Mutex<()>,
    /// Held by whoever looks whether there is room.
    looking: Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    letters: u64,
    keys: HashMap<String, Parked>,
}

/// A key that is parked.
#[derive(Debug, Clone, Copy, Default)]
struct Parked {
    letters: usize,
    /// The number of the next one.
    next: i64,
}

/// The message that has the letters of `key` handled, for the partition that the key is in.
pub(crate) fn drain(key: &str) -> Message {
    Message::new("").with_type(DRAIN).with_key(key.to_owned())
}

/// Whether a message is one.
pub(crate) fn is_drain(message: &Message) -> bool {
    message.message_type.as_deref() == Some(DRAIN)
}

/// The key that a dead letter parks. What the broker gave up parks none, whatever it says of itself.
pub(crate) fn parked_key(message: &Message) -> Option<&str> {
    message.headers.get(headers::ERROR_CODE)?;
    message.headers.get(headers::PARKED_KEY).and_then(HeaderValue::as_text)
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
            draining: Mutex::default(),
            looking: Mutex::default(),
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
        *self.known.lock().await = None;
    }

    pub(super) async fn is_parked(&self, key: &str) -> bool {
        self.policy == KeyFailure::BlockKey && self.known().await.keys.contains_key(key)
    }

    /// Whether another dead letter can be kept so that all of them can be looked at.
    pub(super) async fn has_room(&self) -> bool {
        if self.policy == KeyFailure::SkipAhead || self.known().await.letters < MOST_LETTERS {
            return true;
        }
        match self.letters.count().await {
            Ok(count) => {
                self.known().await.letters = count;
                count < MOST_LETTERS
            }
            Err(_unknown) => false,
        }
    }

    /// Waits a while for room, and gives the keys that are to be drained to make some: the order
    /// lies among the letters, because nothing more comes out of a partition whose front waits. One
    /// at a time looks, and drains before the next one does.
    pub(super) async fn wait_for_room(&self) -> (Vec<String>, MutexGuard<'_, ()>) {
        let looking = self.looking.lock().await;
        let queue = self.letters.queue();
        tracing::error!(queue, "too many dead letters: what fails keeps its key waiting");
        let orders = DeadLetterFilter::all().matching(|letter| is_drain(letter.message()));
        let orders = self.list(&orders).await;
        let keys: Vec<_> = orders
            .iter()
            .filter_map(|order| order.message().key.clone())
            .map(String::from)
            .collect();
        if keys.is_empty() {
            sleep(PAUSE_FOR_ROOM).await;
        }
        (keys, looking)
    }

    /// Keeps a dead letter, as [`Keeper::keep`]; the last of its key, which is parked by it.
    pub(super) async fn keep(
        &self,
        key: Option<&str>,
        envelope: &Envelope,
        info: &DeliveryInfo,
        error: &HandlerError,
    ) -> Result<()> {
        let key = key.filter(|_| self.policy == KeyFailure::BlockKey);
        let mut next = 0;
        if let Some(key) = key {
            next = self.known().await.keys.get(key).map_or(0, |parked| parked.next);
        }
        self.keeper.keep_parked(envelope, info, error, key.map(|key| (key, next))).await?;
        if self.policy == KeyFailure::BlockKey {
            let mut known = self.known().await;
            known.letters += 1;
            if let Some(key) = key {
                let parked = known.keys.entry(key.to_owned()).or_default();
                parked.next = next.saturating_add(1);
                parked.letters += 1;
            }
        }
        Ok(())
    }

    /// Waits until no other drain is at work.
    pub(super) async fn turn_to_drain(&self) -> MutexGuard<'_, ()> {
        self.draining.lock().await
    }

    /// The letters of a key, in their order, and whether they are all that is known of.
    pub(super) async fn letters_of(&self, key: &str) -> (Vec<DeadMessage>, bool) {
        let expected = self.known().await.keys.get(key).map_or(0, |parked| parked.letters);
        let key = key.to_owned();
        let of_key = move |letter: &DeadMessage| parked_key(letter.message()) == Some(&key);
        let of_key = DeadLetterFilter::all().matching(of_key);
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
        let of_key = key.to_owned();
        let orders = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&orders);
        let meant = DeadLetterFilter::all().matching(move |letter| {
            let message = letter.message();
            if is_drain(message) {
                let is_meant = ended && message.key.as_deref() == Some(&*of_key);
                counted.fetch_add(is_meant.into(), Ordering::Relaxed);
                return is_meant;
            }
            parked_key(message) == Some(&of_key) && ids.contains(&id(letter))
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
                Err(error) if !error.is_retryable() && error.kind() != ErrorKind::TimedOut => {
                    return Err(error);
                }
                Err(error) => {
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
        Ok(are_gone)
    }

    /// Lets a key go on.
    pub(super) async fn open(&self, key: &str) {
        self.known().await.keys.remove(key);
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
        let letters = self.list(&DeadLetterFilter::all()).await;
        let mut known = Known { letters: letters.len() as u64, keys: HashMap::new() };
        for letter in &letters {
            if let Some(key) = parked_key(letter.message()) {
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
