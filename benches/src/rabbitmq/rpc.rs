//! Calls of 256 bytes to a service that echoes.

use std::time::Duration;

use bytes::Bytes;
use postrider_core::{Env, Queue, QueueKind};
use postrider_patterns::{RpcClient, RpcServer, dead_letter_topology};
use tokio::task::JoinSet;

use super::{
    Bench, CLIENT, Cost, POSTRIDER, RATE, naming,
    rpc_raw::{Client, Replies, serve},
};
use crate::{
    BODY,
    echo::Echo,
    rounds::{Contest, Figure, Goal},
};

const DIRECT: &str = "lapin, direct reply-to";
const EXCLUSIVE: &str = "lapin, exclusive reply queue";

const P50: &str = "p50, µs";
const P99: &str = "p99, µs";

/// How many calls are under way in the workload of many.
const AT_ONCE: u16 = 128;

/// How long a service may take to stop.
const STOP: Duration = Duration::from_secs(10);

const SERVICE: &str = "bench";

pub(super) fn echo() -> Echo {
    Echo { body: Bytes::copy_from_slice(&BODY) }
}

/// Measures how long calls take that are made one after the other.
///
/// # Panics
///
/// When a call fails.
pub async fn one_call_at_a_time(bench: &Bench) -> Contest {
    let mut figures = vec![Figure::new(P50, 0), Figure::new(P99, 0)];
    figures.extend(bench.costs());
    let mut contest = Contest::new(
        "request and reply, 1 in flight, 256 B each way, MessagePack",
        figures,
        [POSTRIDER, DIRECT, EXCLUSIVE],
    )
    .with_goals([
        Goal::at_most(DIRECT, P50, 1.15),
        Goal::at_most(DIRECT, P99, 1.15),
        Goal::at_most(DIRECT, CLIENT, 1.15),
    ]);
    let calls = bench.sizes.calls;
    let sample = |(cost, mut times): (Cost, Vec<Duration>)| {
        times.sort_unstable();
        let at = |part: usize| times[times.len() * part / 100].as_secs_f64() * 1e6;
        let mut figures = vec![at(50), at(99)];
        figures.extend(cost.costs());
        figures
    };
    for _ in 0..bench.sizes.rounds {
        contest.note(0, sample(with_postrider(bench, 1, calls).await));
        contest.note(1, sample(with_lapin(bench, Replies::Direct, 1, calls).await));
        contest.note(2, sample(with_lapin(bench, Replies::ExclusiveQueue, 1, calls).await));
    }
    contest
}

/// Measures how many calls are made in a second with 128 of them under way.
///
/// # Panics
///
/// When a call fails.
pub async fn many_calls_at_once(bench: &Bench) -> Contest {
    let title = format!("request and reply, {AT_ONCE} in flight, 256 B each way, MessagePack");
    let mut contest = Contest::new(title, bench.figures(), [POSTRIDER, DIRECT, EXCLUSIVE])
        .with_goals([Goal::at_least(DIRECT, RATE, 0.9), Goal::at_most(DIRECT, CLIENT, 1.15)]);
    let calls = bench.sizes.calls_at_once;
    for _ in 0..bench.sizes.rounds {
        contest.note(0, with_postrider(bench, AT_ONCE, calls).await.0.figures());
        contest.note(1, with_lapin(bench, Replies::Direct, AT_ONCE, calls).await.0.figures());
        let raw = with_lapin(bench, Replies::ExclusiveQueue, AT_ONCE, calls).await;
        contest.note(2, raw.0.figures());
    }
    contest
}

/// Makes calls from several tasks, and tells how long each took.
async fn call_at_once<F: Future<Output = ()> + Send + 'static>(
    at_once: u16,
    calls: u64,
    call: impl Fn() -> F + Clone + Send + 'static,
) -> Vec<Duration> {
    let mut callers = JoinSet::new();
    for caller in 0..u64::from(at_once) {
        let call = call.clone();
        callers.spawn(async move {
            let env = Env::system();
            let mut times = Vec::new();
            for _ in (caller..calls).step_by(usize::from(at_once)) {
                let began = env.now();
                call().await;
                times.push(env.now() - began);
            }
            times
        });
    }
    callers.join_all().await.concat()
}

async fn with_postrider(bench: &Bench, at_once: u16, calls: u64) -> (Cost, Vec<Duration>) {
    // Client and server have connections of their own, as in two processes.
    let (serving, calling) = (bench.connect().await, bench.connect().await);
    let naming = naming();
    let server = RpcServer::new(SERVICE)
        .naming(naming.clone())
        .method(|echo: Echo, _| async move { Ok(echo.body) })
        .concurrency(usize::from(at_once))
        .start(&serving)
        .await
        .expect("served");
    let client = RpcClient::builder(&calling).naming(naming.clone()).connect().await;
    let client = client.expect("connected");
    let call = move || {
        let client = client.clone();
        async move {
            let reply = client.call(SERVICE, &echo()).await.expect("answered");
            assert_eq!(reply.len(), BODY.len());
        }
    };
    // The first call asks whether anybody serves.
    call().await;
    let measured = bench.meter.measure(calls, call_at_once(at_once, calls, call)).await;
    let queue = server.queue().to_owned();
    server.stop(STOP).await;
    let declared = dead_letter_topology(&naming, &queue).queue(Queue::classic(queue));
    serving.remove(&declared).await.expect("removed");
    measured
}

async fn with_lapin(
    bench: &Bench,
    replies: Replies,
    at_once: u16,
    calls: u64,
) -> (Cost, Vec<Duration>) {
    let queue = bench.queue(QueueKind::Classic).await;
    let (server, _open) = serve(&bench.url, &queue.name, at_once).await;
    let client = Client::connect(&bench.url, &queue.name, replies).await;
    let call = {
        let client = client.clone();
        move || {
            let client = client.clone();
            async move { client.call().await }
        }
    };
    call().await;
    let measured = bench.meter.measure(calls, call_at_once(at_once, calls, call)).await;
    client.close().await;
    super::raw::close(&server).await;
    queue.delete_with(0).await;
    measured
}
