//! Runs behaviours as tests: a thread, a runtime and a time limit for each.

use std::{
    any::Any,
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs, mem,
    num::NonZero,
    panic::AssertUnwindSafe,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, mpsc},
    thread,
    time::Duration,
};

use futures_util::FutureExt;
use libtest_mimic::{Arguments, Failed, Trial};
use postrider_core::{Capabilities, Env, Result};
use tokio::{
    runtime::{Builder, Handle, Runtime},
    time,
};

use crate::{
    behaviour::{Behaviour, behaviours},
    harness::{Clock, Harness},
    scene::Scene,
};

/// How long a runtime may take to end what a behaviour left running.
const RUNTIME_SHUTDOWN: Duration = Duration::from_secs(1);

/// How often the whole run is repeated; it ends with the first that fails.
const REPEAT: &str = "POSTRIDER_REPEAT";

/// How long the tasks that a behaviour started may take to end after it.
const TASKS_END: Duration = Duration::from_secs(25);

/// How long the threads may take after that.
const THREADS_END: Duration = Duration::from_secs(30);

pub(crate) fn main(harnesses: &[Arc<dyn Harness>]) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Behaviours wait more than they compute.
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    arguments.test_threads.get_or_insert(2 * processors);
    let rounds = env::var(REPEAT).ok().filter(|_| !arguments.list);
    let rounds: usize = match rounds.map_or(Ok(1), |rounds| rounds.parse()) {
        Ok(rounds) => rounds,
        Err(error) => {
            eprintln!("{REPEAT} must be a number: {error}");
            return ExitCode::FAILURE;
        }
    };
    for round in 1..=rounds {
        if rounds > 1 {
            eprintln!("round {round} of {rounds}");
        }
        let left_over = LeftOver::default();
        let trials = trials(harnesses, &left_over);
        // Connecting for the first time may have started threads that live as long as the process.
        let before = threads();
        let conclusion = libtest_mimic::run(&arguments, trials);
        let threads_left = ended_but(&before);
        let tasks_left = mem::take(&mut *lock(&left_over));
        if conclusion.has_failed() {
            return conclusion.exit_code();
        }
        for left in threads_left.iter().chain(&tasks_left) {
            eprintln!("left over: {left}");
        }
        if !(threads_left.is_empty() && tasks_left.is_empty()) {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// What behaviours left running.
type LeftOver = Arc<Mutex<Vec<String>>>;

fn lock(left_over: &LeftOver) -> MutexGuard<'_, Vec<String>> {
    left_over.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The tests of all harnesses. What upsets a whole broker comes last and in turns, since it has to
/// run alone on its broker.
fn trials(harnesses: &[Arc<dyn Harness>], left_over: &LeftOver) -> Vec<Trial> {
    let mut trials: Vec<_> = harnesses
        .iter()
        .flat_map(|harness| trials_of(harness, left_over).into_iter().enumerate())
        .map(|(place, (is_broker_wide, trial))| (is_broker_wide, place, trial))
        .collect();
    trials.sort_by_key(|(is_broker_wide, place, _)| (*is_broker_wide, *place));
    trials.into_iter().map(|(_, _, trial)| trial).collect()
}

/// The threads of this process by number, with their names; empty where the system does not tell.
fn threads() -> BTreeMap<OsString, String> {
    let listed = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    listed
        .map(|entry| {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            (entry.file_name(), name.trim().to_owned())
        })
        .collect()
}

/// Waits until all threads but those from before have ended; gives those that do not.
fn ended_but(before: &BTreeMap<OsString, String>) -> Vec<String> {
    let deadline = Env::system().now() + THREADS_END;
    loop {
        let now = threads();
        let left: Vec<_> = now.into_iter().filter(|(id, _)| !before.contains_key(id)).collect();
        if left.is_empty() {
            return Vec::new();
        }
        if Env::system().now() > deadline {
            return left.into_iter().map(|(_, name)| format!("a thread '{name}'")).collect();
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The tests of one harness; what its broker cannot do is named on standard error and left out, so
/// that no test passes or is marked ignored without having run. Each with whether it touches
/// everybody who uses the broker.
fn trials_of(harness: &Arc<dyn Harness>, left_over: &LeftOver) -> Vec<(bool, Trial)> {
    let name = harness.name();
    let capabilities = match runtime(harness.clock()).block_on(ask_capabilities(&**harness)) {
        Ok(capabilities) => capabilities,
        Err(error) => {
            let message = format!("no connection to the broker under test: {error}");
            let trial = Trial::test(format!("{name}::connect"), move || Err(Failed::from(message)));
            return vec![(false, trial)];
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
            let left_over = left_over.clone();
            let is_broker_wide = behaviour.is_broker_wide();
            let trial = Trial::test(title, move || {
                if is_broker_wide {
                    let _alone = alone.write().unwrap_or_else(PoisonError::into_inner);
                    run_bounded(&harness, behaviour, &left_over)
                } else {
                    let _beside_others = alone.read().unwrap_or_else(PoisonError::into_inner);
                    run_bounded(&harness, behaviour, &left_over)
                }
            });
            Some((is_broker_wide, trial))
        })
        .collect()
}

async fn ask_capabilities(harness: &dyn Harness) -> Result<Capabilities> {
    let scene = Scene::open(harness, harness.broker(&[]).await?).await?;
    let capabilities = scene.capabilities().clone();
    scene.clean_up().await?;
    Ok(capabilities)
}

/// Runs a behaviour on a thread of its own, because the time limit has to hold for one that blocks
/// its runtime or stands still on a virtual clock. After the outcome the thread waits for the tasks
/// that are ending, since a client may keep a timer for a while.
fn run_bounded(
    harness: &Arc<dyn Harness>,
    behaviour: Behaviour,
    left_over: &LeftOver,
) -> Result<(), Failed> {
    let (name, limit) = (behaviour.name().to_owned(), harness.time_limit());
    let (done, ended) = mpsc::channel();
    let (playing, left_over) = (harness.clone(), left_over.clone());
    let thread = thread::Builder::new().name(name.clone()).spawn(move || {
        let runtime = runtime(playing.clock());
        let behaviour_name = behaviour.name().to_owned();
        let outcome = runtime.block_on(play(&*playing, behaviour));
        let passed = outcome.is_ok();
        // Nobody listens any more when the time limit has passed.
        let _late = done.send(outcome);
        let alive = runtime.block_on(all_tasks_end());
        if passed && alive > 0 {
            let left = format!("{alive} tasks of '{}::{behaviour_name}'", playing.name());
            lock(&left_over).push(left);
        }
        runtime.shutdown_timeout(RUNTIME_SHUTDOWN);
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
    let faults: Vec<_> = behaviour.faults().collect();
    let broker =
        harness.broker(&faults).await.map_err(|error| format!("no broker to test: {error}"))?;
    let scene = Scene::open(harness, broker.clone())
        .await
        .map_err(|error| format!("no connection to the broker under test: {error}"))?;
    let outcome = AssertUnwindSafe(behaviour.run(scene.clone())).catch_unwind().await;
    let mut healed = Ok(());
    for fault in faults.into_iter().filter(|fault| fault.is_broker_wide()) {
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

/// Waits until nothing runs any more of what a behaviour and its transports started; gives the
/// number of tasks that do not end.
async fn all_tasks_end() -> usize {
    let deadline = Env::system().now() + TASKS_END;
    loop {
        let alive = Handle::current().metrics().num_alive_tasks();
        if alive == 0 || Env::system().now() > deadline {
            return alive;
        }
        time::sleep(Duration::from_millis(20)).await;
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
    use postrider_core::{Error, ErrorKind};

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

        async fn broker(&self, _faults: &[Fault]) -> Result<Arc<dyn TestBroker>> {
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
        let failed = run_bounded(&harness, behaviour, &LeftOver::default()).err()?;
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
        assert_eq!(trials_of(&harness, &LeftOver::default()).len(), 0);
    }

    #[test]
    fn without_a_broker_there_is_one_test_that_fails() {
        let harness: Arc<dyn Harness> = Arc::new(Nothing { reachable: false });
        let trials = trials_of(&harness, &LeftOver::default());
        let names: Vec<_> = trials.iter().map(|(_, trial)| trial.name()).collect();
        assert_eq!(names, ["nothing::connect"]);
    }
}
