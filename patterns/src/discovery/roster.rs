//! Who is there: decisions without I/O. Time is told from outside, and is the reader's own.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Instance,
    wire::{Announce, DEFAULT_LEASE},
};

/// How long beyond its lease an instance is waited for: a broker that takes nothing for so long
/// delays its words without a sign of it.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// A service and the id of one of its instances.
pub(super) type Key = (String, String);

/// How many there may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) instances: usize,
    pub(super) services: usize,
}

/// What outlives a change of an instance.
#[derive(Debug, Default)]
pub(super) struct Life {
    pub(super) pending: AtomicUsize,
    pub(super) end: OnceLock<End>,
}

/// How an instance was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Left,
    Expired,
}

#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) instance: Arc<Instance>,
    pub(super) life: Arc<Life>,
    sequence: u64,
    heard_at: Instant,
    lease: Duration,
}

impl Member {
    fn deadline(&self) -> Instant {
        self.heard_at + self.lease + GRACE
    }

    pub(super) fn pending(&self) -> usize {
        self.life.pending.load(Ordering::Relaxed)
    }
}

/// What is remembered of one that is gone, as long as an old word of it may still come.
#[derive(Debug)]
struct Gone {
    end: End,
    sequence: u64,
    until: Instant,
}

/// What an announcement did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    Joined,
    Changed,
    Renewed,
    /// It is older than what is known, or its instance has left.
    Stale,
    /// There are as many as there may be.
    Full,
}

#[derive(Debug)]
pub(super) struct Roster {
    bounds: Bounds,
    members: BTreeMap<Key, Member>,
    services: HashMap<String, usize>,
    gone: HashMap<Key, Gone>,
    /// The keys of `gone`, oldest first.
    going: VecDeque<Key>,
    /// Who was picked last.
    turns: HashMap<String, String>,
}

impl Roster {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            members: BTreeMap::new(),
            services: HashMap::new(),
            gone: HashMap::new(),
            going: VecDeque::new(),
            turns: HashMap::new(),
        }
    }

    pub(super) fn members(&self) -> impl Iterator<Item = (&Key, &Member)> {
        self.members.iter()
    }

    /// The instances of one service, by their ids.
    pub(super) fn of(&self, service: &str) -> impl Iterator<Item = &Member> {
        let first = (service.to_owned(), String::new());
        let of_it = self.members.range(first..).take_while(move |((name, _), _)| name == service);
        of_it.map(|(_, member)| member)
    }

    pub(super) fn services(&self) -> Vec<String> {
        let mut services: Vec<_> = self.services.keys().cloned().collect();
        services.sort_unstable();
        services
    }

    /// An instance says that it is there.
    pub(super) fn announced(&mut self, announce: Announce, now: Instant) -> Heard {
        let Announce { instance, sequence, lease } = announce;
        let key = (instance.service.clone(), instance.id.clone());
        if let Some(member) = self.members.get_mut(&key) {
            if sequence <= member.sequence {
                return Heard::Stale;
            }
            (member.sequence, member.heard_at, member.lease) = (sequence, now, lease);
            if *member.instance == instance {
                return Heard::Renewed;
            }
            member.instance = Arc::new(instance);
            return Heard::Changed;
        }
        match self.gone.get(&key) {
            Some(gone) if gone.end == End::Left || sequence <= gone.sequence => {
                return Heard::Stale;
            }
            _ => {}
        }
        let is_new = !self.services.contains_key(&key.0);
        if self.members.len() >= self.bounds.instances
            || (is_new && self.services.len() >= self.bounds.services)
        {
            return Heard::Full;
        }
        *self.services.entry(key.0.clone()).or_default() += 1;
        let (instance, life) = (Arc::new(instance), Arc::default());
        self.members.insert(key, Member { instance, life, sequence, heard_at: now, lease });
        Heard::Joined
    }

    /// An instance says that it leaves. Whether it was there.
    pub(super) fn left(&mut self, service: String, instance: String, now: Instant) -> bool {
        let key = (service, instance);
        if self.end(&key, End::Left, now) {
            return true;
        }
        // Words of it may come yet, though it was not heard of or is gone.
        let sequence = self.gone.get(&key).map_or(0, |gone| gone.sequence);
        self.remember(key, Gone { end: End::Left, sequence, until: now + 2 * DEFAULT_LEASE });
        false
    }

    /// Everything that was published before `moment` has been heard: whose lease was over then is
    /// gone. How many they are.
    pub(super) fn heard_all_until(&mut self, moment: Instant, now: Instant) -> usize {
        let over: Vec<_> = self
            .members
            .iter()
            .filter(|(_, member)| member.deadline() <= moment)
            .map(|(key, _)| key.clone())
            .collect();
        for key in &over {
            self.end(key, End::Expired, now);
        }
        while let Some(key) = self.going.front() {
            if self.gone.get(key).is_some_and(|gone| gone.until > now) {
                break;
            }
            self.gone.remove(key);
            self.going.pop_front();
        }
        over.len()
    }

    /// Something may have been missed: all leases begin anew.
    pub(super) fn begin_anew(&mut self, now: Instant) {
        for member in self.members.values_mut() {
            member.heard_at = now;
        }
    }

    /// When the first lease is over.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.members.values().map(Member::deadline).min()
    }

    fn end(&mut self, key: &Key, end: End, now: Instant) -> bool {
        let Some(member) = self.members.remove(key) else { return false };
        let _first = member.life.end.set(end);
        if let Some(count) = self.services.get_mut(&key.0) {
            *count -= 1;
            if *count == 0 {
                self.services.remove(&key.0);
                self.turns.remove(&key.0);
            }
        }
        // Its words live for a lease in the broker.
        let until = now + 2 * member.lease;
        self.remember(key.clone(), Gone { end, sequence: member.sequence, until });
        true
    }

    fn remember(&mut self, key: Key, gone: Gone) {
        if self.gone.insert(key.clone(), gone).is_some() {
            return;
        }
        self.going.push_back(key);
        if self.going.len() > self.bounds.instances
            && let Some(oldest) = self.going.pop_front()
        {
            self.gone.remove(&oldest);
        }
    }

    /// The candidates of `service`, beginning with the one after the last that was picked.
    pub(super) fn in_turn<'a>(
        &self,
        service: &str,
        mut candidates: Vec<&'a Member>,
    ) -> Vec<&'a Member> {
        if let Some(last) = self.turns.get(service) {
            let next = candidates.partition_point(|member| member.instance.id <= *last);
            let turn = next % candidates.len().max(1);
            candidates.rotate_left(turn);
        }
        candidates
    }

    pub(super) fn picked(&mut self, instance: &Instance) {
        match self.turns.get_mut(&instance.service) {
            Some(last) => last.clone_from(&instance.id),
            None => {
                self.turns.insert(instance.service.clone(), instance.id.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use semver::Version;

    use super::*;
    use crate::discovery::InstanceHealth;

    const LEASE: Duration = Duration::from_secs(10);
    const SECOND: Duration = Duration::from_secs(1);

    fn roster() -> Roster {
        Roster::new(Bounds { instances: 4, services: 2 })
    }

    fn word(service: &str, id: &str, sequence: u64) -> Announce {
        let instance = Instance {
            service: service.to_owned(),
            id: id.to_owned(),
            version: Version::new(1, 0, 0),
            methods: Vec::new(),
            metadata: BTreeMap::new(),
            health: InstanceHealth::Healthy,
        };
        Announce { instance, sequence, lease: LEASE }
    }

    fn start() -> Instant {
        postrider_core::Env::system().now()
    }

    #[test]
    fn a_lease_ends_by_what_was_surely_heard() {
        let (mut roster, now) = (roster(), start());
        assert_eq!(roster.announced(word("a", "1", 1), now), Heard::Joined);
        assert_eq!(roster.announced(word("a", "2", 1), now), Heard::Joined);
        assert_eq!(roster.announced(word("a", "2", 2), now + 5 * SECOND), Heard::Renewed);
        let over = now + LEASE + GRACE;
        assert_eq!(roster.next_deadline(), Some(over));
        // By the clock it is over, by what was heard it is not.
        assert_eq!(roster.heard_all_until(over - SECOND, over + LEASE), 0);
        assert_eq!(roster.heard_all_until(over, over), 1);
        let left: Vec<_> = roster.of("a").map(|member| &*member.instance.id).collect();
        assert_eq!(left, ["2"]);
        roster.begin_anew(over);
        assert_eq!(roster.next_deadline(), Some(over + LEASE + GRACE));
    }

    #[test]
    fn old_words_change_nothing() {
        let (mut roster, now) = (roster(), start());
        roster.announced(word("a", "1", 5), now);
        assert_eq!(roster.announced(word("a", "1", 5), now + SECOND), Heard::Stale);
        assert_eq!(roster.announced(word("a", "1", 3), now + SECOND), Heard::Stale);
        assert_eq!(roster.next_deadline(), Some(now + LEASE + GRACE), "nor renew it");
    }

    #[test]
    fn who_left_stays_away_and_who_expired_may_return() {
        let (mut roster, now) = (roster(), start());
        roster.announced(word("a", "1", 5), now);
        roster.announced(word("a", "2", 5), now);
        assert!(roster.left("a".into(), "1".into(), now));
        assert!(!roster.left("a".into(), "1".into(), now));
        assert_eq!(roster.announced(word("a", "1", 6), now), Heard::Stale);
        let over = now + LEASE + GRACE;
        assert_eq!(roster.heard_all_until(over, over), 1);
        assert!(roster.services().is_empty());
        assert_eq!(roster.announced(word("a", "2", 5), over), Heard::Stale);
        assert_eq!(roster.announced(word("a", "2", 6), over), Heard::Joined);
        // It expired, and then it says that it had left.
        roster.heard_all_until(over + LEASE + GRACE, over + LEASE + GRACE);
        assert!(!roster.left("a".into(), "2".into(), over + LEASE));
        assert_eq!(roster.announced(word("a", "2", 9), over + LEASE), Heard::Stale);
        // The goodbye overtakes all else.
        assert!(!roster.left("a".into(), "3".into(), over));
        assert_eq!(roster.announced(word("a", "3", 1), over), Heard::Stale);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut roster, now) = (roster(), start());
        assert_eq!(roster.announced(word("a", "1", 1), now), Heard::Joined);
        assert_eq!(roster.announced(word("b", "1", 1), now), Heard::Joined);
        assert_eq!(roster.announced(word("c", "1", 1), now), Heard::Full, "a third service");
        assert_eq!(roster.announced(word("a", "2", 1), now), Heard::Joined);
        assert_eq!(roster.announced(word("a", "3", 1), now), Heard::Joined);
        assert_eq!(roster.announced(word("a", "4", 1), now), Heard::Full, "a fifth instance");
        for number in 0..100 {
            let id = number.to_string();
            roster.left("b".into(), if number == 0 { "1".into() } else { id.clone() }, now);
            roster.announced(word("b", &format!("{}", number + 1), 1), now);
        }
        assert!(roster.gone.len() <= 4 && roster.going.len() <= 4);
        for times in [3, 6, 12] {
            roster.heard_all_until(now + times * LEASE, now + times * LEASE);
        }
        assert!(roster.gone.is_empty() && roster.going.is_empty() && roster.turns.is_empty());
    }

    #[test]
    fn turns_go_round_whoever_comes_and_goes() {
        let (mut roster, now) = (roster(), start());
        for id in ["1", "2", "3"] {
            roster.announced(word("a", id, 1), now);
        }
        let turn = |roster: &mut Roster| {
            let next = roster.in_turn("a", roster.of("a").collect())[0].instance.clone();
            roster.picked(&next);
            next.id.clone()
        };
        assert_eq!(turn(&mut roster), "1");
        assert_eq!(turn(&mut roster), "2");
        roster.left("a".into(), "2".into(), now);
        assert_eq!(turn(&mut roster), "3");
        assert_eq!(turn(&mut roster), "1");
    }
}
