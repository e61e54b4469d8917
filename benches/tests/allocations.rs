//! What a message costs in allocations, which do not depend on the machine's mood.

use postrider_benches::in_memory::{Broker, EchoService};
use tokio::runtime::Builder;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Blocks allocated for each of `count` pieces of work, after the first hundred.
async fn blocks_each(count: u64, work: impl AsyncFn(u64)) -> f64 {
    work(100).await;
    let before = dhat::HeapStats::get().total_blocks;
    work(count).await;
    let blocks = dhat::HeapStats::get().total_blocks - before;
    blocks as f64 / count as f64
}

// One test, because the profiler counts for the whole process.
#[test]
fn a_message_takes_no_more_allocations_than_allowed() {
    let _profiler = dhat::Profiler::builder().testing().build();
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let broker = Broker::with_queues(1).await;
        let hop = blocks_each(5_000, async |messages| broker.pass(0, messages).await).await;
        // Two of these are the program's own: the body and the text of the address.
        println!("{hop:.2} allocations for a message, publish to acknowledgement");
        assert!(hop <= 4.0, "an in-memory hop takes {hop:.2} allocations");

        let service = EchoService::start().await;
        let call = blocks_each(2_000, async |calls| service.call(calls).await).await;
        println!("{call:.2} allocations for a call, request to reply");
        assert!(call <= 36.0, "a call takes {call:.2} allocations");
    });
}
