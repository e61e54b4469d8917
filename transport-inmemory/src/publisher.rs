//! The publishing side.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use postrider_core::{
    Address, Confirm, Envelope, Error, ErrorKind, Publisher, PublisherOptions, Result, Verdict,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::coop,
    time::timeout,
};

use crate::{connection::Connection, queue::Queue, registry::Route};

/// How many routes a publisher remembers.
const REMEMBERED_ROUTES: usize = 1_024;

/// What a publisher remembers from one message to the next.
#[derive(Debug, Default)]
struct Memory {
    /// The routes of addresses, as they were at one version of the registry.
    routes: HashMap<Address, Arc<[Arc<Queue>]>>,
    version: u64,
    /// Messages that are done with, whose memory the next ones take.
    spare: Vec<Arc<Envelope>>,
}

#[derive(Debug)]
pub(crate) struct InMemoryPublisher {
    connection: Arc<Connection>,
    options: PublisherOptions,
    memory: Mutex<Memory>,
    /// Room for messages whose confirm is held back; others have their verdict at once.
    window: Arc<Semaphore>,
}

impl InMemoryPublisher {
    pub(crate) fn new(connection: Arc<Connection>, options: PublisherOptions) -> Result<Self> {
        let most = Semaphore::MAX_PERMITS.min(u32::MAX as usize);
        if options.window == 0 || options.window > most {
            return Err(Error::new(
                ErrorKind::Invalid,
                "publisher",
                format!("the window must be from 1 to {most} messages"),
            ));
        }
        let window = Arc::new(Semaphore::new(options.window));
        Ok(Self { connection, options, memory: Mutex::default(), window })
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queues of a message, and memory to put it in.
    fn route(&self, envelope: &Envelope) -> (Route, Option<Arc<Envelope>>) {
        let shared = self.connection.broker().shared();
        let version = shared.version();
        let mut memory = self.memory();
        let spare = memory.spare.pop();
        if memory.version != version || memory.routes.len() >= REMEMBERED_ROUTES {
            memory.routes.clear();
            memory.version = version;
        }
        if let Some(queues) = memory.routes.get(&envelope.address) {
            return (Route::Queues(queues.clone()), spare);
        }
        let registry = shared.registry();
        let route = registry.route(&envelope.address, &envelope.message.headers);
        if let Route::Queues(queues) = &route
            && !registry.routes_by_headers(&envelope.address)
        {
            memory.routes.insert(envelope.address.clone(), queues.clone());
        }
        (route, spare)
    }

    /// Whether a message may go at once, without a place in the window.
    fn is_open(&self) -> bool {
        self.connection.takes_publishes() && !self.connection.broker().shared().flow().is_holding()
    }

    /// Waits until a message may go, and for a place in the window if confirms are held back.
    async fn admit(&self) -> Result<Option<OwnedSemaphorePermit>> {
        self.connection.ready_to_publish(self.options.timeout).await?;
        if !self.connection.broker().shared().flow().is_holding() {
            return Ok(None);
        }
        match timeout(self.options.timeout, self.window.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Some(permit)),
            _ => Err(Error::new(
                ErrorKind::Unavailable,
                "publish",
                "the window stayed full: the broker confirms nothing",
            )),
        }
    }

    fn store(&self, mut envelope: Envelope, permit: Option<OwnedSemaphorePermit>) -> Confirm {
        let shared = self.connection.broker().shared();
        let (route, spare) = self.route(&envelope);
        let verdict = match route {
            Route::Queues(queues) => {
                // Whoever gets the message and sends it on does not delay it again.
                let delay = std::mem::take(&mut envelope.delay);
                let mut reclaimed = Vec::new();
                let reclaim = spare.is_none().then_some(&mut reclaimed);
                let verdict = shared.publish(&put(envelope, spare), delay, &queues, reclaim);
                if !reclaimed.is_empty() {
                    self.memory().spare = reclaimed;
                }
                verdict
            }
            Route::NoExchange => {
                let exchange = envelope.address.exchange_name();
                Verdict::Rejected(format!("there is no exchange '{exchange}'").into())
            }
            Route::Internal => Verdict::Rejected("only other exchanges feed this one".into()),
        };
        match permit {
            Some(permit) => self.confirm_later(verdict, permit),
            None => Confirm::ready(verdict),
        }
    }

    /// The confirm of a verdict that the broker holds back, for as long as the publisher waits.
    fn confirm_later(&self, verdict: Verdict, permit: OwnedSemaphorePermit) -> Confirm {
        let told = self.connection.broker().shared().flow().hold(self.connection.id(), verdict);
        let (sender, confirm) = Confirm::pending();
        let limit = self.options.timeout;
        tokio::spawn(async move {
            let verdict = match timeout(limit, told).await {
                Ok(Ok(verdict)) => verdict,
                Ok(Err(_)) => Verdict::Unknown("the broker ended".into()),
                Err(_) => Verdict::Unknown("the broker did not confirm it in time".into()),
            };
            sender.resolve(verdict);
            drop(permit);
        });
        confirm
    }
}

/// Puts a message into memory that an earlier one left, if that is nobody's any more.
fn put(envelope: Envelope, spare: Option<Arc<Envelope>>) -> Arc<Envelope> {
    if let Some(mut spare) = spare
        && let Some(place) = Arc::get_mut(&mut spare)
    {
        *place = envelope;
        return spare;
    }
    Arc::new(envelope)
}

#[async_trait]
impl Publisher for InMemoryPublisher {
    async fn send(&self, envelope: Envelope) -> Result<Confirm> {
        envelope.check("publish", self.connection.capabilities())?;
        // A broker that never makes it wait must not let a publisher keep its task from others.
        coop::consume_budget().await;
        if self.is_open() {
            return Ok(self.store(envelope, None));
        }
        // In a box, so that the future of a send that need not wait stays small.
        let permit = Box::pin(self.admit()).await?;
        Ok(self.store(envelope, permit))
    }

    async fn send_batch(&self, envelopes: Vec<Envelope>) -> Result<Vec<Confirm>> {
        for envelope in &envelopes {
            envelope.check("publish", self.connection.capabilities())?;
        }
        let mut confirms = Vec::with_capacity(envelopes.len());
        for envelope in envelopes {
            coop::consume_budget().await;
            if self.is_open() {
                confirms.push(self.store(envelope, None));
                continue;
            }
            let permit = match Box::pin(self.admit()).await {
                Ok(permit) => permit,
                Err(error) if confirms.is_empty() => return Err(error),
                // Some were sent: what keeps the rest is their own verdict.
                Err(error) => {
                    confirms.push(Confirm::ready(Verdict::Rejected(error.to_string().into())));
                    continue;
                }
            };
            confirms.push(self.store(envelope, permit));
        }
        Ok(confirms)
    }

    async fn flush(&self) -> Result<()> {
        let all = u32::try_from(self.options.window).unwrap_or(u32::MAX);
        match timeout(self.options.timeout, self.window.acquire_many(all)).await {
            Ok(_permits) => Ok(()),
            Err(_elapsed) => Err(Error::new(
                ErrorKind::TimedOut,
                "flush",
                "the broker has not confirmed every message",
            )),
        }
    }
}
