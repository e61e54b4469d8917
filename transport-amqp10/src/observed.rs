//! What was seen of a connection in the frames that passed.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fe2o3_amqp_types::{
    performatives::{Close, Open},
    primitives::{Symbol, Value},
};
use postrider_rabbitmq::Version;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The capability of a broker that takes messages to any address over one link: "Using the AMQP
/// Anonymous Terminus for Message Routing", section 2.
const ANONYMOUS_RELAY: &str = "ANONYMOUS-RELAY";

/// What was seen of a connection.
#[derive(Debug)]
pub(crate) struct Observed {
    product: OnceLock<String>,
    version: OnceLock<Option<Version>>,
    /// How long the broker says that it waits for a sign of life.
    patience: OnceLock<Duration>,
    relays: OnceLock<bool>,
    /// Whether the broker takes no transfers.
    blocked: watch::Sender<bool>,
    cause: Mutex<Option<String>>,
    over: CancellationToken,
    /// Whether the broker takes this side for somebody that it knows.
    welcome: AtomicBool,
    /// Links of which it is asked whether the broker has heard how much is wanted: so much.
    echoes: Mutex<HashMap<String, (u32, CancellationToken)>>,
}

/// The broker's answer that it has heard how much is wanted over a link.
pub(crate) struct Echo {
    link: String,
    heard: CancellationToken,
    observed: Arc<Observed>,
}

impl Echo {
    /// Waits for it. Cancellation safe.
    pub(crate) async fn heard(&self) {
        self.heard.cancelled().await;
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.observed.echoes().remove(&self.link);
    }
}

impl Default for Observed {
    fn default() -> Self {
        Self {
            product: OnceLock::new(),
            version: OnceLock::new(),
            patience: OnceLock::new(),
            relays: OnceLock::new(),
            blocked: watch::Sender::new(false),
            cause: Mutex::default(),
            over: CancellationToken::new(),
            welcome: AtomicBool::new(false),
            echoes: Mutex::default(),
        }
    }
}

impl Observed {
    /// What the broker calls itself.
    pub(crate) fn product(&self) -> Option<&str> {
        self.product.get().map(String::as_str)
    }

    /// The broker's version, if it is a RabbitMQ's.
    pub(crate) fn version(&self) -> Option<Version> {
        self.version.get().copied().flatten()
    }

    /// How long the broker says that it waits for a sign of life, if that is limited.
    pub(crate) fn patience(&self) -> Option<Duration> {
        self.patience.get().copied()
    }

    /// Whether the broker takes messages to any address over one link.
    pub(crate) fn relays(&self) -> bool {
        self.relays.get().copied().unwrap_or(false)
    }

    pub(crate) fn blocked(&self) -> watch::Receiver<bool> {
        self.blocked.subscribe()
    }

    /// Cancelled when the connection is over.
    pub(crate) const fn over(&self) -> &CancellationToken {
        &self.over
    }

    /// Why the broker closed it, as far as it said.
    pub(crate) fn cause(&self) -> Option<String> {
        self.cause.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn end(&self) {
        self.over.cancel();
    }

    /// Whether the broker knew the user and then did not let it in.
    pub(crate) fn is_turned_away(&self) -> bool {
        self.welcome.load(Ordering::Acquire) && self.product.get().is_none()
    }

    fn echoes(&self) -> MutexGuard<'_, HashMap<String, (u32, CancellationToken)>> {
        self.echoes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer to a grant of `credit` over a link. There is one at a time.
    pub(crate) fn echo(self: &Arc<Self>, link: &str, credit: u32) -> Echo {
        let heard = CancellationToken::new();
        self.echoes().insert(link.to_owned(), (credit, heard.clone()));
        Echo { link: link.to_owned(), heard, observed: self.clone() }
    }

    pub(crate) fn note_credit(&self, link: &str, repeated: u32) {
        if let Some((credit, heard)) = self.echoes().get(link)
            && *credit == repeated
        {
            heard.cancel();
        }
    }

    pub(crate) fn note_welcome(&self) {
        self.welcome.store(true, Ordering::Release);
    }

    pub(crate) fn note_open(&self, open: &Open) {
        let property = |name: &str| {
            let properties = open.properties.as_ref()?;
            match properties.get(&Symbol::from(name))? {
                Value::String(text) => Some(text.clone()),
                Value::Symbol(symbol) => Some(symbol.0.clone()),
                _ => None,
            }
        };
        if let Some(millis) = open.idle_time_out {
            let _again = self.patience.set(Duration::from_millis(millis.into()));
        }
        let relays = open.offered_capabilities.as_ref().is_some_and(|offered| {
            offered.0.iter().any(|capability| capability.0 == ANONYMOUS_RELAY)
        });
        let _again = self.relays.set(relays);
        if let Some(product) = property("product") {
            let version = property("version").filter(|_| product == "RabbitMQ");
            let _again = self.version.set(version.and_then(|text| Version::parse(&text)));
            let _again = self.product.set(product);
        }
    }

    /// A broker under an alarm closes the window of every session, and opens them after it. A window
    /// that a publisher has filled is opened again by itself.
    pub(crate) fn note_window(&self, window: u32) {
        self.blocked.send_if_modified(|blocked| {
            let changed = *blocked != (window == 0);
            *blocked = window == 0;
            changed
        });
    }

    pub(crate) fn note_close(&self, close: &Close) {
        let error = close.error.as_ref();
        let told = error.map(|error| match &error.description {
            Some(description) => description.clone(),
            None => format!("{:?}", error.condition),
        });
        let mut cause = self.cause.lock().unwrap_or_else(PoisonError::into_inner);
        cause.get_or_insert(told.unwrap_or_else(|| "the broker closed the connection".to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_no_more_is_forgotten() {
        let observed = Arc::new(Observed::default());
        drop((observed.echo("one", 0), observed.echo("other", 5)));
        assert!(observed.echoes().is_empty());
    }
}
