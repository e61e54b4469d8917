//! Says things that may be lost, without ever waiting for the broker.

use std::{sync::Arc, time::Duration};

use postrider_core::{Envelope, ErrorKind, Publisher, PublisherOptions, Result, Transport};
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};

use crate::publishing::stored_or_unwanted;

/// How long the broker may take for one message.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often, and after which pause, what must be said is said again where it was refused.
const AGAIN: usize = 5;
const PAUSE: Duration = Duration::from_millis(100);

/// How many messages may wait; more are dropped.
const ROOM: usize = 256;

/// A task that publishes one message after the other. It ends when this is dropped and all is said.
#[derive(Debug)]
pub(crate) struct Telling(mpsc::Sender<Word>);

struct Word {
    envelope: Envelope,
    outcome: Option<oneshot::Sender<Result<()>>>,
}

impl Telling {
    pub(crate) async fn start(transport: &Arc<dyn Transport>) -> Result<Self> {
        let options = PublisherOptions::default().with_timeout(PATIENCE);
        let publisher = transport.publisher(options).await?;
        let (sender, words) = mpsc::channel(ROOM);
        tokio::spawn(say(publisher, words));
        Ok(Self(sender))
    }

    /// Says it when its turn comes; drops it when too much waits.
    pub(crate) fn tell(&self, envelope: Envelope) {
        if self.0.try_send(Word { envelope, outcome: None }).is_err() {
            tracing::debug!("nothing can be said now; a message was dropped");
        }
    }

    /// Says it and waits until the broker has it. That nobody listens is no error.
    pub(crate) async fn tell_surely(&self, envelope: Envelope) -> Result<()> {
        let (outcome, told) = oneshot::channel();
        let word = Word { envelope, outcome: Some(outcome) };
        match self.0.send(word).await {
            Ok(()) => told.await.unwrap_or(Ok(())),
            // Only a runtime that ends takes the task away.
            Err(_ended) => Ok(()),
        }
    }
}

async fn once(publisher: &dyn Publisher, envelope: Envelope) -> Result<()> {
    match publisher.send(envelope).await {
        Ok(confirm) => stored_or_unwanted(confirm.await),
        Err(error) => Err(error),
    }
}

async fn say(publisher: Arc<dyn Publisher>, mut words: mpsc::Receiver<Word>) {
    while let Some(Word { envelope, outcome }) = words.recv().await {
        let mut said = once(&*publisher, envelope.clone()).await;
        // The queue of a listener that is just going refuses, and the others may have heard it. That
        // they hear it twice is no harm.
        for _again in 0..if outcome.is_some() { AGAIN } else { 0 } {
            if !said.as_ref().is_err_and(|error| error.kind() == ErrorKind::Rejected) {
                break;
            }
            sleep(PAUSE).await;
            said = once(&*publisher, envelope.clone()).await;
        }
        match (outcome, said) {
            (Some(outcome), said) => {
                let _nobody_waits = outcome.send(said);
            }
            (None, Err(error)) => tracing::debug!(%error, "not said"),
            (None, Ok(())) => {}
        }
    }
}
