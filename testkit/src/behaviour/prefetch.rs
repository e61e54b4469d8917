//! Prefetch: the bound on what is unsettled, and how consumers share a queue.

use postrider_core::{ConsumerOptions, Delivery};

use super::{Behaviour, Need};
use crate::{Scene, scene::text};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const NEEDS: &[Need] = &[Need::Topology];
    vec![
        Behaviour::new(prefetch_bounds_what_is_unsettled, NEEDS),
        Behaviour::new(every_settlement_makes_room, NEEDS),
        Behaviour::new(settling_elsewhere_wakes_a_waiting_consumer, NEEDS),
        Behaviour::new(prefetch_is_each_consumers_own, NEEDS),
        Behaviour::new(unread_consumer_takes_its_prefetch_only, NEEDS),
        Behaviour::new(idle_consumers_take_turns, NEEDS),
        Behaviour::new(competing_consumers_share, NEEDS),
        Behaviour::new(slow_consumer_starves_nobody, NEEDS),
    ]
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|n| n.to_string()).collect()
}

async fn prefetch_bounds_what_is_unsettled(scene: Scene) {
    for (base, prefetch) in [("one", 1_usize), ("ten", 10)] {
        let quorum = scene.queue(&format!("{base}-quorum")).await;
        let classic = scene.classic(&format!("{base}-classic")).await;
        for queue in [quorum, classic] {
            scene.publish(&queue, numbers(40)).await;
            let mut reader = scene.read(&queue, prefetch as u16).await;
            let mut held = reader.take(prefetch).await;
            reader.is_silent().await;
            scene.settles_at(&queue, 40 - prefetch as u64).await;
            // Half of them settled is room for at least one and at most as many more; clients may
            // ask for more in portions.
            let room = prefetch.div_ceil(2);
            held.drain(..room).for_each(Delivery::ack);
            held.push(reader.next().await);
            while let Ok(Some(next)) =
                tokio::time::timeout(scene.quiet(), reader.consumer().recv()).await
            {
                held.push(next.expect("a delivery"));
                assert!(held.len() <= prefetch, "{} unsettled with {prefetch}", held.len());
            }
            held.drain(..).for_each(Delivery::ack);
            let rest = reader.take(prefetch).await;
            assert_eq!(rest.len(), prefetch, "with all settled there is room for all again");
            reader.is_silent().await;
        }
    }
}

async fn every_settlement_makes_room(scene: Scene) {
    let queue = scene.queue("room").await;
    scene.publish(&queue, numbers(6)).await;
    let mut reader = scene.read(&queue, 1).await;
    let mut seen = Vec::new();
    for step in 0..6 {
        let delivery = reader.next().await;
        seen.push(text(&delivery));
        match step % 3 {
            0 => delivery.ack(),
            1 => delivery.reject("no"),
            _ => delivery.release(),
        }
    }
    assert_eq!(seen, ["0", "1", "2", "2", "3", "4"], "with prefetch 1 one comes at a time");
}

async fn settling_elsewhere_wakes_a_waiting_consumer(scene: Scene) {
    for prefetch in [1_u16, 3, 40] {
        let queue = scene.queue(&format!("woken-{prefetch}")).await;
        scene.publish(&queue, numbers(usize::from(prefetch) + 1)).await;
        let mut reader = scene.read(&queue, prefetch).await;
        let held = reader.take(usize::from(prefetch)).await;
        let waiting = tokio::spawn(async move { text(&reader.next().await) });
        // It waits in `recv`, and nobody but the settlements below can wake it.
        tokio::time::sleep(scene.quiet()).await;
        held.into_iter().for_each(Delivery::ack);
        let next = scene.soon("the delivery that there is room for", waiting).await;
        assert_eq!(next.expect("the waiting task"), prefetch.to_string(), "prefetch {prefetch}");
    }
}

async fn prefetch_is_each_consumers_own(scene: Scene) {
    let queue = scene.queue("own").await;
    scene.publish(&queue, numbers(20)).await;
    let mut first = scene.read(&queue, 5).await;
    let held = first.take(5).await;
    let mut second = scene.read(&queue, 5).await;
    let also_held = second.take(5).await;
    first.is_silent().await;
    second.is_silent().await;
    scene.settles_at(&queue, 10).await;
    let mut all: Vec<_> = held.iter().chain(&also_held).map(text).collect();
    all.sort_by_key(|body| body.parse::<usize>().unwrap_or(usize::MAX));
    assert_eq!(all, numbers(10), "no message is given to two consumers");
}

async fn unread_consumer_takes_its_prefetch_only(scene: Scene) {
    let queue = scene.queue("unread").await;
    let options = ConsumerOptions::default().with_prefetch(7);
    let consumer = scene.transport().consumer(&queue, options).await.expect("a consumer");
    scene.publish(&queue, numbers(50)).await;
    scene.settles_at(&queue, 43).await;
    let health = scene.transport().health();
    let mine: Vec<_> = health.consumers.iter().filter(|c| c.queue == queue).collect();
    assert_eq!(mine.len(), 1, "health shows the consumer: {health:?}");
    assert_eq!(mine[0].buffered + mine[0].unsettled, 7, "health shows what it holds: {health:?}");
    drop(consumer);
    scene.settles_at(&queue, 50).await;
}

/// With room at both, neither gets everything.
async fn idle_consumers_take_turns(scene: Scene) {
    for queue in [scene.queue("quorum").await, scene.classic("classic").await] {
        let other = scene.connect().await.transport;
        let mut first = scene.read(&queue, 200).await;
        let mut second = scene.read_on(&other, &queue, 200).await;
        scene.has_consumers(&queue, 2).await;
        scene.publish(&queue, numbers(100)).await;
        scene.settles_at(&queue, 0).await;
        let held = (first.take(25).await, second.take(25).await);
        let mut rest = Vec::new();
        while rest.len() < 50 {
            tokio::select! {
                delivery = first.next() => rest.push(delivery),
                delivery = second.next() => rest.push(delivery),
            }
        }
        let all = held.0.into_iter().chain(held.1).chain(rest);
        all.for_each(Delivery::ack);
    }
}

async fn competing_consumers_share(scene: Scene) {
    const COUNT: usize = 400;
    let queue = scene.queue("shared").await;
    let other = scene.connect().await.transport;
    let mut first = scene.read(&queue, 5).await;
    let mut second = scene.read_on(&other, &queue, 5).await;
    scene.publish(&queue, numbers(COUNT)).await;
    let (mut by_first, mut by_second) = (Vec::new(), Vec::new());
    while by_first.len() + by_second.len() < COUNT {
        tokio::select! {
            delivery = first.next() => {
                by_first.push(text(&delivery));
                delivery.ack();
            }
            delivery = second.next() => {
                by_second.push(text(&delivery));
                delivery.ack();
            }
        }
    }
    let shares = (by_first.len(), by_second.len());
    assert!(
        shares.0.min(shares.1) >= COUNT / 10,
        "two equally quick consumers share a queue: {shares:?}"
    );
    for mut share in [by_first.clone(), by_second.clone()] {
        let as_it_came = share.clone();
        share.sort_by_key(|body| body.parse::<usize>().unwrap_or(usize::MAX));
        assert_eq!(as_it_came, share, "each consumer gets its share in order");
    }
    let mut all = [by_first, by_second].concat();
    all.sort_by_key(|body| body.parse::<usize>().unwrap_or(usize::MAX));
    assert_eq!(all, numbers(COUNT), "every message once");
}

async fn slow_consumer_starves_nobody(scene: Scene) {
    let queue = scene.queue("slow").await;
    let mut slow = scene.read(&queue, 5).await;
    scene.publish(&queue, numbers(5)).await;
    let held = slow.take(5).await;
    let mut quick = scene.read(&queue, 5).await;
    scene.publish(&queue, (5..100).map(|n| n.to_string())).await;
    let rest = quick.bodies(95).await;
    assert_eq!(rest.first().map(String::as_str), Some("5"), "the quick one gets the others");
    assert_eq!(rest.last().map(String::as_str), Some("99"), "all of them, in order");
    let kept: Vec<_> = held.iter().map(text).collect();
    assert_eq!(kept, numbers(5), "the slow one keeps what it has");
    held.into_iter().for_each(Delivery::ack);
    drop((slow, quick));
    scene.settles_at(&queue, 0).await;
}
