//! The in-memory broker beside a bounded tokio channel, in one run.
//!
//! `cargo bench -p postrider-benches --bench in_memory`

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use postrider_benches::{Broker, pass_through_channel};
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

criterion_group!(benches, one_to_one);
criterion_main!(benches);
