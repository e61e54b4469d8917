//! A process that is told to end. One test, because all of a process hear its signals.

#![cfg(unix)]

use std::{future::pending, process, sync::Arc, time::Duration};

use postrider_core::Transport;
use postrider_patterns::{Service, Task, WorkQueue, Worker};
use postrider_transport_inmemory::InMemory;
use serde::{Deserialize, Serialize};
use tokio::{process::Command, sync::mpsc, time::timeout};

const SOON: Duration = Duration::from_secs(60);

#[derive(Serialize, Deserialize)]
struct Email {}

impl Task for Email {
    const TYPE: &'static str = "email";
}

async fn tell(signal: &str) {
    let command = format!("kill -{signal} {}", process::id());
    assert!(Command::new("sh").args(["-c", &command]).status().await.unwrap().success());
}

#[tokio::test]
async fn the_first_signal_drains_and_the_second_ends_that() {
    let transport: Arc<dyn Transport> = Arc::new(InMemory::connect("memory://").unwrap());
    let (begun, mut begins) = mpsc::unbounded_channel();
    let worker = Worker::new("email").on(move |_: Email, _| {
        let begun = begun.clone();
        async move {
            begun.send(())?;
            pending().await
        }
    });
    let running = Service::new("mail", &transport).worker(worker).stop_deadline(60 * SOON);
    let running = running.start().await.unwrap();
    let monitor = running.monitor();
    let mut ended = tokio::spawn(running.run_until_signal());
    WorkQueue::new(&transport).await.unwrap().submit(&Email {}).await.unwrap();
    // By then the other task waits for signals.
    timeout(SOON, begins.recv()).await.unwrap().unwrap();
    assert!(monitor.health().is_ready());

    tell("TERM").await;
    let draining = timeout(SOON, async {
        while monitor.health().is_ready() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    draining.await.unwrap();
    assert!(!ended.is_finished() && monitor.health().is_live());

    tell("INT").await;
    let report = timeout(SOON, &mut ended).await.unwrap().unwrap().unwrap();
    assert_eq!(report.parts[0].report.released, 1);
    let info = transport.queue_info("email").await.unwrap().unwrap();
    assert_eq!(info.ready, 1);
}
