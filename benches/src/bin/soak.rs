//! Passes ten million messages through the in-memory broker and watches its resident memory.
//!
//! `cargo run --release -p postrider-benches --bin soak [MESSAGES]`
//!
//! It fails when the memory after the last tenth is above that after the first by more than the
//! broker may hold: a backlog comes and goes, and the allocator keeps what it took.

use std::{env, fs, process::ExitCode};

use postrider_benches::in_memory::{Broker, MEMORY_LIMIT};

/// How far memory may rise after the first tenth, in KiB.
const ALLOWED_KIB: u64 = MEMORY_LIMIT as u64 / 1024;

/// Resident memory in KiB, as Linux tells.
fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a resident size");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

#[tokio::main]
async fn main() -> ExitCode {
    let messages: u64 = match env::args().nth(1).map(|text| text.parse()) {
        None => 10_000_000,
        Some(Ok(messages)) => messages,
        Some(Err(error)) => {
            eprintln!("soak: the number of messages is not a number: {error}");
            return ExitCode::FAILURE;
        }
    };
    let broker = Broker::with_queues(1).await;
    let mut after = Vec::new();
    for tenth in 1..=10 {
        broker.pass(0, messages / 10).await;
        after.push(resident_kib());
        println!("{:>12} messages: {:>8} KiB resident", messages / 10 * tenth, resident_kib());
    }
    let (first, last) = (after[0], after[9]);
    if last > first + ALLOWED_KIB {
        eprintln!("soak: memory grew from {first} to {last} KiB");
        return ExitCode::FAILURE;
    }
    println!("flat: {first} KiB after the first tenth, {last} KiB after the last");
    ExitCode::SUCCESS
}
