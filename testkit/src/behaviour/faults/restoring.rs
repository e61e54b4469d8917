//! What goes with a connection comes back with it, and nothing else does.

use std::time::Duration;

use postrider_core::{
    Address, Binding, Envelope, Exchange, Message, PublisherOptions, Queue, Topology,
    TransportEvent, Verdict,
};
use tokio::time;

use super::{Behaviour, Need};
use crate::{Reader, Scene, harness::Connection, harness::Fault};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const LOSS: &[Need] = &[Need::Topology, Need::Fault(Fault::ConnectionLoss)];
    const NETWORK: &[Need] = &[Need::Topology, Need::Fault(Fault::Network)];
    vec![
        Behaviour::new(auto_delete_things_come_back_with_their_bindings, LOSS),
        Behaviour::new(deleted_things_stay_deleted, LOSS),
        Behaviour::new(five_rapid_closes_leave_one_of_everything, LOSS),
        Behaviour::new(reply_queue_is_back_after_losses, LOSS),
        Behaviour::new(exclusive_queue_waits_for_its_dead_owner, NETWORK),
        Behaviour::new(queue_that_ran_out_meanwhile_is_back, NETWORK),
    ]
}

async fn lose(scene: &Scene, victim: &Connection, epoch: u64) {
    let mut events = victim.transport.events();
    victim.cut().await;
    scene.restored(&mut events, epoch).await;
}

/// An exchange with a queue bound to it, both of which go with their users.
fn auto_delete(scene: &Scene) -> (Address, Topology) {
    let (exchange, queue) = (scene.name("events"), scene.name("inbox"));
    let topology = Topology::new()
        .exchange(Exchange::topic(exchange.clone()).auto_delete())
        .queue(Queue::classic(queue.clone()).auto_delete())
        .bind(Binding::queue(exchange.clone(), queue, "order.#"));
    (Address::exchange(exchange, "order.created"), topology)
}

async fn auto_delete_things_come_back_with_their_bindings(scene: Scene) {
    let victim = scene.connect().await;
    let (address, topology) = auto_delete(&scene);
    scene.remember(topology.clone());
    victim.transport.declare(&topology).await.expect("an auto-delete queue with its exchange");
    let mut reader = scene.read_on(&victim.transport, &topology.queues[0].name, 10).await;
    for epoch in 2..=4 {
        lose(&scene, &victim, epoch).await;
        let event = Envelope::new(address.clone(), Message::new(epoch.to_string()));
        scene.publish_envelopes([event]).await;
        reader.after_loss(&epoch.to_string()).await.ack();
    }
    scene.has_consumers(&topology.queues[0].name, 1).await;
}

/// A queue that goes some time after its last consumer is gone when its connection comes back late.
async fn queue_that_ran_out_meanwhile_is_back(scene: Scene) {
    const UNUSED: Duration = Duration::from_secs(1);
    let (exchange, queue) = (scene.name("events"), scene.name("requests"));
    let topology = Topology::new()
        .exchange(Exchange::topic(exchange.clone()))
        .queue(Queue::classic(queue.clone()).with_expires(UNUSED))
        .bind(Binding::queue(exchange.clone(), queue.clone(), "order.#"));
    scene.remember(topology.clone());
    let (proxy, victim) = scene.connect_through_proxy(Duration::from_secs(30)).await;
    victim.transport.declare(&topology).await.expect("a queue that expires");
    let mut reader = scene.read_on(&victim.transport, &queue, 10).await;
    let mut events = victim.transport.events();
    proxy.refuse();
    proxy.cut();
    // Each question counts as a use, so it is asked once.
    time::sleep(3 * UNUSED).await;
    let info = scene.transport().queue_info(&queue).await.expect("an answer");
    assert_eq!(info, None, "nobody used it");
    proxy.heal();
    scene.restored(&mut events, 2).await;
    let address = Address::exchange(exchange, "order.created");
    scene.publish_envelopes([Envelope::new(address, Message::new("after"))]).await;
    reader.after_loss("after").await.ack();
    scene.has_consumers(&queue, 1).await;
}

/// What somebody deleted, the transport's own user or another, is not there again after a loss.
async fn deleted_things_stay_deleted(scene: Scene) {
    let victim = scene.connect().await;
    let durable = Queue::durable(scene.name("durable"));
    let (_, removed) = auto_delete(&scene);
    let own = Topology::new().queue(Queue::exclusive(scene.name("own")));
    let all = Topology::new().queue(durable.clone()).and(removed.clone()).and(own.clone());
    scene.remember(all.clone());
    victim.transport.declare(&all).await.expect("all of them");
    let mut reader = scene.read_on(&victim.transport, &durable.name, 10).await;
    victim.transport.remove(&removed.clone().and(own.clone())).await.expect("by its own user");
    scene.transport().remove(&Topology::new().queue(durable.clone())).await.expect("by another");
    reader.ends().await;
    lose(&scene, &victim, 2).await;
    for name in [&durable.name, &removed.queues[0].name, &own.queues[0].name] {
        let info = scene.transport().queue_info(name).await.expect("an answer");
        assert_eq!(info, None, "'{name}' was deleted");
    }
    let exchange = Address::exchange(removed.exchanges[0].name.clone(), "order.created");
    let publisher = scene.publisher().await;
    let confirm = scene.send(&*publisher, Envelope::new(exchange, Message::new("x"))).await;
    let verdict = scene.verdict(confirm).await;
    assert!(matches!(verdict, Verdict::Rejected(_)), "the exchange was deleted: {verdict:?}");
}

/// Closed again as soon as it is back, or before.
async fn five_rapid_closes_leave_one_of_everything(scene: Scene) {
    let victim = scene.connect().await;
    let (address, topology) = auto_delete(&scene);
    let own = scene.name("own");
    let all = topology.clone().and(Topology::new().queue(Queue::exclusive(own.clone())));
    scene.remember(all.clone());
    victim.transport.declare(&all).await.expect("all of them");
    let inbox = topology.queues[0].name.to_string();
    let mut readers = [
        scene.read_on(&victim.transport, &inbox, 10).await,
        scene.read_on(&victim.transport, &own, 10).await,
    ];
    for _ in 0..5 {
        victim.cut().await;
    }
    // Until a loss can no longer be under way: what is published then must come.
    let publisher = scene.publisher().await;
    let own_address = Address::queue(own.clone());
    for (address, reader) in [address, own_address].into_iter().zip(&mut readers) {
        comes_once(&scene, &*publisher, &address, reader).await;
    }
    scene.has_consumers(&inbox, 1).await;
    // A consumer is served before the transport says that all is back.
    scene
        .eventually("it is back, with each consumer once", async || {
            let health = victim.transport.health();
            match health.is_ready() && health.consumers.len() == 2 {
                true => Ok(()),
                false => Err(format!("{health:?}")),
            }
        })
        .await;
}

/// Publishes until a message is stored in a queue that is being restored, and reads it.
async fn comes_once(
    scene: &Scene,
    publisher: &dyn postrider_core::Publisher,
    address: &Address,
    reader: &mut Reader,
) {
    scene
        .eventually(&format!("a message to {address} comes"), async || {
            let envelope = Envelope::new(address.clone(), Message::new("after"));
            let confirm = scene.send(publisher, envelope).await;
            let verdict = scene.verdict(confirm).await;
            if verdict != Verdict::Accepted {
                return Err(format!("{verdict:?}"));
            }
            // It may have gone with a queue that was lost once more.
            let came = time::timeout(Duration::from_secs(2), reader.consumer().recv()).await;
            match came {
                Ok(Some(Ok(delivery))) => {
                    delivery.ack();
                    Ok(())
                }
                other => Err(format!("stored, and then {:?}", other.map(|came| came.is_some()))),
            }
        })
        .await;
}

/// A request whose reply comes to an exclusive queue, as the patterns do it, over losses of either
/// side: the reply queue is there again, and what is replied then arrives.
async fn reply_queue_is_back_after_losses(scene: Scene) {
    let requests = scene.queue("requests").await;
    let (requester, responder) = (scene.connect().await, scene.connect().await);
    let replies = scene.name("replies");
    let topology = Topology::new().queue(Queue::exclusive(replies.clone()));
    scene.remember(topology.clone());
    requester.transport.declare(&topology).await.expect("a reply queue");
    let mut inbox = scene.read_on(&requester.transport, &replies, 10).await;
    let mut served = scene.read_on(&responder.transport, &requests, 10).await;
    let asking = requester.transport.publisher(PublisherOptions::default()).await;
    let asking = asking.expect("a publisher");
    let replying = responder.transport.publisher(PublisherOptions::default()).await;
    let replying = replying.expect("a publisher");
    for round in 0..4_u64 {
        let request = Message::new(round.to_string()).with_reply_to(replies.clone());
        let request = Envelope::new(Address::queue(requests.clone()), request);
        let confirm = scene.send(&*asking, request).await;
        assert_eq!(scene.verdict(confirm).await, Verdict::Accepted, "request {round}");
        let mut request = served.after_loss(&round.to_string()).await;
        if round % 2 == 0 {
            // The requester is lost between its request and the reply.
            lose(&scene, &requester, 2 + round / 2).await;
        } else {
            // The responder is: the request comes to it again.
            lose(&scene, &responder, 2 + round / 2).await;
            request = served.after_loss(&round.to_string()).await;
            assert!(request.info().redelivered, "it was delivered before: {:?}", request.info());
        }
        let reply_to = request.message().reply_to.clone().expect("where to reply");
        let reply = Envelope::new(Address::queue(reply_to), request.message().clone());
        let confirm = scene.send(&*replying, reply).await;
        assert_eq!(scene.verdict(confirm).await, Verdict::Accepted, "reply {round}");
        request.ack();
        inbox.after_loss(&round.to_string()).await.ack();
    }
}

/// The client's machine dies, in effect: the broker keeps the exclusive queue for a connection
/// that nobody uses any more, until it misses the heartbeats.
async fn exclusive_queue_waits_for_its_dead_owner(scene: Scene) {
    let (proxy, victim) = scene.connect_through_proxy(Duration::from_secs(2)).await;
    let inbox = scene.name("inbox");
    let topology = Topology::new().queue(Queue::exclusive(inbox.clone()));
    scene.remember(topology.clone());
    victim.transport.declare(&topology).await.expect("an exclusive queue");
    let mut reader = scene.read_on(&victim.transport, &inbox, 10).await;
    let mut events = victim.transport.events();
    proxy.orphan();
    let not_restored = |event: &TransportEvent| match event {
        TransportEvent::Restored { .. } => Some(None),
        TransportEvent::NotRestored { entity, cause } => Some(Some(format!("{entity}: {cause}"))),
        _ => None,
    };
    let outcome = scene.event(&mut events, "the event Restored", not_restored).await;
    assert_eq!(outcome, None, "the queue is waited for");
    scene.publish(&inbox, ["after"]).await;
    assert_eq!(reader.bodies(1).await, ["after"], "the exclusive queue is there again");
}
