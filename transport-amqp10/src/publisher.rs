//! The publishing side.

use std::sync::Arc;

use async_trait::async_trait;
use postrider_core::{
    Confirm, Envelope, Error, ErrorKind, Publisher, PublisherOptions, Result, Verdict,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout, timeout_at},
};

use crate::{
    admin::Admin,
    error::closed,
    lanes::Lanes,
    link::{Guard, Link},
    message,
    pipeline::Job,
};

/// Hands messages to the tasks that own links. It does not keep the connection open.
#[derive(Debug)]
pub(crate) struct Sender {
    lanes: Lanes,
    window: Arc<Semaphore>,
    options: PublisherOptions,
}

impl Sender {
    pub(crate) fn new(link: &Arc<Link>, options: PublisherOptions) -> Result<Self> {
        let most = Semaphore::MAX_PERMITS.min(u32::MAX as usize);
        if options.window == 0 || options.window > most {
            return Err(Error::new(
                ErrorKind::Invalid,
                "publisher",
                format!("the window must be from 1 to {most} messages"),
            ));
        }
        let window = Arc::new(Semaphore::new(options.window));
        Ok(Self { lanes: Lanes::new(link, options.window), window, options })
    }

    fn deadline(&self, link: &Link) -> Instant {
        link.env().deadline(self.options.timeout)
    }

    /// Waits until a message may go, and for a place in the window.
    async fn admit(&self, link: &Link, deadline: Instant) -> Result<OwnedSemaphorePermit> {
        if !link.takes_publishes() {
            link.ready_to_publish(deadline).await?;
        }
        if let Ok(permit) = self.window.clone().try_acquire_owned() {
            return Ok(permit);
        }
        match timeout_at(deadline, self.window.clone().acquire_owned()).await {
            Ok(Ok(permit)) => {
                // It may have waited long.
                link.ready_to_publish(deadline).await?;
                Ok(permit)
            }
            _ => Err(Error::new(
                ErrorKind::Unavailable,
                "publish",
                "the window stayed full: the broker confirms nothing",
            )),
        }
    }

    /// Sends a message to its address, without its delay.
    pub(crate) async fn send(&self, link: &Arc<Link>, envelope: Envelope) -> Result<Confirm> {
        let deadline = self.deadline(link);
        let permit = self.admit(link, deadline).await?;
        let (sender, confirm) = Confirm::pending();
        let jobs = self.lanes.to(link, self.options.window, &envelope.address);
        let job = Job::new(envelope, deadline, sender, permit, link.clone());
        match jobs.try_send(job) {
            Ok(()) => Ok(confirm),
            Err(refused) => {
                refused.into_inner().refuse();
                Err(closed("publish"))
            }
        }
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

/// The publisher that users hold.
#[derive(Debug)]
pub(crate) struct Amqp10Publisher {
    guard: Arc<Guard>,
    sender: Sender,
}

impl Amqp10Publisher {
    pub(crate) fn new(guard: Arc<Guard>, options: PublisherOptions) -> Result<Self> {
        let sender = Sender::new(guard.link(), options)?;
        Ok(Self { guard, sender })
    }

    fn check(&self, envelope: &Envelope) -> Result<()> {
        let link = self.guard.link();
        envelope.check("publish", link.capabilities())?;
        message::check("publish", &envelope.message)?;
        if let Some(most) = link.capabilities().max_message_size {
            message::check_size("publish", envelope, most)?;
        }
        link.dialect().check("publish", &envelope.address)
    }

    async fn dispatch(&self, envelope: Envelope) -> Result<Confirm> {
        let link = self.guard.link();
        if !envelope.delay.is_zero() {
            let deadline = self.sender.deadline(link);
            let exchange = envelope.address.exchange_name();
            if !exchange.is_empty() && !has_exchange(link, exchange, deadline).await? {
                return Ok(no_exchange(exchange));
            }
            let envelope = link.ladder().on_rung(link, envelope, deadline).await?;
            return self.sender.send(link, envelope).await;
        }
        self.sender.send(link, envelope).await
    }
}

/// Whether the address of a delayed message is there. Others are told by their verdict.
async fn has_exchange(link: &Link, name: &str, deadline: Instant) -> Result<bool> {
    let connection = link.connection_to_publish(deadline).await?;
    Admin::new(&connection, "publish", deadline).has_exchange(name).await
}

fn no_exchange(name: &str) -> Confirm {
    Confirm::ready(Verdict::Rejected(format!("there is no exchange '{name}'").into()))
}

#[async_trait]
impl Publisher for Amqp10Publisher {
    async fn send(&self, envelope: Envelope) -> Result<Confirm> {
        self.check(&envelope)?;
        self.dispatch(envelope).await
    }

    async fn send_batch(&self, envelopes: Vec<Envelope>) -> Result<Vec<Confirm>> {
        for envelope in &envelopes {
            self.check(envelope)?;
        }
        let mut confirms = Vec::with_capacity(envelopes.len());
        for envelope in envelopes {
            match self.dispatch(envelope).await {
                Ok(confirm) => confirms.push(confirm),
                Err(error) if confirms.is_empty() => return Err(error),
                // Some were sent: what keeps the rest is their own verdict.
                Err(error) => {
                    confirms.push(Confirm::ready(Verdict::Rejected(error.to_string().into())));
                }
            }
        }
        Ok(confirms)
    }

    async fn flush(&self) -> Result<()> {
        self.sender.flush().await
    }
}
