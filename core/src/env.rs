//! Time, randomness and identity: the one place where they come from.

use std::{
    env, fmt, fs,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use rand::{Rng, SeedableRng, rngs::Xoshiro256PlusPlus};
use tokio::time::Instant;
use uuid::Uuid;

/// About 30 years: further than any deadline need be, and no clock overflows by it.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// Where a program gets the time, random numbers and new ids from.
///
/// [`Env::system`] is the machine's. [`Env::simulated`] comes from a seed and from tokio's clock, so
/// that a test on a paused clock runs a whole system the same way each time. Every transport
/// carries one, and what runs on the transport uses it.
///
/// # Example: the same seed gives the same ids
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// use postrider_core::Env;
///
/// let (one, other) = (Env::simulated(7), Env::simulated(7));
/// assert_eq!(one.new_id(), other.new_id());
/// assert_eq!(one.random(), other.random());
/// # }
/// ```
#[derive(Clone)]
pub struct Env(Source);

#[derive(Clone)]
enum Source {
    System,
    Simulated(Arc<Simulation>),
}

struct Simulation {
    seed: u64,
    started: Instant,
    random: Mutex<Xoshiro256PlusPlus>,
}

/// The wall clock's start in every simulation: 2026-01-01T00:00:00Z in Unix milliseconds.
const SIMULATED_START_MS: i64 = 1_767_225_600_000;

// The seam itself is the one place that may ask the machine.
#[allow(clippy::disallowed_methods)]
impl Env {
    /// The machine's clock and randomness.
    #[must_use]
    pub const fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that starts on 2026-01-01 and follows tokio's, and randomness from `seed`.
    #[must_use]
    pub fn simulated(seed: u64) -> Self {
        Self(Source::Simulated(Arc::new(Simulation {
            seed,
            started: Instant::now(),
            random: Mutex::new(Xoshiro256PlusPlus::seed_from_u64(seed)),
        })))
    }

    /// A moment to measure durations from; it follows tokio's clock, paused or not.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant::now()
    }

    /// The moment when `timeout` is over, which is about 30 years from now at the latest.
    #[must_use]
    pub fn deadline(&self, timeout: Duration) -> Instant {
        self.now() + timeout.min(FAR)
    }

    /// The date and time.
    #[must_use]
    pub fn timestamp(&self) -> DateTime<Utc> {
        match &self.0 {
            Source::System => Utc::now(),
            Source::Simulated(simulation) => {
                let start = DateTime::from_timestamp_millis(SIMULATED_START_MS).unwrap_or_default();
                let elapsed = Instant::now().duration_since(simulation.started);
                TimeDelta::from_std(elapsed)
                    .ok()
                    .and_then(|elapsed| start.checked_add_signed(elapsed))
                    .unwrap_or(DateTime::<Utc>::MAX_UTC)
            }
        }
    }

    /// A random number, uniform over all of `u64`.
    #[must_use]
    pub fn random(&self) -> u64 {
        match &self.0 {
            Source::System => rand::rng().next_u64(),
            Source::Simulated(simulation) => simulation.random().next_u64(),
        }
    }

    /// A random number, uniform in `0.0..1.0`.
    #[must_use]
    pub fn random_unit(&self) -> f64 {
        // 53 bits are what a double holds exactly.
        (self.random() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The name of the machine, or of the container, that the program runs on; `unknown` where the
    /// system does not tell. A simulation runs on `simulated`.
    #[must_use]
    pub fn host(&self) -> &'static str {
        static HOST: OnceLock<String> = OnceLock::new();
        match &self.0 {
            Source::System => HOST.get_or_init(host_name),
            Source::Simulated(_) => "simulated",
        }
    }

    /// A new unique id that sorts by time (UUIDv7, RFC 9562).
    #[must_use]
    pub fn new_id(&self) -> Uuid {
        match &self.0 {
            Source::System => Uuid::now_v7(),
            Source::Simulated(simulation) => {
                let mut bytes = [0; 10];
                simulation.random().fill_bytes(&mut bytes);
                let millis = u64::try_from(self.timestamp().timestamp_millis()).unwrap_or(0);
                uuid::Builder::from_unix_timestamp_millis(millis, &bytes).into_uuid()
            }
        }
    }
}

/// Linux tells it in a file, Windows and most shells in a variable.
fn host_name() -> String {
    let of_kernel = fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let named = of_kernel.or_else(|| env::var("HOSTNAME").ok());
    let named = named.or_else(|| env::var("COMPUTERNAME").ok()).unwrap_or_default();
    match named.trim() {
        "" => "unknown".to_owned(),
        name => name.to_owned(),
    }
}

impl Simulation {
    fn random(&self) -> std::sync::MutexGuard<'_, Xoshiro256PlusPlus> {
        self.random.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Env {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::System => f.write_str("Env::system"),
            Source::Simulated(simulation) => write!(f, "Env::simulated({})", simulation.seed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_simulated_wall_clock_follows_the_paused_clock() {
        let env = Env::simulated(1);
        let before = env.timestamp();
        tokio::time::advance(Duration::from_secs(90)).await;
        assert_eq!(env.timestamp() - before, TimeDelta::seconds(90));
    }

    #[test]
    fn ids_of_the_machine_are_unique_and_sort_by_time() {
        let env = Env::system();
        let ids: Vec<_> = (0..1_000).map(|_| env.new_id()).collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn the_unit_interval_is_half_open() {
        let env = Env::simulated(3);
        assert!((0..10_000).map(|_| env.random_unit()).all(|unit| (0.0..1.0).contains(&unit)));
    }
}
