use std::time::Duration;

use postrider_core::Topology;

use super::Settings;
use crate::resilience::RetryPolicy;

/// What a pattern will declare and how it will consume, as it is known before the start.
///
/// Its topology comes from the function that the start declares by, with [`ID`](Self::ID) for the
/// id that each instance puts into the names of its own queues.
#[derive(Debug)]
pub(crate) struct Outline {
    pub(crate) topology: Topology,
    /// The queues that its messages come from.
    pub(crate) queues: Vec<String>,
    pub(crate) settings: Settings,
    pub(crate) prefetch: u16,
    pub(crate) retry: Option<RetryPolicy>,
    /// How long it may keep a message in hand beside the time that handlers take.
    pub(crate) held: Duration,
}

impl Outline {
    pub(crate) const ID: &str = "{id}";

    pub(crate) fn new(topology: Topology, queues: Vec<String>, settings: Settings) -> Self {
        let prefetch = settings.prefetch();
        Self { topology, queues, settings, prefetch, retry: None, held: Duration::ZERO }
    }

    pub(crate) fn with_retry(mut self, policy: &RetryPolicy) -> Self {
        self.retry = Some(policy.clone());
        self
    }

    pub(crate) fn held(mut self, time: Duration) -> Self {
        self.held = time;
        self
    }
}
