//! The side that has the file.

use std::{error::Error, path::Path, process::ExitCode, sync::Arc};

use postrider::{Env, Outgoing, StreamSender, Transport};
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use crate::{INTERRUPTED, bars::Bars};

/// Sends a file and waits until its receiver has saved it.
pub(crate) async fn send(
    transport: &Arc<dyn Transport>,
    service: &str,
    file: &Path,
    id: Uuid,
    bars: &Bars,
) -> Result<ExitCode, Box<dyn Error>> {
    let sender = StreamSender::new(transport).await?;
    let outgoing = Outgoing::file(file).await?.with_id(id);
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut transfer = sender.start(service, outgoing)?;
    let _bar = bars.follow("sending", &name, transfer.progress());

    let finished = tokio::select! {
        finished = transfer.finish() => finished,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            transfer.abort("the sender was interrupted");
            let _aborted = transfer.finish().await;
            eprintln!("file_transfer: interrupted; the receiver keeps nothing");
            return Ok(ExitCode::from(INTERRUPTED));
        }
    };
    let receipt = finished?;
    bars.say(&format!("sent {name}: {} bytes, BLAKE3 {}", receipt.length, receipt.hash));
    Ok(ExitCode::SUCCESS)
}

/// Writes a file of random bytes.
pub(crate) async fn make_up(path: &Path, mebibytes: u64, env: &Env) -> std::io::Result<()> {
    let mut file = tokio::io::BufWriter::new(tokio::fs::File::create(path).await?);
    for _ in 0..mebibytes {
        let words = std::iter::repeat_with(|| env.random().to_le_bytes());
        let mebibyte: Vec<u8> = words.flatten().take(1024 * 1024).collect();
        file.write_all(&mebibyte).await?;
    }
    file.flush().await
}
