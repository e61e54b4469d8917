use std::sync::Arc;

use futures_util::FutureExt;
use postrider_core::{Address, Confirm, Env, Publisher, Verdict};

/// Stands around the publisher of an event bus or a work queue: a decorator of [`Publisher`], which
/// sees each message before it is sent and its verdict.
///
/// Dead letters do not pass through it: their headers stay as they are.
///
/// # Example: a publisher that marks its messages
///
/// ```
/// use std::sync::Arc;
/// use async_trait::async_trait;
/// use postrider_core::{Address, Confirm, Env, Envelope, Publisher, Result};
/// use postrider_patterns::PublisherMiddleware;
///
/// #[derive(Debug)]
/// struct Tenant(&'static str);
///
/// #[derive(Debug)]
/// struct Marking(&'static str, Arc<dyn Publisher>);
///
/// impl PublisherMiddleware for Tenant {
///     fn around(&self, publisher: Arc<dyn Publisher>, _env: &Env) -> Arc<dyn Publisher> {
///         Arc::new(Marking(self.0, publisher))
///     }
/// }
///
/// impl Marking {
///     fn marked(&self, mut envelope: Envelope) -> Envelope {
///         envelope.message.headers.set("tenant", self.0);
///         envelope
///     }
/// }
///
/// #[async_trait]
/// impl Publisher for Marking {
///     async fn send(&self, envelope: Envelope) -> Result<Confirm> {
///         self.1.send(self.marked(envelope)).await
///     }
///     async fn send_batch(&self, envelopes: Vec<Envelope>) -> Result<Vec<Confirm>> {
///         self.1.send_batch(envelopes.into_iter().map(|one| self.marked(one)).collect()).await
///     }
///     async fn flush(&self) -> Result<()> {
///         self.1.flush().await
///     }
/// }
/// ```
pub trait PublisherMiddleware: std::fmt::Debug + Send + Sync + 'static {
    /// Puts itself around a publisher. Time and randomness come from `env`.
    fn around(&self, publisher: Arc<dyn Publisher>, env: &Env) -> Arc<dyn Publisher>;
}

/// Puts middleware around a publisher, the first outermost.
pub(crate) fn around_publisher(
    layers: &[Arc<dyn PublisherMiddleware>],
    publisher: Arc<dyn Publisher>,
    env: &Env,
) -> Arc<dyn Publisher> {
    layers.iter().rev().fold(publisher, |within, layer| layer.around(within, env))
}

/// A confirm whose verdict is seen when it comes, also when nobody awaits the confirm.
pub(super) fn observed(
    mut confirm: Confirm,
    see: impl FnOnce(&Verdict) + Send + 'static,
) -> Confirm {
    if let Some(verdict) = (&mut confirm).now_or_never() {
        see(&verdict);
        return Confirm::ready(verdict);
    }
    let (sender, observed) = Confirm::pending();
    tokio::spawn(async move {
        let verdict = confirm.await;
        see(&verdict);
        sender.resolve(verdict);
    });
    observed
}

/// The exchange, or the queue where it is the default exchange.
pub(super) fn destination(address: &Address) -> &str {
    match address.exchange_name() {
        "" => address.routing_key(),
        exchange => exchange,
    }
}

/// The text of a verdict in traces and figures.
pub(super) const fn verdict_text(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Accepted => "accepted",
        Verdict::Rejected(_) => "rejected",
        Verdict::Unroutable => "unroutable",
        Verdict::Unknown(_) => "unknown",
    }
}
