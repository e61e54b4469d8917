//! A worker process: it works until it is told to end, and ends in order.
//!
//! At SIGTERM or Ctrl-C it takes nothing new, finishes what it has in hand within its deadline, and
//! gives the rest back. A task may be told to crash its process, as a bug in a C library would: other
//! tasks do not pay for it, and after its tries it is a dead letter.
//!
//! `cargo run -p postrider-examples --features amqp091 --bin worker -- --broker amqp://…`

use std::{error::Error, io, process, time::Duration};

use clap::{Parser, Subcommand};
use postrider::{RetryPolicy, Task, WorkQueue, Worker};
use postrider_examples::BrokerArgs;
use serde::{Deserialize, Serialize};

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    broker: BrokerArgs,
    #[command(subcommand)]
    command: Option<Command>,
    /// How long tasks in hand may take to end, in seconds
    #[arg(long, default_value_t = 5)]
    deadline: u64,
    /// How many tasks are done at once
    #[arg(long, default_value_t = 4)]
    concurrency: usize,
    /// How often a task may crash its process
    #[arg(long, default_value_t = 20)]
    delivery_limit: u32,
}

#[derive(Subcommand)]
enum Command {
    /// Puts tasks into the queue instead of working
    Submit {
        /// How many
        #[arg(default_value_t = 100)]
        tasks: u32,
        /// How long each takes, in milliseconds
        #[arg(long, default_value_t = 100)]
        millis: u64,
        /// The number of one that crashes its process
        #[arg(long)]
        crash: Option<u32>,
    },
}

#[derive(Serialize, Deserialize)]
struct Job {
    number: u32,
    millis: u64,
    crash: bool,
}

impl Task for Job {
    const TYPE: &'static str = "job";
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Args { broker, command, deadline, concurrency, delivery_limit } = Args::parse();
    let transport = broker.connect().await?;
    if let Some(Command::Submit { tasks, millis, crash }) = command {
        let job = |number| Job { number, millis, crash: crash == Some(number) };
        let jobs: Vec<_> = (0..tasks).map(job).collect();
        WorkQueue::new(&transport).await?.submit_all(&jobs).await?;
        println!("submitted {tasks} tasks");
        transport.close(Duration::from_secs(5)).await?;
        return Ok(());
    }
    let told_to_end = told_to_end()?;
    let worker = Worker::new(Job::QUEUE)
        .on(|job: Job, _context| async move {
            println!("begun {}", job.number);
            if job.crash {
                process::abort();
            }
            tokio::time::sleep(Duration::from_millis(job.millis)).await;
            println!("done {}", job.number);
            Ok(())
        })
        .concurrency(concurrency)
        .retry(RetryPolicy::never().with_immediate(2))
        .delivery_limit(delivery_limit)
        .start(&transport)
        .await?;
    println!("works");
    tokio::select! {
        ended = worker.ended() => return Ok(ended?),
        () = told_to_end => {}
    }
    let report = worker.stop(Duration::from_secs(deadline)).await;
    println!("finished {}, gave back {}", report.finished, report.released);
    transport.close(Duration::from_secs(1)).await?;
    Ok(())
}

/// Ends when the process is told to end, from now on.
#[cfg(unix)]
fn told_to_end() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(not(unix))]
fn told_to_end() -> io::Result<impl Future<Output = ()>> {
    Ok(async {
        if let Err(error) = tokio::signal::ctrl_c().await {
            eprintln!("Ctrl-C is not heard: {error}");
            std::future::pending::<()>().await;
        }
    })
}
