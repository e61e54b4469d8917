//! Numbered messages on their way through queues, and the comparison of what was sent and received.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    ops::Range,
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use postrider_core::{
    Address, Consumer, ConsumerOptions, Delivery, Envelope, Error, Message, Publisher,
    PublisherOptions, Transport, Verdict,
};
use tokio::{sync::watch, task::JoinHandle, time};

use crate::{Scene, scene::text};

/// How many messages may be without a verdict, so at most so many are unknown after a loss.
pub(super) const WINDOW: usize = 500;

/// How many deliveries a consumer has in advance.
const PREFETCH: u16 = 50;

/// How many consumers a queue has.
const CONSUMERS: u32 = 2;

/// How many deliveries a consumer keeps unsettled before it settles them all, the last first.
const HELD: usize = 20;

/// How long nothing comes until what is held is settled.
const LULL: Duration = Duration::from_millis(50);

/// How long all traffic may take to arrive. A generous bound: brokers restart meanwhile.
const ARRIVAL: Duration = Duration::from_secs(90);

/// What became of numbered messages.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    pub(super) accepted: BTreeSet<usize>,
    pub(super) unknown: BTreeSet<usize>,
    pub(super) unroutable: BTreeSet<usize>,
    /// With what the broker said.
    pub(super) rejected: BTreeMap<usize, String>,
    /// Those whose send failed, with the error.
    pub(super) unsent: BTreeMap<usize, Error>,
}

impl Outcomes {
    fn note(&mut self, number: usize, verdict: Verdict) {
        match verdict {
            Verdict::Accepted => drop(self.accepted.insert(number)),
            Verdict::Unroutable => drop(self.unroutable.insert(number)),
            Verdict::Rejected(why) => drop(self.rejected.insert(number, why.into_owned())),
            _ => drop(self.unknown.insert(number)),
        }
    }

    fn count(&self) -> usize {
        self.accepted.len()
            + self.unknown.len()
            + self.unroutable.len()
            + self.rejected.len()
            + self.unsent.len()
    }

    /// Sees that every message was sent and is accepted, but `unknown` at most.
    pub(super) fn are_accepted_but(&self, unknown: usize) {
        assert!(self.unsent.is_empty(), "a send waits for recovery: {:?}", first(&self.unsent));
        assert!(self.rejected.is_empty(), "nothing was refused: {:?}", first(&self.rejected));
        assert!(self.unroutable.is_empty(), "the queue is there: {:?}", self.unroutable.first());
        assert!(
            self.unknown.len() <= unknown,
            "at most {unknown} may be unknown, which were under way, and {} are",
            self.unknown.len()
        );
    }
}

fn first<T: Debug>(of: &BTreeMap<usize, T>) -> Option<(&usize, &T)> {
    of.first_key_value()
}

/// A message with this number.
pub(super) fn numbered(address: &Address, number: usize) -> Envelope {
    let id = format!("{address} {number}");
    Envelope::new(address.clone(), Message::new(number.to_string()).with_message_id(id))
}

/// A task that publishes numbered messages, as many at a time as the publisher's window lets it.
pub(super) struct Publishing {
    verdicts: watch::Receiver<usize>,
    task: JoinHandle<Outcomes>,
}

impl Publishing {
    pub(super) fn start(
        publisher: Arc<dyn Publisher>,
        address: Address,
        numbers: Range<usize>,
    ) -> Self {
        let (told, verdicts) = watch::channel(0);
        let task = tokio::spawn(async move {
            let mut outcomes = Outcomes::default();
            let mut confirms = FuturesUnordered::new();
            for number in numbers {
                match publisher.send(numbered(&address, number)).await {
                    Ok(confirm) => confirms.push(confirm.map(move |verdict| (number, verdict))),
                    Err(error) => drop(outcomes.unsent.insert(number, error)),
                }
                while let Some(Some((number, verdict))) = confirms.next().now_or_never() {
                    outcomes.note(number, verdict);
                }
                told.send_replace(outcomes.count());
                // For whoever brings about the fault, when all of this is on one thread.
                tokio::task::yield_now().await;
            }
            while let Some((number, verdict)) = confirms.next().await {
                outcomes.note(number, verdict);
                told.send_replace(outcomes.count());
            }
            outcomes
        });
        Self { verdicts, task }
    }

    /// Waits until so many messages have their outcome.
    pub(super) async fn reaches(&mut self, count: usize) {
        let reached = time::timeout(ARRIVAL, self.verdicts.wait_for(|now| *now >= count)).await;
        let now = reached.map(|now| now.is_ok());
        assert!(now == Ok(true), "{count} outcomes do not come within {ARRIVAL:?}");
    }

    /// Waits for every outcome.
    pub(super) async fn outcomes(self) -> Outcomes {
        let outcomes = time::timeout(ARRIVAL, self.task).await;
        outcomes.expect("every message has its outcome in time").expect("the publishing task")
    }
}

/// What may come twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// Nothing: the consumers' connection has no fault.
    Nothing,
    /// What was under way, with the mark of a redelivery.
    Marked,
    /// As [`Marked`](Self::Marked), but a queue that is not replicated may forget with its broker what
    /// it delivered. RabbitMQ's classic queues do, now and then, when it is shut down in order.
    MarkedUnlessForgotten,
}

/// What consumers have seen of one queue.
#[derive(Debug, Default)]
struct Seen {
    /// How often each number came.
    counts: BTreeMap<usize, usize>,
    /// Numbers that came without the mark of a redelivery.
    unmarked: BTreeSet<usize>,
    /// Numbers that came so more than once. Which of two deliveries is noted first says nothing of
    /// which was made first, so only both without the mark are wrong.
    unmarked_again: BTreeSet<usize>,
    /// Deliveries that consumers hold unsettled.
    held: usize,
    /// Consumers that ended.
    ended: Vec<String>,
}

impl Seen {
    fn note(&mut self, delivery: &Delivery) {
        let number = text(delivery).parse().expect("the body is a number");
        *self.counts.entry(number).or_default() += 1;
        if !delivery.info().redelivered && !self.unmarked.insert(number) {
            self.unmarked_again.insert(number);
        }
        self.held += 1;
    }
}

/// Tasks that consume a queue, each with some deliveries unsettled at any time.
pub(super) struct Consuming {
    queue: String,
    seen: watch::Sender<Seen>,
    tasks: Vec<JoinHandle<()>>,
}

impl Consuming {
    pub(super) async fn start(transport: &Arc<dyn Transport>, queue: &str) -> Self {
        let seen = watch::Sender::new(Seen::default());
        let mut tasks = Vec::new();
        for _ in 0..CONSUMERS {
            let options = ConsumerOptions::default().with_prefetch(PREFETCH);
            let consumer = transport.consumer(queue, options).await.expect("a consumer");
            tasks.push(tokio::spawn(consume(consumer, seen.clone())));
        }
        Self { queue: queue.to_owned(), seen, tasks }
    }

    /// Waits until so many different messages have come.
    pub(super) async fn reaches(&self, count: usize) {
        self.waits_for(&format!("{count} messages"), |seen| seen.counts.len() >= count).await;
    }

    /// Waits until all that was accepted has come and is settled, and compares.
    pub(super) async fn compare(self, scene: &Scene, outcomes: &Outcomes, again: Again) {
        let queue = &*self.queue;
        let all_came =
            |seen: &Seen| outcomes.accepted.iter().all(|number| seen.counts.contains_key(number));
        self.waits_for("everything that was accepted", all_came).await;
        scene.has_consumers(queue, CONSUMERS).await;
        scene.settles_at(queue, 0).await;
        self.waits_for("everything to be settled", |seen| seen.held == 0).await;
        for task in self.tasks {
            task.abort();
            let ended = task.await;
            assert!(ended.is_err_and(|error| error.is_cancelled()), "no consumer ends by itself");
        }
        scene.has_consumers(queue, 0).await;
        // What was delivered and not settled would be there again.
        scene.settles_at(queue, 0).await;

        let seen = self.seen.borrow();
        assert!(seen.ended.is_empty(), "consumers go on: {:?}", seen.ended);
        let strange = seen.counts.keys().find(|number| {
            !outcomes.accepted.contains(number) && !outcomes.unknown.contains(number)
        });
        assert_eq!(strange, None, "it came from '{queue}' and was not accepted");
        let unmarked = seen.unmarked_again.first();
        let doubted = unmarked.is_some_and(|number| outcomes.unknown.contains(number));
        let may_forget = again == Again::MarkedUnlessForgotten;
        assert!(
            may_forget || unmarked.is_none(),
            "{unmarked:?} came again unmarked; its outcome was unknown: {doubted}"
        );
        let doubled = seen.counts.iter().find(|(_, count)| **count > 1);
        let may_double = again != Again::Nothing;
        assert!(may_double || doubled.is_none(), "it came twice without a fault: {doubled:?}");
    }

    async fn waits_for(&self, what: &str, met: impl Fn(&Seen) -> bool) {
        let mut watch = self.seen.subscribe();
        let waited = time::timeout(ARRIVAL, watch.wait_for(met)).await.map(|seen| seen.is_ok());
        let seen = self.seen.borrow();
        assert!(
            waited == Ok(true),
            "not within {ARRIVAL:?} from '{}': {what}; {} came, {} are held, ended: {:?}",
            self.queue,
            seen.counts.len(),
            seen.held,
            seen.ended
        );
    }
}

/// Keeps what comes until there is enough or nothing more, and settles the last first.
async fn consume(mut consumer: Consumer, seen: watch::Sender<Seen>) {
    let mut held: Vec<Delivery> = Vec::new();
    loop {
        let came = time::timeout(LULL, consumer.recv()).await;
        let enough = came.is_err() || held.len() + 1 >= HELD;
        match came {
            Ok(Some(Ok(delivery))) => {
                seen.send_modify(|seen| seen.note(&delivery));
                held.push(delivery);
            }
            Ok(Some(Err(error))) => {
                seen.send_modify(|seen| seen.ended.push(error.to_string()));
                return;
            }
            Ok(None) => {
                seen.send_modify(|seen| seen.ended.push("without an error".to_owned()));
                return;
            }
            Err(_) => {}
        }
        if enough {
            let count = held.len();
            held.drain(..).rev().for_each(Delivery::ack);
            seen.send_modify(|seen| seen.held -= count);
        }
    }
}

/// Traffic through a quorum queue and a classic queue at once.
pub(super) struct Traffic(Vec<Lane>);

struct Lane {
    publishing: Publishing,
    consuming: Consuming,
    count: usize,
    replicated: bool,
}

impl Traffic {
    /// Begins to send `count` messages through each queue, from one connection to another, which
    /// may be the same.
    pub(super) async fn start(
        scene: &Scene,
        from: &Arc<dyn Transport>,
        to: &Arc<dyn Transport>,
        count: usize,
    ) -> Self {
        let mut lanes = Vec::new();
        for (queue, replicated) in Self::queues(scene).await.into_iter().zip([true, false]) {
            let options = PublisherOptions::default().with_window(WINDOW).with_timeout(ARRIVAL);
            let publisher = from.publisher(options).await.expect("a publisher");
            let consuming = Consuming::start(to, &queue).await;
            let publishing = Publishing::start(publisher, Address::queue(queue), 0..count);
            lanes.push(Lane { publishing, consuming, count, replicated });
        }
        Self(lanes)
    }

    /// The queues that it goes through, the replicated one first.
    pub(super) async fn queues(scene: &Scene) -> [String; 2] {
        [scene.queue("quorum").await, scene.classic("classic").await]
    }

    /// Waits until each queue's publisher has so many verdicts.
    pub(super) async fn is_sent(&mut self, count: usize) {
        for lane in &mut self.0 {
            lane.publishing.reaches(count).await;
        }
    }

    /// Waits until so many messages of each queue have come.
    pub(super) async fn has_come(&self, count: usize) {
        for lane in &self.0 {
            lane.consuming.reaches(count).await;
        }
    }

    /// Waits for the end of it and compares what was sent and received. Of each queue's messages at
    /// most `unknown` may be so.
    pub(super) async fn ends(self, scene: &Scene, unknown: usize, again: Again) {
        for Lane { publishing, consuming, count, replicated } in self.0 {
            let outcomes = publishing.outcomes().await;
            assert_eq!(outcomes.count(), count, "each message has one outcome");
            outcomes.are_accepted_but(unknown);
            let again = match again {
                Again::MarkedUnlessForgotten if replicated => Again::Marked,
                again => again,
            };
            consuming.compare(scene, &outcomes, again).await;
        }
    }
}
