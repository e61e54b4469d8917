use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Component, Path},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, ReadBuf},
    sync::{mpsc, oneshot, watch},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::streaming::{
    ContentHash, Progress, StreamError,
    integrity::Hasher,
    wire::{Close, Open},
};

/// What a reader has of the stream before it begins.
#[derive(Debug, Default)]
pub(super) struct Begin {
    pub(super) chunks: u64,
    pub(super) hasher: Hasher,
}

/// The next bytes, and the hash of everything up to their end.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) body: Bytes,
    pub(super) prefix: ContentHash,
}

/// How a stream ended, as its reader is told after the last piece.
#[derive(Debug, Clone)]
pub(super) struct End {
    told: Arc<Mutex<Option<Result<Close, StreamError>>>>,
    stop: CancellationToken,
}

impl End {
    /// The end of a stream whose receiver gives up what is under way with `stop`.
    pub(super) fn new(stop: CancellationToken) -> Self {
        Self { told: Arc::default(), stop }
    }

    fn told(&self) -> MutexGuard<'_, Option<Result<Close, StreamError>>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, end: Result<Close, StreamError>) {
        self.told().get_or_insert(end);
    }

    fn take(&self) -> Option<Result<Close, StreamError>> {
        self.told().take()
    }

    /// Whether a handler that is dropped is dropped because its receiver stops.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }
}

/// A stream on its way to a handler: read it as an [`AsyncRead`], or [`save_to`](Self::save_to) a
/// file.
///
/// A read gives the end of the stream only after all of it has arrived and its hash was compared;
/// a stream that ends in any other way is an error, whose inner error is a [`StreamError`]. What
/// was read before is therefore not to be acted upon for good until the end was seen.
///
/// Nothing is sent before the handler begins to read. A handler that ends before the stream does
/// refuses it.
pub struct Incoming {
    id: Uuid,
    open: Arc<Open>,
    begin: Option<oneshot::Sender<Begin>>,
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    end: End,
    ended: Option<Ended>,
    progress: watch::Receiver<Progress>,
}

#[derive(Debug, Clone, Copy)]
enum Ended {
    Complete(Close),
    Failed,
}

impl Incoming {
    pub(super) const fn new(
        id: Uuid,
        open: Arc<Open>,
        begin: oneshot::Sender<Begin>,
        pieces: mpsc::Receiver<Piece>,
        end: End,
        progress: watch::Receiver<Progress>,
    ) -> Self {
        let current = Bytes::new();
        Self { id, open, begin: Some(begin), pieces, current, end, ended: None, progress }
    }

    /// The id of the stream. It is the same when a stream comes again.
    #[must_use]
    pub const fn id(&self) -> Uuid {
        self.id
    }

    /// The name that the sender gave it. It may be any text; for a file use
    /// [`file_name`](Self::file_name).
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.open.name.as_deref()
    }

    /// The name, when it can be that of a file in any directory: no path, no control characters.
    #[must_use]
    pub fn file_name(&self) -> Option<&str> {
        self.name().filter(|name| is_file_name(name))
    }

    /// The media type that the sender gave it.
    #[must_use]
    pub fn content_type(&self) -> Option<&str> {
        self.open.content_type.as_deref()
    }

    /// The length in bytes that the sender said it has. A stream of another length fails; until its
    /// end this is only what somebody says.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        self.open.length
    }

    /// What else the sender said of it.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.open.metadata
    }

    /// The hash of all of it, which was compared with the sender's; nothing before the end was read.
    #[must_use]
    pub fn hash(&self) -> Option<ContentHash> {
        self.close().map(|close| close.hash)
    }

    /// How far it is, now and whenever that changes.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    pub(super) const fn open(&self) -> &Arc<Open> {
        &self.open
    }

    pub(super) const fn end(&self) -> &End {
        &self.end
    }

    /// Lets the sender begin behind what is there.
    pub(super) fn begin(&mut self, begin: Begin) {
        if let Some(sender) = self.begin.take() {
            // A session that is gone has said why.
            let _gone = sender.send(begin);
        }
    }

    /// The next piece; nothing at the verified end. Cancellation safe.
    pub(super) async fn next(&mut self) -> Result<Option<Piece>, StreamError> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// What the end said, once it was seen.
    pub(super) const fn close(&self) -> Option<Close> {
        match self.ended {
            Some(Ended::Complete(close)) => Some(close),
            _ => None,
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Piece>, StreamError>> {
        self.begin(Begin::default());
        if let Some(piece) = ready!(self.pieces.poll_recv(cx)) {
            return Poll::Ready(Ok(Some(piece)));
        }
        if self.ended.is_none() {
            match self.end.take() {
                Some(Ok(close)) => self.ended = Some(Ended::Complete(close)),
                Some(Err(error)) => {
                    self.ended = Some(Ended::Failed);
                    return Poll::Ready(Err(error));
                }
                None => {}
            }
        }
        Poll::Ready(match self.ended {
            Some(Ended::Complete(_)) => Ok(None),
            _ => Err(StreamError::Interrupted("it has ended".to_owned())),
        })
    }
}

impl AsyncRead for Incoming {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.current.is_empty() {
            match ready!(self.poll_next(cx))? {
                Some(piece) => self.current = piece.body,
                None => return Poll::Ready(Ok(())),
            }
        }
        let size = self.current.len().min(buffer.remaining());
        buffer.put_slice(&self.current[..size]);
        self.current.advance(size);
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("id", &self.id)
            .field("name", &self.name())
            .field("length", &self.length())
            .finish_non_exhaustive()
    }
}

/// Whether a name that a stranger chose names a file and nothing else, on any system.
fn is_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let one = matches!(
        (components.next(), components.next()),
        (Some(Component::Normal(only)), None) if only == name
    );
    one && !name.contains(['/', '\\', ':']) && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_leads_elsewhere_is_no_file_name() {
        for name in ["stock.csv", "a b", ".hidden", "ä.txt", "..a"] {
            assert!(is_file_name(name), "{name}");
        }
        for name in
            ["", ".", "..", "/etc/passwd", "../x", "a/b", "a/", "a\\b", "C:x", "a\0b", "a\nb"]
        {
            assert!(!is_file_name(name), "{name}");
        }
    }
}
