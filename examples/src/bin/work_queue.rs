//! Work queue: each task is done by one worker; what fails is tried again, what cannot succeed is
//! kept in the dead-letter queue. Tracked tasks tell their progress and their result, and can be called
//! off.
//!
//! `cargo run -p postrider-examples --bin work_queue`

use std::{error::Error, time::Duration};

use clap::Parser;
use postrider::{
    ConsumerOptions, Context, HandlerError, HeaderValue, Naming, RetryPolicy, SubmitOptions, Task,
    TaskStatus, TaskWithResult, WorkQueue, Worker, headers,
};
use postrider_examples::BrokerArgs;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Serialize, Deserialize)]
struct ResizeImage {
    file: String,
}

impl Task for ResizeImage {
    const TYPE: &'static str = "resize_image";
}

/// For the same workers, and with a result.
#[derive(Serialize, Deserialize)]
struct MakeFilm {
    frames: u32,
}

impl Task for MakeFilm {
    const TYPE: &'static str = "make_film";
    const QUEUE: &'static str = ResizeImage::QUEUE;
}

impl TaskWithResult for MakeFilm {
    type Output = String;
}

/// Says how far it is, and ends when it is called off.
async fn film(task: MakeFilm, context: Context) -> Result<String, HandlerError> {
    for frame in 0..task.frames {
        context.progress(f64::from(frame) / f64::from(task.frames), "drawing");
        tokio::select! {
            () = context.cancellation().cancelled() => return Err(HandlerError::transient("stopped")),
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    }
    Ok(format!("a film of {} frames", task.frames))
}

/// The class of an error says what becomes of the task.
fn resize(task: &ResizeImage, context: &Context) -> Result<String, HandlerError> {
    match (task.file.as_str(), context.attempt()) {
        ("notes.txt", _) => Err(HandlerError::invalid("notes.txt is no image")),
        ("moon.png", 1) => Err(HandlerError::transient("the disk is busy")),
        (file, attempt) => Ok(format!("resized {file} at try {attempt}")),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Args { broker } = Args::parse();
    let transport = broker.connect().await?;
    // Only for this program: it ends when the good tasks are done.
    let (tell, mut told) = mpsc::channel(8);

    let worker = Worker::new(ResizeImage::QUEUE)
        .on(move |task: ResizeImage, context| {
            let tell = tell.clone();
            async move { Ok(tell.send(resize(&task, &context)?).await?) }
        })
        .on_result(film)
        .retry(RetryPolicy::default().with_immediate(2).with_delayed(0))
        .start(&transport)
        .await?;

    let queue = WorkQueue::new(&transport).await?;
    let tasks = ["sun.png", "moon.png", "notes.txt"].map(|file| ResizeImage { file: file.into() });
    queue.submit_all(&tasks).await?;
    for _ in 0..2 {
        println!("{}", told.recv().await.ok_or("the worker ended")?);
    }

    let later = SubmitOptions::default().with_delay(Duration::from_millis(500));
    queue.submit_with(&ResizeImage { file: "late.png".into() }, later).await?;
    println!("{}", told.recv().await.ok_or("the worker ended")?);

    let short = queue.submit_for_result(&MakeFilm { frames: 20 }, SubmitOptions::default()).await?;
    let mut watched = short.watch();
    watched.wait_for(|task| task.progress.is_some() || task.status.is_end()).await?;
    println!("progress: {}", short.progress().map_or_else(String::new, |at| at.message));
    println!("{}", short.result().await?);

    // Nobody wants to wait for this one.
    let long = MakeFilm { frames: 1_000_000 };
    let long = queue.submit_for_result(&long, SubmitOptions::default()).await?;
    let mut watched = long.watch();
    watched.wait_for(|task| matches!(task.status, TaskStatus::Running { .. })).await?;
    long.cancel().await?;
    if let Err(end) = long.result().await {
        println!("the long film: {end}");
    }

    // The third one waits for a person, with the reason in its headers.
    let dead_letters = Naming::default().dead_letter_queue(worker.queue());
    let mut letters = transport.consumer(&dead_letters, ConsumerOptions::default()).await?;
    let letter = letters.recv().await.ok_or("the consumer ended")??;
    let reason = letter.message().headers.get(headers::ERROR_MESSAGE);
    let reason = reason.and_then(HeaderValue::as_text).unwrap_or("for no reason");
    println!("dead letter: {reason}");
    letter.ack();

    worker.stop(Duration::from_secs(5)).await;
    transport.close(Duration::from_secs(5)).await?;
    Ok(())
}
