//! A service with names of its own on the broker under test.

use std::{
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use postrider_core::{Exchange, Message, Queue, Topology, Transport};
use postrider_patterns::{
    CallOptions, HandlerError, Naming, Request, RpcClient, RpcClientBuilder, RpcError, RpcServer,
    Running, dead_letter_topology,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc};

use crate::{Scene, harness::Connection};

/// The service that behaviours call.
pub(super) const MATH: &str = "math";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Double(pub(super) u64);

impl Request for Double {
    const METHOD: &'static str = "double";
    type Reply = u64;
}

/// As [`Double`], and as good twice as once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct DoubleOnce(pub(super) u64);

impl Request for DoubleOnce {
    const METHOD: &'static str = "double_once";
    const IDEMPOTENT: bool = true;
    type Reply = u64;
}

/// Servers and clients of one service, each on the connection that it is given.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pub(super) scene: Scene,
    naming: Naming,
}

impl Service {
    pub(super) fn new(scene: Scene) -> Self {
        let naming = Naming::default().prefixed(&scene.name(""));
        let queue = naming.rpc_queue(MATH);
        scene.remember(
            Topology::new()
                .queue(Queue::classic(queue.clone()))
                .exchange(Exchange::direct(naming.rpc_exchange(MATH)))
                .and(dead_letter_topology(&naming, &queue)),
        );
        Self { scene, naming }
    }

    pub(super) fn queue(&self) -> String {
        self.naming.rpc_queue(MATH)
    }

    /// Deletes the queue of requests.
    pub(super) async fn delete_queue(&self) {
        let queue = Topology::new().queue(Queue::classic(self.queue()));
        self.scene.transport().remove(&queue).await.expect("the queue is removed");
    }

    /// Where the server `id` takes requests to all servers from.
    pub(super) fn queue_for_all(&self, id: &str) -> String {
        self.naming.rpc_instance_queue(MATH, "all", id)
    }

    pub(super) fn server(&self) -> RpcServer {
        RpcServer::new(MATH).naming(self.naming.clone())
    }

    pub(super) fn client_on(&self, transport: &Arc<dyn Transport>) -> RpcClientBuilder {
        RpcClient::builder(transport)
            .naming(self.naming.clone())
            .reply_mode(self.scene.reply_mode())
    }

    /// Starts a server on the scene's first connection.
    pub(super) async fn start(&self, server: RpcServer) -> Running {
        self.start_on(self.scene.transport(), server).await
    }

    pub(super) async fn start_on(
        &self,
        transport: &Arc<dyn Transport>,
        server: RpcServer,
    ) -> Running {
        server.start(transport).await.expect("a server starts")
    }

    /// A server that doubles numbers, in either way, on the scene's first connection.
    pub(super) async fn doubling(&self) -> Running {
        let server = self
            .server()
            .method(|Double(number), _context| async move { Ok(number * 2) })
            .method(|DoubleOnce(number), _context| async move { Ok(number * 2) });
        self.start(server).await
    }

    /// A client on a connection of its own.
    pub(super) async fn client(&self) -> (RpcClient, Connection) {
        let connection = self.scene.connect().await;
        let client = self.client_on(&connection.transport).connect().await;
        (client.expect("a client connects"), connection)
    }
}

/// Options of a call that may take so long.
pub(super) fn within(time: Duration) -> CallOptions {
    CallOptions::default().with_timeout(time)
}

/// The body of a request as a plain client writes it.
pub(super) fn plain(method: &str, number: u64) -> Message {
    Message::new(format!(r#"{{"method":"{method}","params":{number}}}"#))
        .with_content_type("application/json")
}

/// Sees how a call failed.
pub(super) fn failed<T: Debug>(
    outcome: Result<T, RpcError>,
    expected: impl Fn(&RpcError) -> bool,
    what: &str,
) -> RpcError {
    match outcome {
        Err(error) if expected(&error) => error,
        other => panic!("{what}; it ended with {other:?}"),
    }
}

/// Handlers that say that they have begun and wait until they are let go.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    begun: mpsc::UnboundedSender<u64>,
    open: Arc<Semaphore>,
    runs: Arc<AtomicU32>,
}

impl Gate {
    /// A gate, and the numbers of the handlers that have come to it.
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<u64>) {
        let (begun, coming) = mpsc::unbounded_channel();
        (Self { begun, open: Arc::new(Semaphore::new(0)), runs: Arc::default() }, coming)
    }

    /// What a handler does: it waits, and doubles its number.
    pub(super) async fn pass(&self, number: u64) -> Result<u64, HandlerError> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        // A behaviour that has seen enough may have dropped its end.
        let _unheard = self.begun.send(number);
        self.open.acquire().await?.forget();
        Ok(number * 2)
    }

    /// Lets so many handlers go.
    pub(super) fn open(&self, handlers: usize) {
        self.open.add_permits(handlers);
    }

    /// How often a handler was begun.
    pub(super) fn runs(&self) -> u32 {
        self.runs.load(Ordering::Relaxed)
    }
}
