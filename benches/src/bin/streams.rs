//! A gigabyte through RabbitMQ as a stream, beside the same bytes as plain messages by lapin: with
//! each side in a process of its own, in interleaved rounds.
//!
//! ```sh
//! exports=$(scripts/brokers up) && eval "$exports"
//! cargo run --release -p postrider-benches --features live-broker --bin streams
//! ```
//!
//! Behind `--` may stand `--quick` for 16 MiB, and `--rounds N`. It fails when a side of a stream
//! takes more memory than it may, or when the hashes of the two sides differ.

use std::{env, fmt, process::ExitCode, process::Stdio};

use postrider_benches::{
    rabbitmq::streams::{self, CHUNK, Role, Way},
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

#[tokio::main]
async fn main() -> ExitCode {
    let Ok(url) = env::var("POSTRIDER_AMQP_URL") else {
        eprintln!("streams: POSTRIDER_AMQP_URL is not set; start a broker by scripts/brokers up");
        return ExitCode::FAILURE;
    };
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (mut length, mut rounds) = (1024 * MEBIBYTE, 5);
    match arguments[..] {
        [role @ ("send" | "receive"), way @ ("stream" | "plain"), name, length] => {
            let role = if role == "send" { Role::Send } else { Role::Receive };
            let way = if way == "stream" { Way::Stream } else { Way::Plain };
            let length = length.parse().expect("a length from ourselves");
            streams::run(role, way, &url, name, length).await;
            return ExitCode::SUCCESS;
        }
        [] => {}
        ["--quick"] => (length, rounds) = (16 * MEBIBYTE, 1),
        ["--rounds", number] if number.parse().is_ok_and(|number: u32| number > 0) => {
            rounds = number.parse().unwrap_or(rounds);
        }
        _ => {
            eprintln!("streams: see the head of benches/src/bin/streams.rs");
            return ExitCode::FAILURE;
        }
    }

    let title = format!("{} MiB in pieces of {} KiB", length / MEBIBYTE, CHUNK / 1024);
    let twin = "plain messages by lapin";
    let mut contest = Contest::new(title, vec![Figure::new(RATE, 0)], ["a stream", twin])
        .with_goals([Goal::at_least(twin, RATE, 0.85)]);
    let mut good = true;
    for round in 1..=rounds {
        for (place, way) in ["stream", "plain"].into_iter().enumerate() {
            let Outcome { seconds, sender, receiver } = transfer(way, length).await;
            println!(
                "round {round}, {way}: {seconds:.2} s\n  sender {sender}\n  receiver {receiver}"
            );
            contest.note(place, vec![(length / MEBIBYTE) as f64 / seconds]);
            good &= sender.hash == receiver.hash;
            good &= way != "stream" || sender.taken().max(receiver.taken()) <= MOST_KIB;
        }
    }
    println!("\n{contest}");
    if !good {
        eprintln!("streams: a hash is wrong, or a side took more than {} MiB", MOST_KIB / 1024);
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

struct Outcome {
    seconds: f64,
    sender: Ended,
    receiver: Ended,
}

/// Has two processes transfer the bytes. Their starts and connecting are not in the time.
async fn transfer(way: &str, length: u64) -> Outcome {
    let env = Env::system();
    let name = format!("bench-{}", env.new_id());
    let mut receiver = Side::start(&["receive", way, &name, &length.to_string()]);
    assert_eq!(receiver.line().await, "ready");
    let mut sender = Side::start(&["send", way, &name, &length.to_string()]);
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
