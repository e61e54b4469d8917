//! Verdicts: each belongs to its own message, whatever else is under way.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::future;
use postrider_core::{
    Address, Binding, Confirm, Envelope, Exchange, Message, Overflow, Publisher, PublisherOptions,
    Queue, Topology, Verdict,
};
use tokio::time;

use super::{Behaviour, Need};
use crate::{Scene, harness::Fault};

pub(super) fn behaviours() -> Vec<Behaviour> {
    vec![
        Behaviour::new(verdicts_belong_to_their_messages, &[Need::Topology]),
        Behaviour::new(verdicts_belong_to_their_tasks, &[Need::Topology]),
        Behaviour::new(one_full_queue_of_many_rejects, &[Need::Topology]),
        Behaviour::new(
            lost_connection_leaves_verdicts_unknown,
            &[Need::Topology, Need::Fault(Fault::HeldConfirms), Need::Fault(Fault::ConnectionLoss)],
        ),
        Behaviour::new(
            publish_keeps_its_timeout_from_the_first,
            &[Need::Topology, Need::Fault(Fault::HeldConfirms)],
        ),
        Behaviour::new(
            late_verdict_is_unknown,
            &[Need::Topology, Need::Fault(Fault::HeldConfirms)],
        ),
        Behaviour::new(window_is_honoured, &[Need::Topology, Need::Fault(Fault::HeldConfirms)]),
        Behaviour::new(
            flush_waits_for_held_verdicts,
            &[Need::Topology, Need::Fault(Fault::HeldConfirms)],
        ),
        Behaviour::new(
            confirm_can_be_awaited_again,
            &[Need::Topology, Need::Fault(Fault::HeldConfirms)],
        ),
    ]
}

/// Where a message of the mix goes, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stored,
    Unroutable,
    Rejected,
}

/// A good queue, a full one and a name that no queue has.
struct Mix {
    good: String,
    full: String,
    missing: String,
    full_holds: u64,
}

impl Mix {
    async fn new(scene: &Scene) -> Self {
        let full = Queue::classic(scene.name("full"))
            .with_max_length(1)
            .with_overflow(Overflow::RejectPublish);
        let mut mix = Self {
            good: scene.queue("good").await,
            full: scene.declare_queue(full).await,
            missing: scene.name("missing"),
            full_holds: 0,
        };
        mix.fill(scene).await;
        mix
    }

    /// Publishes until the full queue refuses; a broker may overshoot the limit by a few.
    async fn fill(&mut self, scene: &Scene) {
        let publisher = scene.publisher().await;
        for _ in 0..100 {
            let address = Address::queue(self.full.clone());
            let filler = Envelope::new(address, Message::new("filler"));
            let confirm = scene.send(&*publisher, filler).await;
            match scene.verdict(confirm).await {
                Verdict::Accepted => self.full_holds += 1,
                Verdict::Rejected(_) => return,
                verdict => panic!("filling '{}': {verdict:?}", self.full),
            }
        }
        panic!("'{}' has a maximum length of 1 and took 100 messages", self.full);
    }

    fn envelope(&self, fate: Fate, body: String) -> Envelope {
        let queue = match fate {
            Fate::Stored => &self.good,
            Fate::Unroutable => &self.missing,
            Fate::Rejected => &self.full,
        };
        Envelope::new(Address::queue(queue.clone()), Message::new(body))
    }

    /// Sees that the good queue has exactly `stored`, and the full one what it had.
    async fn holds_exactly(&self, scene: &Scene, stored: &BTreeSet<String>) {
        // Asked before anybody reads: a consumer takes more than it is asked for.
        scene.settles_at(&self.good, stored.len() as u64).await;
        let bodies = scene.read(&self.good, 200).await.bodies(stored.len()).await;
        let found: BTreeSet<_> = bodies.iter().cloned().collect();
        assert_eq!(bodies.len(), found.len(), "no message may be stored twice");
        assert_eq!(&found, stored, "what was accepted and what is in '{}' differ", self.good);
        let full = scene.info(&self.full).await.ready;
        assert_eq!(full, self.full_holds, "'{}' kept a message that it rejected", self.full);
    }
}

/// A mix without a period that a batch of verdicts could hide.
fn fate(scene: &Scene) -> Fate {
    match scene.env().random() % 4 {
        0 => Fate::Unroutable,
        1 => Fate::Rejected,
        _ => Fate::Stored,
    }
}

fn assert_verdict(body: &str, fate: Fate, verdict: &Verdict) {
    let right = match fate {
        Fate::Stored => *verdict == Verdict::Accepted,
        Fate::Unroutable => *verdict == Verdict::Unroutable,
        Fate::Rejected => matches!(verdict, Verdict::Rejected(_)),
    };
    assert!(right, "message {body} is {fate:?} and its verdict is {verdict:?}");
}

fn wide() -> PublisherOptions {
    PublisherOptions::default().with_window(10_000)
}

async fn verdicts_belong_to_their_messages(scene: Scene) {
    let mix = Mix::new(&scene).await;
    let publisher = scene.publisher_with(wide()).await;
    let mut sent = Vec::new();
    for n in 0..4_000 {
        let (fate, body) = (fate(&scene), n.to_string());
        let confirm = scene.send(&*publisher, mix.envelope(fate, body.clone())).await;
        sent.push((body, fate, confirm));
    }
    let mut stored = BTreeSet::new();
    // The last first: a verdict must not depend on the order in which confirms are awaited.
    for (body, fate, confirm) in sent.into_iter().rev() {
        assert_verdict(&body, fate, &scene.verdict(confirm).await);
        if fate == Fate::Stored {
            stored.insert(body);
        }
    }
    mix.holds_exactly(&scene, &stored).await;
}

async fn verdicts_belong_to_their_tasks(scene: Scene) {
    let mix = Arc::new(Mix::new(&scene).await);
    let publisher = scene.publisher_with(wide()).await;
    let tasks = (0..8).map(|task| {
        let (scene, mix, publisher) = (scene.clone(), mix.clone(), publisher.clone());
        tokio::spawn(async move {
            let mut sent = Vec::new();
            for n in 0..500 {
                let (fate, body) = (fate(&scene), format!("{task}-{n}"));
                let envelope = mix.envelope(fate, body.clone());
                let confirm = publisher.send(envelope).await.expect("a send in a task");
                sent.push((body, fate, confirm));
                // Lets the tasks take turns on one thread as well.
                if n % 7 == task % 7 {
                    tokio::task::yield_now().await;
                }
            }
            let mut stored = Vec::new();
            for (body, fate, confirm) in sent {
                assert_verdict(&body, fate, &confirm.await);
                if fate == Fate::Stored {
                    stored.push(body);
                }
            }
            stored
        })
    });
    let outcomes = scene.soon("8 tasks with 500 verdicts each", future::join_all(tasks)).await;
    let stored = outcomes
        .into_iter()
        .flat_map(|outcome| outcome.expect("every verdict of a task is its own"))
        .collect();
    mix.holds_exactly(&scene, &stored).await;
}

async fn one_full_queue_of_many_rejects(scene: Scene) {
    let mix = Mix::new(&scene).await;
    let exchange = scene.name("fan");
    scene
        .declare(
            Topology::new()
                .exchange(Exchange::fanout(exchange.clone()))
                .bind(Binding::queue(exchange.clone(), mix.good.clone(), ""))
                .bind(Binding::queue(exchange.clone(), mix.full.clone(), "")),
        )
        .await;
    let publisher = scene.publisher().await;
    let envelope = Envelope::new(Address::exchange(exchange, ""), Message::new("half"));
    let confirm = scene.send(&*publisher, envelope).await;
    let verdict = scene.verdict(confirm).await;
    assert!(
        matches!(verdict, Verdict::Rejected(_)),
        "a message that one of two queues refused is rejected, not {verdict:?}"
    );
    // The other queue may have it: the verdict speaks of all queues.
    assert_eq!(scene.info(&mix.full).await.ready, mix.full_holds, "the full queue refused it");
}

async fn lost_connection_leaves_verdicts_unknown(scene: Scene) {
    let queue = scene.queue("unknown").await;
    let mut events = scene.transport().events();
    let publisher = scene.publisher().await;
    set_up(&scene, &*publisher, &queue).await;
    scene.begin(Fault::HeldConfirms).await;
    let mut confirms = Vec::new();
    for n in 0..50 {
        confirms.push(send_number(&scene, &*publisher, &queue, n).await);
    }
    // All are on their way by then: what was never sent would be sent after the loss.
    let early = time::timeout(scene.quiet(), &mut confirms[49]).await;
    assert!(early.is_err(), "there is no verdict while the broker holds it back: {early:?}");
    scene.connection().cut().await;
    for (n, confirm) in confirms.into_iter().enumerate() {
        let verdict = scene.verdict(confirm).await;
        assert!(
            matches!(verdict, Verdict::Unknown(_)),
            "the connection broke before the verdict of message {n}, and it is {verdict:?}"
        );
    }
    scene.end(Fault::HeldConfirms).await;
    scene.restored(&mut events, 2).await;
    let confirm = send_number(&scene, &*publisher, &queue, 50).await;
    assert_eq!(scene.verdict(confirm).await, Verdict::Accepted, "a publish after the loss");
}

async fn send_number(scene: &Scene, publisher: &dyn Publisher, queue: &str, n: usize) -> Confirm {
    let message = Message::new(n.to_string());
    let envelope = Envelope::new(Address::queue(queue.to_owned()), message);
    scene.send(publisher, envelope).await
}

/// Publishes for the first time, so that nothing has to be asked before the next can be sent.
async fn set_up(scene: &Scene, publisher: &dyn Publisher, queue: &str) {
    let confirm = send_number(scene, publisher, queue, 0).await;
    assert_eq!(scene.verdict(confirm).await, Verdict::Accepted, "the first publish");
}

async fn publish_keeps_its_timeout_from_the_first(scene: Scene) {
    let timeout = Duration::from_secs(1);
    let queue = scene.queue("first").await;
    let publisher = scene.publisher_with(PublisherOptions::default().with_timeout(timeout)).await;
    scene.begin(Fault::HeldConfirms).await;
    let began = scene.env().now();
    let confirm = send_number(&scene, &*publisher, &queue, 0).await;
    let verdict = scene.verdict(confirm).await;
    // Whether it could be sent depends on what has to be asked of the broker before.
    assert!(
        matches!(verdict, Verdict::Unknown(_) | Verdict::Rejected(_)),
        "the broker said nothing, and the verdict is {verdict:?}"
    );
    let took = scene.env().now() - began;
    assert!(took >= timeout, "a verdict may take {timeout:?} and was given up after {took:?}");
    scene.end(Fault::HeldConfirms).await;
    let confirm = send_number(&scene, &*publisher, &queue, 1).await;
    assert_eq!(scene.verdict(confirm).await, Verdict::Accepted, "the next publish");
}

async fn late_verdict_is_unknown(scene: Scene) {
    let timeout = Duration::from_secs(1);
    let queue = scene.queue("late").await;
    let publisher = scene.publisher_with(PublisherOptions::default().with_timeout(timeout)).await;
    set_up(&scene, &*publisher, &queue).await;
    scene.begin(Fault::HeldConfirms).await;
    let began = scene.env().now();
    let confirm = send_number(&scene, &*publisher, &queue, 0).await;
    let verdict = scene.verdict(confirm).await;
    assert!(
        matches!(verdict, Verdict::Unknown(_)),
        "a verdict that does not come within the publisher's timeout is unknown, not {verdict:?}"
    );
    let took = scene.env().now() - began;
    assert!(took >= timeout, "a verdict may take {timeout:?} and was given up after {took:?}");
    let flushed = publisher.flush().await;
    assert!(flushed.is_ok(), "nothing is under way after the verdict Unknown: {flushed:?}");
    scene.end(Fault::HeldConfirms).await;
    let confirm = send_number(&scene, &*publisher, &queue, 1).await;
    assert_eq!(scene.verdict(confirm).await, Verdict::Accepted, "the next publish");
}

async fn window_is_honoured(scene: Scene) {
    const WINDOW: usize = 10;
    let queue = scene.queue("window").await;
    let publisher = scene.publisher_with(PublisherOptions::default().with_window(WINDOW)).await;
    scene.begin(Fault::HeldConfirms).await;
    let mut confirms = Vec::new();
    for n in 0..WINDOW {
        confirms.push(send_number(&scene, &*publisher, &queue, n).await);
    }
    let mut over = Box::pin(send_number(&scene, &*publisher, &queue, WINDOW));
    let early = time::timeout(scene.quiet(), &mut over).await;
    assert!(early.is_err(), "a send beyond a window of {WINDOW} must wait for room: {early:?}");
    scene.end(Fault::HeldConfirms).await;
    confirms.push(scene.soon("room in the window", over).await);
    for confirm in confirms {
        assert_eq!(scene.verdict(confirm).await, Verdict::Accepted, "each send of the window");
    }
    let expected: Vec<_> = (0..=WINDOW).map(|n| n.to_string()).collect();
    scene.holds(&queue, &expected).await;
}

async fn confirm_can_be_awaited_again(scene: Scene) {
    let queue = scene.queue("again").await;
    let publisher = scene
        .publisher_with(PublisherOptions::default().with_timeout(Duration::from_secs(10)))
        .await;
    scene.begin(Fault::HeldConfirms).await;
    let mut confirm = send_number(&scene, &*publisher, &queue, 0).await;
    let early = time::timeout(scene.quiet(), &mut confirm).await;
    assert!(early.is_err(), "there is no verdict while the broker holds it back: {early:?}");
    scene.end(Fault::HeldConfirms).await;
    assert_eq!(scene.verdict(confirm).await, Verdict::Accepted, "a confirm awaited again");
}

async fn flush_waits_for_held_verdicts(scene: Scene) {
    let queue = scene.queue("flush").await;
    let publisher = scene.publisher().await;
    scene.begin(Fault::HeldConfirms).await;
    let mut confirms = Vec::new();
    for n in 0..20 {
        confirms.push(send_number(&scene, &*publisher, &queue, n).await);
    }
    let mut flush = Box::pin(publisher.flush());
    let early = time::timeout(scene.quiet(), &mut flush).await;
    assert!(early.is_err(), "a flush must wait for 20 verdicts: {early:?}");
    scene.end(Fault::HeldConfirms).await;
    scene.soon("a flush", flush).await.expect("every verdict came");
    for confirm in confirms {
        let verdict = futures_util::FutureExt::now_or_never(confirm);
        assert_eq!(verdict, Some(Verdict::Accepted), "a verdict after a flush");
    }
}
