//! Streams that become files.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tokio::{io::AsyncWriteExt, task::spawn_blocking};
use uuid::Uuid;

use super::{
    Incoming,
    incoming::{Begin, End, Piece},
    orphans,
};
use crate::streaming::{ContentHash, StreamError, integrity::Hasher, wire::Open};

/// After how many bytes it is noted how far a file is.
const CHECKPOINT: u64 = 8 * 1024 * 1024;

/// What a state file may have at most.
const STATE_LIMIT: u64 = 4 * 1024;

/// A file that a stream has become.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Saved {
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes.
    pub length: u64,
    /// Its hash, which was compared with the sender's.
    pub hash: ContentHash,
}

impl Incoming {
    /// Writes the stream to a file, which has its name only when all of it is there: it grows beside
    /// `path` in a `.part` file that only this user can read and write, is synced, and takes the
    /// place of what was at `path`; then the directory is synced.
    ///
    /// When a stream is interrupted and its sender can come back to it, the `.part` file stays with
    /// a note of how far it is, and saving the same stream to the same path goes on there; what is
    /// in it is hashed again before. After any other failure nothing is left.
    /// [`StreamReceiver::sweep`](crate::StreamReceiver::sweep) removes what nobody came back to.
    ///
    /// When the future is dropped because the receiver stops, it is as after an interruption, and
    /// else as after a failure.
    ///
    /// # Errors
    ///
    /// [`StreamError::Io`], at once, for a path that cannot be written: in a directory that is not
    /// there, where a directory, pipe or device is, or with a name that leaves no room for the 42
    /// bytes by which that of its `.part` file is longer; [`StreamError::Busy`] when another
    /// transfer is writing the same stream there, and how the stream failed.
    pub async fn save_to(mut self, path: impl Into<PathBuf>) -> Result<Saved, StreamError> {
        let (id, open, end) = (self.id(), (**self.open()).clone(), self.end().clone());
        let (mut part, begin) = PartFile::open(path.into(), id, open, end).await?;
        self.begin(begin);
        match part.fill(&mut self).await {
            Ok(()) => {}
            Err(error) => {
                part.leave(error.is_resumable()).await;
                return Err(error);
            }
        }
        let (path, close) = (part.target.clone(), self.close());
        part.finish().await?;
        match close {
            Some(close) => Ok(Saved { path, length: close.length, hash: close.hash }),
            None => Err(StreamError::Interrupted("it has ended".to_owned())),
        }
    }
}

/// How far a `.part` file is. What it says is not trusted: the bytes are hashed again.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    chunk_size: u32,
    length: Option<u64>,
    chunks: u64,
    blake3: String,
}

/// A file that grows.
struct PartFile {
    target: PathBuf,
    part: PathBuf,
    state: PathBuf,
    open: Open,
    end: End,
    file: Option<tokio::fs::File>,
    written: u64,
    noted: u64,
    /// The hash of what was written, up to the last whole chunk.
    prefix: Option<(u64, ContentHash)>,
}

impl PartFile {
    /// Opens or makes the `.part` file of a stream, and says what is in it.
    async fn open(
        target: PathBuf,
        id: Uuid,
        open: Open,
        end: End,
    ) -> Result<(Self, Begin), StreamError> {
        let shown = target.display().to_string();
        let (part, state) = orphans::beside(&target, id).ok_or_else(|| {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "this is no path of a file");
            StreamError::io(format!("saving to '{shown}'"), error)
        })?;
        let opening = spawn_blocking(move || {
            check_target(&target)?;
            check_leftover(&part)?;
            check_leftover(&state)?;
            let mut file = lock(&part)?;
            let Some(mut file) = file.take() else { return Ok(None) };
            let begin = take_up(&mut file, &state, &open)?;
            let written = begin.chunks * u64::from(open.chunk_size);
            let prefix = Some((begin.chunks, begin.hasher.so_far()));
            let file = Some(tokio::fs::File::from_std(file));
            let noted = written;
            let part = Self { target, part, state, open, end, file, written, noted, prefix };
            Ok(Some((part, begin)))
        });
        let opened = opening.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        match opened {
            Ok(Some(opened)) => Ok(opened),
            Ok(None) => Err(StreamError::Busy(shown)),
            Err(error) => Err(StreamError::io(format!("saving to '{shown}'"), error)),
        }
    }

    fn failed(&self, error: io::Error) -> StreamError {
        StreamError::io(format!("writing '{}'", self.part.display()), error)
    }

    /// Writes the stream up to its verified end.
    async fn fill(&mut self, incoming: &mut Incoming) -> Result<(), StreamError> {
        while let Some(piece) = incoming.next().await? {
            let written = self.write(piece).await;
            written.map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    async fn write(&mut self, Piece { body, prefix }: Piece) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotConnected.into()) };
        file.write_all(&body).await?;
        self.written += body.len() as u64;
        let chunk_size = u64::from(self.open.chunk_size);
        // A last chunk that is short comes again.
        if self.written.is_multiple_of(chunk_size) {
            self.prefix = Some((self.written / chunk_size, prefix));
            if self.open.resumable && self.written - self.noted >= CHECKPOINT {
                file.flush().await?;
                // Without a note it could not be taken up again, and that is all.
                if let Err(error) = self.note().await {
                    tracing::warn!(path = %self.state.display(), %error, "not noted how far it is");
                    self.noted = self.written;
                }
            }
        }
        Ok(())
    }

    /// Notes how far the file is.
    async fn note(&mut self) -> io::Result<()> {
        let (Some(file), Some((chunks, hash))) = (&mut self.file, self.prefix) else {
            return Ok(());
        };
        file.flush().await?;
        let Open { chunk_size, length, .. } = self.open;
        let state = State { chunk_size, length, chunks, blake3: hash.to_string() };
        let path = self.state.clone();
        let writing = spawn_blocking(move || {
            let body = serde_json::to_vec(&state)?;
            // Half a note is none.
            let mut file = private().truncate(true).open(path)?;
            io::Write::write_all(&mut file, &body)
        });
        writing.await.unwrap_or_else(|error| Err(io::Error::other(error)))?;
        self.noted = self.written;
        Ok(())
    }

    /// Makes the file what it is to be, for good.
    async fn finish(mut self) -> Result<(), StreamError> {
        let finished = self.put_in_place().await;
        if let Err(error) = finished {
            let error = self.failed(error);
            self.leave(false).await;
            return Err(error);
        }
        Ok(())
    }

    async fn put_in_place(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotConnected.into()) };
        file.flush().await?;
        file.sync_all().await?;
        let (part, state, target) = (self.part.clone(), self.state.clone(), self.target.clone());
        let renaming = spawn_blocking(move || {
            fs::rename(part, &target)?;
            // The file is there, whatever becomes of the note beside it.
            if let Err(error) = remove_if_there(&state) {
                tracing::warn!(path = %state.display(), %error, "a leftover was not removed");
            }
            sync_directory(&target)
        });
        renaming.await.unwrap_or_else(|error| Err(io::Error::other(error)))?;
        // What is dropped now has nothing to remove, and another transfer may have the lock.
        self.file = None;
        Ok(())
    }

    /// Leaves the file to be taken up again, or leaves nothing.
    async fn leave(mut self, resumable: bool) {
        if resumable && self.open.resumable && self.note().await.is_ok() {
            self.file = None;
        }
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        // Without a file, what is to become of it was decided.
        if self.file.is_none() || (self.open.resumable && self.end.is_stopped()) {
            return;
        }
        for path in [&self.part, &self.state] {
            if let Err(error) = remove_if_there(path) {
                tracing::warn!(path = %path.display(), %error, "a leftover was not removed");
            }
        }
    }
}

/// What would be found when all of the stream is there.
fn check_target(target: &Path) -> io::Result<()> {
    if target.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "there is a directory"));
    }
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
    if !parent.unwrap_or(Path::new(".")).is_dir() {
        let why = "the directory that it is to be in is not there";
        return Err(io::Error::new(io::ErrorKind::NotFound, why));
    }
    match fs::symlink_metadata(target) {
        // A new file in its place would end what it is for.
        Ok(there) if !there.is_file() && !there.is_symlink() => {
            let why = "there is a pipe, socket or device; its place is not taken";
            Err(io::Error::new(io::ErrorKind::InvalidInput, why))
        }
        _ => Ok(()),
    }
}

/// To open what is no file may wait for ever.
fn check_leftover(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if !there.is_file() => Err(io::Error::other(format!(
            "what is at '{}' is not from a transfer; remove it",
            path.display()
        ))),
        _ => Ok(()),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A file for this user alone.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Opens the file at `path` for this transfer alone; nothing when another has it.
fn lock(path: &Path) -> io::Result<Option<File>> {
    loop {
        let file = private().read(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) if is_at(&file, path)? => return Ok(Some(file)),
            // Whoever had it before has moved it to its target, or removed it.
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let open = file.metadata()?;
    match fs::symlink_metadata(path) {
        // Whoever put it there wants another file to be written.
        Ok(there) if there.is_symlink() => Err(io::Error::other("a link is in its place")),
        Ok(there) => Ok((open.dev(), open.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// A file that is open cannot be moved here.
#[cfg(not(unix))]
fn is_at(_file: &File, path: &Path) -> io::Result<bool> {
    path.try_exists()
}

/// What of an earlier transfer can be gone on with; the rest is cut off.
fn take_up(file: &mut File, state: &Path, open: &Open) -> io::Result<Begin> {
    let begin = match read_state(state, open) {
        Some(state) => rehash(file, &state)?,
        None => Begin::default(),
    };
    let length = begin.chunks * u64::from(open.chunk_size);
    file.set_len(length)?;
    file.seek(SeekFrom::Start(length))?;
    Ok(begin)
}

/// The note of an earlier transfer of the same stream, if there is one that can be read.
fn read_state(path: &Path, open: &Open) -> Option<State> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(STATE_LIMIT).read_to_end(&mut text).ok()?;
    let state: State = serde_json::from_slice(&text).ok()?;
    (state.chunk_size == open.chunk_size && state.length == open.length).then_some(state)
}

/// Hashes what the note speaks of; when that is not what it says, nothing is there.
fn rehash(file: &File, state: &State) -> io::Result<Begin> {
    let Some(length) = state.chunks.checked_mul(state.chunk_size.into()) else {
        return Ok(Begin::default());
    };
    if file.metadata()?.len() < length {
        return Ok(Begin::default());
    }
    let (mut hasher, mut buffer) = (Hasher::default(), vec![0; 256 * 1024]);
    let mut rest = file.take(length);
    loop {
        let size = rest.read(&mut buffer)?;
        if size == 0 {
            break;
        }
        hasher.update(&buffer[..size]);
    }
    let known = state.blake3.parse() == Ok(hasher.so_far());
    Ok(if known { Begin { chunks: state.chunks, hasher } } else { Begin::default() })
}

/// A new name is there for good only when its directory is written.
#[cfg(unix)]
fn sync_directory(target: &Path) -> io::Result<()> {
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// Here a directory cannot be opened to be written.
#[cfg(not(unix))]
fn sync_directory(_target: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_link_in_the_place_of_a_part_is_not_written_through() {
        let directory = tempfile::tempdir().unwrap();
        let (part, other) = (directory.path().join("part"), directory.path().join("other"));
        fs::write(&other, "precious").unwrap();
        std::os::unix::fs::symlink(&other, &part).unwrap();
        assert!(lock(&part).is_err());
        assert_eq!(fs::read(&other).unwrap(), b"precious");
    }

    #[test]
    fn a_part_belongs_to_one_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let part = directory.path().join("part");
        let first = lock(&part).unwrap();
        assert!(first.is_some());
        assert!(lock(&part).unwrap().is_none());
        drop(first);
        assert!(lock(&part).unwrap().is_some());
    }
}
