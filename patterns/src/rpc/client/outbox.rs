//! Tells servers what a client has to say beside its requests, from places that cannot wait.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use postrider_core::{Message, Publisher, Result, Transport};
use tokio::sync::mpsc;

use crate::{headers, naming::Naming, rpc::control};

/// How much may wait to be told. More is not told: it is only a favour to the server.
const MOST_WAITING: usize = 1_024;

/// How many services are remembered whose exchange is known to be there.
const MOST_SERVICES: usize = 1_024;

#[derive(Debug)]
enum Telling {
    GivenUp { service: String, id: String },
    Stray { control_queue: String, id: String },
    Credit { control_queue: String, id: String, credit: u64 },
}

/// Takes what is to be told; a task tells it, until this is dropped and nothing is left.
#[derive(Debug)]
pub(super) struct Outbox {
    telling: mpsc::Sender<Telling>,
    exchanges: Arc<Exchanges>,
}

impl Outbox {
    pub(super) fn new(
        transport: Arc<dyn Transport>,
        publisher: Arc<dyn Publisher>,
        naming: Naming,
        reply_to: String,
    ) -> Self {
        let (telling, waiting) = mpsc::channel(MOST_WAITING);
        let exchanges = Arc::new(Exchanges { transport, naming, known: Mutex::default() });
        tokio::spawn(tell(waiting, Arc::clone(&exchanges), publisher, reply_to));
        Self { telling, exchanges }
    }

    /// Nobody waits for the reply to the call `id` any more.
    pub(super) fn given_up(&self, service: &str, id: String) {
        self.put(Telling::GivenUp { service: service.to_owned(), id });
    }

    /// A frame came of a stream that nobody reads, or no more.
    pub(super) fn stray(&self, frame: &Message) {
        if frame.headers.get(headers::STREAM_RUN).is_some()
            && let (Some(queue), Some(id)) = (&frame.reply_to, &frame.correlation_id)
        {
            let (control_queue, id) = (queue.to_string(), id.to_string());
            self.put(Telling::Stray { control_queue, id });
        }
    }

    /// The stream of the call `id` may go on until it has sent `credit` frames.
    pub(super) fn credit(&self, control_queue: &str, id: String, credit: u64) {
        self.put(Telling::Credit { control_queue: control_queue.to_owned(), id, credit });
    }

    fn put(&self, telling: Telling) {
        if let Err(refused) = self.telling.try_send(telling) {
            tracing::debug!(%refused, "a server is not told");
        }
    }

    /// The exchange that leads to every server of `service`, where there is one.
    pub(super) async fn exchange(&self, service: &str) -> Result<Option<String>> {
        self.exchanges.of(service).await
    }
}

async fn tell(
    mut waiting: mpsc::Receiver<Telling>,
    exchanges: Arc<Exchanges>,
    publisher: Arc<dyn Publisher>,
    reply_to: String,
) {
    while let Some(telling) = waiting.recv().await {
        let told = match telling {
            Telling::GivenUp { service, id } => exchanges
                .of(&service)
                .await
                .map(|exchange| exchange.map(|to| control::cancel(to, id, &reply_to))),
            Telling::Stray { control_queue, id } => {
                Ok(Some(control::cancel_at(control_queue, id, &reply_to)))
            }
            Telling::Credit { control_queue, id, credit } => {
                Ok(Some(control::credit(control_queue, id, &reply_to, credit)))
            }
        };
        let sent = match told {
            // Whether it arrives is not waited for: there may be nobody to hear it.
            Ok(Some(envelope)) => publisher.send(envelope).await.map(drop),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "a server could not be told");
        }
    }
}

/// Remembers which exchanges are there. A publish to one that is not would be an error, and a plain
/// service has none.
#[derive(Debug)]
struct Exchanges {
    transport: Arc<dyn Transport>,
    naming: Naming,
    known: Mutex<HashSet<String>>,
}

impl Exchanges {
    fn known(&self) -> MutexGuard<'_, HashSet<String>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The broker is only asked: a plain service has no such exchange and must not get one.
    async fn of(&self, service: &str) -> Result<Option<String>> {
        let exchange = self.naming.rpc_exchange(service);
        if !self.known().contains(&exchange) {
            let wanted = control::exchange(&self.naming, service);
            if !self.transport.plan(&wanted).await?.is_settled() {
                return Ok(None);
            }
            let mut known = self.known();
            if known.len() >= MOST_SERVICES {
                known.clear();
            }
            known.insert(exchange.clone());
        }
        Ok(Some(exchange))
    }
}
