use std::{fmt, sync::Arc, time::Duration};

use postrider_core::{Error, ErrorKind, Result, Transport};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Rejection, Versioned,
    applying::{Applying, Check, Facts},
    following::{Following, LOOK_AGAIN},
    wire::Setting,
};
use crate::{
    codec::Codec,
    listening::{Listening, check_part},
    naming::Naming,
    telling::Telling,
};

/// A setting of a service, as it is in force in this instance. Cloning shares it.
///
/// Dropping the last clone ends it, and publishers are told.
#[derive(Debug)]
pub struct Config<T> {
    values: watch::Receiver<Option<Arc<Versioned<T>>>>,
    facts: Arc<Facts>,
    instance: Arc<str>,
    _stop: Arc<DropGuard>,
}

impl<T> Clone for Config<T> {
    fn clone(&self) -> Self {
        Self {
            values: self.values.clone(),
            facts: Arc::clone(&self.facts),
            instance: Arc::clone(&self.instance),
            _stop: Arc::clone(&self._stop),
        }
    }
}

/// What a [`Config`] has heard so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ConfigStats {
    /// Values that were put in force.
    pub applied: u64,
    /// Values that could not be read or did not pass a check.
    pub rejected: u64,
    /// Values that were older than one that was seen.
    pub stale: u64,
    /// Messages that are no values or have no version.
    pub invalid: u64,
}

impl<T: DeserializeOwned + Send + Sync + 'static> Config<T> {
    /// The setting `name` of `service`, to be set up. The name has no dot.
    pub fn builder(service: impl Into<String>, name: impl Into<String>) -> ConfigBuilder<T> {
        ConfigBuilder {
            service: service.into(),
            name: name.into(),
            initial: None,
            checks: Vec::new(),
            instance: None,
            refresh: Duration::from_secs(60),
            naming: Naming::default(),
            codec: Codec::default(),
        }
    }
}

impl<T> Config<T> {
    /// The value in force; nothing when none was published and there is no default.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Versioned<T>>> {
        self.values.borrow().clone()
    }

    /// The value in force, to be watched. A value is replaced as a whole: who reads it never sees a
    /// part of another. Who reads slowly misses steps, and never the last.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Option<Arc<Versioned<T>>>> {
        self.values.clone()
    }

    /// Waits until a value is in force. Cancellation safe.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`] when the transport was closed before.
    pub async fn ready(&self) -> Result<Arc<Versioned<T>>> {
        let mut values = self.values.clone();
        let value = values.wait_for(Option::is_some).await.ok().and_then(|value| value.clone());
        value.ok_or_else(|| Error::new(ErrorKind::Closed, "config", "the transport was closed"))
    }

    /// Why the newest value is not the one in force, when it is not.
    #[must_use]
    pub fn rejection(&self) -> Option<Rejection> {
        self.facts.lock().1.clone()
    }

    /// The name by which this instance reports.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// What it has heard so far.
    #[must_use]
    pub fn stats(&self) -> ConfigStats {
        self.facts.lock().0
    }
}

/// Sets up a [`Config`].
#[must_use = "call start"]
pub struct ConfigBuilder<T> {
    service: String,
    name: String,
    initial: Option<T>,
    checks: Vec<Arc<Check<T>>>,
    instance: Option<String>,
    refresh: Duration,
    naming: Naming,
    codec: Codec,
}

impl<T> fmt::Debug for ConfigBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigBuilder")
            .field("service", &self.service)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl<T: DeserializeOwned + Send + Sync + 'static> ConfigBuilder<T> {
    /// What is in force, as version 0, until there is a published value. Default: nothing.
    pub fn default_value(mut self, value: T) -> Self {
        self.initial = Some(value);
        self
    }

    /// Adds a check that each value must pass. One that does not is rejected with this reason, and
    /// the old one stays; so is one by which a check panics.
    pub fn check<F>(mut self, check: F) -> Self
    where
        F: Fn(&T) -> Result<(), String> + Send + Sync + 'static,
    {
        self.checks.push(Arc::new(check));
        self
    }

    /// The name by which this instance reports, for example that of its
    /// [`Announcer`](crate::discovery::Announcer::id). Default: a new id.
    pub fn instance(mut self, id: impl Into<String>) -> Self {
        self.instance = Some(id.into());
        self
    }

    /// How often it looks at what the broker keeps, give or take a tenth, in case it missed
    /// something: from a second to a day. Default: a minute.
    pub fn refresh(mut self, interval: Duration) -> Self {
        self.refresh = interval;
        self
    }

    /// The names of exchanges and queues. Default: those of the wire format.
    pub fn naming(mut self, naming: Naming) -> Self {
        self.naming = naming;
        self
    }

    /// The codec of its reports. Values are read in either. Default: MessagePack.
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// Reads what the broker keeps and follows what is published. When it returns, the kept value
    /// is in force, if there is one and it is sound. It waits 5 seconds at most for one that
    /// somebody else holds.
    ///
    /// Cancellation safe: when the future is dropped, a queue may stay until the connection ends.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a name or an interval out of range, or a default that does not
    /// pass its own checks; and what [`Transport::declare`], [`Transport::consumer`] and
    /// [`Transport::publisher`] fail with.
    pub async fn start(self, transport: &Arc<dyn Transport>) -> Result<Config<T>> {
        const REFRESH: std::ops::RangeInclusive<Duration> =
            Duration::from_secs(1)..=Duration::from_secs(24 * 60 * 60);
        let setting = Setting::new(self.service, self.name, self.naming)?;
        let instance = self.instance.unwrap_or_else(|| transport.env().new_id().to_string());
        check_part("instance", &instance)?;
        let invalid = |why: String| Error::new(ErrorKind::Invalid, "config", why);
        if !REFRESH.contains(&self.refresh) {
            return Err(invalid("it looks again after a second to a day".to_owned()));
        }
        if let Some(initial) = &self.initial {
            let sound = self.checks.iter().try_for_each(|check| check(initial));
            sound.map_err(|reason| invalid(format!("the default is not sound: {reason}")))?;
        }
        let initial = self.initial.map(|value| Arc::new(Versioned { version: 0, value }));
        let (sender, values) = watch::channel(initial);
        let facts = Arc::new(Facts::default());
        let queue = setting.queue_of("reader", &transport.env().new_id().to_string());
        let listening = Listening::start(transport, setting.read_by(&queue), &queue).await?;
        let telling = Telling::start(transport).await?;
        let stop = CancellationToken::new();
        let guard = Arc::new(stop.clone().drop_guard());
        let mut following = Following {
            applying: Applying::new(sender, self.checks, Arc::clone(&facts)),
            transport: Arc::clone(transport),
            setting,
            instance: instance.clone(),
            codec: self.codec,
            refresh: self.refresh,
            look_again: LOOK_AGAIN,
            telling,
            listening,
            stop,
        };
        following.begin().await?;
        tokio::spawn(following.run());
        Ok(Config { values, facts, instance: instance.into(), _stop: guard })
    }
}
