//! The wire formats, byte for byte. A change here is a change for every client in every language.

mod common;

use common::{BOTH, START, assert_body, declare_queue, deliver, hex, take, text, transport};
use postrider_core::{Address, Binding, Exchange, Message, Queue, Topology};
use postrider_patterns::{
    Codec, ErrorClass, Event, EventBus, HandlerError, Naming, Request, RpcClient, RpcServer,
    SubmitOptions, Task, WorkQueue,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[derive(Serialize, Deserialize)]
struct Reserve {
    sku: String,
    quantity: u32,
}

impl Request for Reserve {
    const METHOD: &'static str = "reserve";
    type Reply = Reserved;
}

#[derive(Debug, Serialize, Deserialize)]
struct Reserved {
    left: u32,
}

#[derive(Serialize, Deserialize)]
struct OrderCreated {
    total_cents: u64,
}

impl Event for OrderCreated {
    const TYPE: &'static str = "order.created";
    const VERSION: u32 = 2;

    fn aggregate_id(&self) -> Option<std::borrow::Cow<'_, str>> {
        Some("order-7".into())
    }
}

#[derive(Serialize, Deserialize)]
struct SendEmail {
    to: String,
}

impl Task for SendEmail {
    const TYPE: &'static str = "send_email";
}

fn reserve() -> Reserve {
    Reserve { sku: "cd-1".to_owned(), quantity: 3 }
}

#[tokio::test(start_paused = true)]
async fn an_rpc_request() {
    for codec in BOTH {
        let transport = transport();
        declare_queue(&*transport, Queue::classic("rpc_inventory")).await;
        let client = RpcClient::builder(&transport).codec(codec);
        let client = client.connect().await.unwrap();
        // The consumer must be there before the call, or nobody serves it.
        let request = deliver(&*transport, "rpc_inventory");
        let call = async { client.call("inventory", &reserve()).await.unwrap_err() };
        let request = tokio::select! {
            biased;
            request = request => request,
            error = call => panic!("{error}"),
        };
        let request = request.message();
        assert_body(
            request,
            codec,
            r#"{"method":"reserve","params":{"sku":"cd-1","quantity":3},"timestamp":"2026-01-01T00:00:00.000Z"}"#,
            "83a66d6574686f64a772657365727665a6706172616d7382a3736b75a463642d31a87175\
             616e7469747903a974696d657374616d70b8323032362d30312d30315430303a30303a30\
             302e3030305a",
        );
        assert!(request.reply_to.as_ref().unwrap().starts_with("reply_client_"));
        assert_ne!(request.correlation_id, request.message_id);
        assert_eq!(request.message_type.as_deref(), Some("reserve"));
        assert_eq!(request.ttl, Some(30 * common::SECOND));
        assert!(!request.durable);
        assert!(request.headers.is_empty());
    }
}

async fn answer(codec: Codec, method: &str, params: Value) -> Message {
    let transport = transport();
    let _server = RpcServer::new("inventory")
        .method(|request: Reserve, _context| async move {
            if request.quantity > 20 {
                return Err(HandlerError::rejected("OUT_OF_STOCK", "only 20 are left"));
            }
            Ok(Reserved { left: 20 - request.quantity })
        })
        .start(&transport)
        .await
        .unwrap();
    declare_queue(&*transport, Queue::exclusive("mine")).await;
    let body = codec.encode(&json!({"method": method, "params": params})).unwrap();
    let request = Message::new(body)
        .with_content_type(codec.content_type())
        .with_reply_to("mine")
        .with_correlation_id("call-1");
    common::publish(&*transport, Address::queue("rpc_inventory"), request).await;
    let reply = take(&*transport, "mine").await;
    assert_eq!(reply.correlation_id.as_deref(), Some("call-1"));
    reply
}

#[tokio::test(start_paused = true)]
async fn rpc_replies() {
    for codec in BOTH {
        let good = json!({"sku": "cd-1", "quantity": 3});
        let reply = answer(codec, "reserve", good.clone()).await;
        assert_body(
            &reply,
            codec,
            r#"{"status":"success","data":{"left":17}}"#,
            "82a6737461747573a773756363657373a46461746181a46c65667411",
        );
        assert!(reply.headers.is_empty());

        let reply = answer(codec, "reserve", json!({"sku": "cd-1", "quantity": 21})).await;
        assert_body(
            &reply,
            codec,
            r#"{"status":"error","message":"only 20 are left","code":"OUT_OF_STOCK"}"#,
            "83a6737461747573a56572726f72a76d657373616765b06f6e6c7920323020617265206c\
             656674a4636f6465ac4f55545f4f465f53544f434b",
        );
        assert_eq!(text(&reply, "postrider-error-class"), Some("REJECTED"));

        let reply = answer(codec, "revoke", good).await;
        assert_body(
            &reply,
            codec,
            r#"{"status":"error","message":"there is no method 'revoke'","code":"UNKNOWN_METHOD"}"#,
            "83a6737461747573a56572726f72a76d657373616765bb7468657265206973206e6f206d\
             6574686f6420277265766f6b6527a4636f6465ae554e4b4e4f574e5f4d4554484f44",
        );
        assert_eq!(text(&reply, "postrider-error-class"), Some("UNSUPPORTED"));

        let reply = answer(codec, "reserve", json!({"sku": "cd-1"})).await;
        let body: Value = Codec::decode(Some(codec.content_type()), &reply.body).unwrap();
        assert_eq!(body["code"], "INVALID_PARAMS");
        assert!(body["message"].as_str().unwrap().contains("quantity"));
        assert_eq!(text(&reply, "postrider-error-class"), Some("INVALID"));
    }
}

#[tokio::test(start_paused = true)]
async fn an_event() {
    for codec in BOTH {
        let transport = transport();
        let bus = EventBus::builder(&transport).codec(codec);
        let bus = bus.source("order").connect().await.unwrap();
        let topology = Topology::new()
            .exchange(Exchange::topic("event_bus"))
            .queue(Queue::durable("audit"))
            .bind(Binding::queue("event_bus", "audit", "#"));
        transport.declare(&topology).await.unwrap();

        let id = bus.publish(&OrderCreated { total_cents: 1_177 }).await.unwrap();
        let delivery = deliver(&*transport, "audit").await;
        assert_eq!(*delivery.address(), Address::exchange("event_bus", "order.created"));
        let event = delivery.message();
        let json = format!(
            r#"{{"event_id":"{id}","event_type":"order.created","aggregate_id":"order-7","data":{{"total_cents":1177}},"timestamp":"{START}","version":2,"metadata":{{"source":"order","correlation_id":"{id}"}}}}"#
        );
        let id_hex = hex(id.as_str().as_bytes());
        let msgpack = format!(
            "87a86576656e745f6964d924{id_hex}aa6576656e745f74797065ad6f726465722e6372\
             6561746564ac6167677265676174655f6964a76f726465722d37a46461746181ab746f74\
             616c5f63656e7473cd0499a974696d657374616d70b8323032362d30312d30315430303a\
             30303a30302e3030305aa776657273696f6e02a86d6574616461746182a6736f75726365\
             a56f72646572ae636f7272656c6174696f6e5f6964d924{id_hex}"
        );
        assert_body(event, codec, &json, &msgpack);
        assert_eq!(event.message_id.as_deref(), Some(id.as_str()));
        assert_eq!(event.correlation_id.as_deref(), Some(id.as_str()));
        assert_eq!(event.message_type.as_deref(), Some("order.created"));
        assert_eq!(event.key.as_deref(), Some("order-7"));
        assert!(event.durable);
    }
}

#[tokio::test(start_paused = true)]
async fn a_task() {
    for codec in BOTH {
        let transport = transport();
        let tasks = WorkQueue::builder(&transport).codec(codec);
        let tasks = tasks.connect().await.unwrap();
        let email = SendEmail { to: "ann@example.org".to_owned() };
        let urgent = SubmitOptions::default().with_priority(9);
        tasks.submit_with(&email, urgent).await.unwrap();
        let task = take(&*transport, "send_email").await;
        assert_body(
            &task,
            codec,
            r#"{"type":"send_email","params":{"to":"ann@example.org"},"timestamp":"2026-01-01T00:00:00.000Z","priority":9}"#,
            "84a474797065aa73656e645f656d61696ca6706172616d7381a2746faf616e6e40657861\
             6d706c652e6f7267a974696d657374616d70b8323032362d30312d30315430303a30303a\
             30302e3030305aa87072696f7269747909",
        );
        assert_eq!(task.priority, Some(9));
        assert_eq!(task.message_type.as_deref(), Some("send_email"));

        tasks.submit(&email).await.unwrap();
        assert_eq!(take(&*transport, "send_email").await.priority, Some(4));
    }
}

#[test]
fn names() {
    let naming = Naming::default();
    assert_eq!(naming.rpc_queue("inventory"), "rpc_inventory");
    assert_eq!(naming.reply_queue("shop", "1"), "reply_shop_1");
    assert_eq!(naming.event_exchange(), "event_bus");
    assert_eq!(naming.durable_subscription_queue("billing", "orders"), "billing.orders");
    assert_eq!(naming.ephemeral_subscription_queue("wall", "1"), "wall.1");
    assert_eq!(naming.task_queue("send_email"), "send_email");
    assert_eq!(naming.stream_queue("archive"), "stream_archive");
    assert_eq!(naming.transfer_queue("archive", "1"), "stream_archive_1");
    assert_eq!(naming.dead_letter_exchange(), "dead_letter_exchange");
    assert_eq!(naming.dead_letter_queue("orders"), "dead_letter_orders");
}

#[test]
fn error_classes() {
    let texts: Vec<_> = ErrorClass::ALL.map(ErrorClass::as_str).to_vec();
    assert_eq!(
        texts,
        [
            "TRANSIENT",
            "THROTTLED",
            "CONFLICT",
            "INVALID",
            "REJECTED",
            "NOT_FOUND",
            "UNAUTHORIZED",
            "DEADLINE_EXCEEDED",
            "CANCELLED",
            "UNSUPPORTED",
            "INTERNAL",
            "UNKNOWN",
            "UNAVAILABLE",
        ]
    );
}

#[test]
fn header_names() {
    use postrider_patterns::headers;
    assert_eq!(
        [
            headers::CONVERSATION_ID,
            headers::ERROR_CLASS,
            headers::ERROR_CODE,
            headers::ERROR_MESSAGE,
            headers::ATTEMPTS,
            headers::HOST,
            headers::ORIGIN_QUEUE,
            headers::ORIGIN_EXCHANGE,
            headers::ORIGIN_KEY,
            headers::FIRST_FAILED_AT,
            headers::DEAD_LETTERED_AT,
            headers::RETRY_AFTER_MS,
            headers::STREAM_SEQ,
            headers::STREAM_OFFSET,
            headers::STREAM_CRC32C,
            headers::KEY_SLOT,
        ],
        [
            "postrider-conversation-id",
            "postrider-error-class",
            "postrider-error-code",
            "postrider-error-message",
            "postrider-attempts",
            "postrider-host",
            "postrider-origin-queue",
            "postrider-origin-exchange",
            "postrider-origin-key",
            "postrider-first-failed-at",
            "postrider-dead-lettered-at",
            "postrider-retry-after-ms",
            "postrider-stream-seq",
            "postrider-stream-offset",
            "postrider-stream-crc32c",
            "postrider-key-slot",
        ]
    );
}
