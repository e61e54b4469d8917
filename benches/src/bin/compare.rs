//! The in-memory broker beside its twins, in interleaved rounds, with the ratio of each round.
//!
//! `cargo run --release -p postrider-benches --bin compare`
//!
//! Ratios can be quoted, single times can't: every round runs all contestants one after the other,
//! so what slows the machine slows them alike.

use std::{io, thread, time::Duration};

use postrider_benches::{
    Broker, EchoService, call_through_channels, call_through_channels_with_codec,
    pass_through_channel,
};
use postrider_core::Env;

const ROUNDS: usize = 7;
const MESSAGES: u64 = 400_000;
const CALLS: u64 = 40_000;

/// How long `work` takes for each of `count` pieces.
async fn each(count: u64, work: impl Future<Output = ()>) -> Duration {
    let env = Env::system();
    let began = env.now();
    work.await;
    (env.now() - began) / u32::try_from(count).unwrap_or(u32::MAX)
}

/// Minimum, median and maximum.
fn spread(mut figures: Vec<f64>) -> [f64; 3] {
    figures.sort_by(f64::total_cmp);
    [figures[0], figures[figures.len() / 2], figures[figures.len() - 1]]
}

/// Prints the times of two contestants and how the first compares with the second.
fn row(name: &str, twin: &str, times: &[(Duration, Duration)], faster_is_more: bool) {
    let nanos = |time: &Duration| time.as_secs_f64() * 1e9;
    let ours = spread(times.iter().map(|(ours, _)| nanos(ours)).collect());
    let theirs = spread(times.iter().map(|(_, theirs)| nanos(theirs)).collect());
    let ratio = spread(
        times
            .iter()
            .map(|(ours, theirs)| {
                let slower = nanos(ours) / nanos(theirs);
                if faster_is_more { slower.recip() } else { slower }
            })
            .collect(),
    );
    let what = if faster_is_more { "throughput" } else { "time" };
    println!("{name}\n  beside {twin}");
    println!("  ns each   {:>8.0} {:>8.0} {:>8.0}", ours[0], ours[1], ours[2]);
    println!("  twin      {:>8.0} {:>8.0} {:>8.0}", theirs[0], theirs[1], theirs[2]);
    println!(
        "  {what:<10}{:>8.2} {:>8.2} {:>8.2}  times the twin's\n",
        ratio[0], ratio[1], ratio[2]
    );
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let cores = thread::available_parallelism()?;
    println!(
        "{cores} cores, {ROUNDS} interleaved rounds; minimum, median, maximum; 256 B bodies\n"
    );
    let broker = Broker::with_queues(8).await;
    let service = EchoService::start().await;
    let (mut hop, mut queues, mut bare, mut same) = (vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        let one = each(MESSAGES, broker.pass(0, MESSAGES)).await;
        hop.push((one, each(MESSAGES, pass_through_channel(MESSAGES)).await));
        queues.push((each(MESSAGES, broker.pass_at_once(8, MESSAGES)).await, one));
        let call = each(CALLS, service.call(CALLS)).await;
        bare.push((call, each(CALLS, call_through_channels(CALLS)).await));
        same.push((call, each(CALLS, call_through_channels_with_codec(CALLS)).await));
    }
    row(
        "one publisher to one consumer, confirmed and acknowledged",
        "a bounded tokio channel",
        &hop,
        true,
    );
    row("8 queues at once", "1 queue", &queues, true);
    row("request and reply", "two channels and a oneshot", &bare, false);
    row(
        "request and reply",
        "two channels and a oneshot, with codec, task and time limit as in a call",
        &same,
        false,
    );
    Ok(())
}
