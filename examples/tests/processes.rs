//! Worker processes that are told to end, killed, and crash.

mod common;

use std::{collections::BTreeMap, ops::Range, process::Stdio, sync::Arc, time::Duration};

use common::{Protocol, SOON, VirtualHost};
use postrider::{DeadLetters, DeadReason, Task, Transport, WorkQueue};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::watch,
    time::timeout,
};

/// What the example takes.
#[derive(Serialize, Deserialize)]
struct Job {
    number: u32,
    millis: u64,
    crash: bool,
}

impl Task for Job {
    const TYPE: &'static str = "job";
}

fn jobs(numbers: Range<u32>, millis: u64) -> Vec<Job> {
    numbers.map(|number| Job { number, millis, crash: false }).collect()
}

/// What all workers of a test have said, and who said it.
#[derive(Debug, Default)]
struct Said(Vec<(usize, String)>);

impl Said {
    /// How often each task was begun or done.
    fn count(&self, what: &str) -> BTreeMap<u32, u32> {
        let mut counts = BTreeMap::new();
        for (_, line) in &self.0 {
            if let Some((said, number)) = line.split_once(' ')
                && said == what
                && let Ok(number) = number.parse()
            {
                *counts.entry(number).or_default() += 1;
            }
        }
        counts
    }

    fn by(&self, worker: usize) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(by, _)| *by == worker).map(|(_, line)| &**line)
    }
}

/// A protocol, and what the names of the broker's variables end with.
type Target = (Protocol, &'static str);

/// The workers of one test on a virtual host of its own.
struct Workers {
    host: VirtualHost,
    arguments: Vec<&'static str>,
    said: watch::Sender<Said>,
    started: usize,
    transport: Arc<dyn Transport>,
}

struct Process {
    child: Child,
}

impl Workers {
    async fn new((protocol, broker): Target, arguments: &[&'static str]) -> Self {
        let host = VirtualHost::new_on(protocol, broker).await;
        let transport = postrider::connect(&host.url("guest")).await.expect("a connection");
        let (said, _) = watch::channel(Said::default());
        Self { host, arguments: arguments.to_vec(), said, started: 0, transport }
    }

    async fn start(&mut self) -> Process {
        let number = self.started;
        self.started += 1;
        let mut child = Command::new(env!("CARGO_BIN_EXE_worker"))
            .args(["--broker", &self.host.users_url()])
            .args(&self.arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("a worker starts");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let said = self.said.clone();
        tokio::spawn(async move {
            let mut lines = output.lines();
            while let Ok(Some(line)) = lines.next_line().await {
                said.send_modify(|said| said.0.push((number, line)));
            }
        });
        self.until(|said| said.by(number).any(|line| line == "works")).await;
        Process { child }
    }

    /// Waits until what was said is so.
    async fn until(&self, is_so: impl FnMut(&Said) -> bool) {
        let mut said = self.said.subscribe();
        let waited = timeout(SOON, said.wait_for(is_so)).await.is_ok();
        assert!(waited, "in time: {:?}", self.said.borrow());
    }

    async fn submit(&self, jobs: &[Job]) {
        let queue = WorkQueue::new(&self.transport).await.expect("the queue");
        queue.submit_all(jobs).await.expect("tasks");
    }

    fn dead_letters(&self) -> DeadLetters {
        DeadLetters::of(&self.transport, Job::QUEUE)
    }

    async fn has_a_dead_letter(&self) {
        let letters = self.dead_letters();
        let coming = async {
            while letters.count().await.expect("dead letters") == 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(SOON, coming).await.expect("a dead letter");
    }

    /// Waits until the broker has nothing of the queue. Nobody has its hands on it any more, so that
    /// what is unsettled is ready.
    async fn has_nothing_left(&self) {
        let settling = async {
            loop {
                let info = self.transport.queue_info(Job::QUEUE).await.expect("an answer");
                let info = info.expect("the queue");
                if info.ready == 0 && info.consumers == 0 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(SOON, settling).await.expect("everything is settled");
    }

    async fn end(self) {
        self.transport.close(SOON).await.expect("closing");
        self.host.remove().await;
    }
}

impl Process {
    async fn signal(&self, signal: &str) {
        let command = format!("kill -{signal} {}", self.child.id().expect("it runs"));
        let sent = Command::new("sh").args(["-c", &command]).status().await;
        assert!(sent.expect("a shell").success());
    }

    /// Waits until it has ended, and says by which code.
    async fn ended(&mut self) -> Option<i32> {
        timeout(SOON, self.child.wait()).await.expect("it ends in time").expect("an end").code()
    }
}

async fn sigterm_during_load(target: Target) {
    const TASKS: u32 = 400;
    let mut workers = Workers::new(target, &[]).await;
    let (mut first, mut second) = (workers.start().await, workers.start().await);
    workers.submit(&jobs(0..TASKS, 10)).await;
    workers.until(|said| said.by(0).filter(|line| line.starts_with("done")).count() >= 30).await;
    first.signal("TERM").await;
    let before = workers.transport.env().now();
    assert_eq!(first.ended().await, Some(0));
    let took = workers.transport.env().now() - before;
    assert!(took < Duration::from_secs(5), "within its deadline: {took:?}");
    workers.until(|said| said.count("done").len() == TASKS as usize).await;
    // It was in the midst of it.
    let report = workers.said.borrow().by(0).last().expect("a report").to_owned();
    assert!(report.starts_with("finished ") && report.ends_with(", gave back 0"), "{report}");
    second.signal("TERM").await;
    assert_eq!(second.ended().await, Some(0));
    workers.has_nothing_left().await;
    assert_eq!(workers.dead_letters().count().await.expect("dead letters"), 0);
    let twice: Vec<_> = {
        let said = workers.said.borrow();
        let done = said.count("done").into_iter();
        done.filter(|(_, times)| *times > 1).collect()
    };
    assert_eq!(twice, [], "two live instances do nothing twice");
    workers.end().await;
}

async fn sigterm_with_a_task_that_does_not_end(target: Target) {
    let mut workers = Workers::new(target, &["--deadline", "1"]).await;
    let mut first = workers.start().await;
    workers.submit(&jobs(0..1, 3_600_000)).await;
    workers.until(|said| said.count("begun").contains_key(&0)).await;
    first.signal("TERM").await;
    let before = workers.transport.env().now();
    assert_eq!(first.ended().await, Some(0));
    let took = workers.transport.env().now() - before;
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(4), "it took {took:?}");
    let report = workers.said.borrow().by(0).last().expect("a report").to_owned();
    assert_eq!(report, "finished 0, gave back 1");
    // Nobody waits for anything: it is there for another worker at once.
    let mut second = workers.start().await;
    workers.until(|said| said.count("begun").get(&0) == Some(&2)).await;
    second.signal("KILL").await;
    assert_eq!(second.ended().await, None);
    workers.end().await;
}

async fn sigkill_of_a_worker_with_its_hands_full(target: Target) {
    const TASKS: u32 = 60;
    let mut workers = Workers::new(target, &[]).await;
    let mut first = workers.start().await;
    workers.submit(&jobs(0..TASKS, 100)).await;
    workers.until(|said| said.count("done").len() >= 10).await;
    first.signal("KILL").await;
    assert_eq!(first.ended().await, None);
    let mut second = workers.start().await;
    workers.until(|said| said.count("done").len() == TASKS as usize).await;
    second.signal("TERM").await;
    assert_eq!(second.ended().await, Some(0));
    {
        let said = workers.said.borrow();
        // What was done and not acknowledged yet, or at work, is done again; what waited is not.
        let again = said.count("begun").values().filter(|times| **times > 1).count();
        assert!(again <= 2 * 4, "{again} of them were begun twice");
    }
    workers.has_nothing_left().await;
    assert_eq!(workers.dead_letters().count().await.expect("dead letters"), 0);
    workers.end().await;
}

async fn a_task_that_crashes_each_worker(target: Target) {
    const TASKS: u32 = 40;
    const LIMIT: u32 = 6;
    let mut workers = Workers::new(target, &["--delivery-limit", "6"]).await;
    let mut all = jobs(0..TASKS, 10);
    all[3].crash = true;
    let mut worker = workers.start().await;
    workers.submit(&all).await;
    let mut crashes = 0;
    // The last crash may be seen before its dead letter is, or after it.
    loop {
        tokio::select! {
            code = worker.child.wait() => {
                assert_eq!(code.expect("an end").code(), None);
                crashes += 1;
                worker = workers.start().await;
            }
            () = workers.has_a_dead_letter(), if crashes <= LIMIT => {
                assert_eq!(crashes, LIMIT, "{:?}", workers.said.borrow());
            }
            () = workers.until(|said| said.count("done").len() == TASKS as usize - 1),
                if crashes > LIMIT => break,
        }
    }
    assert_eq!(crashes, LIMIT + 1, "{:?}", workers.said.borrow());
    workers.until(|said| said.count("done").len() == TASKS as usize - 1).await;
    // It has nothing in hand, and may not yet hear signals.
    worker.signal("KILL").await;
    assert_eq!(worker.ended().await, None);
    workers.has_nothing_left().await;
    let dead = workers.dead_letters().peek(10).await.expect("dead letters");
    assert_eq!(dead.len(), 1, "no other task pays for it: {dead:?}");
    assert_eq!(dead[0].reason(), DeadReason::DeliveryLimit);
    workers.end().await;
}

macro_rules! on {
    ($room:ident: $protocol:ident, $broker:literal; $($name:ident),+ $(,)?) => {
        mod $room {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name((super::Protocol::$protocol, $broker)).await; })+
        }
    };
}

on!(amqp091: Amqp091, "";
    sigterm_during_load,
    sigterm_with_a_task_that_does_not_end,
    sigkill_of_a_worker_with_its_hands_full,
    a_task_that_crashes_each_worker,
);

on!(amqp10: Amqp10, "";
    sigterm_during_load,
    sigterm_with_a_task_that_does_not_end,
    sigkill_of_a_worker_with_its_hands_full,
    a_task_that_crashes_each_worker,
);

// There what goes back counts as failed too, so that a crash takes its neighbours along.
on!(amqp091_on_4_0: Amqp091, "_40";
    sigterm_during_load,
    sigterm_with_a_task_that_does_not_end,
    sigkill_of_a_worker_with_its_hands_full,
);

on!(amqp10_on_4_0: Amqp10, "_40";
    sigterm_during_load,
    sigterm_with_a_task_that_does_not_end,
    sigkill_of_a_worker_with_its_hands_full,
);
