//! The in-memory broker beside a bounded tokio channel, in one run.
//!
//! `cargo bench -p postrider-benches --bench in_memory`

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use postrider_benches::in_memory::{
    Broker, EchoService, call_through_channels, call_through_channels_with_codec,
    pass_through_channel,
};
use tokio::runtime::{Builder, Runtime};

const MESSAGES: u64 = 200_000;

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

fn one_to_one(criterion: &mut Criterion) {
    let runtime = runtime();
    let broker = runtime.block_on(Broker::with_queues(1));
    let mut group = criterion.benchmark_group("one publisher to one consumer, 256 B");
    group.throughput(Throughput::Elements(MESSAGES)).sample_size(15);
    group.bench_function("bounded tokio channel", |bench| {
        bench.to_async(&runtime).iter(|| pass_through_channel(MESSAGES));
    });
    group.bench_function("in-memory broker, confirmed and acked", |bench| {
        bench.to_async(&runtime).iter(|| broker.pass(0, MESSAGES));
    });
    group.bench_function("in-memory broker, in batches of 100", |bench| {
        bench.to_async(&runtime).iter(|| broker.pass_in_batches(0, MESSAGES, 100));
    });
    group.finish();
}

fn several_queues(criterion: &mut Criterion) {
    let runtime = runtime();
    let broker = runtime.block_on(Broker::with_queues(8));
    let mut group = criterion.benchmark_group("several queues at once, 256 B");
    group.throughput(Throughput::Elements(MESSAGES)).sample_size(15);
    for queues in [1, 8] {
        group.bench_function(format!("{queues} of them"), |bench| {
            bench.to_async(&runtime).iter(|| broker.pass_at_once(queues, MESSAGES));
        });
    }
    group.finish();
}

fn round_trip(criterion: &mut Criterion) {
    const CALLS: u64 = 5_000;
    let runtime = runtime();
    let service = runtime.block_on(EchoService::start());
    let mut group = criterion.benchmark_group("request and reply, one at a time, 256 B");
    group.throughput(Throughput::Elements(CALLS)).sample_size(15);
    group.bench_function("two channels and a oneshot", |bench| {
        bench.to_async(&runtime).iter(|| call_through_channels(CALLS));
    });
    group.bench_function("the same with codec, task and time limit", |bench| {
        bench.to_async(&runtime).iter(|| call_through_channels_with_codec(CALLS));
    });
    group.bench_function("RPC on the in-memory broker", |bench| {
        bench.to_async(&runtime).iter(|| service.call(CALLS));
    });
    group.finish();
}

criterion_group!(benches, one_to_one, several_queues, round_trip);
criterion_main!(benches);
