//! How a transport connects, and how it comes back.

use std::time::Duration;

use postrider_core::Env;

use postrider_rabbitmq::Tls;

use crate::profile::Profile;

/// What a connection's URL does not say.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// Time, randomness and identity. Default: the machine's.
    pub env: Env,
    /// The name of the connection in the broker's tools. Default: the URL's `connection_name`, else
    /// `postrider` and a unique id.
    pub name: Option<String>,
    /// The certificates of an `amqp10s` connection. Default: those that the platform trusts.
    pub tls: Tls,
    /// What kind of broker it is, as far as the URL does not say it. Default: what it says itself.
    pub profile: Profile,
    /// How long connecting may take, the handshake included. Default: 10 seconds.
    pub connect_timeout: Duration,
    /// How long a call other than a publish may take, waiting for a lost connection included.
    /// Default: 30 seconds.
    pub operation_timeout: Duration,
    /// The longest pause between two attempts to reconnect; the first is made at once, and the
    /// pauses double from 100 milliseconds. Default: 5 seconds.
    pub reconnect_pause: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            env: Env::system(),
            name: None,
            tls: Tls::default(),
            profile: Profile::default(),
            connect_timeout: Duration::from_secs(10),
            operation_timeout: Duration::from_secs(30),
            reconnect_pause: Duration::from_secs(5),
        }
    }
}

impl Options {
    /// Sets [`env`](Self::env).
    #[must_use]
    pub fn with_env(mut self, env: Env) -> Self {
        self.env = env;
        self
    }

    /// Sets [`name`](Self::name).
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets [`tls`](Self::tls).
    #[must_use]
    pub fn with_tls(mut self, tls: Tls) -> Self {
        self.tls = tls;
        self
    }

    /// Sets [`profile`](Self::profile).
    #[must_use]
    pub fn with_profile(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    /// Sets [`connect_timeout`](Self::connect_timeout).
    #[must_use]
    pub const fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets [`operation_timeout`](Self::operation_timeout).
    #[must_use]
    pub const fn with_operation_timeout(mut self, timeout: Duration) -> Self {
        self.operation_timeout = timeout;
        self
    }

    /// Sets [`reconnect_pause`](Self::reconnect_pause).
    #[must_use]
    pub const fn with_reconnect_pause(mut self, pause: Duration) -> Self {
        self.reconnect_pause = pause;
        self
    }
}
