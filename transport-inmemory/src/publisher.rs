//! The publishing side.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
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

use crate::{connection::Connection, flow::HeldConfirm, queue::Queue, registry::Route};

/// How many routes a publisher remembers.
const REMEMBERED_ROUTES: usize = 1_024;

/// The routes of addresses, as they were at one version of the registry.
#[derive(Debug, Default)]
struct Routes {
    version: u64,
    by_address: HashMap<Address, Arc<[Arc<Queue>]>>,
}

#[derive(Debug)]
pub(crate) struct InMemoryPublisher {
    connection: Arc<Connection>,
    options: PublisherOptions,
    routes: Mutex<Routes>,
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
        Ok(Self { connection, options, routes: Mutex::default(), window })
    }

    fn route(&self, envelope: &Envelope) -> Route {
        let shared = self.connection.broker().shared();
        let version = shared.version();
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        if routes.version != version || routes.by_address.len() >= REMEMBERED_ROUTES {
            routes.by_address.clear();
            routes.version = version;
        }
        if let Some(queues) = routes.by_address.get(&envelope.address) {
            return Route::Queues(queues.clone());
        }
        let registry = shared.registry();
        let route = registry.route(&envelope.address, &envelope.message.headers);
        if let Route::Queues(queues) = &route
            && !registry.routes_by_headers(&envelope.address)
        {
            routes.by_address.insert(envelope.address.clone(), queues.clone());
        }
        route
    }

    /// Waits until a message may go, and for a place in the window if confirms are held back.
    async fn admit(&self) -> Result<Option<OwnedSemaphorePermit>> {
        if !self.connection.takes_publishes() {
            self.connection.ready_to_publish(self.options.timeout).await?;
        }
        // A broker that never makes it wait must not let a publisher keep its task from others.
        coop::consume_budget().await;
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

    fn store(&self, envelope: Envelope, permit: Option<OwnedSemaphorePermit>) -> Confirm {
        let shared = self.connection.broker().shared();
        let verdict = match self.route(&envelope) {
            Route::Queues(queues) => shared.publish(envelope, &queues),
            Route::NoExchange => {
                let exchange = envelope.address.exchange_name();
                Verdict::Rejected(format!("there is no exchange '{exchange}'").into())
            }
            Route::Internal => Verdict::Rejected("only other exchanges feed this one".into()),
        };
        let Some(permit) = permit else {
            return Confirm::ready(verdict);
        };
        let (sender, confirm) = Confirm::pending();
        let connection = self.connection.id();
        shared.flow().hold(HeldConfirm { connection, sender, verdict, permit });
        confirm
    }
}

#[async_trait]
impl Publisher for InMemoryPublisher {
    async fn send(&self, envelope: Envelope) -> Result<Confirm> {
        envelope.check("publish", self.connection.capabilities())?;
        let permit = self.admit().await?;
        Ok(self.store(envelope, permit))
    }

    async fn send_batch(&self, envelopes: Vec<Envelope>) -> Result<Vec<Confirm>> {
        for envelope in &envelopes {
            envelope.check("publish", self.connection.capabilities())?;
        }
        let mut confirms = Vec::with_capacity(envelopes.len());
        for envelope in envelopes {
            let permit = match self.admit().await {
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
