//! Verdicts that come in another order than their messages, and publishes that nobody waits for.

use std::{collections::BTreeSet, time::Duration};

use futures_util::{FutureExt, future};
use postrider_core::{Address, Overflow, PublisherOptions, Queue, Verdict};

use super::{Behaviour, Need, traffic::numbered};
use crate::Scene;

pub(super) fn behaviours() -> Vec<Behaviour> {
    const NEEDS: &[Need] = &[Need::Topology];
    vec![
        Behaviour::new(verdicts_are_right_over_many_queues, NEEDS),
        Behaviour::new(dropped_sends_leave_the_publisher_usable, NEEDS),
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
                tokio::time::timeout(Duration::from_millis(1), &mut sending).await.ok()
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
