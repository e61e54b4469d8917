//! What the example programs share: the option that picks the broker, and the orders of the sample.

pub mod input;
pub mod units;

use std::{ffi::OsStr, sync::Arc};

use clap::{Arg, Command, builder::TypedValueParser, error::ErrorKind};
use postrider::Transport;

/// The option `--broker`, to be flattened into a program's own options.
#[derive(Debug, Clone, clap::Args)]
pub struct BrokerArgs {
    /// The broker's URL; memory:// is one inside this program
    #[arg(long = "broker", value_name = "URL", default_value = "memory://", global = true)]
    #[arg(value_parser = BrokerUrl)]
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
#[derive(Clone)]
struct BrokerUrl;

// A plain parsing function would do, but clap prints what that refuses, and a URL may hold a
// password.
impl TypedValueParser for BrokerUrl {
    type Value = String;

    fn parse_ref(
        &self,
        command: &Command,
        _argument: Option<&Arg>,
        value: &OsStr,
    ) -> Result<String, clap::Error> {
        let possible: Vec<_> =
            postrider::schemes().iter().map(|scheme| format!("{scheme}://")).collect();
        let possible = possible.join(", ");
        let problem = match value.to_str().and_then(|url| Some((url, url.split_once("://")?.0))) {
            Some((url, scheme)) if postrider::schemes().contains(&scheme) => {
                return Ok(url.to_owned());
            }
            Some((_, scheme)) => {
                format!("this build has no transport for '{scheme}://'; it has {possible}")
            }
            None => format!("this is no URL of a broker; it begins with {possible}"),
        };
        let message = format!("--broker: {problem}\n");
        Err(clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command))
    }
}
