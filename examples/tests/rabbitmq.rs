//! The programs over RabbitMQ say what they say in memory, also while connections are lost.
//!
//! Each test has a virtual host of its own, so that it meets nothing that others left.

mod common;

use std::{
    process::{Command, Output, Stdio},
    sync::Arc,
};

use common::{SOON, VirtualHost};
use futures_util::{FutureExt, StreamExt};
use postrider::{EventBus, RawEvent, Running, Subscription, Transport};
use tokio::{
    sync::watch,
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

/// How often the connections of the shop are closed while it runs.
const LOSSES: u64 = 5;

/// The orders of the sample.
const ORDERS: u64 = 6_919;

/// A shop that runs, and somebody who hears of what it ships.
struct Shop {
    process: u32,
    ended: JoinHandle<Output>,
    shipped: watch::Receiver<u64>,
    listening: Running,
    transport: Arc<dyn Transport>,
}

impl Shop {
    async fn start(host: &VirtualHost) -> Self {
        let transport = postrider::connect(&host.url("guest")).await.expect("a connection");
        let bus = EventBus::new(&transport).await.expect("the bus");
        let (count, shipped) = watch::channel(0);
        let subscription =
            Subscription::ephemeral("test").on_pattern("order.shipped", move |_: RawEvent, _| {
                count.send_modify(|shipped| *shipped += 1);
                async { Ok(()) }
            });
        let listening = bus.subscribe(subscription).await.expect("a subscription");
        let shop = Command::new(env!("CARGO_BIN_EXE_shop"))
            .args(["--broker", &host.users_url()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the shop starts");
        let process = shop.id();
        let ended = spawn_blocking(|| shop.wait_with_output().expect("the shop ends"));
        Self { process, ended, shipped, listening, transport }
    }

    /// Waits until this many orders were shipped.
    async fn ships(&mut self, orders: u64) {
        let shipped = timeout(SOON, self.shipped.wait_for(|shipped| *shipped >= orders)).await;
        shipped.expect("the shop goes on").expect("the subscription goes on");
    }

    async fn ends(self) -> Output {
        let output = timeout(SOON, self.ended).await.expect("the shop ends").expect("its output");
        self.listening.stop(SOON).await;
        self.transport.close(SOON).await.expect("closing");
        output
    }
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).expect("text")
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the program runs");
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout).to_owned()
}

/// What the shop prints of its orders, without how long it took; and apart from that, how many
/// duplicates were recognised.
fn truth(table: &str) -> (Vec<&str>, u64) {
    const DUPLICATES: &str = "duplicates recognised";
    let (duplicates, rest): (Vec<_>, Vec<_>) = table
        .lines()
        .filter(|line| !line.contains("orders per second"))
        .partition(|line| line.contains(DUPLICATES));
    let [duplicates] = duplicates[..] else { panic!("one line of duplicates: {table}") };
    let number = duplicates.trim().trim_start_matches(DUPLICATES).replace(',', "");
    (rest, number.trim().parse().expect("a number of duplicates"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shop_says_the_same_while_its_connections_are_closed() {
    let host = VirtualHost::new().await;
    let mut shop = Shop::start(&host).await;
    let mut events = shop.transport.events();
    let mut closed = 0;
    for loss in 1..=LOSSES {
        shop.ships(loss * ORDERS / (2 * LOSSES)).await;
        closed += tokio::select! {
            closed = host.lose_the_program() => closed,
            output = &mut shop.ended => panic!("the shop ended before loss {loss}: {output:?}"),
        };
    }
    assert!(!shop.ended.is_finished(), "it was at work the last time, too");
    assert!(closed >= 5, "{closed} connections were closed");
    assert!(events.next().now_or_never().is_none(), "no other connection was touched");

    let output = shop.ends().await;
    assert!(output.status.success(), "{output:?}");
    let (told, duplicates) = truth(text(&output.stdout));
    let in_memory = run(env!("CARGO_BIN_EXE_shop"), &[]);
    assert_eq!((told, 0), truth(&in_memory));
    assert!(duplicates > 0, "what was under way came again");
    println!("{closed} connections closed, {duplicates} duplicates recognised");
    host.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shop_that_is_interrupted_finishes_what_it_has_in_hand() {
    let host = VirtualHost::new().await;
    let mut shop = Shop::start(&host).await;
    shop.ships(100).await;
    let interrupted =
        Command::new("sh").args(["-c", &format!("kill -INT {}", shop.process)]).status();
    assert!(interrupted.expect("a shell").success());
    let output = shop.ends().await;
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert_eq!(text(&output.stdout), "", "no result is told of a run that was cut short");
    let error = text(&output.stderr);
    assert!(error.starts_with("shop: interrupted; the services finish"), "{error}");
    assert!(error.contains(" of 6919 orders are done, "), "{error}");
    host.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_program_says_the_same_as_in_memory() {
    let host = VirtualHost::new().await;
    let url = host.users_url();
    for program in [
        env!("CARGO_BIN_EXE_rpc"),
        env!("CARGO_BIN_EXE_async_calls"),
        env!("CARGO_BIN_EXE_batch_calls"),
        env!("CARGO_BIN_EXE_events"),
        env!("CARGO_BIN_EXE_work_queue"),
    ] {
        assert_eq!(
            lines(&run(program, &["--broker", &url])),
            lines(&run(program, &[])),
            "{program}"
        );
    }
    // Few orders: the other tests run the shop with many.
    let orders = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("few.txt");
    let sample = include_str!("../data/CDNOW_sample.txt");
    let few: String = sample.split_inclusive('\n').take(300).collect();
    std::fs::write(&orders, few).expect("a file for the test");
    let orders = orders.to_str().expect("a path of text");
    let shop = env!("CARGO_BIN_EXE_shop");
    let over_rabbitmq = run(shop, &["--orders", orders, "--broker", &url]);
    assert_eq!(truth(&over_rabbitmq), truth(&run(shop, &["--orders", orders])));
    host.remove().await;
}

/// What a program says, in no order where it has none, and without ids.
fn lines(said: &str) -> Vec<&str> {
    const ID: &str = "published event ";
    let mut lines: Vec<_> =
        said.lines().map(|line| if line.starts_with(ID) { ID } else { line }).collect();
    lines.sort_unstable();
    lines
}
