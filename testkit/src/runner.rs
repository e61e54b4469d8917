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
