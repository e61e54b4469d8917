//! Dead letters: what a bug made fail is looked at, kept as a file, and tried again when the bug is
//! fixed; what nobody wants is thrown away.
//!
//! `cargo run -p postrider-examples --bin dead_letters`

use std::{error::Error, sync::Arc, time::Duration};

use clap::Parser;
use postrider::{
    DeadLetterFilter, DeadLetters, DeadMessage, ErrorClass, HandlerError, RedriveOptions,
    RetryPolicy, Running, Task, Transport, WorkQueue, Worker,
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
struct Convert {
    cents: u64,
    currency: String,
}

impl Task for Convert {
    const TYPE: &'static str = "convert_money";
}

/// Each version knows more currencies than the one before.
fn convert(task: &Convert, known: &[&str]) -> Result<String, HandlerError> {
    let Convert { cents, currency } = task;
    if *cents == 0 {
        return Err(HandlerError::invalid("there is nothing to convert").with_code("NOTHING"));
    }
    if known.contains(&&**currency) {
        return Ok(format!("converted {cents} cents to {currency}"));
    }
    let unknown = format!("the table of rates has no {currency}");
    Err(HandlerError::internal(unknown).with_code("NO_RATE"))
}

async fn start(
    transport: &Arc<dyn Transport>,
    known: &'static [&'static str],
    tell: mpsc::Sender<String>,
) -> postrider::Result<Running> {
    Worker::new(Convert::QUEUE)
        .on(move |task: Convert, _context| {
            let tell = tell.clone();
            async move { Ok(tell.send(convert(&task, known)?).await?) }
        })
        .concurrency(1)
        // Three tries; one that takes longer than this is a failed one.
        .retry(RetryPolicy::default().with_immediate(2).with_delayed(0))
        .handler_timeout(Duration::from_secs(10))
        .start(transport)
        .await
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Args { broker } = Args::parse();
    let transport = broker.connect().await?;
    let (tell, mut told) = mpsc::channel(8);

    let buggy = start(&transport, &["yen"], tell.clone()).await?;
    let letters = DeadLetters::of(&transport, buggy.queue());
    let tasks = [(100, "yen"), (200, "euros"), (0, "yen"), (300, "euros")];
    let tasks = tasks.map(|(cents, currency)| Convert { cents, currency: currency.into() });
    WorkQueue::new(&transport).await?.submit_all(&tasks).await?;
    println!("{}", told.recv().await.ok_or("the worker ended")?);
    while letters.count().await? < 3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    buggy.stop(Duration::from_secs(5)).await;

    // Looking takes nothing away.
    let mut seen = letters.peek(10).await?;
    seen.sort_by_key(|dead| dead.error().map(str::to_owned));
    for dead in &seen {
        let attempts = dead.attempts().unwrap_or_default();
        println!("dead letter: {} after {attempts} attempts", dead.error().unwrap_or("?"));
    }

    // A dead letter becomes the fixture of a test.
    let no_rate = DeadLetterFilter::all().class(ErrorClass::Internal).code("NO_RATE");
    let victims = letters.list(&no_rate).await?;
    let file = serde_json::to_string_pretty(victims.first().ok_or("there are victims")?)?;
    let fixture: DeadMessage = serde_json::from_str(&file)?;
    println!("kept as a fixture: {}", fixture.code().unwrap_or("?"));

    // The bug is fixed: its victims are tried again, ten a second, and nothing else is.
    let fixed = start(&transport, &["yen", "euros"], tell).await?;
    let report = letters.redrive(&no_rate, RedriveOptions::default().with_rate(10)).await?;
    println!("moved {}, {} stays", report.done, report.stayed);
    for _ in 0..report.done {
        println!("{}", told.recv().await.ok_or("the worker ended")?);
    }

    let report = letters.discard(&DeadLetterFilter::all().code("NOTHING")).await?;
    println!("thrown away {}, left {}", report.done, letters.count().await?);

    fixed.stop(Duration::from_secs(5)).await;
    transport.close(Duration::from_secs(5)).await?;
    Ok(())
}
