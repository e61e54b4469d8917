//! Time and CPU time of a piece of work.

use std::{fs, time::Duration};

use postrider_core::Env;

/// Linux counts CPU time in hundredths of a second for those who read it from `/proc`.
const TICK: Duration = Duration::from_millis(10);

/// Measures work.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    broker: Option<u32>,
}

/// What work took.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    count: u64,
    wall: Duration,
    client: Duration,
    broker: Option<Duration>,
}

impl Meter {
    /// Measures the CPU time of this process too, when it is the broker's and on this machine.
    #[must_use]
    pub fn with_broker(process: Option<u32>) -> Self {
        let is_broker = |process: &u32| {
            fs::read_to_string(format!("/proc/{process}/comm"))
                .is_ok_and(|name| name.starts_with("beam"))
        };
        Self { broker: process.filter(is_broker) }
    }

    /// Whether the broker's CPU time is measured.
    pub(super) const fn sees_broker(&self) -> bool {
        self.broker.is_some()
    }

    fn broker_time(&self) -> Option<Duration> {
        cpu_time(&self.broker?.to_string())
    }

    /// Runs `work`, which does `count` pieces, as a task.
    ///
    /// # Panics
    ///
    /// When `work` does.
    pub async fn measure<T: Send + 'static>(
        &self,
        count: u64,
        work: impl Future<Output = T> + Send + 'static,
    ) -> (Cost, T) {
        let env = Env::system();
        let (client, broker) = (cpu_time("self"), self.broker_time());
        let began = env.now();
        let done = tokio::spawn(work).await.expect("no panic");
        let wall = env.now() - began;
        let since = |before: Option<Duration>, after: Option<Duration>| Some(after? - before?);
        let cost = Cost {
            count,
            wall,
            client: since(client, cpu_time("self")).unwrap_or_default(),
            broker: since(broker, self.broker_time()),
        };
        (cost, done)
    }
}

impl Cost {
    /// Pieces per second, and the CPU time of each.
    pub(super) fn figures(&self) -> Vec<f64> {
        let mut figures = vec![self.count as f64 / self.wall.as_secs_f64()];
        figures.extend(self.costs());
        figures
    }

    /// The CPU time of each piece in microseconds: the client's, and the broker's where it is known.
    pub(super) fn costs(&self) -> Vec<f64> {
        let each = |time: Duration| time.as_secs_f64() * 1e6 / self.count as f64;
        [Some(self.client), self.broker].into_iter().flatten().map(each).collect()
    }

    /// Which part of one core the client took.
    pub(super) fn share_of_core(&self) -> f64 {
        self.client.as_secs_f64() / self.wall.as_secs_f64()
    }
}

/// The CPU time that a process has used, as Linux tells; that of threads that ended included.
fn cpu_time(process: &str) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Behind the name, which is in brackets and may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    Some(TICK * (ticks()? + ticks()?))
}
