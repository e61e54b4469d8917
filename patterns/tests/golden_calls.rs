//! What calls put on the wire beside plain requests and replies. A change here is a change for every
//! client and service in every language.

mod common;

use std::borrow::Cow;

use common::{SECOND, declare_queue, publish, take, text, transport};
use futures_util::stream;
use postrider_core::{
    Address, Binding, Exchange, HeaderValue, Message, Queue, Topology, Transport,
};
use postrider_patterns::{
    CallOptions, Codec, DomainError, Gather, HandlerError, Request, RpcClient, RpcServer,
};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Count {
    to: u64,
}

impl Request for Count {
    const METHOD: &'static str = "count";
    type Reply = u64;
}

#[derive(Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{most} is the most")]
struct TooMany {
    most: u64,
}

impl DomainError for TooMany {
    fn code(&self) -> Cow<'static, str> {
        "TOO_MANY".into()
    }
}

const REQUEST: &str = r#"{"method":"count","params":{"to":3}}"#;

fn request(id: &'static str) -> Message {
    Message::new(REQUEST).with_reply_to("mine").with_correlation_id(id)
}

fn int(message: &Message, header: &str) -> Option<i64> {
    message.headers.get(header).and_then(HeaderValue::as_int)
}

/// What a service that is not ours would see of a client's messages to all of its servers.
async fn listen(transport: &dyn Transport, key: &'static str) {
    let topology = Topology::new()
        .exchange(Exchange::direct("rpc_math"))
        .queue(Queue::exclusive(key))
        .bind(Binding::queue("rpc_math", key, key));
    transport.declare(&topology).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_given_up() {
    let transport = transport();
    listen(&*transport, "cancel").await;
    declare_queue(&*transport, Queue::classic("rpc_math")).await;
    let client = RpcClient::new(&transport).await.unwrap();
    let call = client.call("math", &Count { to: 3 });
    let request = tokio::select! {
        biased;
        request = take(&*transport, "rpc_math") => request,
        outcome = call => panic!("{outcome:?}"),
    };
    let cancel = take(&*transport, "cancel").await;
    assert_eq!(cancel.message_type.as_deref(), Some("postrider.cancel"));
    assert_eq!(cancel.correlation_id, request.correlation_id);
    assert_eq!(cancel.reply_to, request.reply_to);
    assert_eq!(cancel.ttl, Some(60 * SECOND));
    assert!(cancel.body.is_empty() && cancel.headers.is_empty() && !cancel.durable);
}

#[tokio::test(start_paused = true)]
async fn a_request_with_a_key_and_one_to_all_servers() {
    let transport = transport();
    listen(&*transport, "all").await;
    declare_queue(&*transport, Queue::classic("rpc_math")).await;
    let client = RpcClient::builder(&transport).codec(Codec::Json).name("till");
    let client = client.connect().await.unwrap();
    let options = CallOptions::default().with_idempotency_key("order-7");
    let request = tokio::select! {
        biased;
        request = take(&*transport, "rpc_math") => request,
        outcome = client.call_with("math", &Count { to: 3 }, options) => panic!("{outcome:?}"),
    };
    assert_eq!(text(&request, "postrider-idempotency-key"), Some("order-7"));
    assert_eq!(text(&request, "postrider-caller"), Some("till"));
    assert_eq!(request.headers.len(), 2);

    let _consumer = transport.consumer("rpc_math", Default::default()).await.unwrap();
    let count = Count { to: 3 };
    let to_all = tokio::select! {
        biased;
        request = take(&*transport, "all") => request,
        outcome = client.gather("math", &count, Gather::all()) => panic!("{outcome:?}"),
    };
    assert_eq!(to_all.body, request.body);
    assert!(to_all.headers.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_reply_to_a_request_to_all_says_who_gave_it() {
    let transport = transport();
    declare_queue(&*transport, Queue::exclusive("mine")).await;
    let server =
        RpcServer::new("math").method(|count: Count, _context| async move { Ok(count.to) });
    let _server = server.start(&transport).await.unwrap();
    publish(&*transport, Address::exchange("rpc_math", "all"), request("1")).await;
    let reply = take(&*transport, "mine").await;
    assert_eq!(reply.body, r#"{"status":"success","data":3}"#);
    assert_eq!(text(&reply, "postrider-instance").map(str::len), Some(36));
    assert_eq!(reply.headers.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_streamed_reply() {
    let transport = transport();
    declare_queue(&*transport, Queue::exclusive("mine")).await;
    let server = RpcServer::new("math").stream_method(|count: Count, _context| async move {
        Ok(stream::iter((0..count.to).map(Ok)))
    });
    let _server = server.start(&transport).await.unwrap();
    let wanted = request("1").with_header("postrider-stream-credit", 2);
    publish(&*transport, Address::queue("rpc_math"), wanted).await;
    let mut control_queue = None;
    let mut run = None;
    for seq in 0..4 {
        if seq == 2 {
            // More comes when more is granted, counted from the start. Until then it only says that
            // it is there.
            let sign = take(&*transport, "mine").await;
            assert_eq!(sign.body, r#"{"status":"success","data":null}"#);
            assert_eq!((int(&sign, "postrider-stream-seq"), sign.headers.len()), (None, 1));
            let queue: String = control_queue.clone().unwrap();
            let credit = Message::new("")
                .with_type("postrider.credit")
                .with_correlation_id("1")
                .with_reply_to("mine")
                .with_header("postrider-stream-credit", 10);
            publish(&*transport, Address::queue(queue), credit).await;
        }
        let frame = take(&*transport, "mine").await;
        assert_eq!(int(&frame, "postrider-stream-seq"), Some(seq));
        assert_eq!(frame.correlation_id.as_deref(), Some("1"));
        let queue = frame.reply_to.clone().unwrap().into_owned();
        assert!(queue.starts_with("rpc_math.control."), "{queue}");
        assert_eq!(*control_queue.get_or_insert(queue.clone()), queue);
        let this_run = text(&frame, "postrider-stream-run").unwrap().to_owned();
        assert_eq!(*run.get_or_insert(this_run.clone()), this_run);
        let end = frame.headers.get("postrider-stream-end").and_then(HeaderValue::as_bool);
        if seq < 3 {
            assert_eq!(frame.body, format!(r#"{{"status":"success","data":{seq}}}"#));
            assert_eq!((end, frame.headers.len()), (None, 2));
        } else {
            assert_eq!(frame.body, r#"{"status":"success","data":null}"#);
            assert_eq!((end, frame.headers.len()), (Some(true), 3));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_domain_error() {
    let transport = transport();
    declare_queue(&*transport, Queue::exclusive("mine")).await;
    let server = RpcServer::new("math").method(|_count: Count, _context| async move {
        Err(HandlerError::domain(TooMany { most: 2 }))
    });
    let _server = server.start(&transport).await.unwrap();
    publish(&*transport, Address::queue("rpc_math"), request("1")).await;
    let reply = take(&*transport, "mine").await;
    assert_eq!(reply.body, r#"{"status":"error","message":"2 is the most","code":"TOO_MANY"}"#);
    assert_eq!(text(&reply, "postrider-error-class"), Some("REJECTED"));
    assert_eq!(text(&reply, "postrider-error-detail"), Some(r#"{"most":2}"#));

    let body = Codec::MessagePack.encode(&serde_json::json!({
        "method": "count", "params": {"to": 3},
    }));
    let packed =
        Message::new(body.unwrap()).with_content_type("application/msgpack").with_reply_to("mine");
    publish(&*transport, Address::queue("rpc_math"), packed).await;
    let reply = take(&*transport, "mine").await;
    let expected = HeaderValue::Bytes(b"\x81\xa4most\x02".as_slice().into());
    assert_eq!(reply.headers.get("postrider-error-detail"), Some(&expected));
}
