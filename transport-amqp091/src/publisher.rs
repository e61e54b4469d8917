//! The publishing side.

use std::sync::Arc;

use async_trait::async_trait;
use postrider_core::{
    Confirm, Envelope, Error, ErrorKind, Publisher, PublisherOptions, Result, Verdict,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, timeout, timeout_at},
};

use crate::{
    admin::Admin,
    error::{closed, late},
    link::{Guard, Link},
    pipeline::{Job, Pipeline},
};

/// Hands messages to the task that owns a confirm channel. It does not keep the connection open.
#[derive(Debug)]
pub(crate) struct Sender {
    jobs: mpsc::Sender<Job>,
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
        // Each job has a permit of the window, so it never overflows.
        let (sender, jobs) = mpsc::channel(options.window);
        tokio::spawn(Pipeline::new(link.clone(), jobs, options.window).run());
        let window = Arc::new(Semaphore::new(options.window));
        Ok(Self { jobs: sender, window, options })
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

    /// Whether an exchange is there, as far as is known.
    async fn has_exchange(&self, link: &Link, name: &str, deadline: Instant) -> Result<bool> {
        if let Some(there) = link.exchanges().has(name, link.env().now()) {
            return Ok(there);
        }
        let asking = timeout_at(deadline, link.exchanges().asking.lock());
        let _one_at_a_time = asking.await.map_err(|_| late("publish"))?;
        if let Some(there) = link.exchanges().has(name, link.env().now()) {
            return Ok(there);
        }
        let session = link.session_to_publish(deadline).await?;
        let there = Admin::new(&session, "publish", deadline).has_exchange(name).await?;
        link.exchanges().note(name, there, link.env().now());
        Ok(there)
    }

    /// Sends a message to its address, without its delay.
    pub(crate) async fn send(&self, link: &Arc<Link>, envelope: Envelope) -> Result<Confirm> {
        let deadline = self.deadline(link);
        let (size, most) = (envelope.message.headers.wire_bytes(), link.header_limit());
        if size > most {
            return Err(Error::new(
                ErrorKind::Invalid,
                "publish",
                format!("the headers have {size} bytes, and one frame takes {most}"),
            )
            .with_context("address", envelope.address.to_string()));
        }
        if !link.takes_publishes() {
            link.ready_to_publish(deadline).await?;
        }
        let exchange = envelope.address.exchange_name();
        if !self.has_exchange(link, exchange, deadline).await? {
            return Ok(no_exchange(exchange));
        }
        let permit = self.admit(link, deadline).await?;
        let (sender, confirm) = Confirm::pending();
        let job = Job::new(envelope, deadline, sender, permit, link.clone());
        match self.jobs.try_send(job) {
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
pub(crate) struct Amqp091Publisher {
    guard: Arc<Guard>,
    sender: Sender,
}

impl Amqp091Publisher {
    pub(crate) fn new(guard: Arc<Guard>, options: PublisherOptions) -> Result<Self> {
        let sender = Sender::new(guard.link(), options)?;
        Ok(Self { guard, sender })
    }

    async fn dispatch(&self, envelope: Envelope) -> Result<Confirm> {
        let link = self.guard.link();
        if !envelope.delay.is_zero() {
            let deadline = self.sender.deadline(link);
            let exchange = envelope.address.exchange_name();
            if !self.sender.has_exchange(link, exchange, deadline).await? {
                return Ok(no_exchange(exchange));
            }
            let envelope = link.ladder().on_rung(link, envelope, deadline).await?;
            return self.sender.send(link, envelope).await;
        }
        self.sender.send(link, envelope).await
    }
}

fn no_exchange(name: &str) -> Confirm {
    Confirm::ready(Verdict::Rejected(format!("there is no exchange '{name}'").into()))
}

#[async_trait]
impl Publisher for Amqp091Publisher {
    async fn send(&self, envelope: Envelope) -> Result<Confirm> {
        envelope.check("publish", self.guard.link().capabilities())?;
        self.dispatch(envelope).await
    }

    async fn send_batch(&self, envelopes: Vec<Envelope>) -> Result<Vec<Confirm>> {
        for envelope in &envelopes {
            envelope.check("publish", self.guard.link().capabilities())?;
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
