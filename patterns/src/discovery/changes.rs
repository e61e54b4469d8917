use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use tokio::sync::watch;

use super::{
    Instance,
    registry::Shared,
    roster::{End, Key, Life},
};

/// What changed among the instances.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// It is there.
    Joined(Arc<Instance>),
    /// It says something else of itself, for example of its health.
    Changed(Arc<Instance>),
    /// It said that it leaves.
    Left(Arc<Instance>),
    /// Nothing was heard of it for the time of its lease.
    Expired(Arc<Instance>),
}

impl Change {
    /// The instance that it is about.
    #[must_use]
    pub const fn instance(&self) -> &Arc<Instance> {
        match self {
            Self::Joined(one) | Self::Changed(one) | Self::Left(one) | Self::Expired(one) => one,
        }
    }
}

/// The changes among instances, beginning with those who are there.
///
/// Who reads slowly misses steps and no outcome: an instance that changed three times meanwhile is
/// told once, one that came and went is not told at all. So it takes no more memory than there are
/// instances.
#[derive(Debug)]
pub struct Changes {
    shared: Arc<Shared>,
    revision: watch::Receiver<u64>,
    service: Option<String>,
    known: BTreeMap<Key, (Arc<Instance>, Arc<Life>)>,
    told: VecDeque<Change>,
}

impl Changes {
    pub(super) fn new(shared: Arc<Shared>, service: Option<String>) -> Self {
        let mut revision = shared.revision.subscribe();
        revision.mark_changed();
        let (known, told) = (BTreeMap::new(), VecDeque::new());
        Self { shared, revision, service, known, told }
    }

    /// The next change; nothing when the registry was dropped or its transport closed.
    ///
    /// Cancellation safe: a call given up takes no change with it.
    pub async fn next(&mut self) -> Option<Change> {
        loop {
            if let Some(change) = self.told.pop_front() {
                return Some(change);
            }
            self.revision.changed().await.ok()?;
            self.compare();
        }
    }

    fn compare(&mut self) {
        let roster = self.shared.roster();
        let of_it = |key: &Key| self.service.as_ref().is_none_or(|service| *service == key.0);
        let now: BTreeMap<Key, (Arc<Instance>, Arc<Life>)> = roster
            .members()
            .filter(|(key, _)| of_it(key))
            .map(|(key, member)| {
                (key.clone(), (Arc::clone(&member.instance), Arc::clone(&member.life)))
            })
            .collect();
        drop(roster);
        for (key, (instance, life)) in &self.known {
            if !now.contains_key(key) {
                let instance = Arc::clone(instance);
                self.told.push_back(match life.end.get() {
                    Some(End::Left) => Change::Left(instance),
                    _ => Change::Expired(instance),
                });
            }
        }
        for (key, (instance, _)) in &now {
            match self.known.get(key) {
                None => self.told.push_back(Change::Joined(Arc::clone(instance))),
                Some((known, _)) if known != instance => {
                    self.told.push_back(Change::Changed(Arc::clone(instance)));
                }
                Some(_) => {}
            }
        }
        self.known = now;
    }
}
