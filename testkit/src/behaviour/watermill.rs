//! The scenarios of Watermill's universal suite for publishers and subscribers, by their spirit and
//! in their sizes. Its topics are queues here, and its consumer groups queues of one exchange.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::future;
use postrider_core::{
    Address, Binding, Delivery, Envelope, ErrorKind, Exchange, Message, Publisher,
    PublisherOptions, Queue, Topology, Transport, Verdict,
};
use tokio::time;

use super::{Behaviour, Need};
use crate::{Reader, Scene, harness::Fault, scene::text};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const NEEDS: &[Need] = &[Need::Topology];
    vec![
        Behaviour::new(publish_subscribe, NEEDS),
        Behaviour::new(concurrent_subscribe, NEEDS),
        Behaviour::new(concurrent_subscribe_multiple_topics, NEEDS),
        Behaviour::new(resend_on_error, NEEDS),
        Behaviour::new(no_ack, NEEDS),
        Behaviour::new(continue_after_subscribe_close, NEEDS),
        Behaviour::new(concurrent_close, NEEDS),
        Behaviour::new(continue_after_errors, NEEDS),
        Behaviour::new(publish_subscribe_in_order, NEEDS),
        Behaviour::new(publisher_close, NEEDS),
        Behaviour::new(topic, NEEDS),
        Behaviour::new(message_outlives_its_subscription, NEEDS),
        Behaviour::new(subscription_dropped_while_waiting, NEEDS),
        Behaviour::new(new_subscriber_receives_old_messages, NEEDS),
        Behaviour::new(reconnect, &[Need::Topology, Need::Fault(Fault::Outage)]),
        Behaviour::new(consumer_groups, NEEDS),
    ]
}

fn names(range: std::ops::Range<usize>) -> BTreeSet<String> {
    range.map(|n| n.to_string()).collect()
}

/// Reads until `expected` messages were seen, each acked; duplicates are only right where the
/// broker said so.
async fn collect(reader: &mut Reader, expected: usize) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    while seen.len() < expected {
        let delivery = reader.next().await;
        let fresh = seen.insert(text(&delivery));
        assert!(fresh || delivery.info().redelivered, "a copy that no redelivery explains");
        delivery.ack();
    }
    seen
}

/// `tasks` publishers of their own share the numbers of `count` among them.
async fn publish_from(scene: &Scene, queue: &str, count: usize, tasks: usize) {
    let publishing = (0..tasks).map(|task| {
        let (scene, queue) = (scene.clone(), queue.to_owned());
        tokio::spawn(async move {
            let publisher = scene.publisher_with(PublisherOptions::default()).await;
            let mut confirms = Vec::new();
            for n in (task..count).step_by(tasks) {
                let message = Message::new(n.to_string());
                let envelope = Envelope::new(Address::queue(queue.clone()), message);
                confirms.push(publisher.send(envelope).await.expect("a send"));
            }
            for confirm in confirms {
                assert_eq!(confirm.await, Verdict::Accepted, "a publish among many");
            }
        })
    });
    for task in future::join_all(publishing).await {
        task.expect("a publishing task");
    }
}

async fn publish_subscribe(scene: Scene) {
    let queue = scene.queue("messages").await;
    let transport = scene.connect().await.transport;
    let publisher = scene.publisher().await;
    for n in 0..100 {
        let message = Message::new(format!("payload {n}"))
            .with_message_id(n.to_string())
            .with_header("number", n);
        let envelope = Envelope::new(Address::queue(queue.clone()), message);
        let confirm = scene.send(&*publisher, envelope).await;
        assert_eq!(scene.verdict(confirm).await, Verdict::Accepted, "message {n}");
    }
    let mut reader = scene.read_on(&transport, &queue, 20).await;
    for n in 0..100 {
        let delivery = reader.next().await;
        let message = delivery.message();
        assert_eq!(message.message_id.as_deref(), Some(&*n.to_string()), "the id of message {n}");
        assert_eq!(text(&delivery), format!("payload {n}"), "the payload of message {n}");
        let number = message.headers.get("number").and_then(|value| value.as_int());
        assert_eq!(number, Some(n), "the header of message {n}");
        delivery.ack();
    }
    transport.close(Duration::from_secs(10)).await.expect("closing after the last ack");
    assert!(reader.ends().await.is_none(), "the stream ends when its transport is closed");
}

async fn concurrent_subscribe(scene: Scene) {
    let count = scene.scaled(5_000);
    let queue = scene.queue("concurrent").await;
    let (found, mut heard) = tokio::sync::mpsc::channel(count);
    let mut consuming = Vec::new();
    for _ in 0..50 {
        let mut reader = scene.read(&queue, 10).await;
        let found = found.clone();
        consuming.push(tokio::spawn(async move {
            while let Some(Ok(delivery)) = reader.consumer().recv().await {
                let body = text(&delivery);
                delivery.ack();
                if found.send(body).await.is_err() {
                    break;
                }
            }
        }));
    }
    publish_from(&scene, &queue, count, 50).await;
    let mut seen = BTreeSet::new();
    let all = async {
        while seen.len() < count {
            let Some(body) = heard.recv().await else { break };
            assert!(seen.insert(body), "a message came to two of 50 subscribers");
        }
    };
    scene.soon("all messages at 50 subscribers", all).await;
    assert_eq!(seen, names(0..count), "every message came");
    for task in consuming {
        task.abort();
    }
}

async fn concurrent_subscribe_multiple_topics(scene: Scene) {
    let mut working = Vec::new();
    for topic in 0..20 {
        let queue = scene.queue(&format!("topic-{topic}")).await;
        let scene = scene.clone();
        working.push(tokio::spawn(async move {
            let mut reader = scene.read(&queue, 10).await;
            scene.publish(&queue, (0..100).map(|n| format!("{topic}-{n}"))).await;
            let expected: Vec<_> = (0..100).map(|n| format!("{topic}-{n}")).collect();
            assert_eq!(reader.bodies(100).await, expected, "topic {topic} has its own, in order");
            reader.is_silent().await;
        }));
    }
    for task in future::join_all(working).await {
        task.expect("a topic's task");
    }
}

async fn resend_on_error(scene: Scene) {
    let queue = scene.queue("resend").await;
    scene.publish(&queue, (0..100).map(|n| n.to_string())).await;
    let mut reader = scene.read(&queue, 10).await;
    let mut failed = BTreeSet::new();
    let mut done = BTreeSet::new();
    while done.len() < 100 {
        let delivery = reader.next().await;
        let body = text(&delivery);
        if failed.len() < 2 && (body == "3" || body == "50") && failed.insert(body.clone()) {
            delivery.retry(Duration::ZERO);
            continue;
        }
        assert_eq!(delivery.info().redelivered, failed.contains(&body), "message {body}");
        delivery.ack();
        assert!(done.insert(body), "a message was done twice");
    }
    assert_eq!(failed.len(), 2, "both failures were brought about");
    assert_eq!(done, names(0..100), "every message is done in the end");
}

async fn no_ack(scene: Scene) {
    let queue = scene.queue("no-ack").await;
    scene.publish(&queue, ["first", "second"]).await;
    let mut reader = scene.read(&queue, 1).await;
    let first = reader.next().await;
    reader.is_silent().await;
    first.ack();
    let second = time::timeout(Duration::from_secs(5), reader.next()).await;
    let second = second.expect("the second message within 5 seconds of the first ack");
    assert_eq!(text(&second), "second", "the next in order");
    second.ack();
    reader.is_silent().await;
}

async fn continue_after_subscribe_close(scene: Scene) {
    let count = scene.scaled(5_000);
    let queue = scene.queue("continue").await;
    publish_from(&scene, &queue, count, 5).await;
    let mut seen = BTreeSet::new();
    let mut cycles = 0;
    while seen.len() < count {
        let transport = scene.connect().await.transport;
        let mut reader = scene.read_on(&transport, &queue, 50).await;
        for _ in 0..(count / 8).max(1).min(count - seen.len()) {
            let delivery = reader.next().await;
            let fresh = seen.insert(text(&delivery));
            assert!(fresh || delivery.info().redelivered, "a copy that no redelivery explains");
            delivery.ack();
        }
        transport.close(Duration::from_secs(10)).await.expect("closing after the last ack");
        cycles += 1;
        assert!(cycles < 50, "{} of {count} after {cycles} cycles", seen.len());
    }
    assert!(cycles >= 5, "it was read in {cycles} cycles only");
    assert_eq!(seen, names(0..count), "no message was lost between the cycles");
    scene.settles_at(&queue, 0).await;
}

async fn concurrent_close(scene: Scene) {
    let queue = scene.queue("close").await;
    let closing = (0..10).map(|_| {
        let (scene, queue) = (scene.clone(), queue.clone());
        tokio::spawn(async move {
            let transport = scene.connect_and_forget().await;
            let publisher = transport.publisher(PublisherOptions::default()).await;
            let _publisher = publisher.expect("a publisher");
            let _reader = scene.read_on(&transport, &queue, 5).await;
            let both = future::join(
                transport.close(Duration::from_secs(5)),
                transport.close(Duration::from_secs(5)),
            );
            let (one, other) = both.await;
            one.and(other).expect("closing twice at once");
        })
    });
    for task in future::join_all(closing).await {
        task.expect("a pair that is opened and closed");
    }
    let mut reader = scene.read(&queue, 10).await;
    scene.publish(&queue, (0..50).map(|n| n.to_string())).await;
    assert_eq!(collect(&mut reader, 50).await, names(0..50), "a fresh pair works");
}

async fn continue_after_errors(scene: Scene) {
    let queue = Queue::durable(scene.name("errors")).without_delivery_limit();
    let queue = scene.declare_queue(queue).await;
    scene.publish(&queue, (0..50).map(|n| n.to_string())).await;
    for _ in 0..3 {
        let mut reader = scene.read(&queue, 10).await;
        for _ in 0..100 {
            reader.next().await.retry(Duration::ZERO);
        }
    }
    let mut reader = scene.read(&queue, 10).await;
    assert_eq!(collect(&mut reader, 50).await, names(0..50), "300 failures lose nothing");
    drop(reader);
    scene.settles_at(&queue, 0).await;
}

async fn publish_subscribe_in_order(scene: Scene) {
    let exchange = scene.name("ordered");
    let mut topology = Topology::new().exchange(Exchange::fanout(exchange.clone()));
    let queues: Vec<_> = (0..10).map(|n| scene.name(&format!("ordered-{n}"))).collect();
    for queue in &queues {
        topology = topology.queue(Queue::durable(queue.clone())).bind(Binding::queue(
            exchange.clone(),
            queue.clone(),
            "",
        ));
    }
    scene.declare(topology).await;
    let sent: Vec<_> = (0..1_000)
        .map(|n| (scene.env().random() % 16, n))
        .map(|(class, n)| format!("{class} {n}"))
        .collect();
    let address = Address::exchange(exchange, "");
    let envelopes =
        sent.iter().map(|body| Envelope::new(address.clone(), Message::new(body.clone())));
    scene.publish_envelopes(envelopes).await;
    for queue in &queues {
        let received = scene.read(queue, 50).await.bodies(1_000).await;
        for class in 0..16 {
            let of_class = |bodies: &[String]| -> Vec<String> {
                let prefix = format!("{class} ");
                bodies.iter().filter(|body| body.starts_with(&prefix)).cloned().collect()
            };
            assert_eq!(of_class(&received), of_class(&sent), "the order of class {class}");
        }
    }
}

async fn publisher_close(scene: Scene) {
    let count = scene.scaled(10_000);
    let queue = scene.queue("publishers").await;
    let publishing = (0..20).map(|task| {
        let (scene, queue) = (scene.clone(), queue.clone());
        tokio::spawn(async move {
            let transport = scene.connect_and_forget().await;
            let publisher = transport.publisher(PublisherOptions::default()).await;
            let publisher = publisher.expect("a publisher");
            for n in (task..count).step_by(20) {
                let message = Message::new(n.to_string());
                let envelope = Envelope::new(Address::queue(queue.clone()), message);
                drop(publisher.send(envelope).await.expect("a send"));
            }
            // Nobody looked at the verdicts; closing waits for them.
            transport.close(Duration::from_secs(20)).await.expect("closing after sending");
        })
    });
    for task in future::join_all(publishing).await {
        task.expect("a publisher that closes");
    }
    let mut reader = scene.read(&queue, 200).await;
    assert_eq!(collect(&mut reader, count).await, names(0..count), "none was lost on the way");
    reader.is_silent().await;
}

async fn topic(scene: Scene) {
    let (one, other) = (scene.queue("one").await, scene.queue("other").await);
    scene.publish(&one, ["for one"]).await;
    scene.publish(&other, ["for the other"]).await;
    scene.holds(&one, &["for one"]).await;
    scene.holds(&other, &["for the other"]).await;
}

/// Watermill cancels a message's context on ack and on close. Here a delivery is a value: it stays
/// what it is, and settling it after its consumer has gone counts as long as its connection is there.
async fn message_outlives_its_subscription(scene: Scene) {
    let queue = scene.queue("context").await;
    scene.publish(&queue, ["1", "2"]).await;
    let transport = scene.connect().await.transport;
    let mut reader = scene.read_on(&transport, &queue, 2).await;
    let (first, second) = (reader.next().await, reader.next().await);
    drop(reader);
    first.ack();
    scene
        .eventually("the ack arrives", async || match scene.info(&queue).await.unsettled {
            Some(2) => Err("2 unsettled".to_owned()),
            _ => Ok(()),
        })
        .await;
    time::sleep(scene.quiet()).await;
    let closed = transport.close(Duration::ZERO).await;
    let error = closed.expect_err("one delivery is unsettled");
    assert_eq!(error.kind(), ErrorKind::TimedOut, "closing at once: {error}");
    assert_eq!(text(&second), "2", "a delivery in hand stays readable after close");
    second.ack();
    scene.holds(&queue, &["2"]).await;
}

async fn subscription_dropped_while_waiting(scene: Scene) {
    let queue = Queue::durable(scene.name("dropped")).without_delivery_limit();
    let queue = scene.declare_queue(queue).await;
    let mut first = scene.read(&queue, 10).await;
    // Giving up a read takes no delivery with it.
    for n in 0..20 {
        let read = time::timeout(Duration::from_millis(1), first.consumer().recv()).await;
        if let Ok(Some(Ok(delivery))) = read {
            delivery.retry(Duration::ZERO);
        }
        scene.publish(&queue, [n.to_string()]).await;
    }
    for delivery in first.take(5).await {
        delivery.retry(Duration::ZERO);
    }
    drop(first);
    let mut second = scene.read(&queue, 10).await;
    let all = collect(&mut second, 20).await;
    assert_eq!(all, names(0..20), "what the first gave back reaches the second");
    drop(second);
    scene.settles_at(&queue, 0).await;
}

async fn new_subscriber_receives_old_messages(scene: Scene) {
    let queue = scene.queue("old").await;
    scene.publish(&queue, (0..100).map(|n| n.to_string())).await;
    let mut late = scene.read(&queue, 20).await;
    let expected: Vec<_> = (0..100).map(|n| n.to_string()).collect();
    assert_eq!(
        late.bodies(100).await,
        expected,
        "a late subscriber gets what was published before"
    );
}

/// Publishes until it is accepted, as every user of an at-least-once publisher does.
async fn insist(publisher: &dyn Publisher, queue: &str, n: usize) {
    loop {
        let message = Message::new(n.to_string());
        let envelope = Envelope::new(Address::queue(queue.to_owned()), message);
        match publisher.send(envelope).await {
            Ok(confirm) => match confirm.await {
                Verdict::Accepted => return,
                Verdict::Unknown(_) => {}
                verdict => panic!("message {n} around a restart: {verdict:?}"),
            },
            Err(error) => assert!(error.is_retryable(), "message {n} around a restart: {error}"),
        }
    }
}

async fn reconnect(scene: Scene) {
    let count = scene.scaled(10_000);
    let queue = Queue::durable(scene.name("reconnect")).without_delivery_limit();
    let queue = scene.declare_queue(queue).await;
    let transport: Arc<dyn Transport> = scene.connect().await.transport;
    let mut events = transport.events();
    let mut reader = scene.read_on(&transport, &queue, 50).await;
    let publishing: Vec<_> = (0..100)
        .map(|task| {
            let (transport, queue) = (transport.clone(), queue.clone());
            tokio::spawn(async move {
                let publisher = transport.publisher(PublisherOptions::default()).await;
                let publisher = publisher.expect("a publisher around a restart");
                for n in (task..count).step_by(100) {
                    insist(&*publisher, &queue, n).await;
                }
            })
        })
        .collect();
    let mut seen = BTreeSet::new();
    let mut epoch = 1;
    while seen.len() < count {
        if (epoch == 1 && seen.len() > count / 4) || (epoch == 2 && seen.len() > count / 2) {
            scene.begin(Fault::Outage).await;
            scene.end(Fault::Outage).await;
            epoch += 1;
            scene.restored(&mut events, epoch).await;
        }
        let delivery = reader.next().await;
        seen.insert(text(&delivery));
        delivery.ack();
    }
    assert_eq!(epoch, 3, "the broker was restarted twice");
    for task in scene.soon("100 publishers", future::join_all(publishing)).await {
        task.expect("a publisher around restarts");
    }
    assert_eq!(seen, names(0..count), "every accepted message came");
}

async fn consumer_groups(scene: Scene) {
    let exchange = scene.name("groups");
    let groups = [scene.queue("group-1").await, scene.queue("group-2").await];
    let mut topology = Topology::new().exchange(Exchange::fanout(exchange.clone()));
    for group in &groups {
        topology = topology.bind(Binding::queue(exchange.clone(), group.clone(), ""));
    }
    scene.declare(topology).await;
    let address = Address::exchange(exchange, "");
    let envelopes = (0..50).map(|n| Envelope::new(address.clone(), Message::new(n.to_string())));
    scene.publish_envelopes(envelopes).await;
    for group in &groups {
        // Two members share what the group gets.
        let (mut one, mut other) = (scene.read(group, 5).await, scene.read(group, 5).await);
        let mut seen = BTreeSet::new();
        while seen.len() < 50 {
            let delivery: Delivery = tokio::select! {
                delivery = one.next() => delivery,
                delivery = other.next() => delivery,
            };
            assert!(seen.insert(text(&delivery)), "two members of one group got a message");
            delivery.ack();
        }
        assert_eq!(seen, names(0..50), "each group gets every message");
    }
}
