//! What the example programs share: the option that picks the broker.

use std::sync::Arc;

use postrider::Transport;

/// The option `--broker`, to be flattened into a program's own options.
#[derive(Debug, Clone, clap::Args)]
pub struct BrokerArgs {
    /// The broker's URL; memory:// is one inside this program
    #[arg(long = "broker", value_name = "URL", default_value = "memory://")]
    #[arg(value_parser = broker_url)]
    url: String,
}

impl BrokerArgs {
    /// Opens a connection to the broker. Each call opens another one.
    ///
    /// # Errors
    ///
    /// As [`postrider::connect`].
    pub async fn connect(&self) -> postrider::Result<Arc<dyn Transport>> {
        // Every `memory://` without a name is a broker of its own, and connections to different
        // brokers would never hear of each other.
        match self.url.as_str() {
            "memory://" => postrider::connect("memory://local").await,
            url => postrider::connect(url).await,
        }
    }
}

/// Refuses what no transport of this build is for, before anything is started.
fn broker_url(text: &str) -> Result<String, String> {
    let scheme = text.split_once("://").map(|(scheme, _)| scheme);
    if scheme.is_some_and(|scheme| postrider::schemes().contains(&scheme)) {
        return Ok(text.to_owned());
    }
    let possible: Vec<_> =
        postrider::schemes().iter().map(|scheme| format!("{scheme}://")).collect();
    Err(format!("the URL of a broker begins with one of: {}", possible.join(", ")))
}
