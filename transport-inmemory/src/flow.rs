//! What keeps publishers waiting: alarms, a limit of memory, and confirms that are held back.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering},
};

use postrider_core::Verdict;
use tokio::sync::{Notify, oneshot};

/// A message that is stored, and whose publisher has not been told.
#[derive(Debug)]
struct HeldConfirm {
    connection: u64,
    verdict: Verdict,
    tell: oneshot::Sender<Verdict>,
}

#[derive(Debug, Default)]
struct Alarms {
    raised: Option<String>,
    memory: bool,
    held: Option<Vec<HeldConfirm>>,
}

impl Alarms {
    fn reason(&self) -> Option<String> {
        self.raised.clone().or_else(|| self.memory.then(|| "low on memory".to_owned()))
    }
}

/// A change of the blocked state, for the connections to hear.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FlowChange {
    Blocked(String),
    Unblocked,
}

#[derive(Debug)]
pub(crate) struct Flow {
    alarms: Mutex<Alarms>,
    blocked: AtomicBool,
    holding: AtomicBool,
    /// Below zero for a moment, when a message is gone before the queue that stored it has said so.
    memory_used: AtomicIsize,
    memory_limit: AtomicUsize,
    changed: Notify,
}

impl Flow {
    pub(crate) fn new(memory_limit: usize) -> Self {
        Self {
            alarms: Mutex::default(),
            blocked: AtomicBool::new(false),
            holding: AtomicBool::new(false),
            memory_used: AtomicIsize::new(0),
            memory_limit: AtomicUsize::new(memory_limit),
            changed: Notify::new(),
        }
    }

    fn alarms(&self) -> MutexGuard<'_, Alarms> {
        self.alarms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::SeqCst)
    }

    pub(crate) fn reason(&self) -> Option<String> {
        self.alarms().reason()
    }

    /// Waits until publishes are taken. Cancellation safe.
    pub(crate) async fn unblocked(&self) {
        loop {
            let changed = self.changed.notified();
            if !self.is_blocked() {
                return;
            }
            changed.await;
        }
    }

    fn change(&self, change: impl FnOnce(&mut Alarms)) -> Option<FlowChange> {
        let mut alarms = self.alarms();
        change(&mut alarms);
        let reason = alarms.reason();
        let was_blocked = self.blocked.swap(reason.is_some(), Ordering::SeqCst);
        drop(alarms);
        self.changed.notify_waiters();
        match (was_blocked, reason) {
            (false, Some(reason)) => Some(FlowChange::Blocked(reason)),
            (true, None) => Some(FlowChange::Unblocked),
            _ => None,
        }
    }

    pub(crate) fn raise(&self, reason: &str) -> Option<FlowChange> {
        self.change(|alarms| alarms.raised = Some(reason.to_owned()))
    }

    pub(crate) fn clear(&self) -> Option<FlowChange> {
        self.change(|alarms| alarms.raised = None)
    }

    pub(crate) fn set_memory_limit(&self, bytes: usize) -> Option<FlowChange> {
        self.memory_limit.store(bytes, Ordering::Release);
        self.account(0)
    }

    /// Adds to the memory that queues hold. Above the limit publishers wait; they go on when a
    /// fifth of it is free, so that they do not wait for each single message.
    pub(crate) fn account(&self, bytes: isize) -> Option<FlowChange> {
        self.memory_used.fetch_add(bytes, Ordering::SeqCst);
        if !self.is_blocked() && !self.is_low(false) {
            return None;
        }
        let judge = |alarms: &mut Alarms| alarms.memory = self.is_low(alarms.memory);
        let first = self.change(judge);
        // What was freed while that was decided found nobody blocked, and has not come here.
        let second = if self.is_blocked() { self.change(judge) } else { None };
        match (first, second) {
            (Some(_), Some(_)) => None,
            (first, second) => first.or(second),
        }
    }

    fn is_low(&self, was_low: bool) -> bool {
        let (used, limit) = (self.memory_used(), self.memory_limit.load(Ordering::Acquire));
        used > limit || (was_low && used >= limit - limit / 5)
    }

    pub(crate) fn memory_used(&self) -> usize {
        usize::try_from(self.memory_used.load(Ordering::SeqCst)).unwrap_or(0)
    }

    pub(crate) fn is_holding(&self) -> bool {
        self.holding.load(Ordering::Acquire)
    }

    pub(crate) fn hold_confirms(&self) {
        self.alarms().held.get_or_insert_with(Vec::new);
        self.holding.store(true, Ordering::Release);
    }

    /// Keeps a verdict back. The receiver gets it when confirms are released, or `Unknown` when the
    /// connection is lost before.
    pub(crate) fn hold(&self, connection: u64, verdict: Verdict) -> oneshot::Receiver<Verdict> {
        let (tell, told) = oneshot::channel();
        let mut alarms = self.alarms();
        if let Some(held) = &mut alarms.held {
            held.push(HeldConfirm { connection, verdict, tell });
        } else {
            drop(alarms);
            let _given_up = tell.send(verdict);
        }
        told
    }

    pub(crate) fn release_confirms(&self) {
        self.holding.store(false, Ordering::Release);
        let held = self.alarms().held.take();
        for confirm in held.into_iter().flatten() {
            let _given_up = confirm.tell.send(confirm.verdict);
        }
        self.changed.notify_waiters();
    }

    /// Waits until no confirm of this connection is held back. Cancellation safe.
    pub(crate) async fn confirmed(&self, connection: u64) {
        let owes = |alarms: &Alarms| {
            alarms
                .held
                .iter()
                .flatten()
                .any(|held| held.connection == connection && !held.tell.is_closed())
        };
        loop {
            let changed = self.changed.notified();
            if !owes(&self.alarms()) {
                return;
            }
            changed.await;
        }
    }

    /// The connection is gone: its publishers will never learn what they were owed.
    pub(crate) fn forget_confirms(&self, connection: u64, cause: &'static str) {
        let lost: Vec<_> = match &mut self.alarms().held {
            Some(held) => held.extract_if(.., |held| held.connection == connection).collect(),
            None => return,
        };
        for confirm in lost {
            let _given_up = confirm.tell.send(Verdict::Unknown(cause.into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_blocks_above_the_limit_and_frees_a_fifth_below() {
        let flow = Flow::new(1_000);
        assert_eq!(flow.account(1_000), None);
        assert!(matches!(flow.account(1), Some(FlowChange::Blocked(_))));
        assert_eq!(flow.account(-150), None);
        assert_eq!(flow.account(-100), Some(FlowChange::Unblocked));
        assert!(!flow.is_blocked());
    }

    #[test]
    fn a_message_may_be_gone_before_it_was_counted() {
        let flow = Flow::new(1_000);
        assert_eq!(flow.account(-100), None);
        assert_eq!(flow.memory_used(), 0);
        assert_eq!(flow.account(100), None);
        assert_eq!((flow.memory_used(), flow.is_blocked()), (0, false));
    }

    #[test]
    fn nobody_stays_blocked_when_memory_was_freed_in_the_same_moment() {
        let flow = Flow::new(1_000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        flow.account(600);
                        flow.account(-600);
                    }
                });
            }
        });
        assert_eq!((flow.memory_used(), flow.is_blocked()), (0, false));
    }

    #[test]
    fn an_alarm_outlasts_a_memory_alarm() {
        let flow = Flow::new(10);
        assert!(flow.raise("disk").is_some());
        assert_eq!(flow.account(100), None);
        assert_eq!(flow.account(-100), None);
        assert_eq!(flow.clear(), Some(FlowChange::Unblocked));
    }
}
