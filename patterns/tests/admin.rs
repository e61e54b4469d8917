//! The HTTP endpoint of a service, asked over a socket.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use postrider_core::{ErrorKind, Queue, Topology, Transport};
use postrider_patterns::{RpcServer, RunningService, Service, Task, WorkQueue, Worker};
use postrider_transport_inmemory::InMemory;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::{sleep, timeout},
};

const SOON: Duration = Duration::from_secs(60);

#[derive(Serialize, Deserialize)]
struct Email {}

impl Task for Email {
    const TYPE: &'static str = "email";
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn connect() -> Arc<dyn Transport> {
    Arc::new(InMemory::connect("memory://").unwrap())
}

async fn ask(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut socket = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await?;
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer.split_once("\r\n\r\n").unwrap().1.to_owned();
    Ok((status, body))
}

async fn ask_json(address: SocketAddr, path: &str) -> (u16, Value) {
    let (status, body) = ask(address, path).await.unwrap();
    (status, serde_json::from_str(&body).unwrap())
}

/// Waits until a question is answered with this status.
async fn comes_to(address: SocketAddr, path: &str, wanted: u16) -> Value {
    let coming = async {
        loop {
            let (status, body) = ask_json(address, path).await;
            if status == wanted {
                return body;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, coming).await.expect("in time")
}

/// A worker that waits to be let go on, and a server.
async fn start(
    transport: &Arc<dyn Transport>,
    open: &Arc<Semaphore>,
) -> (RunningService, mpsc::UnboundedReceiver<()>) {
    let (begun, begins) = mpsc::unbounded_channel();
    let open = Arc::clone(open);
    let worker = Worker::new("email").on(move |_: Email, _| {
        let (begun, open) = (begun.clone(), Arc::clone(&open));
        async move {
            begun.send(())?;
            open.acquire().await?.forget();
            Ok(())
        }
    });
    let calls = RpcServer::new("mail").method_named("ping", |(): (), _| async { Ok("pong") });
    let service = Service::new("mail", transport).worker(worker).rpc(calls).admin(any_port());
    (service.start().await.unwrap(), begins)
}

#[tokio::test]
async fn what_drains_is_healthy_and_not_ready_and_then_answers_no_more() {
    let (transport, open) = (connect(), Arc::new(Semaphore::new(0)));
    let (running, mut begins) = start(&transport, &open).await;
    let address = running.admin_address().unwrap();
    WorkQueue::new(&transport).await.unwrap().submit(&Email {}).await.unwrap();
    timeout(SOON, begins.recv()).await.unwrap().unwrap();
    for path in ["/health", "/ready"] {
        let (status, body) = ask_json(address, path).await;
        assert_eq!(status, 200);
        assert_eq!((&body["service"], &body["phase"]), (&"mail".into(), &"running".into()));
        assert_eq!((&body["live"], &body["ready"]), (&true.into(), &true.into()));
        let part = &body["parts"][0];
        assert_eq!((&part["part"], &part["queue"]), (&"worker email".into(), &"email".into()));
        assert_eq!((&part["state"], &part["error"]), (&"consuming".into(), &Value::Null));
        assert_eq!((&part["in_hand"], &part["completed"]), (&1.into(), &0.into()));
    }
    let (status, text) = ask(address, "/metrics").await.unwrap();
    assert_eq!(status, 200);
    let line = r#"postrider_messages_in_hand{service="mail",part="worker email",queue="email"} 1"#;
    assert!(text.contains(line), "{text}");

    let stop = tokio::spawn(running.stop());
    let body = comes_to(address, "/ready", 503).await;
    assert_eq!(body["phase"], "draining");
    assert_eq!(ask_json(address, "/health").await.0, 200);
    // Somebody who stays connected and says nothing holds nothing up.
    let _silent = TcpStream::connect(address).await.unwrap();
    open.add_permits(1);
    assert!(timeout(SOON, stop).await.unwrap().unwrap().is_clean());
    assert!(ask(address, "/health").await.is_err());
}

/// The bound that docs/service.md names.
const MOST_CONNECTIONS: usize = 64;

/// Waits until the other side has closed, and says what it sent before.
async fn until_closed(mut socket: TcpStream) -> Vec<u8> {
    let (mut sent, mut bytes) = (Vec::new(), [0; 1024]);
    while let Ok(length @ 1..) = socket.read(&mut bytes).await {
        sent.extend_from_slice(&bytes[..length]);
    }
    sent
}

#[tokio::test]
async fn a_dropped_service_cuts_its_connections_and_answers_no_more() {
    let (running, _begins) = start(&connect(), &Arc::new(Semaphore::new(0))).await;
    let address = running.admin_address().unwrap();
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /health HTTP/1.1\r\nHost: lo").await.unwrap();
    assert_eq!(ask(address, "/health").await.unwrap().0, 200);
    drop(running);
    // Well before a connection that is too slow is cut.
    let closed = timeout(Duration::from_secs(5), until_closed(slow)).await.unwrap();
    assert!(closed.is_empty());
    let gone = async { while ask(address, "/health").await.is_ok() {} };
    timeout(SOON, gone).await.expect("in time");
}

#[tokio::test]
async fn connections_are_bounded_and_further_ones_wait() {
    let (running, _begins) = start(&connect(), &Arc::new(Semaphore::new(0))).await;
    let address = running.admin_address().unwrap();
    let mut silent = Vec::new();
    for _ in 0..MOST_CONNECTIONS {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let mut further = tokio::spawn(ask(address, "/health"));
    assert!(timeout(Duration::from_millis(300), &mut further).await.is_err(), "it was answered");
    silent.pop();
    // Before the others are cut for their silence.
    let answer = timeout(Duration::from_secs(5), further).await.unwrap().unwrap();
    assert_eq!(answer.unwrap().0, 200);
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_is_cut_and_a_connection_is_for_one_question() {
    let (running, _begins) = start(&connect(), &Arc::new(Semaphore::new(0))).await;
    let address = running.admin_address().unwrap();
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /health HTTP/1.1\r\nHost: lo").await.unwrap();
    assert!(timeout(SOON, until_closed(slow)).await.unwrap().is_empty());

    tokio::time::resume();
    let mut kept = TcpStream::connect(address).await.unwrap();
    kept.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let answer = timeout(Duration::from_secs(5), until_closed(kept)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn a_part_that_ended_is_in_the_answer_with_its_error() {
    let (transport, open) = (connect(), Arc::new(Semaphore::new(0)));
    let (running, _begins) = start(&transport, &open).await;
    let address = running.admin_address().unwrap();
    transport.remove(&Topology::new().queue(Queue::durable("email"))).await.unwrap();
    let body = comes_to(address, "/health", 503).await;
    let part = &body["parts"][0];
    assert_eq!(part["state"], "ended");
    assert!(part["error"].as_str().unwrap().contains("email"), "{part}");
    assert_eq!(body["parts"][1]["state"], "consuming");
    assert_eq!(ask_json(address, "/ready").await.0, 503);
    let (_, text) = ask(address, "/metrics").await.unwrap();
    assert!(text.contains("postrider_service_live{service=\"mail\"} 0"), "{text}");
}

#[tokio::test]
async fn an_address_that_is_taken_is_refused_before_anything_is_declared() {
    let taken = TcpListener::bind(any_port()).await.unwrap();
    let transport = connect();
    let worker = Worker::new("email").on(|_: Email, _| async { Ok(()) });
    let service = Service::new("mail", &transport).worker(worker);
    let error = service.admin(taken.local_addr().unwrap()).start().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(transport.queue_info("email").await.unwrap(), None);
}
