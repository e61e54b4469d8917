//! The programs over RabbitMQ say what they say in memory, also while connections are lost.
//!
//! Each test has a virtual host of its own, so that it meets nothing that others left.

mod common;

use std::{
    env, fs,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, ChildStdout, Command, Output, Stdio},
    sync::Arc,
    time::Duration,
};

use common::{Protocol, SOON, VirtualHost};
use futures_util::{FutureExt, StreamExt};
use postrider::{EventBus, RawEvent, Running, Subscription, Transport};
use tokio::{
    sync::watch,
    task::{JoinHandle, spawn_blocking},
    time::{sleep, timeout},
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

/// Does to a process what Ctrl-C does.
fn interrupt(process: u32) {
    let command = format!("kill -INT {process}");
    let interrupted = Command::new("sh").args(["-c", &command]).status();
    assert!(interrupted.expect("a shell").success());
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
    close_connections_of_the_shop(Protocol::Amqp091).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shop_says_the_same_while_its_connections_are_closed_over_amqp10() {
    close_connections_of_the_shop(Protocol::Amqp10).await;
}

async fn close_connections_of_the_shop(protocol: Protocol) {
    let host = VirtualHost::new(protocol).await;
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
    let host = VirtualHost::new(Protocol::Amqp091).await;
    let mut shop = Shop::start(&host).await;
    shop.ships(100).await;
    interrupt(shop.process);
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
    run_every_program(Protocol::Amqp091).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_program_says_the_same_as_in_memory_over_amqp10() {
    run_every_program(Protocol::Amqp10).await;
}

async fn run_every_program(protocol: Protocol) {
    let host = VirtualHost::new(protocol).await;
    let url = host.users_url();
    let programs = [
        env!("CARGO_BIN_EXE_rpc"),
        env!("CARGO_BIN_EXE_async_calls"),
        env!("CARGO_BIN_EXE_batch_calls"),
        env!("CARGO_BIN_EXE_events"),
        env!("CARGO_BIN_EXE_work_queue"),
        env!("CARGO_BIN_EXE_dead_letters"),
        env!("CARGO_BIN_EXE_routing"),
        env!("CARGO_BIN_EXE_discovery"),
        env!("CARGO_BIN_EXE_file_transfer"),
    ];
    for program in programs {
        assert_eq!(
            lines(&run(program, &["--broker", &url])),
            lines(&run(program, &[])),
            "{program}"
        );
    }
    // Few orders: the other tests run the shop with many.
    let orders = Path::new(env!("CARGO_TARGET_TMPDIR")).join("few.txt");
    let sample = include_str!("../data/CDNOW_sample.txt");
    let few: String = sample.split_inclusive('\n').take(300).collect();
    fs::write(&orders, few).expect("a file for the test");
    let orders = orders.to_str().expect("a path of text");
    let shop = env!("CARGO_BIN_EXE_shop");
    let over_rabbitmq = run(shop, &["--orders", orders, "--broker", &url]);
    assert_eq!(truth(&over_rabbitmq), truth(&run(shop, &["--orders", orders])));
    host.remove().await;
}

/// A side of a transfer, as a process.
struct Side {
    process: Child,
    said: BufReader<ChildStdout>,
}

impl Side {
    fn start(host: &VirtualHost, arguments: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_file_transfer"))
            .args(["--broker", &host.users_url()])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let said = BufReader::new(process.stdout.take().expect("its output"));
        Self { process, said }
    }

    /// A receiver that takes offers.
    async fn receiver(host: &VirtualHost, directory: &str) -> Self {
        let mut side = Self::start(host, &["receive", directory]);
        let begun = spawn_blocking(move || {
            let mut line = String::new();
            side.said.read_line(&mut line).expect("text");
            assert!(line.starts_with("receiving for 'files' into "), "{line}");
            side
        });
        timeout(SOON, begun).await.expect("it begins").expect("it says so")
    }

    /// What else it says until its end, which is to be a good one.
    async fn ends(self) -> String {
        self.ends_with(0).await
    }

    async fn ends_with(mut self, code: i32) -> String {
        let ended = spawn_blocking(move || {
            let mut said = String::new();
            self.said.read_to_string(&mut said).expect("text");
            assert_eq!(self.process.wait().expect("it ends").code(), Some(code), "{said}");
            said
        });
        timeout(SOON, ended).await.expect("it ends").expect("an end")
    }

    fn interrupt(&self) {
        interrupt(self.process.id());
    }

    /// Ends it as a lack of memory would.
    fn kill(mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ends");
    }
}

/// The lengths of the files in a directory whose names end so.
fn lengths(directory: &Path, extension: &str) -> Vec<u64> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.path().extension().is_some_and(|it| it == extension));
    ours.filter_map(|entry| Some(entry.metadata().ok()?.len())).collect()
}

/// Waits until a transfer has so many bytes in its file.
async fn grows_to(directory: &Path, bytes: u64) {
    let growing = async {
        while !lengths(directory, "part").iter().any(|length| *length >= bytes) {
            // A file of another process tells nobody that it grows.
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(SOON, growing).await.expect("it grows");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_arrives_though_both_sides_are_killed_on_the_way() {
    kill_both_sides_of_a_transfer(Protocol::Amqp091).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_arrives_though_both_sides_are_killed_on_the_way_over_amqp10() {
    kill_both_sides_of_a_transfer(Protocol::Amqp10).await;
}

async fn kill_both_sides_of_a_transfer(protocol: Protocol) {
    const MEBIBYTE: u64 = 1024 * 1024;
    const ID: &str = "00000000-0000-0000-0000-000000000007";
    let host = VirtualHost::new(protocol).await;
    let directory = tempfile::tempdir().expect("a directory");
    let (film, inbox) = (directory.path().join("film.mp4"), directory.path().join("inbox"));
    let body: Vec<u8> = (0..12 * MEBIBYTE as u32).flat_map(u32::to_le_bytes).collect();
    fs::write(&film, &body).expect("a file for the test");
    let (film, into) = (film.to_str().expect("text"), inbox.to_str().expect("text"));
    let send = ["send", film, "--id", ID];

    let first = Side::receiver(&host, into).await;
    let sender = Side::start(&host, &send);
    grows_to(&inbox, 4 * MEBIBYTE).await;
    sender.kill();
    let sender = Side::start(&host, &send);
    grows_to(&inbox, 20 * MEBIBYTE).await;
    first.kill();
    assert_eq!(lengths(&inbox, "part-state").len(), 1, "it is noted how far it was");
    let second = Side::receiver(&host, into).await;

    let sent = sender.ends().await;
    assert!(sent.starts_with("sent film.mp4: 50331648 bytes, BLAKE3 "), "{sent}");
    second.interrupt();
    assert_eq!(second.ends().await, sent.replace("sent", "saved"));
    assert!(fs::read(inbox.join("film.mp4")).expect("the file") == body);
    assert_eq!(fs::read_dir(&inbox).expect("the directory").count(), 1, "nothing else is left");
    host.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_is_interrupted_leaves_nothing() {
    let host = VirtualHost::new(Protocol::Amqp091).await;
    let directory = tempfile::tempdir().expect("a directory");
    let (film, inbox) = (directory.path().join("film.mp4"), directory.path().join("inbox"));
    fs::write(&film, vec![7; 200 * 1024 * 1024]).expect("a file for the test");
    let (film, into) = (film.to_str().expect("text"), inbox.to_str().expect("text"));
    let receiver = Side::receiver(&host, into).await;
    let sender = Side::start(&host, &["send", film]);
    grows_to(&inbox, 1).await;
    sender.interrupt();
    assert_eq!(sender.ends_with(130).await, "");
    receiver.interrupt();
    assert_eq!(receiver.ends().await, "");
    assert_eq!(fs::read_dir(&inbox).expect("the directory").count(), 0, "nothing is left");
    host.remove().await;
}

/// What a program says, in no order where it has none, and without what is new each time.
fn lines(said: &str) -> Vec<&str> {
    const NEW: [&str; 2] = ["published event ", ", BLAKE3 "];
    let until = |line: &str| NEW.iter().find_map(|new| Some(line.find(new)? + new.len()));
    let mut lines: Vec<_> =
        said.lines().map(|line| &line[..until(line).unwrap_or(line.len())]).collect();
    lines.sort_unstable();
    lines
}
