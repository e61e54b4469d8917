//! What configuration puts on the wire. A change here is a change for every service in every
//! language.

mod common;

use common::{BOTH, SECOND, assert_body, publish, take, transport};
use postrider_core::{
    Address, Binding, Exchange, HeaderValue, Message, Queue, Topology, Transport,
};
use postrider_patterns::{
    Codec, Naming,
    config::{Config, ConfigPublisher},
};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Pricing {
    discount: u8,
}

/// Hears what is published under a key of the exchange.
async fn listen(transport: &dyn Transport, queue: &'static str, key: &'static str) {
    let topology = Topology::new()
        .exchange(Exchange::direct("config"))
        .queue(Queue::classic(queue))
        .bind(Binding::queue("config", queue, key));
    transport.declare(&topology).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_value() {
    for codec in BOTH {
        let transport = transport();
        listen(&*transport, "heard", "value.orders.pricing").await;
        let publisher =
            ConfigPublisher::with(&transport, "orders", "pricing", Naming::default(), codec);
        publisher.await.unwrap().publish(&Pricing { discount: 10 }).await.unwrap();
        // The same to the keeper and to everybody who listens.
        for queue in ["heard", "config_orders.pricing"] {
            let value = take(&*transport, queue).await;
            assert_body(&value, codec, r#"{"discount":10}"#, "81a8646973636f756e740a");
            assert_eq!(value.message_type.as_deref(), Some("config.value"));
            let version = value.headers.get("postrider-config-version");
            assert_eq!(version.and_then(HeaderValue::as_int), Some(1));
            assert_eq!(value.headers.len(), 1);
            assert!(value.message_id.is_some() && value.timestamp.is_some());
            assert!(value.durable && value.ttl.is_none());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn reports() {
    for codec in BOTH {
        let transport = transport();
        listen(&*transport, "heard", "report.orders.pricing").await;
        let config = Config::builder("orders", "pricing")
            .instance("i")
            .check(|pricing: &Pricing| match pricing.discount {
                0..=50 => Ok(()),
                _ => Err("too much".to_owned()),
            })
            .codec(codec)
            .start(&transport)
            .await
            .unwrap();
        let nothing = take(&*transport, "heard").await;
        assert_body(&nothing, codec, r#"{"instance":"i"}"#, "81a8696e7374616e6365a169");
        assert_eq!(nothing.message_type.as_deref(), Some("config.report"));
        assert_eq!(nothing.ttl, Some(10 * SECOND));
        assert!(!nothing.durable && nothing.headers.is_empty());

        let value = |version: i64, body: &'static str| {
            let to_all = Address::exchange("config", "value.orders.pricing");
            let value = Message::new(body)
                .with_type("config.value")
                .with_header("postrider-config-version", version);
            publish(&*transport, to_all, value)
        };
        value(3, r#"{"discount":10}"#).await;
        assert_body(
            &take(&*transport, "heard").await,
            codec,
            r#"{"instance":"i","version":3}"#,
            "82a8696e7374616e6365a169a776657273696f6e03",
        );
        value(4, r#"{"discount":90}"#).await;
        assert_body(
            &take(&*transport, "heard").await,
            codec,
            r#"{"instance":"i","version":3,"rejected":{"version":4,"reason":"too much"}}"#,
            "83a8696e7374616e6365a169a776657273696f6e03a872656a656374656482a776657273696f6e04\
             a6726561736f6ea8746f6f206d756368",
        );

        let question = Message::new("").with_type("config.ask");
        publish(&*transport, Address::exchange("config", "ask.orders.pricing"), question).await;
        let answer = take(&*transport, "heard").await;
        let answer: serde_json::Value =
            Codec::decode(answer.content_type.as_deref(), &answer.body).unwrap();
        assert_eq!(answer["rejected"]["version"], 4);

        drop(config);
        assert_body(
            &take(&*transport, "heard").await,
            codec,
            r#"{"instance":"i","version":3,"rejected":{"version":4,"reason":"too much"},"left":true}"#,
            "84a8696e7374616e6365a169a776657273696f6e03a872656a656374656482a776657273696f6e04\
             a6726561736f6ea8746f6f206d756368a46c656674c3",
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_question() {
    let transport = transport();
    listen(&*transport, "heard", "ask.orders.pricing").await;
    let publisher = ConfigPublisher::<Pricing>::new(&transport, "orders", "pricing");
    let publisher = publisher.await.unwrap();
    let question = take(&*transport, "heard").await;
    assert_eq!(question.message_type.as_deref(), Some("config.ask"));
    assert_eq!(question.ttl, Some(10 * SECOND));
    assert!(question.body.is_empty() && question.headers.is_empty() && !question.durable);
    drop(publisher);
}

#[tokio::test(start_paused = true)]
async fn the_queue_that_keeps_the_value() {
    let transport = transport();
    let publisher = ConfigPublisher::new(&transport, "orders", "pricing").await.unwrap();
    publisher.publish(&Pricing { discount: 10 }).await.unwrap();
    let kept = Topology::new()
        .exchange(Exchange::direct("config"))
        .queue(Queue::classic("config_orders.pricing").with_max_length(1))
        .bind(Binding::queue("config", "config_orders.pricing", "value.orders.pricing"));
    assert!(transport.plan(&kept).await.unwrap().is_settled());
}
