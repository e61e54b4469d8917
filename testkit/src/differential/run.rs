//! Runs many programs beside each other.

use std::{
    collections::{BTreeMap, HashSet},
    env, fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future;
use postrider_core::{Env, Result};
use tokio::{runtime::Builder, time};

use super::{
    dice::Means,
    generate,
    program::Program,
    shrink::shrink,
    side::Side,
    world::{Course, World},
};
use crate::harness::TestBroker;

/// How many programs run beside each other, each on a thread and a runtime of its own.
const WORKERS: u64 = 32;

/// How many failing programs are enough.
const ENOUGH_FAILURES: usize = 5;

/// How often a program is run to make it shorter.
const SHRINKING: usize = 150;

/// How long a program is made shorter: one about time runs for seconds.
const SHRINKING_LIMIT: Duration = Duration::from_secs(90);

/// How long the subject has for what it does not confirm, and how long when a program is run again.
const PACE: Duration = Duration::from_millis(15);
const SLOW_PACE: Duration = Duration::from_millis(250);

/// How long one program may take.
const LIMIT: Duration = Duration::from_secs(180);

/// Two brokers to compare.
#[async_trait]
pub trait Pair: Send + Sync {
    /// What people call it, for example `memory and rabbitmq-4.3`.
    fn name(&self) -> &str;

    /// A broker in the process, of its own for each call; it does everything at once.
    ///
    /// # Errors
    ///
    /// When there is none.
    async fn reference(&self) -> Result<Arc<dyn TestBroker>>;

    /// The broker that is compared with it, to be reached by connections that nobody else breaks.
    ///
    /// # Errors
    ///
    /// When there is none; the message should say how to start one.
    async fn subject(&self) -> Result<Arc<dyn TestBroker>>;

    /// The protocol by which the subject is reached, since some differences are its own.
    fn protocol(&self) -> Protocol;
}

/// A protocol of a broker over a wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// AMQP 0.9.1.
    Amqp091,
    /// AMQP 1.0.
    Amqp10,
}

/// How many programs are run, and from which seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// The seed of the first program; the others have the next ones.
    pub seed: u64,
    /// How many there are.
    pub programs: u64,
}

impl Plan {
    /// The plan of the environment: the first seed from `POSTRIDER_DIFFERENTIAL_SEED` (a number, or
    /// `new` for one drawn at random; default: 1) and the number of programs from
    /// `POSTRIDER_DIFFERENTIAL_PROGRAMS` (default: `programs`, and 1 where a seed is given).
    ///
    /// The default is the same programs each time, so that what is checked before a change lands
    /// does not hang on luck.
    ///
    /// # Panics
    ///
    /// When a variable is no number.
    #[must_use]
    pub fn from_env(programs: u64) -> Self {
        const SEED: &str = "POSTRIDER_DIFFERENTIAL_SEED";
        const PROGRAMS: &str = "POSTRIDER_DIFFERENTIAL_PROGRAMS";
        let number = |name: &str, text: String| {
            text.parse().unwrap_or_else(|_| panic!("{name} must be a number: {text:?}"))
        };
        let (seed, default) = match env::var(SEED) {
            // Short enough to be read aloud.
            Ok(text) if text == "new" => (Env::system().random() % 1_000_000_000, programs),
            Ok(text) => (number(SEED, text), 1),
            Err(_) => (1, programs),
        };
        let programs = env::var(PROGRAMS).map_or(default, |text| number(PROGRAMS, text));
        Self { seed, programs }
    }
}

/// What all programs came to.
#[derive(Debug, Default)]
struct Tally {
    programs: usize,
    deliveries: usize,
    steps: usize,
    again: usize,
    forgiven: BTreeMap<&'static str, usize>,
    failures: Vec<String>,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} programs, {} steps, {} deliveries compared, {} programs run again slowly, \
             forgiven: {:?}",
            self.programs, self.steps, self.deliveries, self.again, self.forgiven
        )
    }
}

/// Runs the programs of a plan on both brokers and says on standard error what they came to.
///
/// # Panics
///
/// When a broker cannot be reached, and when programs fail: with each of them, its seed and the
/// difference.
pub fn run(pair: &dyn Pair, plan: Plan) {
    let next = AtomicU64::new(0);
    let tally = Mutex::new(Tally::default());
    thread::scope(|scope| {
        for _ in 0..WORKERS.min(plan.programs) {
            scope.spawn(|| {
                let runtime = Builder::new_current_thread().enable_all().build();
                let runtime = runtime.expect("a runtime for a worker");
                let ended = runtime.block_on(work(pair, plan, &next, &tally));
                ended.unwrap_or_else(|error| panic!("{}: {error}", pair.name()));
            });
        }
    });
    let tally = lock(&tally);
    eprintln!("{}: from seed {}: {tally}", pair.name(), plan.seed);
    assert!(tally.failures.is_empty(), "{}:\n\n{}", pair.name(), tally.failures.join("\n\n"));
}

/// Runs one program after the other until all are taken or enough have failed.
async fn work(pair: &dyn Pair, plan: Plan, next: &AtomicU64, tally: &Mutex<Tally>) -> Result<()> {
    let mut bench = Bench::open(pair).await?;
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= plan.programs || lock(tally).failures.len() >= ENOUGH_FAILURES {
            break;
        }
        let program = generate::program(plan.seed + number, bench.means());
        bench.judge(pair, program, tally).await?;
    }
    bench.close().await;
    Ok(())
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The two sides of one worker.
struct Bench {
    reference: Side,
    subject: Side,
    protocol: Protocol,
}

impl Bench {
    async fn open(pair: &dyn Pair) -> Result<Self> {
        let (reference, subject) = (pair.reference().await?, pair.subject().await?);
        Ok(Self {
            reference: Side::open(&*reference).await?,
            subject: Side::open(&*subject).await?,
            protocol: pair.protocol(),
        })
    }

    fn means(&self) -> Means {
        Means::of(self.reference.capabilities(), self.subject.capabilities(), self.protocol)
    }

    async fn close(&self) {
        future::join(self.reference.close(), self.subject.close()).await;
    }

    async fn run(&self, program: &Program, pace: Duration) -> std::result::Result<Course, String> {
        let running = World::new(&self.reference, &self.subject, self.protocol, pace).run(program);
        time::timeout(LIMIT, running)
            .await
            .unwrap_or_else(|_| Err(format!("not done within {LIMIT:?}")))
    }

    /// Runs a program, and once more when it fails; then makes it shorter.
    async fn judge(
        &mut self,
        pair: &dyn Pair,
        program: Program,
        tally: &Mutex<Tally>,
    ) -> Result<()> {
        let mut outcome = self.run(&program, PACE).await;
        if outcome.is_err() {
            lock(tally).again += 1;
            outcome = self.run(&program, SLOW_PACE).await;
        }
        lock(tally).programs += 1;
        match outcome {
            Ok(course) => {
                let mut tally = lock(tally);
                tally.steps += program.steps.len();
                tally.deliveries += course.deliveries;
                for name in course.forgiven.into_iter().collect::<HashSet<_>>() {
                    *tally.forgiven.entry(name).or_default() += 1;
                }
            }
            Err(failure) => {
                let (whole, seed) = (program.to_string(), program.seed);
                let until = self.subject.env().now() + SHRINKING_LIMIT;
                let (short, failure) =
                    shrink(program, failure, SHRINKING, async |program: &Program| {
                        if self.subject.env().now() > until {
                            return None;
                        }
                        self.run(program, SLOW_PACE / 4).await.err()
                    })
                    .await;
                let rerun = format!("POSTRIDER_DIFFERENTIAL_SEED={seed}");
                lock(tally).failures.push(format!(
                    "{short}differs {failure}\n\n(run it again with {rerun}; before it was made \
                     shorter: {whole})"
                ));
                // What it left behind is nobody's concern any more.
                self.close().await;
                *self = Self::open(pair).await?;
            }
        }
        Ok(())
    }
}
