//! What a message through RabbitMQ costs in allocations beyond lapin's own.

use postrider_benches::rabbitmq::{
    Bench, Meter, Protocol, Sizes, consume_well_with_lapin, consume_with_postrider,
    publish_well_with_lapin, publish_with_postrider,
};
use postrider_core::QueueKind;
use tokio::runtime::Builder;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const FEW: u64 = 2_000;
const MANY: u64 = 12_000;

async fn blocks(work: impl Future) -> f64 {
    let before = dhat::HeapStats::get().total_blocks;
    work.await;
    (dhat::HeapStats::get().total_blocks - before) as f64
}

/// Blocks for each message; what is done once falls out of the difference of two runs.
async fn blocks_each(work: impl AsyncFn(u64)) -> f64 {
    let few = blocks(work(FEW)).await;
    (blocks(work(MANY)).await - few) / (MANY - FEW) as f64
}

// One test, because the profiler counts for the whole process.
#[test]
fn a_message_takes_few_allocations_more_than_lapin_does() {
    let _profiler = dhat::Profiler::builder().testing().build();
    let url = std::env::var("POSTRIDER_AMQP_URL").expect("POSTRIDER_AMQP_URL, a running broker");
    let bench =
        Bench { url, protocol: Protocol::Amqp091, meter: Meter::default(), sizes: Sizes::QUICK };
    let kind = QueueKind::Classic;
    let runtime = Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let ours = blocks_each(async |n| _ = publish_with_postrider(&bench, kind, n).await).await;
        let raw = blocks_each(async |n| _ = publish_well_with_lapin(&bench, kind, n).await).await;
        println!("publish: {ours:.2} allocations for a message, {raw:.2} of them lapin's");
        // Two of these are the program's own: the body and the text of the address.
        let publish = ours - raw;

        // Both fill the queue in the same way, so that the difference is that of consuming.
        let ours = blocks_each(async |n| _ = consume_with_postrider(&bench, kind, n).await).await;
        let raw = blocks_each(async |n| _ = consume_well_with_lapin(&bench, kind, n).await).await;
        println!("fill and consume: {ours:.2} allocations for a message, {raw:.2} with lapin");
        let consume = ours - raw;

        // The aim is 3, which is not reached: this only keeps it from getting worse. The share of the
        // client varies by some tenths from run to run.
        assert!(publish <= 8.0, "publishing takes {publish:.2} allocations beyond lapin's");
        assert!(consume <= 2.0, "consuming and acknowledging takes {consume:.2} beyond lapin's");
    });
}
