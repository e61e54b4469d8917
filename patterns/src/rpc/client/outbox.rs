//! Tells servers what a client has to say beside its requests, from places that cannot wait.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use postrider_core::{Message, Publisher, ReplyAddress, Result, Transport};
use tokio::{sync::mpsc, time::Instant};

use super::pending::Ticket;
use crate::{headers, naming::Naming, rpc::control};

/// How much may wait to be told. More is not told: it is only a favour to the server.
const MOST_WAITING: usize = 1_024;

/// How many services are remembered.
const MOST_SERVICES: usize = 1_024;

/// How long a service without an exchange is not asked for it again.
const MISSING_FOR: Duration = Duration::from_secs(5);

#[derive(Debug)]
enum Telling {
    GivenUp { service: String, id: String, reply_to: Arc<str> },
    Stray { control_queue: String, id: String },
    Credit { control_queue: String, id: String, reply_to: Arc<str>, credit: u64 },
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
        address: ReplyAddress,
    ) -> Self {
        let (telling, waiting) = mpsc::channel(MOST_WAITING);
        let exchanges = Arc::new(Exchanges { transport, naming, known: Mutex::default() });
        tokio::spawn(tell(waiting, Arc::clone(&exchanges), publisher, address));
        Self { telling, exchanges }
    }

    /// Nobody waits for the reply to a call any more. One that was not sent has no server to tell.
    pub(super) fn given_up(&self, service: &str, ticket: &Ticket) {
        if let Some(reply_to) = ticket.reply_to() {
            let (service, reply_to) = (service.to_owned(), Arc::clone(reply_to));
            self.put(Telling::GivenUp { service, id: ticket.id(), reply_to });
        }
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

    /// The stream of a call may go on until it has sent `credit` frames.
    pub(super) fn credit(&self, control_queue: &str, ticket: &Ticket, credit: u64) {
        if let Some(reply_to) = ticket.reply_to() {
            let (control_queue, reply_to) = (control_queue.to_owned(), Arc::clone(reply_to));
            self.put(Telling::Credit { control_queue, id: ticket.id(), reply_to, credit });
        }
    }

    fn put(&self, telling: Telling) {
        if let Err(refused) = self.telling.try_send(telling) {
            tracing::debug!(%refused, "a server is not told");
        }
    }

    /// The exchange that leads to every server of `service`, where there is one.
    pub(super) async fn exchange(&self, service: &str) -> Result<Option<String>> {
        self.exchanges.of(service, Duration::ZERO).await
    }

    /// The exchange of `service` may be gone.
    pub(super) fn forget(&self, service: &str) {
        let exchange = self.exchanges.naming.rpc_exchange(service);
        self.exchanges.known().remove(&exchange);
    }
}

async fn tell(
    mut waiting: mpsc::Receiver<Telling>,
    exchanges: Arc<Exchanges>,
    publisher: Arc<dyn Publisher>,
    address: ReplyAddress,
) {
    while let Some(telling) = waiting.recv().await {
        let told = match telling {
            Telling::GivenUp { service, id, reply_to } => exchanges
                .of(&service, MISSING_FOR)
                .await
                .map(|exchange| exchange.map(|to| control::cancel(to, id, &reply_to))),
            Telling::Stray { control_queue, id } => {
                // It came to this address, or its server is told by the verdict on the next.
                address.get().await.map(|to| Some(control::cancel_at(control_queue, id, &to)))
            }
            Telling::Credit { control_queue, id, reply_to, credit } => {
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

/// Remembers which services have an exchange. A publish to one that is not there would be an error,
/// and a plain service has none.
#[derive(Debug)]
struct Exchanges {
    transport: Arc<dyn Transport>,
    naming: Naming,
    known: Mutex<HashMap<String, Known>>,
}

#[derive(Debug, Clone, Copy)]
enum Known {
    There,
    MissingAt(Instant),
}

impl Exchanges {
    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// That it was missing is believed for so long. The broker is only asked: a plain service must not
    /// get an exchange by this.
    async fn of(&self, service: &str, missing_for: Duration) -> Result<Option<String>> {
        let exchange = self.naming.rpc_exchange(service);
        let known = self.known().get(&exchange).copied();
        let now = self.transport.env().now();
        match known {
            Some(Known::There) => return Ok(Some(exchange)),
            Some(Known::MissingAt(at)) if now.duration_since(at) < missing_for => return Ok(None),
            _ => {}
        }
        let wanted = control::exchange(&self.naming, service);
        let is_there = self.transport.plan(&wanted).await?.is_settled();
        let mut known = self.known();
        if known.len() >= MOST_SERVICES {
            known.clear();
        }
        let found = if is_there { Known::There } else { Known::MissingAt(now) };
        known.insert(exchange.clone(), found);
        Ok(is_there.then_some(exchange))
    }
}
