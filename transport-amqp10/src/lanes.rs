//! The links of a publisher: one for all addresses, or, where the broker takes no message to another
//! address than its link's, one for each.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use postrider_core::Address;
use tokio::{sync::mpsc, task::JoinHandle};

use crate::{
    dialect::Dialect,
    link::Link,
    pipeline::{Job, Pipeline},
};

/// How many addresses of a publisher have a link. The one that was used longest ago makes room, and
/// ends when what was sent over it has its verdicts.
const MOST: usize = 64;

/// Where messages are handed to the tasks that send them.
#[derive(Debug)]
pub(crate) enum Lanes {
    One(mpsc::Sender<Job>),
    Each(Mutex<Each>),
}

#[derive(Debug, Default)]
pub(crate) struct Each {
    lanes: HashMap<String, Lane>,
    /// Lanes that made room and have not ended: another to the same address waits for that, which keeps
    /// messages in their order.
    leaving: HashMap<String, JoinHandle<()>>,
    /// Counts uses.
    used: u64,
}

#[derive(Debug)]
struct Lane {
    jobs: mpsc::Sender<Job>,
    task: JoinHandle<()>,
    /// The number of its last use.
    used: u64,
}

/// Starts the task of a link, when `before` has ended. There are permits for no more than `window`
/// messages, so the way to it never overflows.
fn start(
    link: &Arc<Link>,
    window: usize,
    target: Option<String>,
    before: Option<JoinHandle<()>>,
) -> Lane {
    let (sender, jobs) = mpsc::channel(window);
    let pipeline = Pipeline::new(link.clone(), jobs, window, target);
    let task = tokio::spawn(async move {
        if let Some(before) = before {
            let _ended = before.await;
        }
        pipeline.run().await;
    });
    Lane { jobs: sender, task, used: 0 }
}

impl Lanes {
    pub(crate) fn new(link: &Arc<Link>, window: usize) -> Self {
        match link.dialect().relays() {
            true => Self::One(start(link, window, None, None).jobs),
            false => Self::Each(Mutex::default()),
        }
    }

    /// The way to an address. Messages to one address stay in their order.
    pub(crate) fn to(
        &self,
        link: &Arc<Link>,
        window: usize,
        address: &Address,
    ) -> mpsc::Sender<Job> {
        match self {
            Self::One(jobs) => jobs.clone(),
            Self::Each(each) => {
                let mut each = each.lock().unwrap_or_else(PoisonError::into_inner);
                each.to(link, window, link.dialect(), address)
            }
        }
    }
}

impl Each {
    fn to(
        &mut self,
        link: &Arc<Link>,
        window: usize,
        dialect: &Dialect,
        address: &Address,
    ) -> mpsc::Sender<Job> {
        self.used += 1;
        let target = dialect.target(address);
        if let Some(lane) = self.lanes.get_mut(&target) {
            lane.used = self.used;
            return lane.jobs.clone();
        }
        if self.lanes.len() >= MOST {
            let oldest = self.lanes.iter().min_by_key(|(_, lane)| lane.used);
            let oldest = oldest.map(|(target, _)| target.clone());
            if let Some((target, lane)) = oldest.and_then(|oldest| self.lanes.remove_entry(&oldest))
            {
                self.leaving.retain(|_, task| !task.is_finished());
                self.leaving.insert(target, lane.task);
            }
        }
        let before = self.leaving.remove(&target);
        let lane = Lane { used: self.used, ..start(link, window, Some(target.clone()), before) };
        let jobs = lane.jobs.clone();
        self.lanes.insert(target, lane);
        jobs
    }
}
