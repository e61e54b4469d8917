use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use postrider_core::{
    Address, Confirm, Envelope, Error, ErrorKind, Publisher, PublisherExt, PublisherOptions, Result,
};
use tokio::time::{Instant, sleep_until};

use super::{
    DeadLetterFilter, DeadLetters, DeadMessage,
    walk::{Letter, Walk},
};
use crate::consuming::{MOST_LETTERS, drain, is_drain, parked_key};

/// How many publishes may be without a verdict at once.
const UNDER_WAY: usize = 64;

/// How dead letters are published again.
///
/// # Example: ten a second, to another queue
///
/// ```
/// use postrider_core::Address;
/// use postrider_patterns::RedriveOptions;
///
/// let options =
///     RedriveOptions::default().with_rate(10).with_address(Address::queue("orders.repaired"));
/// assert_eq!(options.per_second, Some(10));
/// ```
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct RedriveOptions {
    /// Where they go. Default: each to the queue that it was given up in, and to no other
    /// subscriber of what it once was published to. One that names a queue whose dead letters do
    /// not come here stays, and counts as failed.
    pub address: Option<Address>,
    /// How many a second at most; of keys that are drained, how many keys. Default: as fast as it
    /// goes.
    pub per_second: Option<u32>,
    /// How many are moved at most. A letter that parks a key counts as one, and its key is drained
    /// whole. Default: all that match.
    pub most: Option<u64>,
}

impl RedriveOptions {
    /// Sets [`address`](Self::address).
    #[must_use]
    pub fn with_address(mut self, address: Address) -> Self {
        self.address = Some(address);
        self
    }

    /// Sets [`per_second`](Self::per_second).
    #[must_use]
    pub const fn with_rate(mut self, per_second: u32) -> Self {
        self.per_second = Some(per_second);
        self
    }

    /// Sets [`most`](Self::most).
    #[must_use]
    pub const fn with_most(mut self, letters: u64) -> Self {
        self.most = Some(letters);
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.per_second == Some(0) {
            let why = "at a rate of 0 a second nothing would be moved";
            return Err(Error::new(ErrorKind::Invalid, "redrive", why));
        }
        self.address.as_ref().map_or(Ok(()), |address| address.check("redrive"))
    }
}

/// What became of the dead letters that were there when a run began.
#[derive(Debug, Default)]
#[non_exhaustive]
#[must_use = "it says what failed, and what was not seen"]
pub struct DeadLetterReport {
    /// How many were moved, or thrown away.
    pub done: u64,
    /// How many did not match, and stay.
    pub stayed: u64,
    /// How many stay for the moment: letters of an ordered subscription, whose key is
    /// [drained](crate::EventBus::drain_key) now.
    pub draining: u64,
    /// How many could not be published, and stay.
    pub failed: u64,
    /// How many were not looked at: there were enough, somebody else had them, or so many stay that
    /// there was no room for more. After a lost connection there may be more: one that comes twice
    /// takes the place of another.
    pub unseen: u64,
    /// Why the first of the failed ones could not be published.
    pub failure: Option<Error>,
}

/// A run that moves dead letters.
///
/// The order of the fields is the order in which they are dropped: what is under way goes back when
/// the consumer is gone.
pub(super) struct Redriving<'a> {
    letters: &'a DeadLetters,
    walk: Walk<'a>,
    under_way: VecDeque<(Confirm, Letter)>,
    publisher: Arc<dyn Publisher>,
    options: RedriveOptions,
    pace: Option<Pace>,
    report: DeadLetterReport,
    /// The keys that are drained.
    drained: HashSet<String>,
}

/// When the next one may go.
#[derive(Clone, Copy)]
struct Pace {
    next: Instant,
    pause: Duration,
}

impl<'a> Redriving<'a> {
    pub(super) async fn begin(letters: &'a DeadLetters, options: RedriveOptions) -> Result<Self> {
        let publisher = letters.transport.publisher(PublisherOptions::default()).await?;
        let next = letters.transport.env().now();
        let pace =
            options.per_second.map(|rate| Pace { next, pause: Duration::from_secs(1) / rate });
        Ok(Self {
            letters,
            walk: Walk::begin(letters, letters.window).await?,
            under_way: VecDeque::new(),
            publisher,
            options,
            pace,
            report: DeadLetterReport::default(),
            drained: HashSet::new(),
        })
    }

    pub(super) async fn run(mut self, filter: &DeadLetterFilter) -> Result<DeadLetterReport> {
        match self.go_through(filter).await {
            Ok(()) => {
                let Self { letters, walk, publisher, pace, drained, mut report, .. } = self;
                report.unseen = walk.end().await;
                match letters.drain(&*publisher, pace, drained).await {
                    Ok(()) => Ok(report),
                    Err(error) => Err(error.with_context("moved", report.done.to_string())),
                }
            }
            Err(error) => {
                // What was sent before is not to come twice for this.
                while self.settle().await {}
                Err(error.with_context("moved", self.report.done.to_string()))
            }
        }
    }

    async fn go_through(&mut self, filter: &DeadLetterFilter) -> Result<()> {
        loop {
            while self.under_way.len() >= UNDER_WAY.min(self.walk.room()) && self.settle().await {}
            if self.has_enough() && !self.settle().await {
                return Ok(());
            }
            if self.has_enough() {
                continue;
            }
            let Some(letter) = self.walk.next().await? else { break };
            let dead = DeadMessage::new(Arc::clone(letter.delivery.envelope()));
            if filter.matches(&dead) {
                self.send(letter, &dead).await?;
            } else {
                self.report.stayed += 1;
                self.walk.stays(letter);
            }
        }
        while self.settle().await {}
        Ok(())
    }

    fn has_enough(&self) -> bool {
        let moved = self.report.done + self.report.draining + self.under_way.len() as u64;
        self.options.most.is_some_and(|most| moved >= most)
    }

    async fn send(&mut self, letter: Letter, dead: &DeadMessage) -> Result<()> {
        if is_drain(dead.message()) {
            // It is an order to drain a key, and no letter.
            self.walk.stays(letter);
            return Ok(());
        }
        if self.options.address.is_none()
            && let Some(key) = parked_key(dead, &self.letters.of)
        {
            self.drained.insert(key.to_owned());
            self.report.draining += 1;
            self.walk.stays(letter);
            return Ok(());
        }
        let home = || self.letters.home(dead).map(Address::queue);
        let Some(address) = self.options.address.clone().or_else(home) else {
            let why = "it names no queue whose dead letters come here; name an address";
            self.fails(letter, Error::new(ErrorKind::Invalid, "redrive", why));
            return Ok(());
        };
        self.wait_for_its_time().await;
        match self.publisher.send(Envelope::new(address, dead.original())).await {
            Ok(confirm) => self.under_way.push_back((confirm, letter)),
            Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Closed) => {
                self.walk.stays(letter);
                return Err(error);
            }
            Err(error) => self.fails(letter, error),
        }
        Ok(())
    }

    async fn wait_for_its_time(&mut self) {
        let Some(Pace { next, pause }) = self.pace else { return };
        // What has its verdict need not wait for the rest, where it could come twice.
        while next > self.walk.now() && self.settle().await {}
        sleep_until(next).await;
        self.pace = Some(Pace { next: next.max(self.walk.now()) + pause, pause });
    }

    /// Waits for the oldest verdict and acts on it. Whether there was one to wait for.
    async fn settle(&mut self) -> bool {
        let Some((confirm, _)) = self.under_way.front_mut() else { return false };
        let verdict = confirm.await;
        if let Some((_, letter)) = self.under_way.pop_front() {
            match verdict.into_result() {
                Ok(()) => {
                    letter.delivery.ack();
                    self.report.done += 1;
                }
                Err(error) => self.fails(letter, error),
            }
        }
        true
    }

    fn fails(&mut self, letter: Letter, error: Error) {
        tracing::warn!(%error, "a dead letter could not be moved");
        self.report.failed += 1;
        self.report.failure.get_or_insert(error);
        self.walk.stays(letter);
    }
}

impl DeadLetters {
    /// Has the letters of keys handled where they are: published again, each would come behind
    /// those that follow it. Nobody's hands may be full of them then.
    ///
    /// Out of a full partition nothing comes, also no order to drain a key: for one that may be full
    /// it lies among the letters too.
    async fn drain(
        &self,
        publisher: &dyn Publisher,
        mut pace: Option<Pace>,
        keys: HashSet<String>,
    ) -> Result<()> {
        let is_full = !keys.is_empty() && self.count().await? >= MOST_LETTERS / 2;
        for key in keys {
            if let Some(Pace { next, pause }) = &mut pace {
                sleep_until(*next).await;
                *next = self.transport.env().now().max(*next) + *pause;
            }
            for queue in [&self.of, &self.queue].into_iter().take(1 + usize::from(is_full)) {
                let order = Envelope::new(Address::queue(queue.clone()), drain(&key));
                publisher.publish(order).await?;
            }
        }
        Ok(())
    }
}
