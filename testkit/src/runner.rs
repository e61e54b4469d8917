//! Runs behaviours as tests: a thread, a runtime and a time limit for each.

use std::{
    any::Any,
    panic::AssertUnwindSafe,
    process::ExitCode,
    sync::{Arc, PoisonError, RwLock, mpsc},
    thread,
    time::Duration,
};

use futures_util::FutureExt;
use libtest_mimic::{Arguments, Failed, Trial};
use postrider_core::{Capabilities, Result};
use tokio::runtime::{Builder, Runtime};

use crate::{
    behaviour::{Behaviour, behaviours},
    harness::{Clock, Harness},
    scene::Scene,
};

/// How long a runtime may take to end what a behaviour left running.
const RUNTIME_SHUTDOWN: Duration = Duration::from_secs(1);

pub(crate) fn main(harnesses: &[Arc<dyn Harness>]) -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = harnesses.iter().flat_map(trials_of).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// The tests of one harness; what its broker cannot do is named on standard error and left out, so
/// that no test passes or is marked ignored without having run.
fn trials_of(harness: &Arc<dyn Harness>) -> Vec<Trial> {
    let name = harness.name();
    let capabilities = match runtime(harness.clock()).block_on(ask_capabilities(&**harness)) {
        Ok(capabilities) => capabilities,
        Err(error) => {
            let message = format!("no connection to the broker under test: {error}");
            return vec![Trial::test(format!("{name}::connect"), move || {
                Err(Failed::from(message))
            })];
        }
    };
    let alone = Arc::new(RwLock::new(()));
    behaviours()
        .into_iter()
        .filter_map(|behaviour| {
            let title = format!("{name}::{}", behaviour.name());
            let missing: Vec<_> = behaviour
                .needs()
                .iter()
                .filter(|need| !need.is_met(&capabilities, harness.faults()))
                .map(ToString::to_string)
                .collect();
            if !missing.is_empty() {
                eprintln!("not applicable: {title} (needs {})", missing.join(", "));
                return None;
            }
            let (harness, alone) = (harness.clone(), alone.clone());
            Some(Trial::test(title, move || {
                if behaviour.is_broker_wide() {
                    let _alone = alone.write().unwrap_or_else(PoisonError::into_inner);
                    run_bounded(&harness, behaviour)
                } else {
                    let _beside_others = alone.read().unwrap_or_else(PoisonError::into_inner);
                    run_bounded(&harness, behaviour)
                }
            }))
        })
        .collect()
}

async fn ask_capabilities(harness: &dyn Harness) -> Result<Capabilities> {
    let transport = harness.broker("capabilities").await?.connect().await?.transport;
    let capabilities = transport.capabilities().clone();
    transport.close(Duration::from_secs(5)).await?;
    Ok(capabilities)
}

/// Runs a behaviour on a thread of its own, because the time limit has to hold for one that blocks
/// its runtime or stands still on a virtual clock.
fn run_bounded(harness: &Arc<dyn Harness>, behaviour: Behaviour) -> Result<(), Failed> {
    let (name, limit) = (behaviour.name().to_owned(), harness.time_limit());
    let (done, ended) = mpsc::channel();
    let playing = harness.clone();
    let thread = thread::Builder::new().name(name.clone()).spawn(move || {
        let runtime = runtime(playing.clock());
        let outcome = runtime.block_on(play(&*playing, behaviour));
        runtime.shutdown_timeout(RUNTIME_SHUTDOWN);
        // Nobody listens any more when the time limit has passed.
        let _late = done.send(outcome);
    })?;
    match ended.recv_timeout(limit) {
        Ok(outcome) => outcome.map_err(Failed::from),
        Err(mpsc::RecvTimeoutError::Timeout) => Err(Failed::from(format!(
            "'{name}' was not over after {limit:?}: something hangs or is far too slow"
        ))),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(Failed::from(match thread.join() {
            Ok(()) => format!("'{name}' ended without an outcome"),
            Err(panic) => panic_text(&*panic),
        })),
    }
}

fn runtime(clock: Clock) -> Runtime {
    let built = match clock {
        Clock::Virtual => Builder::new_current_thread().enable_all().start_paused(true).build(),
        Clock::Real => Builder::new_multi_thread().worker_threads(2).enable_all().build(),
    };
    built.expect("the machine gives a runtime")
}

/// Runs a behaviour and cleans up after it, whether it failed or not.
async fn play(harness: &dyn Harness, behaviour: Behaviour) -> Result<(), String> {
    let broker = harness
        .broker(behaviour.name())
        .await
        .map_err(|error| format!("no broker to test: {error}"))?;
    let scene = Scene::open(harness, broker.clone())
        .await
        .map_err(|error| format!("no connection to the broker under test: {error}"))?;
    let outcome = AssertUnwindSafe(behaviour.run(scene.clone())).catch_unwind().await;
    let mut healed = Ok(());
    for fault in behaviour.faults().filter(|fault| fault.is_broker_wide()) {
        healed = healed.and(broker.end(fault).await);
    }
    let cleaned = scene.clean_up().await;
    match outcome {
        Err(panic) => Err(panic_text(&*panic)),
        Ok(()) => healed
            .and(cleaned)
            .map_err(|error| format!("it passed, and cleaning up failed: {error}")),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "it panicked without a text".to_owned())
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use futures_util::future;
    use postrider_core::{Env, Error, ErrorKind};

    use super::*;
    use crate::{
        behaviour::Need,
        harness::{Connection, Fault, TestBroker, Wire},
        mock::MockTransport,
    };

    /// A harness over a transport that can do nothing, or over none.
    #[derive(Debug)]
    struct Nothing {
        reachable: bool,
    }

    #[async_trait]
    impl Harness for Nothing {
        fn name(&self) -> &str {
            "nothing"
        }

        fn clock(&self) -> Clock {
            Clock::Virtual
        }

        fn faults(&self) -> &[Fault] {
            &[]
        }

        async fn broker(&self, _behaviour: &str) -> Result<Arc<dyn TestBroker>> {
            if self.reachable {
                Ok(Arc::new(Idle))
            } else {
                let advice = "no broker; start one";
                Err(Error::new(ErrorKind::Unavailable, "connect", advice))
            }
        }

        fn time_limit(&self) -> Duration {
            Duration::from_millis(200)
        }
    }

    struct Idle;

    #[async_trait]
    impl TestBroker for Idle {
        async fn connect(&self) -> Result<Connection> {
            let mut transport = MockTransport::new();
            transport.expect_env().return_const(Env::system());
            transport.expect_capabilities().return_const(Capabilities::minimal());
            transport.expect_remove().returning(|_| Ok(()));
            transport.expect_close().returning(|_| Ok(()));
            Ok(Connection::new(Arc::new(transport), Arc::new(Self)))
        }

        async fn begin(&self, _fault: Fault) -> Result<()> {
            Ok(())
        }

        async fn end(&self, _fault: Fault) -> Result<()> {
            Ok(())
        }
    }

    #[async_trait]
    impl Wire for Idle {
        async fn cut(&self) -> Result<()> {
            Ok(())
        }
    }

    async fn passes(_scene: Scene) {}

    async fn panics(scene: Scene) {
        let rule = "the rule that was broken";
        assert_eq!(scene.capabilities().priority_levels, 9, "{rule}");
    }

    async fn stands_still(_scene: Scene) {
        future::pending::<()>().await;
    }

    fn failure(behaviour: Behaviour) -> Option<String> {
        let harness: Arc<dyn Harness> = Arc::new(Nothing { reachable: true });
        let failed = run_bounded(&harness, behaviour).err()?;
        Some(failed.message().unwrap_or_default().to_owned())
    }

    #[test]
    fn a_behaviour_passes_only_when_it_ends_well() {
        assert_eq!(failure(Behaviour::new(passes, &[])), None);
        let text = failure(Behaviour::new(panics, &[])).expect("a panic is a failure");
        assert!(text.contains("the rule that was broken"), "{text}");
        let text = failure(Behaviour::new(stands_still, &[])).expect("hanging is a failure");
        assert!(text.contains("stands_still") && text.contains("200ms"), "{text}");
    }

    #[test]
    fn what_a_broker_cannot_do_is_left_out() {
        let harness: Arc<dyn Harness> = Arc::new(Nothing { reachable: true });
        assert!(behaviours().iter().all(|behaviour| behaviour.needs().contains(&Need::Topology)));
        assert_eq!(trials_of(&harness).len(), 0);
    }

    #[test]
    fn without_a_broker_there_is_one_test_that_fails() {
        let harness: Arc<dyn Harness> = Arc::new(Nothing { reachable: false });
        let trials = trials_of(&harness);
        let names: Vec<_> = trials.iter().map(Trial::name).collect();
        assert_eq!(names, ["nothing::connect"]);
    }
}
