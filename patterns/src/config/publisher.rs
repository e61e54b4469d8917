use std::{
    collections::BTreeMap,
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use postrider_core::{
    Error, ErrorKind, Publisher, PublisherExt, PublisherOptions, Result, Transport,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::{Mutex, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    ConfigError, ConfigReport, Versioned,
    board::{Board, MOST_INSTANCES},
    following::ANSWER_WITHIN,
    keeper,
    turn::Turn,
    wire::{self, Setting, Stamp},
};
use crate::{codec::Codec, listening::Listening, naming::Naming, telling::Telling};

/// How long to wait while others publish the same setting: longer than a turn lasts that nobody
/// gives back.
const PATIENCE: Duration = Duration::from_secs(40);

/// How long the broker may take for one message.
const SENDING: Duration = Duration::from_secs(10);

/// How long one publish may take in all. Less than a turn lasts, so that nobody else has it then.
const LONGEST: Duration = Duration::from_secs(25);

/// How long answers are waited for.
const ANSWERS: Duration = Duration::from_millis(2 * ANSWER_WITHIN.as_millis() as u64);

/// Publishes one setting of one service, and knows who runs which version of it.
#[derive(Debug)]
pub struct ConfigPublisher<T> {
    inner: Arc<Inner>,
    codec: Codec,
    _stop: DropGuard,
    value: PhantomData<fn(T) -> T>,
}

#[derive(Debug)]
struct Inner {
    transport: Arc<dyn Transport>,
    publisher: Arc<dyn Publisher>,
    telling: Telling,
    setting: Setting,
    board: Board,
    /// One after the other within this publisher.
    order: Mutex<()>,
    /// The highest version that was seen here.
    highest: AtomicU64,
}

impl<T: Serialize + DeserializeOwned> ConfigPublisher<T> {
    /// A publisher of the setting `name` of `service`, by the names of the wire format and in
    /// MessagePack. The name has no dot.
    ///
    /// # Errors
    ///
    /// As [`with`](Self::with).
    pub async fn new(
        transport: &Arc<dyn Transport>,
        service: impl Into<String>,
        name: impl Into<String>,
    ) -> Result<Self> {
        Self::with(transport, service, name, Naming::default(), Codec::default()).await
    }

    /// A publisher with other names or another codec. The queue that keeps the value is declared.
    ///
    /// Cancellation safe: when the future is dropped, a queue may stay until the connection ends.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a name out of range, and what [`Transport::declare`],
    /// [`Transport::consumer`] and [`Transport::publisher`] fail with.
    pub async fn with(
        transport: &Arc<dyn Transport>,
        service: impl Into<String>,
        name: impl Into<String>,
        naming: Naming,
        codec: Codec,
    ) -> Result<Self> {
        let setting = Setting::new(service.into(), name.into(), naming)?;
        let queue = setting.queue_of("publisher", &transport.env().new_id().to_string());
        let topology = setting.published_by(&queue, 4 * MOST_INSTANCES as u64);
        let listening = Listening::start(transport, topology, &queue).await?;
        let options = PublisherOptions::default().with_timeout(SENDING);
        let inner = Arc::new(Inner {
            transport: Arc::clone(transport),
            publisher: transport.publisher(options).await?,
            telling: Telling::start(transport).await?,
            setting,
            board: Board::new(),
            order: Mutex::new(()),
            highest: AtomicU64::new(0),
        });
        inner.telling.tell(inner.setting.ask());
        let stop = CancellationToken::new();
        let (until, following) = (stop.clone(), Arc::clone(&inner));
        tokio::spawn(async move {
            let Inner { board, telling, setting, .. } = &*following;
            until.run_until_cancelled(board.follow(listening, telling, setting)).await
        });
        Ok(Self { inner, codec, _stop: stop.drop_guard(), value: PhantomData })
    }

    /// Publishes a value whatever is in force, and gives its version. When it returns, the broker
    /// keeps the value, and every instance that is connected has it in its queue.
    ///
    /// When the future is dropped, the value is published all the same.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Codec`] for a value that cannot be written or has more than 1 MiB;
    /// [`ConfigError::Transport`], with [`ErrorKind::TimedOut`] when others publish all the time
    /// and [`ErrorKind::Unknown`] when the value may be in force all the same.
    pub async fn publish(&self, value: &T) -> Result<u64, ConfigError> {
        self.update(value, None).await
    }

    /// Publishes a value if `version` is in force, where 0 is none, and gives the new version.
    ///
    /// When the future is dropped, the value is published all the same.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Conflict`] when it is not, and those of [`publish`](Self::publish).
    pub async fn publish_if(&self, value: &T, version: u64) -> Result<u64, ConfigError> {
        self.update(value, Some(version)).await
    }

    async fn update(&self, value: &T, meant: Option<u64>) -> Result<u64, ConfigError> {
        let body = self.codec.encode_within(value, wire::VALUES)?;
        let (inner, codec) = (Arc::clone(&self.inner), self.codec);
        // A task of its own, so that a turn is given back whatever becomes of the caller.
        let updated = tokio::spawn(async move { inner.update(body, codec, meant).await }).await;
        updated.unwrap_or_else(|_ended| Err(unknown("the runtime ended").into()))
    }

    /// The value that the broker keeps; nothing when none was published. Cancellation safe.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Codec`] for one that is no `T`, [`ConfigError::Transport`].
    pub async fn current(&self) -> Result<Option<Versioned<T>>, ConfigError> {
        let kept = keeper::peek(&self.inner.transport, &self.inner.setting.keeper()).await?;
        let Some(kept) = kept else { return Ok(None) };
        let Some(stamp) = Stamp::of(&kept.message) else { return Ok(None) };
        let content_type = kept.message.content_type.as_deref();
        let value = Codec::decode_within(content_type, &kept.message.body, wire::VALUES)?;
        Ok(Some(Versioned { version: stamp.version, value }))
    }

    /// What the instances reported last, by their names, to be read or watched. One that died stays
    /// until [`ask`](Self::ask); at most 4,096 are known.
    #[must_use]
    pub fn reports(&self) -> watch::Receiver<BTreeMap<String, ConfigReport>> {
        self.inner.board.reports.subscribe()
    }

    /// Forgets what was reported, asks all instances anew, and gives what they answer within a
    /// second. Cancellation safe.
    ///
    /// # Errors
    ///
    /// When the question cannot be sent.
    pub async fn ask(&self) -> Result<Vec<ConfigReport>> {
        self.inner.ask().await?;
        Ok(self.inner.board.reports.borrow().values().cloned().collect())
    }

    /// How many reports were left because they made no sense or came from too many instances.
    #[must_use]
    pub fn refused_reports(&self) -> u64 {
        *self.inner.board.refused.borrow()
    }
}

impl Inner {
    async fn ask(&self) -> Result<()> {
        self.board.clear();
        self.telling.tell_surely(self.setting.ask()).await?;
        sleep(ANSWERS).await;
        Ok(())
    }

    async fn update(
        &self,
        body: Bytes,
        codec: Codec,
        meant: Option<u64>,
    ) -> Result<u64, ConfigError> {
        let _order = self.order.lock().await;
        let deadline = self.transport.env().deadline(PATIENCE);
        let turn = Turn::take(&self.transport, &self.setting.turn(), deadline).await?;
        let updated = timeout(LONGEST, self.update_in_turn(body, codec, meant)).await;
        turn.give_back().await;
        updated.unwrap_or_else(|_elapsed| Err(unknown("it took too long").into()))
    }

    async fn update_in_turn(
        &self,
        body: Bytes,
        codec: Codec,
        meant: Option<u64>,
    ) -> Result<u64, ConfigError> {
        self.transport.declare(&self.setting.kept()).await?;
        let current = self.version_in_force().await?;
        self.highest.fetch_max(current, Ordering::Relaxed);
        if meant.is_some_and(|meant| meant != current) {
            return Err(ConfigError::Conflict { current });
        }
        let env = self.transport.env();
        let Some(stamp) = Stamp::after(current, env.new_id().to_string()) else {
            let why = "there is no version left; delete the queue that keeps the value";
            return Err(Error::new(ErrorKind::Invalid, "publish", why).into());
        };
        let version = stamp.version;
        let value = self.setting.value(body, codec, &stamp, env.timestamp());
        self.publisher.publish(value).await?;
        self.highest.fetch_max(version, Ordering::Relaxed);
        Ok(version)
    }

    /// The version that is kept. When nothing is, the instances are asked what they have seen: a
    /// keeper that was lost must not begin anew below them.
    async fn version_in_force(&self) -> Result<u64> {
        let kept = keeper::peek(&self.transport, &self.setting.keeper()).await?;
        if let Some(stamp) = kept.and_then(|kept| Stamp::of(&kept.message)) {
            return Ok(stamp.version);
        }
        self.ask().await?;
        Ok(self.board.highest_version().max(self.highest.load(Ordering::Relaxed)))
    }
}

fn unknown(why: &'static str) -> Error {
    Error::new(ErrorKind::Unknown, "publish", why)
}
