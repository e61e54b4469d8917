//! Hears what is published to all: a queue of this connection's own, and whether it may have missed
//! something.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::BoxStream};
use postrider_core::{
    Consumer, ConsumerOptions, Envelope, Error, ErrorKind, Result, Topology, Transport,
    TransportEvent,
};
use tokio::{
    sync::{Notify, mpsc},
    time::sleep,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long after a new connection bindings are made once more: RabbitMQ 4.0 can lose those that
/// are made while it clears up after the old one.
const SETTLED: Duration = Duration::from_millis(250);

/// The pauses between attempts to listen again.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// How many messages may wait to be looked at; more wait in the queue.
const ROOM: usize = 256;

/// What is heard, in its order.
#[derive(Debug)]
pub(crate) enum Heard {
    Message(Arc<Envelope>),
    /// Nothing comes for now.
    Lost,
    /// It comes again; what was published meanwhile did not.
    Back,
}

/// Takes messages from an exclusive queue and acknowledges them at once: what is said to all is
/// said again, or worth nothing later.
#[derive(Debug)]
pub(crate) struct Listening {
    heard: mpsc::Receiver<Heard>,
    renew: Arc<Notify>,
    _ended: DropGuard,
}

impl Listening {
    /// Declares `topology` and takes from the queue in it.
    pub(crate) async fn start(
        transport: &Arc<dyn Transport>,
        topology: Topology,
        queue: &str,
    ) -> Result<Self> {
        // Before the queue, so that no loss of it is missed.
        let events = transport.events();
        let ear = Ear {
            transport: Arc::clone(transport),
            topology,
            queue: queue.to_owned(),
            renew: Arc::default(),
        };
        let consumer = ear.open().await?;
        let (tell, heard) = mpsc::channel(ROOM);
        let (ended, renew) = (CancellationToken::new(), Arc::clone(&ear.renew));
        let until = ended.clone();
        tokio::spawn(async move {
            until.run_until_cancelled_owned(ear.listen(consumer, events, tell)).await;
        });
        Ok(Self { heard, renew, _ended: ended.drop_guard() })
    }

    /// What is heard next; nothing when the transport was closed. Cancellation safe.
    pub(crate) async fn next(&mut self) -> Option<Heard> {
        self.heard.recv().await
    }

    /// Declares and consumes anew, as after a loss.
    pub(crate) fn renew(&self) {
        self.renew.notify_one();
    }
}

struct Ear {
    transport: Arc<dyn Transport>,
    topology: Topology,
    queue: String,
    renew: Arc<Notify>,
}

impl Ear {
    async fn open(&self) -> Result<Consumer> {
        self.transport.declare(&self.topology).await?;
        self.transport.consumer(&self.queue, ConsumerOptions::default()).await
    }

    /// Hands on what comes, until nobody takes it or the transport is closed.
    async fn listen(
        self,
        consumer: Consumer,
        mut events: BoxStream<'static, TransportEvent>,
        tell: mpsc::Sender<Heard>,
    ) {
        let mut consumer = Some(consumer);
        let mut has_events = true;
        while let Some(source) = &mut consumer {
            let told = tokio::select! {
                biased;
                event = events.next(), if has_events => match event {
                    Some(TransportEvent::Lost { .. }) => tell.send(Heard::Lost).await,
                    Some(TransportEvent::Restored { .. }) => {
                        sleep(SETTLED).await;
                        if let Err(error) = self.transport.declare(&self.topology).await {
                            tracing::warn!(queue = %self.queue, %error, "bindings not made again");
                        }
                        tell.send(Heard::Back).await
                    }
                    Some(_) => continue,
                    None => {
                        has_events = false;
                        continue;
                    }
                },
                () = self.renew.notified() => {
                    consumer = None;
                    self.again(&mut consumer, &tell).await
                }
                delivery = source.recv() => match delivery {
                    Some(Ok(delivery)) => {
                        let told = tell.send(Heard::Message(Arc::clone(delivery.envelope()))).await;
                        delivery.ack();
                        told
                    }
                    Some(Err(error)) => {
                        tracing::warn!(queue = %self.queue, %error, "it listens anew");
                        consumer = None;
                        self.again(&mut consumer, &tell).await
                    }
                    None => return,
                },
            };
            if told.is_err() {
                return;
            }
        }
    }

    /// Tries until it listens again, or until the transport is closed.
    async fn again(
        &self,
        consumer: &mut Option<Consumer>,
        tell: &mpsc::Sender<Heard>,
    ) -> Result<(), mpsc::error::SendError<Heard>> {
        tell.send(Heard::Lost).await?;
        let mut pause = FIRST_PAUSE;
        loop {
            match self.open().await {
                Ok(opened) => {
                    *consumer = Some(opened);
                    return tell.send(Heard::Back).await;
                }
                Err(error) if error.kind() == ErrorKind::Closed => return Ok(()),
                Err(error) => tracing::warn!(queue = %self.queue, %error, "cannot listen yet"),
            }
            sleep(pause.mul_f64(0.5 + 0.5 * self.transport.env().random_unit())).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Refuses what cannot be a part of the names of queues and keys.
pub(crate) fn check_part(what: &'static str, name: &str) -> Result<()> {
    const MOST: usize = 100;
    let complaint = if name.is_empty() {
        "it must not be empty".to_owned()
    } else if name.len() > MOST {
        format!("it may have {MOST} bytes and this one has {}", name.len())
    } else if name.contains(|c: char| c.is_control() || matches!(c, '*' | '#')) {
        "it must not have '*', '#' or control characters".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Invalid, "start", complaint).with_context(what, name.to_owned()))
}
