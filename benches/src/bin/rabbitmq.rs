//! RabbitMQ through Postrider beside lapin, in interleaved rounds, with the ratio of each round.
//!
//! ```sh
//! exports=$(scripts/brokers up) && eval "$exports"
//! cargo run --release -p postrider-benches --features live-broker --bin rabbitmq
//! ```
//!
//! Behind `--` may stand `--quick` for small sizes, `--rounds N`, and words: then only workloads
//! with one of them in their name run. The names are `publish-classic`, `publish-quorum`,
//! `consume-classic`, `consume-quorum`, `pubsub`, `rpc-1`, `rpc-128` and `idle`.

use std::{env, fs, process::ExitCode, thread};

use postrider_benches::rabbitmq::{
    Bench, Broker, Meter, Sizes, consume, idle, many_calls_at_once, one_call_at_a_time, publish,
    publish_to_subscriber,
};
use postrider_core::QueueKind;

/// The part of one core that waiting may take.
const IDLE_MOST: f64 = 0.01;

/// What was asked for.
struct Wanted {
    sizes: Sizes,
    words: Vec<String>,
}

impl Wanted {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut sizes, mut rounds, mut words) = (Sizes::FULL, None, Vec::new());
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => sizes = Sizes::QUICK,
                "--rounds" => {
                    let number = arguments.next().and_then(|number| number.parse().ok());
                    rounds = Some(number.filter(|&number| number > 0).ok_or("--rounds N")?);
                }
                word if word.starts_with('-') => return Err(format!("unknown option {word}")),
                word => words.push(word.to_owned()),
            }
        }
        sizes.rounds = rounds.unwrap_or(sizes.rounds);
        Ok(Self { sizes, words })
    }

    fn wants(&self, workload: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|word| workload.contains(word))
    }
}

fn cpu_model() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or("unknown CPU", |(_, model)| model).to_owned()
}

#[tokio::main]
async fn main() -> ExitCode {
    let wanted = match Wanted::parse(env::args().skip(1)) {
        Ok(wanted) => wanted,
        Err(error) => {
            eprintln!("rabbitmq: {error}; see the head of benches/src/bin/rabbitmq.rs");
            return ExitCode::FAILURE;
        }
    };
    let Ok(url) = env::var("POSTRIDER_AMQP_URL") else {
        eprintln!("rabbitmq: POSTRIDER_AMQP_URL is not set; start a broker by scripts/brokers up");
        return ExitCode::FAILURE;
    };
    let broker = Broker::at(&url);
    let cores = thread::available_parallelism().map_or(0, usize::from);
    println!("{cores} cores, {}", cpu_model());
    match &broker {
        Some(broker) => println!("{broker}"),
        None => println!("the broker is not one of scripts/brokers, so nothing is known of it"),
    }
    println!("{} interleaved rounds\n", wanted.sizes.rounds);
    let meter = Meter::with_broker(broker.map(|broker| broker.process));
    let bench = Bench { url, meter, sizes: wanted.sizes };

    for kind in [QueueKind::Classic, QueueKind::Quorum] {
        if wanted.wants(&format!("publish-{kind:?}").to_lowercase()) {
            println!("{}", publish(&bench, kind).await);
        }
    }
    for kind in [QueueKind::Classic, QueueKind::Quorum] {
        if wanted.wants(&format!("consume-{kind:?}").to_lowercase()) {
            println!("{}", consume(&bench, kind).await);
        }
    }
    if wanted.wants("pubsub") {
        println!("{}", publish_to_subscriber(&bench).await);
    }
    if wanted.wants("rpc-1") {
        println!("{}", one_call_at_a_time(&bench).await);
    }
    if wanted.wants("rpc-128") {
        println!("{}", many_calls_at_once(&bench).await);
    }
    if wanted.wants("idle") {
        let percent = idle(&bench).await * 100.0;
        let most = IDLE_MOST * 100.0;
        println!(
            "idle, 20 consumers and 10 subscriptions: {percent:.2} % of a core; must: at most {most} %"
        );
    }
    ExitCode::SUCCESS
}
