//! A worker process: it works until it is told to end, and ends in order.
//!
//! At SIGTERM or Ctrl-C it takes nothing new, finishes what it has in hand within its deadline, and
//! gives the rest back; a second one ends it at once. A task may be told to crash its process, as a
//! bug in a C library would: other tasks do not pay for it, and after its tries it is a dead letter.
//!
//! `cargo run -p postrider-examples --features amqp091 --bin worker -- --broker amqp://…`

use std::{error::Error, process, time::Duration};

use clap::{Parser, Subcommand};
use postrider::{RetryPolicy, Service, Task, WorkQueue, Worker};
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
        .delivery_limit(delivery_limit);
    let running = Service::new("worker", &transport)
        .worker(worker)
        .stop_deadline(Duration::from_secs(deadline))
        .start()
        .await?;
    println!("works");
    let report = running.run_until_signal().await?;
    let jobs = &report.parts[0].report;
    println!("finished {}, gave back {}", jobs.finished, jobs.released);
    transport.close(Duration::from_secs(1)).await?;
    Ok(())
}
