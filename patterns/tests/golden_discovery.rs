//! What service discovery puts on the wire. A change here is a change for every service in every
//! language.

mod common;

use common::{BOTH, SECOND, assert_body, publish, take, transport};
use postrider_core::{Address, Binding, Exchange, Message, Queue, Topology, Transport};
use postrider_patterns::{
    Naming,
    discovery::{Announcement, InstanceHealth, Registry, Version},
};

/// Hears what is published under some keys of the exchange.
async fn listen(transport: &dyn Transport, queue: &'static str, key: &'static str) {
    let exchange = Naming::default().discovery_exchange();
    let topology = Topology::new()
        .exchange(Exchange::topic(exchange.clone()))
        .queue(Queue::classic(queue))
        .bind(Binding::queue(exchange, queue, key));
    transport.declare(&topology).await.unwrap();
}

fn id_taken_out(message: &Message, id: &str) -> Message {
    // Of the same length, so that MessagePack stays what it is.
    let id = id.as_bytes();
    let mut body = message.body.to_vec();
    let at = body.windows(id.len()).position(|window| window == id).expect("the id");
    body[at..at + id.len()].fill(b'0');
    let mut message = message.clone();
    message.body = body.into();
    message
}

#[tokio::test(start_paused = true)]
async fn an_announcement_and_a_goodbye() {
    const ID: &str = "000000000000000000000000000000000000";
    for codec in BOTH {
        let transport = transport();
        listen(&*transport, "heard", "announce.inventory").await;
        let announcer = Announcement::new("inventory", Version::new(1, 4, 0))
            .methods(["reserve"])
            .metadata("zone", "north")
            .health(InstanceHealth::Degraded("slow".into()))
            .codec(codec)
            .start(&transport)
            .await
            .unwrap();
        let id = announcer.id().to_owned();
        let announced = take(&*transport, "heard").await;
        assert_body(
            &id_taken_out(&announced, &id),
            codec,
            &format!(
                r#"{{"service":"inventory","instance":"{ID}","sequence":1,"version":"1.4.0","lease_ms":15000,"health":"degraded","reason":"slow","methods":["reserve"],"metadata":{{"zone":"north"}}}}"#
            ),
            "89a773657276696365a9696e76656e746f7279a8696e7374616e6365d924303030303030303030\
             303030303030303030303030303030303030303030303030303030a873657175656e636501a776\
             657273696f6ea5312e342e30a86c656173655f6d73cd3a98a66865616c7468a864656772616465\
             64a6726561736f6ea4736c6f77a76d6574686f647391a772657365727665a86d65746164617461\
             81a47a6f6e65a56e6f727468",
        );
        assert_eq!(announced.message_type.as_deref(), Some("discovery.announce"));
        assert_eq!(announced.ttl, Some(15 * SECOND));
        assert!(!announced.durable && announced.headers.is_empty());

        announcer.leave().await.unwrap();
        let goodbye = take(&*transport, "heard").await;
        assert_body(
            &id_taken_out(&goodbye, &id),
            codec,
            &format!(r#"{{"service":"inventory","instance":"{ID}","sequence":2}}"#),
            "83a773657276696365a9696e76656e746f7279a8696e7374616e6365d924303030303030303030\
             303030303030303030303030303030303030303030303030303030a873657175656e636502",
        );
        assert_eq!(goodbye.message_type.as_deref(), Some("discovery.leave"));
    }
}

#[tokio::test(start_paused = true)]
async fn questions_and_echoes() {
    let transport = transport();
    listen(&*transport, "all", "probe").await;
    listen(&*transport, "one", "probe.inventory").await;
    listen(&*transport, "echoes", "echo.#").await;
    let everybody = Registry::new(&transport).await.unwrap();
    let one = Registry::builder(&transport).services(["inventory"]).start().await.unwrap();
    for queue in ["all", "one"] {
        let probe = take(&*transport, queue).await;
        assert_eq!(probe.message_type.as_deref(), Some("discovery.probe"));
        assert!(probe.reply_to.as_ref().unwrap().starts_with("discovery.registry."));
        assert_eq!(probe.ttl, Some(10 * SECOND));
        assert!(probe.body.is_empty() && !probe.durable);
    }
    let echo = take(&*transport, "echoes").await;
    assert_eq!(echo.message_type.as_deref(), Some("discovery.echo"));
    let number = echo.headers.get("postrider-echo").and_then(|number| number.as_int());
    assert_eq!(number, Some(1));
    assert!(echo.body.is_empty());
    drop((everybody, one));
}

#[tokio::test(start_paused = true)]
async fn an_instance_in_another_language_needs_three_fields() {
    let transport = transport();
    let registry = Registry::new(&transport).await.unwrap();
    let minimal = Message::new(r#"{"service":"inventory","instance":"i","sequence":1}"#)
        .with_type("discovery.announce");
    let to_all = Address::exchange("discovery", "announce.inventory");
    publish(&*transport, to_all, minimal).await;
    registry.current().await.unwrap();
    let known = registry.instances("inventory");
    assert_eq!(known.len(), 1);
    assert_eq!(known[0].version, Version::new(0, 0, 0));
    assert_eq!(known[0].health, InstanceHealth::Healthy);
}

#[tokio::test(start_paused = true)]
async fn an_instance_answers_to_the_queue_that_asks_or_to_all() {
    let transport = transport();
    let announcer = Announcement::new("inventory", Version::new(1, 0, 0));
    let announcer = announcer.start(&transport).await.unwrap();
    common::declare_queue(&*transport, Queue::exclusive("mine")).await;
    let probe = |reply_to: &'static str| {
        Message::new("").with_type("discovery.probe").with_reply_to(reply_to)
    };
    publish(&*transport, Address::exchange("discovery", "probe.inventory"), probe("mine")).await;
    let answer = take(&*transport, "mine").await;
    assert_eq!(answer.message_type.as_deref(), Some("discovery.announce"));
    listen(&*transport, "heard", "announce.#").await;
    let unsigned = Message::new("").with_type("discovery.probe");
    publish(&*transport, Address::exchange("discovery", "probe"), unsigned).await;
    let answer = take(&*transport, "heard").await;
    assert_eq!(answer.message_type.as_deref(), Some("discovery.announce"));
    announcer.leave().await.unwrap();
}
