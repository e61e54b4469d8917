use std::{
    cmp::Reverse,
    ops::Deref,
    sync::{Arc, atomic::Ordering},
};

use semver::VersionReq;

use super::{
    Instance, InstanceHealth,
    roster::{Life, Member, Roster},
};

/// Which instance is picked of those that are there.
///
/// Only healthy ones are, or, where nobody is, degraded ones.
#[derive(Debug, Clone)]
#[must_use = "pass it to Registry::pick"]
pub struct Pick {
    by: By,
    version: Option<VersionReq>,
}

#[derive(Debug, Clone)]
enum By {
    Turn,
    LeastPending,
    Key(String),
}

impl Pick {
    const fn new(by: By) -> Self {
        Self { by, version: None }
    }

    /// One after the other.
    pub const fn round_robin() -> Self {
        Self::new(By::Turn)
    }

    /// The one with the fewest [`Picked`] of this registry that are not dropped yet; of several,
    /// the next in turn.
    pub const fn least_pending() -> Self {
        Self::new(By::LeastPending)
    }

    /// The same instance for the same key, in every process that knows the same instances: that of
    /// the highest hash of key and id (rendezvous hashing, Thaler and Ravishankar 1998). When one
    /// goes, only its keys move; when one comes, it takes its share from all.
    pub fn by_key(key: impl Into<String>) -> Self {
        Self::new(By::Key(key.into()))
    }

    /// Only instances whose version meets `requirement`, for example `^1.4`. As everywhere in
    /// semver, a pre-release meets only requirements that name one of the same version.
    pub fn version(mut self, requirement: VersionReq) -> Self {
        self.version = Some(requirement);
        self
    }

    pub(super) fn of(&self, service: &str, roster: &mut Roster) -> Option<Picked> {
        let (mut healthy, mut degraded) = (Vec::new(), Vec::new());
        for member in roster.of(service) {
            let instance = &*member.instance;
            if self.version.as_ref().is_some_and(|wanted| !wanted.matches(&instance.version)) {
                continue;
            }
            match instance.health {
                InstanceHealth::Healthy => healthy.push(member),
                InstanceHealth::Degraded(_) => degraded.push(member),
                InstanceHealth::Unhealthy(_) => {}
            }
        }
        let candidates = if healthy.is_empty() { degraded } else { healthy };
        let picked = match &self.by {
            By::Turn => *roster.in_turn(service, candidates).first()?,
            By::LeastPending => {
                let in_turn = roster.in_turn(service, candidates);
                in_turn.into_iter().min_by_key(|member| member.pending())?
            }
            By::Key(key) => highest(key, &candidates)?,
        };
        let picked = Picked::new(picked);
        if !matches!(self.by, By::Key(_)) {
            roster.picked(&picked.instance);
        }
        Some(picked)
    }
}

fn highest<'a>(key: &str, candidates: &[&'a Member]) -> Option<&'a Member> {
    let weight = |member: &&Member| Reverse(weight(key, &member.instance.id));
    candidates.iter().copied().min_by_key(weight)
}

/// The weight of an instance for a key, the same on every machine.
fn weight(key: &str, id: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    // The length keeps ("ab", "c") from ("a", "bc").
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key.as_bytes());
    hasher.update(id.as_bytes());
    *hasher.finalize().as_bytes()
}

/// An instance that was picked. It counts as pending there until this is dropped.
#[derive(Debug)]
pub struct Picked {
    instance: Arc<Instance>,
    life: Arc<Life>,
}

impl Picked {
    fn new(member: &Member) -> Self {
        member.life.pending.fetch_add(1, Ordering::Relaxed);
        Self { instance: Arc::clone(&member.instance), life: Arc::clone(&member.life) }
    }

    /// Whether it is not there any more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.life.end.get().is_some()
    }
}

impl Deref for Picked {
    type Target = Instance;

    fn deref(&self) -> &Instance {
        &self.instance
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.life.pending.fetch_sub(1, Ordering::Relaxed);
    }
}
