//! RabbitMQ through Postrider beside lapin or fe2o3-amqp, in interleaved rounds, with the ratio of
//! each round.
//!
//! ```sh
//! exports=$(scripts/brokers up) && eval "$exports"
//! cargo run --release -p postrider-benches --features live-broker --bin rabbitmq
//! ```
//!
//! Behind `--` may stand `--quick` for small sizes, `--rounds N`, `--protocol amqp10`, and words: then
//! only workloads with one of them in their name run. The names are `publish-classic`,
//! `publish-quorum`, `consume-classic`, `consume-quorum`, `idle`, and over AMQP 0.9.1, which is what
//! runs by default, `pubsub`, `rpc-1` and `rpc-128`.

use std::{env, fs, process::ExitCode, thread};

use postrider_benches::rabbitmq::{
    Bench, Broker, Meter, Protocol, Sizes, consume, idle, many_calls_at_once, one_call_at_a_time,
    publish, publish_to_subscriber,
};
use postrider_core::QueueKind;

/// The part of one core that waiting may take.
const IDLE_MOST: f64 = 0.01;

/// What was asked for.
struct Wanted {
    protocol: Protocol,
    sizes: Sizes,
    words: Vec<String>,
}

impl Wanted {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut protocol, mut words) = (Protocol::default(), Vec::new());
        let (mut sizes, mut rounds) = (Sizes::FULL, None);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => sizes = Sizes::QUICK,
                "--protocol" => {
                    protocol = arguments.next().ok_or("--protocol NAME")?.parse()?;
                }
                "--rounds" => {
                    let number = arguments.next().and_then(|number| number.parse().ok());
                    rounds = Some(number.filter(|&number| number > 0).ok_or("--rounds N")?);
                }
                word if word.starts_with('-') => return Err(format!("unknown option {word}")),
                word => words.push(word.to_owned()),
            }
        }
        sizes.rounds = rounds.unwrap_or(sizes.rounds);
        Ok(Self { protocol, sizes, words })
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
    let protocol = wanted.protocol;
    let Ok(url) = env::var(protocol.variable()) else {
        let variable = protocol.variable();
        eprintln!("rabbitmq: {variable} is not set; start a broker by scripts/brokers up");
        return ExitCode::FAILURE;
    };
    let broker = Broker::at(&url);
    let cores = thread::available_parallelism().map_or(0, usize::from);
    println!("{cores} cores, {}", cpu_model());
    match &broker {
        Some(broker) => println!("{broker}"),
        None => println!("the broker is not one of scripts/brokers, so nothing is known of it"),
    }
    println!("{}, {} interleaved rounds\n", protocol.name(), wanted.sizes.rounds);
    let meter = Meter::with_broker(broker.map(|broker| broker.process));
    let bench = Bench { url, protocol, meter, sizes: wanted.sizes };

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
    let with_lapin = protocol == Protocol::Amqp091;
    if with_lapin && wanted.wants("pubsub") {
        println!("{}", publish_to_subscriber(&bench).await);
    }
    if with_lapin && wanted.wants("rpc-1") {
        println!("{}", one_call_at_a_time(&bench).await);
    }
    if with_lapin && wanted.wants("rpc-128") {
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
