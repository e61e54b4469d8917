//! The behaviour suite for transports: what the contract in `postrider-core` promises, one async
//! function for each behaviour.
//!
//! The rooms of the suite are its modules; a behaviour's name is its module and its function, for
//! example `settlement::release_gives_back_uncounted`. A behaviour says what it needs of the
//! broker, and runs wherever that is there. It is written against the contract and against what
//! every supported broker does, with bounds that hold in real time.

mod admin;
#[cfg(feature = "patterns")]
mod calls;
mod churn;
mod closing;
mod confirms;
mod dead_letter;
mod delay;
mod delivery_limit;
mod exclusive;
mod expiry;
mod faults;
mod flow;
mod headers;
mod length_limits;
mod need;
mod prefetch;
mod priority;
mod publishing;
mod recovery;
mod replies;
mod retry_delay;
mod routing;
mod settlement;
mod single_active;
mod topology;
mod watermill;

use std::{any, fmt, process::ExitCode, sync::Arc};

use futures_util::future::LocalBoxFuture;
#[cfg(feature = "patterns")]
use postrider_core::ReplyMode;

pub use self::need::Need;
use crate::{
    Scene,
    harness::{Fault, Harness},
    runner,
};

/// Runs the suite on every harness, each behaviour as a test of its own, by the arguments of the
/// command line; for a test target with `harness = false`.
///
/// What a broker cannot do is listed on standard error as `not applicable`, with the need that is
/// not met. Without a broker there is one test, and it fails.
#[must_use]
pub fn main(harnesses: &[Arc<dyn Harness>]) -> ExitCode {
    runner::main(harnesses)
}

/// One behaviour of the contract.
pub struct Behaviour {
    name: String,
    needs: Vec<Need>,
    run: Arc<dyn Fn(Scene) -> LocalBoxFuture<'static, ()> + Send + Sync>,
}

impl Behaviour {
    /// The behaviour that `run` tests; it panics where the behaviour is not met. Its name is the
    /// function's path below this module.
    pub(crate) fn new<F, Fut>(run: F, needs: &'static [Need]) -> Self
    where
        F: Fn(Scene) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        let path = any::type_name::<F>();
        Self {
            name: path.split_once("behaviour::").map_or(path, |(_, below)| below).to_owned(),
            needs: needs.to_vec(),
            run: Arc::new(move |scene| Box::pin(run(scene))),
        }
    }

    /// The same with callers that get their replies directly, in the room `direct` of its rooms.
    #[cfg(feature = "patterns")]
    fn direct(&self) -> Self {
        let mut rooms: Vec<_> = self.name.split("::").collect();
        rooms.insert(1, "direct");
        let run = Arc::clone(&self.run);
        Self {
            name: rooms.join("::"),
            needs: self.needs.iter().copied().chain([Need::DirectReplies]).collect(),
            run: Arc::new(move |scene| {
                scene.reply_by(ReplyMode::Direct);
                run(scene)
            }),
        }
    }

    /// Module and function, for example `routing::fanout_gives_each_queue_a_copy`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What a broker and a harness must be able to do for it to apply.
    #[must_use]
    pub fn needs(&self) -> &[Need] {
        &self.needs
    }

    /// The faults that it brings about.
    pub(crate) fn faults(&self) -> impl Iterator<Item = Fault> {
        self.needs.iter().filter_map(|need| match need {
            Need::Fault(fault) => Some(*fault),
            _ => None,
        })
    }

    /// Whether it touches everybody who uses the broker.
    pub(crate) fn is_broker_wide(&self) -> bool {
        self.faults().any(Fault::is_broker_wide)
    }

    pub(crate) fn run(&self, scene: Scene) -> LocalBoxFuture<'static, ()> {
        (self.run)(scene)
    }
}

impl fmt::Debug for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Behaviour")
            .field("name", &self.name)
            .field("needs", &self.needs)
            .finish_non_exhaustive()
    }
}

/// Every behaviour, room by room.
#[must_use]
pub fn behaviours() -> Vec<Behaviour> {
    [
        publishing::behaviours(),
        confirms::behaviours(),
        flow::behaviours(),
        settlement::behaviours(),
        delivery_limit::behaviours(),
        dead_letter::behaviours(),
        expiry::behaviours(),
        priority::behaviours(),
        delay::behaviours(),
        length_limits::behaviours(),
        exclusive::behaviours(),
        single_active::behaviours(),
        headers::behaviours(),
        prefetch::behaviours(),
        topology::behaviours(),
        routing::behaviours(),
        admin::behaviours(),
        closing::behaviours(),
        recovery::behaviours(),
        replies::behaviours(),
        retry_delay::behaviours(),
        watermill::behaviours(),
        churn::behaviours(),
        faults::behaviours(),
        #[cfg(feature = "patterns")]
        calls::behaviours(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_behaviour_has_a_name_of_its_own_with_its_room() {
        let behaviours = behaviours();
        let names: HashSet<_> = behaviours.iter().map(Behaviour::name).collect();
        assert_eq!(names.len(), behaviours.len());
        for name in names {
            // The fault scenarios and the calls have rooms of their own.
            let name = name.strip_prefix("faults::").unwrap_or(name);
            let name = name.strip_prefix("calls::").unwrap_or(name);
            let name = name.strip_prefix("direct::").unwrap_or(name);
            assert_eq!(name.split("::").count(), 2, "{name}");
        }
    }
}
