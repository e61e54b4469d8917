//! The in-memory broker beside its twins, in interleaved rounds, with the ratio of each round.
//!
//! `cargo run --release -p postrider-benches --bin compare`

use std::{io, thread};

use postrider_benches::{
    in_memory::{
        Broker, EchoService, call_through_channels, call_through_channels_with_codec,
        pass_through_channel,
    },
    rounds::{Contest, Figure, Goal},
};
use postrider_core::Env;

const ROUNDS: usize = 7;
const MESSAGES: u64 = 400_000;
const CALLS: u64 = 40_000;

const RATE: &str = "thousand per second";
const TIME: &str = "ns each";

/// How many nanoseconds `work` takes for each of `count` pieces.
async fn nanos_each(count: u64, work: impl Future<Output = ()>) -> f64 {
    let env = Env::system();
    let began = env.now();
    work.await;
    (env.now() - began).as_secs_f64() * 1e9 / count as f64
}

/// As many of them go in a millisecond.
fn rate(nanos: f64) -> Vec<f64> {
    vec![1e6 / nanos]
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let cores = thread::available_parallelism()?;
    println!("{cores} cores, {ROUNDS} interleaved rounds, 256 B bodies\n");
    let broker = Broker::with_queues(8).await;
    let service = EchoService::start().await;
    let mut hop = Contest::new(
        "one publisher to one consumer, confirmed and acknowledged",
        vec![Figure::new(RATE, 0)],
        ["Postrider", "a bounded tokio channel"],
    )
    .with_goals([Goal::at_least("a bounded tokio channel", RATE, 0.2)]);
    let mut queues =
        Contest::new("several queues at once", vec![Figure::new(RATE, 0)], ["8 queues", "1 queue"])
            .with_goals([Goal::at_least("1 queue", RATE, 1.5)]);
    let mut call = Contest::new(
        "request and reply, one at a time",
        vec![Figure::new(TIME, 0)],
        ["Postrider", "two channels and a oneshot", "with codec, task, time limit"],
    )
    .with_goals([Goal::at_most("two channels and a oneshot", TIME, 4.0)]);
    for _ in 0..ROUNDS {
        let one = nanos_each(MESSAGES, broker.pass(0, MESSAGES)).await;
        hop.note(0, rate(one));
        hop.note(1, rate(nanos_each(MESSAGES, pass_through_channel(MESSAGES)).await));
        queues.note(0, rate(nanos_each(MESSAGES, broker.pass_at_once(8, MESSAGES)).await));
        queues.note(1, rate(one));
        call.note(0, vec![nanos_each(CALLS, service.call(CALLS)).await]);
        call.note(1, vec![nanos_each(CALLS, call_through_channels(CALLS)).await]);
        call.note(2, vec![nanos_each(CALLS, call_through_channels_with_codec(CALLS)).await]);
    }
    println!("{hop}\n{queues}\n{call}");
    Ok(())
}
