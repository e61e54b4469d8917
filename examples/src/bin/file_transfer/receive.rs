//! The side that saves the files.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use postrider::{Incoming, Result, Running, Saved, StreamReceiver, Transport};
use tokio::sync::mpsc;

use crate::bars::Bars;

/// After how long what an interrupted transfer has left is given up.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// Saves every file that is sent to `service` in `directory`, and tells of each. One that has the
/// name of another takes its place.
pub(crate) async fn start(
    transport: &Arc<dyn Transport>,
    service: &str,
    directory: PathBuf,
    tell: mpsc::Sender<File>,
    bars: &Bars,
) -> Result<Running> {
    let bars = bars.clone();
    StreamReceiver::new(service)
        .sweep(&directory, KEPT)
        .on(move |incoming: Incoming, _| {
            let (directory, tell, bars) = (directory.clone(), tell.clone(), bars.clone());
            async move {
                // A sender is a stranger: its name for the file must not lead elsewhere.
                let name = incoming.file_name().map(str::to_owned);
                let name = name.unwrap_or_else(|| incoming.id().to_string());
                let bar = bars.follow("receiving", &name, incoming.progress());
                let saved = incoming.save_to(directory.join(&name)).await;
                drop(bar);
                if let Err(error) = &saved {
                    bars.warn(&format!("{name} was not saved: {error}"));
                }
                Ok(tell.send(File { name, saved: saved? }).await?)
            }
        })
        .start(transport)
        .await
}

/// A file that was saved.
pub(crate) struct File {
    name: String,
    saved: Saved,
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Saved { length, hash, .. } = &self.saved;
        write!(f, "saved {}: {length} bytes, BLAKE3 {hash}", self.name)
    }
}
