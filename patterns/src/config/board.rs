//! What a publisher knows of the instances that read its setting.

use std::collections::BTreeMap;

use postrider_core::Message;
use tokio::sync::watch;

use super::{ConfigReport, wire};
use crate::{
    listening::{Heard, Listening},
    telling::Telling,
};

/// How many instances are known; the reports of more are counted and left.
pub(super) const MOST_INSTANCES: usize = 4_096;

#[derive(Debug)]
pub(super) struct Board {
    pub(super) reports: watch::Sender<BTreeMap<String, ConfigReport>>,
    pub(super) refused: watch::Sender<u64>,
}

impl Board {
    pub(super) fn new() -> Self {
        Self { reports: watch::Sender::new(BTreeMap::new()), refused: watch::Sender::new(0) }
    }

    /// The highest version that an instance has seen.
    pub(super) fn highest_version(&self) -> u64 {
        let seen = |report: &ConfigReport| {
            report.version.max(report.rejected.as_ref().map(|rejected| rejected.version))
        };
        self.reports.borrow().values().filter_map(seen).max().unwrap_or_default()
    }

    pub(super) fn clear(&self) {
        self.reports.send_modify(BTreeMap::clear);
    }

    /// Writes down what is reported until nobody reads it or the transport is closed.
    pub(super) async fn follow(
        &self,
        mut listening: Listening,
        telling: &Telling,
        setting: &wire::Setting,
    ) {
        while let Some(heard) = listening.next().await {
            match heard {
                Heard::Message(envelope) => self.hear(&envelope.message),
                Heard::Lost => {}
                // Reports were missed.
                Heard::Back => telling.tell(setting.ask()),
            }
        }
    }

    fn hear(&self, message: &Message) {
        let Some((report, left)) = wire::read_report(message) else {
            self.refused.send_modify(|refused| *refused += 1);
            return;
        };
        self.reports.send_if_modified(|reports| {
            if left {
                return reports.remove(&report.instance).is_some();
            }
            if reports.len() >= MOST_INSTANCES && !reports.contains_key(&report.instance) {
                self.refused.send_modify(|refused| *refused += 1);
                return false;
            }
            let is_new = reports.get(&report.instance) != Some(&report);
            reports.insert(report.instance.clone(), report);
            is_new
        });
    }
}
