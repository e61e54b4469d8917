//! A request that comes more than once, and errors that come back as what they are.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use postrider_patterns::{
    CallOptions, DomainError, ErrorClass, HandlerError, InMemoryInbox, Inbox,
    rpc::{Claim, InboxKey, StoredReply},
};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::service::{Double, DoubleOnce, Gate, MATH, Service};
use crate::{
    Scene,
    behaviour::{Behaviour, Need},
};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const NEEDS: &[Need] = &[Need::Topology];
    vec![
        Behaviour::new(a_duplicate_gets_the_reply_that_was_stored, NEEDS),
        Behaviour::new(a_failed_try_is_not_stored, NEEDS),
        Behaviour::new(a_copy_waits_for_the_first_no_longer_than_its_time, NEEDS),
        Behaviour::new(a_reply_that_died_with_its_server_is_given_by_another, NEEDS),
        Behaviour::new(domain_errors_come_back_as_what_they_are, NEEDS),
    ]
}

#[derive(Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{number} is too large, {most} is the most")]
struct TooLarge {
    number: u64,
    most: u64,
}

impl DomainError for TooLarge {
    fn code(&self) -> Cow<'static, str> {
        "TOO_LARGE".into()
    }
}

async fn a_duplicate_gets_the_reply_that_was_stored(scene: Scene) {
    let service = Service::new(scene.clone());
    let runs = Arc::new(AtomicU32::new(0));
    let (once, often) = (Arc::clone(&runs), Arc::clone(&runs));
    let server = service
        .server()
        .method(move |DoubleOnce(number), _context| {
            let run = u64::from(once.fetch_add(1, Ordering::Relaxed));
            async move {
                if number > 100 {
                    return Err(HandlerError::domain(TooLarge { number, most: 100 }));
                }
                Ok(number * 2 + run)
            }
        })
        .method(move |Double(number), _context| {
            often.fetch_add(1, Ordering::Relaxed);
            async move { Ok(number * 2) }
        });
    let server = service.start(server).await;
    let (client, connection) = service.client().await;
    let key = |key: &str| CallOptions::default().with_idempotency_key(key.to_owned());
    for _ in 0..3 {
        let reply = client.call_with(MATH, &DoubleOnce(4), key("four")).await;
        assert_eq!(reply.expect("a reply"), 8);
    }
    assert_eq!((runs.load(Ordering::Relaxed), server.stats().replayed), (1, 2));
    // A rejection is an answer too, and comes back whole.
    for _ in 0..2 {
        let reply = client.call_with(MATH, &DoubleOnce(400), key("large")).await;
        let error = reply.expect_err("it is too large").domain::<TooLarge>();
        assert_eq!(error, Some(TooLarge { number: 400, most: 100 }));
    }
    assert_eq!((runs.load(Ordering::Relaxed), server.stats().replayed), (2, 3));
    // Another caller's key is another one, and so is each message id.
    let other = service.client_on(&connection.transport).name("other").connect().await;
    let other = other.expect("a client connects");
    other.call_with(MATH, &DoubleOnce(4), key("four")).await.expect("a reply");
    client.call(MATH, &DoubleOnce(4)).await.expect("a reply");
    client.call(MATH, &DoubleOnce(4)).await.expect("a reply");
    assert_eq!(runs.load(Ordering::Relaxed), 5);
    // A method that is not idempotent is run each time.
    for _ in 0..2 {
        client.call_with(MATH, &Double(4), key("often")).await.expect("a reply");
    }
    assert_eq!((runs.load(Ordering::Relaxed), server.stats().replayed), (7, 3));
}

async fn a_failed_try_is_not_stored(scene: Scene) {
    let service = Service::new(scene.clone());
    let failed = Arc::new(AtomicBool::new(false));
    let server = service.server().method(move |DoubleOnce(number), _context| {
        let first = !failed.swap(true, Ordering::Relaxed);
        async move { if first { Err(HandlerError::transient("not yet")) } else { Ok(number * 2) } }
    });
    let _server = service.start(server).await;
    let (client, _connection) = service.client().await;
    let key = || CallOptions::default().with_idempotency_key("four");
    let error = client.call_with(MATH, &DoubleOnce(4), key()).await.expect_err("the first try");
    assert_eq!(error.class(), ErrorClass::Transient);
    assert_eq!(client.call_with(MATH, &DoubleOnce(4), key()).await.expect("the second try"), 8);
}

async fn a_copy_waits_for_the_first_no_longer_than_its_time(scene: Scene) {
    let service = Service::new(scene.clone());
    let (gate, mut begun) = Gate::new();
    let at_gate = gate.clone();
    let server = service
        .server()
        .concurrency(2)
        .method(move |DoubleOnce(number), _context| {
            let gate = at_gate.clone();
            async move { gate.pass(number).await }
        })
        .method(|Double(number), _context| async move { Ok(number * 2) });
    let _server = service.start(server).await;
    let (client, _connection) = service.client().await;
    let key = || CallOptions::default().with_idempotency_key("four");
    let first = client.call_async_with(MATH, &DoubleOnce(4), key());
    scene.soon("the first is handled", begun.recv()).await;
    let options = key().with_timeout(Duration::from_millis(300));
    let copy = client.call_with(MATH, &DoubleOnce(4), options).await.expect_err("it waits");
    assert_eq!(copy.class(), ErrorClass::DeadlineExceeded);
    // Its place is free again, and the first has its own.
    let other = scene.soon("another call", client.call(MATH, &Double(4))).await;
    assert_eq!(other.expect("a reply"), 8);
    gate.open(1);
    assert_eq!(scene.soon("the first reply", first).await.expect("a reply"), 8);
    assert_eq!(gate.runs(), 1);
}

/// An inbox of two servers, the first of which dies when it has stored a reply.
#[derive(Debug, Default)]
struct DeadlyInbox {
    kept: InMemoryInbox,
    dead: AtomicBool,
    died: Notify,
}

impl Inbox for DeadlyInbox {
    fn claim<'a>(&'a self, key: &'a InboxKey) -> BoxFuture<'a, Result<Claim, HandlerError>> {
        self.kept.claim(key)
    }

    fn store<'a>(
        &'a self,
        key: &'a InboxKey,
        reply: StoredReply,
    ) -> BoxFuture<'a, Result<(), HandlerError>> {
        async {
            self.kept.store(key, reply).await?;
            if !self.dead.swap(true, Ordering::Relaxed) {
                self.died.notify_one();
                std::future::pending::<()>().await;
            }
            Ok(())
        }
        .boxed()
    }

    fn release(&self, key: &InboxKey) {
        self.kept.release(key);
    }
}

async fn a_reply_that_died_with_its_server_is_given_by_another(scene: Scene) {
    let service = Service::new(scene.clone());
    let inbox = Arc::new(DeadlyInbox::default());
    let runs = Arc::new(AtomicU32::new(0));
    let server = || {
        let runs = Arc::clone(&runs);
        service.server().inbox(Arc::clone(&inbox) as Arc<dyn Inbox>).method(
            move |DoubleOnce(number), _context| {
                runs.fetch_add(1, Ordering::Relaxed);
                async move { Ok(number * 2) }
            },
        )
    };
    let first = service.start(server()).await;
    let (client, _connection) = service.client().await;
    let call = client.call_async(MATH, &DoubleOnce(4));
    scene.soon("the reply is stored", inbox.died.notified()).await;
    let second_connection = scene.connect().await;
    let second = service.start_on(&second_connection.transport, server()).await;
    drop(first);
    assert_eq!(scene.soon("the reply of the second server", call).await.expect("a reply"), 8);
    assert_eq!((runs.load(Ordering::Relaxed), second.stats().replayed), (1, 1));
}

async fn domain_errors_come_back_as_what_they_are(scene: Scene) {
    let service = Service::new(scene.clone());
    let server = service.server().method(|Double(number), _context| async move {
        match number {
            1 => Err(HandlerError::domain(TooLarge { number, most: 0 })),
            2 => Err(std::io::Error::other("the password is hunter2").into()),
            3 => panic!("at {}", "hunter2"),
            _ => Ok(number * 2),
        }
    });
    let _server = service.start(server).await;
    let connection = scene.connect().await;
    for codec in [postrider_patterns::Codec::Json, postrider_patterns::Codec::MessagePack] {
        let client = service.client_on(&connection.transport).codec(codec).connect().await;
        let client = client.expect("a client connects");
        let call = async |number| client.call(MATH, &Double(number)).await.expect_err("it fails");
        let error = call(1).await;
        assert_eq!(error.domain(), Some(TooLarge { number: 1, most: 0 }));
        assert_eq!((error.class(), error.code()), (ErrorClass::Rejected, "TOO_LARGE"));
        for number in [2, 3] {
            let error = call(number).await;
            assert_eq!(error.class(), ErrorClass::Internal);
            assert!(!error.to_string().contains("hunter2"), "details stay in the log: {error}");
        }
        assert_eq!(client.call(MATH, &Double(4)).await.expect("the server goes on"), 8);
    }
}
