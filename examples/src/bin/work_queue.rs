//! Work queue: each task is done by one worker; what fails is tried again, what cannot succeed is
//! kept in the dead-letter queue.
//!
//! `cargo run -p postrider-examples --bin work_queue`

use std::{error::Error, time::Duration};

use clap::Parser;
use postrider::{
    ConsumerOptions, Context, HandlerError, HeaderValue, Naming, RetryPolicy, Task, WorkQueue,
    Worker, headers,
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
        .retry(RetryPolicy::default().with_immediate(2).with_delayed(0))
        .start(&transport)
        .await?;

    let queue = WorkQueue::new(&transport).await?;
    let tasks = ["sun.png", "moon.png", "notes.txt"].map(|file| ResizeImage { file: file.into() });
    queue.submit_all(&tasks).await?;
    for _ in 0..2 {
        println!("{}", told.recv().await.ok_or("the worker ended")?);
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
