//! Verdicts that come in another order than their messages, and publishes that nobody waits for.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, future, stream::FuturesUnordered};
use postrider_core::{Address, Error, Overflow, Publisher, PublisherOptions, Queue, Verdict};
use tokio::time;

use super::{Behaviour, Need, traffic::numbered};
use crate::{
    Scene,
    harness::Fault,
    proxy::{Direction, FaultProxy},
};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const NEEDS: &[Need] = &[Need::Topology];
    const NETWORK: &[Need] = &[Need::Topology, Need::Fault(Fault::Network)];
    vec![
        Behaviour::new(verdicts_are_right_over_many_queues, NEEDS),
        Behaviour::new(dropped_sends_leave_the_publisher_usable, NEEDS),
        Behaviour::new(verdicts_come_in_time_though_nothing_is_confirmed, NETWORK),
        Behaviour::new(verdicts_come_in_time_beside_one_who_never_pauses, NETWORK),
    ]
}

/// Quorum queues confirm later than classic ones, and refusals and returns come in between, so that
/// nothing comes in the order of sending. Each verdict is compared with where the message went.
async fn verdicts_are_right_over_many_queues(scene: Scene) {
    const TASKS: usize = 4;
    const EACH: usize = 2_000;
    let full = Queue::classic(scene.name("full"))
        .with_max_length(1)
        .with_overflow(Overflow::RejectPublish);
    let full = scene.declare_queue(full).await;
    scene
        .eventually("the full queue is full", async || {
            let publisher = scene.publisher().await;
            let address = Address::queue(full.clone());
            let confirm = scene.send(&*publisher, numbered(&address, 0)).await;
            match scene.verdict(confirm).await {
                Verdict::Rejected(_) => Ok(()),
                verdict => Err(format!("{verdict:?}")),
            }
        })
        .await;
    let full_holds = scene.info(&full).await.ready;
    let targets = [
        scene.queue("quorum-1").await,
        scene.classic("classic-1").await,
        scene.name("missing"),
        scene.queue("quorum-2").await,
        full.clone(),
        scene.classic("classic-2").await,
    ];
    let publisher = scene.publisher_with(PublisherOptions::default().with_window(5_000)).await;
    let tasks = (0..TASKS).map(|task| {
        let (scene, publisher, targets) = (scene.clone(), publisher.clone(), targets.clone());
        tokio::spawn(async move {
            let mut confirms = Vec::new();
            for number in task * EACH..(task + 1) * EACH {
                let target = (scene.env().random() % 6) as usize;
                let address = Address::queue(targets[target].clone());
                let sent = publisher.send(numbered(&address, number)).await;
                confirms.push((target, number, sent.expect("a send")));
            }
            let mut stored = vec![BTreeSet::new(); 6];
            for (target, number, confirm) in confirms {
                let verdict = confirm.await;
                let right = match target {
                    2 => verdict == Verdict::Unroutable,
                    4 => matches!(verdict, Verdict::Rejected(_)),
                    _ => verdict == Verdict::Accepted,
                };
                assert!(right, "message {number} to '{}': {verdict:?}", targets[target]);
                stored[target].insert(number);
            }
            stored
        })
    });
    let stored = scene.soon("every verdict", future::join_all(tasks)).await;
    let stored: Vec<_> = stored.into_iter().map(|stored| stored.expect("its task")).collect();
    for target in [0, 1, 3, 5] {
        let expected: BTreeSet<usize> = stored.iter().flat_map(|of| of[target].clone()).collect();
        let queue = &targets[target];
        scene.settles_at(queue, expected.len() as u64).await;
        let bodies = scene.read(queue, 200).await.bodies(expected.len()).await;
        let came = bodies.iter().map(|body| body.parse().expect("a number")).collect();
        assert_eq!(expected, came, "what was accepted is in '{queue}'");
    }
    assert_eq!(scene.info(&full).await.ready, full_holds, "the full queue took nothing");
}

/// A future of a send that is dropped may or may not have sent; the window loses no place by it,
/// and whoever sends next has the right verdict.
async fn dropped_sends_leave_the_publisher_usable(scene: Scene) {
    const WINDOW: usize = 10;
    const SENDS: usize = 1_000;
    let (queue, after) = (scene.queue("queue").await, scene.queue("after").await);
    let publisher = scene.publisher_with(PublisherOptions::default().with_window(WINDOW)).await;
    let address = Address::queue(queue.clone());
    let mut confirms = Vec::new();
    let mut given_up = 0;
    for number in 0..SENDS {
        let mut sending = Box::pin(publisher.send(numbered(&address, number)));
        // Polled at once, or after a moment, in which others of the window may have gone.
        let sent = match (&mut sending).now_or_never() {
            None if number % 3 == 0 => {
                time::timeout(Duration::from_millis(1), &mut sending).await.ok()
            }
            sent => sent,
        };
        match sent {
            // Every other confirm is dropped as well.
            Some(sent) if number % 2 == 0 => confirms.push(sent.expect("a send")),
            Some(sent) => drop(sent.expect("a send")),
            None => given_up += 1,
        }
    }
    assert!(given_up > 0 || confirms.len() == SENDS / 2, "{given_up} given up");
    for confirm in confirms {
        assert_eq!(scene.verdict(confirm).await, Verdict::Accepted, "one that was waited for");
    }
    scene.soon("the end of all sends", publisher.flush()).await.expect("every verdict came");
    // As many at once as the window has places.
    let address = Address::queue(after.clone());
    let sends = (0..WINDOW).map(|number| publisher.send(numbered(&address, number)));
    let sent = scene.soon("a full window", future::join_all(sends)).await;
    for sent in sent {
        assert_eq!(scene.verdict(sent.expect("a send")).await, Verdict::Accepted, "afterwards");
    }
    scene.settles_at(&after, WINDOW as u64).await;
}

/// How long a publish may take through a network that is frozen.
const TIMEOUT: Duration = Duration::from_secs(3);

/// What a publish ended as, and how long that took.
async fn end_of(scene: &Scene, publisher: &dyn Publisher, number: usize, queue: &str) -> End {
    let began = scene.env().now();
    let verdict = match publisher.send(numbered(&Address::queue(queue.to_owned()), number)).await {
        Ok(confirm) => confirm.await.into_result(),
        Err(error) => Err(error),
    };
    End { number, verdict, took: scene.env().now() - began }
}

struct End {
    number: usize,
    verdict: Result<(), Error>,
    took: Duration,
}

impl End {
    fn is_in_time(&self, scene: &Scene) {
        let Self { number, verdict, took } = self;
        assert!(verdict.is_err(), "nobody answered, and message {number} ended as accepted");
        let most = TIMEOUT + scene.lateness();
        assert!(*took <= most, "message {number} ended after {took:?}: {verdict:?}");
    }
}

/// A publisher whose broker has gone silent and is not missed yet.
async fn frozen(scene: &Scene, queue: &str, window: usize) -> (FaultProxy, Arc<dyn Publisher>) {
    let (proxy, victim) = scene.connect_through_proxy(10 * TIMEOUT).await;
    let options = PublisherOptions::default().with_timeout(TIMEOUT).with_window(window);
    let publisher = victim.transport.publisher(options).await.expect("a publisher");
    let before = end_of(scene, &*publisher, 0, queue).await;
    before.verdict.expect("before it is frozen");
    proxy.stall(Direction::ToClient);
    proxy.stall(Direction::ToServer);
    (proxy, publisher)
}

/// More messages than a broker gives credit for, one after the other, so that some have waited long
/// when others have only begun to.
async fn verdicts_come_in_time_though_nothing_is_confirmed(scene: Scene) {
    const MESSAGES: usize = 400;
    let queue = scene.queue("queue").await;
    let (_proxy, publisher) = frozen(&scene, &queue, 1_000).await;
    let mut ends = FuturesUnordered::new();
    for number in 1..=MESSAGES {
        let (scene, publisher, queue) = (scene.clone(), publisher.clone(), queue.clone());
        ends.push(tokio::spawn(async move { end_of(&scene, &*publisher, number, &queue).await }));
        time::sleep(2 * TIMEOUT / MESSAGES as u32).await;
    }
    while let Some(end) = scene.soon("the end of a message", ends.next()).await {
        end.expect("its task").is_in_time(&scene);
    }
}

/// As fast as the window allows, beside others that send now and then: with a window that a broker gives
/// credit for, and with a larger one.
async fn verdicts_come_in_time_beside_one_who_never_pauses(scene: Scene) {
    let queue = scene.queue("queue").await;
    for window in [100, 300] {
        let (_proxy, publisher) = frozen(&scene, &queue, window).await;
        let until = scene.env().now() + 3 * TIMEOUT;
        let hasty = (0..window).map(|number| (number, Duration::ZERO));
        let slow = (window..window + 10).map(|number| (number, TIMEOUT / 10));
        let tasks = hasty.chain(slow).map(|(number, pause)| {
            let (scene, publisher, queue) = (scene.clone(), publisher.clone(), queue.clone());
            tokio::spawn(async move {
                while scene.env().now() < until {
                    time::sleep(pause).await;
                    end_of(&scene, &*publisher, number, &queue).await.is_in_time(&scene);
                }
            })
        });
        for ended in scene.soon("every verdict", future::join_all(tasks)).await {
            ended.expect("its task");
        }
    }
}
