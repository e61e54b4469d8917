//! Streams: files of any size through the broker, with their progress shown.
//!
//! Both sides in one program, with a file made up for it:
//!
//! ```sh
//! cargo run -p postrider-examples --bin file_transfer
//! ```
//!
//! Two programs, which may be killed and started again on the way:
//!
//! ```sh
//! file_transfer --broker amqp://localhost receive inbox
//! file_transfer --broker amqp://localhost send film.mp4
//! ```

mod bars;
mod receive;
mod send;

use std::{error::Error, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use clap::{Parser, Subcommand};
use postrider::Transport;
use postrider_examples::BrokerArgs;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::bars::Bars;

/// How long a side may take to finish what it has in hand.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// What a program ends with that was stopped by Ctrl-C.
const INTERRUPTED: u8 = 130;

/// Sends files of any size through a message broker; without a command, one to itself.
#[derive(Debug, Parser)]
#[command(name = "file_transfer")]
struct Args {
    #[command(flatten)]
    broker: BrokerArgs,

    /// The service that files are sent to
    #[arg(long, value_name = "NAME", default_value = "files", global = true)]
    service: String,

    /// The size of the file that is made up when no command is given, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 32)]
    size: u64,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Sends a file, and waits until it is saved
    Send {
        file: PathBuf,
        /// The id of an earlier transfer of the same file, to go on where it ended
        #[arg(long)]
        id: Option<Uuid>,
    },
    /// Saves the files that are sent, until Ctrl-C
    Receive {
        /// Where to save them; it is made when it is missing
        directory: PathBuf,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("file_transfer: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(Args { broker, service, size, command }: Args) -> Result<ExitCode, Box<dyn Error>> {
    let bars = Bars::default();
    let transport = broker.connect().await?;
    if command.is_some() && transport.url().starts_with("memory:") {
        let why = "send and receive are two programs, and memory:// is a broker inside each; give \
                   both the same --broker";
        return Err(why.into());
    }
    let code = match command {
        Some(Command::Send { file, id }) => {
            let id = id.unwrap_or_else(|| transport.env().new_id());
            eprintln!("file_transfer: if this is cut short, --id {id} goes on where it ended");
            send::send(&transport, &service, &file, id, &bars).await?
        }
        Some(Command::Receive { directory }) => {
            receive_until_stopped(&transport, &service, directory, &bars).await?
        }
        None => both(&broker, &transport, &service, size, &bars).await?,
    };
    transport.close(STOP_WITHIN).await?;
    Ok(code)
}

async fn receive_until_stopped(
    transport: &Arc<dyn Transport>,
    service: &str,
    directory: PathBuf,
    bars: &Bars,
) -> Result<ExitCode, Box<dyn Error>> {
    tokio::fs::create_dir_all(&directory).await?;
    let shown = directory.display().to_string();
    let (tell, mut told) = mpsc::channel(8);
    let receiver = receive::start(transport, service, directory, tell, bars).await?;
    bars.say(&format!("receiving for '{service}' into {shown}"));
    loop {
        tokio::select! {
            Some(saved) = told.recv() => bars.say(&saved.to_string()),
            ended = receiver.ended() => {
                ended?;
                return Err("the broker serves no more offers".into());
            }
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                // What is not whole by then stays where it is, for the next receiver here.
                receiver.stop(STOP_WITHIN).await;
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

/// Sends a file to itself, as two programs with a connection each would.
async fn both(
    broker: &BrokerArgs,
    receiving: &Arc<dyn Transport>,
    service: &str,
    mebibytes: u64,
    bars: &Bars,
) -> Result<ExitCode, Box<dyn Error>> {
    // Nobody else's receiver is to get it.
    let service = format!("{service}-{}", receiving.env().new_id());
    // It goes with all that is in it, whatever happens.
    let directory = tempfile::tempdir()?;
    let (outbox, inbox) = (directory.path().join("film.mp4"), directory.path().join("inbox"));
    send::make_up(&outbox, mebibytes, receiving.env()).await?;
    tokio::fs::create_dir(&inbox).await?;
    let (tell, mut told) = mpsc::channel(1);
    let receiver = receive::start(receiving, &service, inbox, tell, bars).await?;

    let sending = broker.connect().await?;
    let id = sending.env().new_id();
    let code = send::send(&sending, &service, &outbox, id, bars).await?;
    if code == ExitCode::SUCCESS {
        bars.say(&told.recv().await.ok_or("the receiver ended")?.to_string());
    }
    receiver.stop(STOP_WITHIN).await;
    sending.close(STOP_WITHIN).await?;
    Ok(code)
}
