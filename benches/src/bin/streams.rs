//! A gigabyte as a stream: through RabbitMQ, beside the same bytes as plain messages by the client
//! alone, with each side in a process of its own, in interleaved rounds; and in memory.
//!
//! ```sh
//! exports=$(scripts/brokers up) && eval "$exports"
//! cargo run --release -p postrider-benches --features live-broker --bin streams
//! ```
//!
//! Behind `--` may stand `--quick` for 16 MiB, `--rounds N`, and `--protocol` with `amqp091`, which is
//! what runs by default, `amqp10` or `memory`. It fails when a side of a stream takes more memory
//! than it may, or when the hashes of the two sides differ.

use std::{env, fmt, process::ExitCode, process::Stdio};

use postrider_benches::{
    rabbitmq::{
        Protocol,
        streams::{self, CHUNK, Role, Way},
    },
    rounds::{Contest, Figure, Goal},
};
use postrider_core::Env;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

const MEBIBYTE: u64 = 1024 * 1024;

/// The most that a side of a stream may take above its start.
const MOST_KIB: u64 = 64 * 1024;

const RATE: &str = "MiB per second";

/// What the stream goes over.
#[derive(Clone, Copy)]
enum Over {
    RabbitMq(Protocol),
    Memory,
}

/// What was asked for.
struct Wanted {
    over: Over,
    length: u64,
    rounds: u32,
}

impl Wanted {
    fn parse<'a>(mut arguments: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let over = Over::RabbitMq(Protocol::default());
        let mut wanted = Self { over, length: 1024 * MEBIBYTE, rounds: 5 };
        while let Some(argument) = arguments.next() {
            match argument {
                "--quick" => (wanted.length, wanted.rounds) = (16 * MEBIBYTE, 1),
                "--protocol" => {
                    wanted.over = match arguments.next().ok_or("--protocol NAME")? {
                        "memory" => Over::Memory,
                        name => Over::RabbitMq(name.parse()?),
                    }
                }
                "--rounds" => {
                    let number = arguments.next().and_then(|number| number.parse().ok());
                    wanted.rounds = number.filter(|&number| number > 0).ok_or("--rounds N")?;
                }
                _ => return Err(format!("what is meant by {argument}?")),
            }
        }
        Ok(wanted)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["side", ref side @ ..] = arguments[..] {
        run_side(side).await;
        return ExitCode::SUCCESS;
    }
    let wanted = match Wanted::parse(arguments.into_iter()) {
        Ok(wanted) => wanted,
        Err(error) => {
            eprintln!("streams: {error}; see the head of benches/src/bin/streams.rs");
            return ExitCode::FAILURE;
        }
    };
    let Wanted { length, rounds, over } = wanted;
    let good = match over {
        Over::RabbitMq(protocol) => through_rabbitmq(protocol, length, rounds).await,
        Over::Memory => in_memory(length, rounds).await,
    };
    if !good {
        eprintln!("streams: a hash is wrong, or a side took more than {} MiB", MOST_KIB / 1024);
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// What a process does that was started for one side, or in memory for both.
async fn run_side(arguments: &[&str]) {
    let number = |text: &str| text.parse().expect("a length from ourselves");
    match *arguments {
        ["memory", name, length] => streams::in_memory(name, number(length)).await,
        [role, way, protocol, name, length] => {
            let role = if role == "send" { Role::Send } else { Role::Receive };
            let way = if way == "stream" { Way::Stream } else { Way::Plain };
            let protocol: Protocol = protocol.parse().expect("a protocol from ourselves");
            let url = env::var(protocol.variable()).expect("a broker, by scripts/brokers up");
            streams::run(role, way, protocol, &url, name, number(length)).await;
        }
        _ => unreachable!("it starts itself"),
    }
}

async fn through_rabbitmq(protocol: Protocol, length: u64, rounds: u32) -> bool {
    let name = protocol.name();
    let title = format!("{} MiB in pieces of {} KiB, {name}", length / MEBIBYTE, CHUNK / 1024);
    let twin = "plain messages";
    let mut contest = Contest::new(title, vec![Figure::new(RATE, 0)], ["a stream", twin])
        .with_goals([Goal::at_least(twin, RATE, 0.85)]);
    let mut good = true;
    for round in 1..=rounds {
        for (place, way) in ["stream", "plain"].into_iter().enumerate() {
            let Outcome { seconds, sender, receiver } = transfer(way, protocol, length).await;
            println!(
                "round {round}, {way}: {seconds:.2} s\n  sender {sender}\n  receiver {receiver}"
            );
            contest.note(place, vec![(length / MEBIBYTE) as f64 / seconds]);
            good &= sender.hash == receiver.hash;
            good &= way != "stream" || sender.taken().max(receiver.taken()) <= MOST_KIB;
        }
    }
    println!("\n{contest}");
    good
}

async fn in_memory(length: u64, rounds: u32) -> bool {
    let env = Env::system();
    let mut good = true;
    for round in 1..=rounds {
        let name = format!("bench-{}", env.new_id());
        let mut both = Side::start(&["memory", &name, &length.to_string()]);
        assert_eq!(both.line().await, "began");
        let began = env.now();
        let ended = Ended::read(&both.line().await);
        let seconds = (env.now() - began).as_secs_f64();
        both.end().await;
        let rate = (length / MEBIBYTE) as f64 / seconds;
        println!("round {round}, memory: {rate:.0} MiB per second\n  both sides {ended}");
        good &= ended.taken() <= MOST_KIB;
    }
    good
}

struct Outcome {
    seconds: f64,
    sender: Ended,
    receiver: Ended,
}

/// Has two processes transfer the bytes. Their starts and connecting are not in the time.
async fn transfer(way: &str, protocol: Protocol, length: u64) -> Outcome {
    let env = Env::system();
    let name = format!("bench-{}", env.new_id());
    let mut receiver = Side::start(&["receive", way, protocol.name(), &name, &length.to_string()]);
    assert_eq!(receiver.line().await, "ready");
    let mut sender = Side::start(&["send", way, protocol.name(), &name, &length.to_string()]);
    assert_eq!(sender.line().await, "began");
    let began = env.now();
    let (sender_ended, receiver_ended) = tokio::join!(sender.line(), receiver.line());
    let seconds = (env.now() - began).as_secs_f64();
    sender.end().await;
    receiver.end().await;
    Outcome { seconds, sender: Ended::read(&sender_ended), receiver: Ended::read(&receiver_ended) }
}

struct Side {
    process: Child,
    said: Lines<BufReader<ChildStdout>>,
}

impl Side {
    fn start(arguments: &[&str]) -> Self {
        let program = env::current_exe().expect("this program");
        let mut process = Command::new(program)
            .arg("side")
            .args(arguments)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        let said = BufReader::new(process.stdout.take().expect("its output")).lines();
        Self { process, said }
    }

    async fn line(&mut self) -> String {
        self.said.next_line().await.expect("text").expect("it says how it is")
    }

    async fn end(mut self) {
        assert!(self.process.wait().await.expect("it ends").success());
    }
}

/// What a side says in the end.
struct Ended {
    hash: String,
    start_kib: u64,
    most_kib: u64,
}

impl Ended {
    fn read(line: &str) -> Self {
        let words: Vec<&str> = line.split(' ').collect();
        let ["ended", hash, start, most] = words[..] else { panic!("{line}") };
        let number = |text: &str| text.parse().expect("a number");
        Self { hash: hash.to_owned(), start_kib: number(start), most_kib: number(most) }
    }

    const fn taken(&self) -> u64 {
        self.most_kib - self.start_kib
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mebibytes = |kib: u64| kib as f64 / 1024.0;
        let (start, taken) = (mebibytes(self.start_kib), mebibytes(self.taken()));
        write!(f, "{taken:.1} MiB above the {start:.1} MiB of its start")?;
        if self.hash == "-" { Ok(()) } else { write!(f, ", BLAKE3 {}", self.hash) }
    }
}
