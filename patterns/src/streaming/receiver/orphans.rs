//! What transfers leave beside their targets, and who removes it.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use postrider_core::{Error, ErrorKind, Result};
use tokio::task::spawn_blocking;
use uuid::Uuid;

const PART: &str = ".part";
const STATE: &str = ".part-state";

/// The files beside `target` in which the stream `id` grows, and in which it is noted how far it is.
/// Nothing for a target that is no file.
pub(super) fn beside(target: &Path, id: Uuid) -> Option<(PathBuf, PathBuf)> {
    let named = |suffix| {
        let mut name = target.file_name()?.to_owned();
        name.push(format!(".{id}{suffix}"));
        Some(target.with_file_name(name))
    };
    Some((named(PART)?, named(STATE)?))
}

/// Whether a file has a name of [`beside`]: somebody else's are left alone.
fn is_ours(name: &str) -> bool {
    let stem = name.strip_suffix(PART).or_else(|| name.strip_suffix(STATE));
    let id = stem.and_then(|stem| stem.rsplit_once('.')).map(|(_, id)| id);
    id.is_some_and(|id| id.len() == 36 && Uuid::try_parse(id).is_ok())
}

/// Removes what was left in `directory` and not touched for `age`.
pub(super) async fn sweep(directory: PathBuf, age: Duration, now: SystemTime) -> Result<()> {
    let shown = directory.display().to_string();
    let swept = spawn_blocking(move || sweep_now(&directory, age, now)).await;
    let swept = swept.unwrap_or_else(|error| Err(io::Error::other(error)));
    let removed = swept.map_err(|error| {
        Error::new(ErrorKind::Invalid, "start", "the directory of streams cannot be swept")
            .with_context("directory", shown.clone())
            .with_source(error)
    })?;
    if removed > 0 {
        tracing::info!(directory = %shown, removed, "leftovers of streams were removed");
    }
    Ok(())
}

fn sweep_now(directory: &Path, age: Duration, now: SystemTime) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let old = || {
            let modified = entry.metadata()?.modified()?;
            io::Result::Ok(now.duration_since(modified).is_ok_and(|since| since >= age))
        };
        if !entry.file_name().to_str().is_some_and(is_ours) || !entry.file_type()?.is_file() {
            continue;
        }
        // Another receiver may remove it in the same moment.
        let gone = old().and_then(|old| if old { remove(&entry.path()) } else { Ok(false) });
        match gone {
            Ok(gone) => removed += usize::from(gone),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(removed)
}

/// Removes a file unless a transfer is writing it.
fn remove(path: &Path) -> io::Result<bool> {
    let file = File::open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    fs::remove_file(path)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_old_and_ours_and_nobody_s_goes() {
        let directory = tempfile::tempdir().unwrap();
        let id = Uuid::from_u128(7);
        let (part, state) = beside(&directory.path().join("film.mp4"), id).unwrap();
        assert!(part.ends_with("film.mp4.00000000-0000-0000-0000-000000000007.part"));
        let others = ["film.mp4", "film.mp4.part", "notes.7.part", "x.part-state"];
        let others = others.map(|name| directory.path().join(name));
        let (busy, _) = beside(&directory.path().join("busy"), id).unwrap();
        let (young, _) = beside(&directory.path().join("young"), id).unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let touch = |path: &Path, age: u64| {
            let file = File::create(path).unwrap();
            file.set_modified(now - Duration::from_secs(age)).unwrap();
            file
        };
        for path in others.iter().chain([&part, &state]) {
            touch(path, 3_600);
        }
        let held = touch(&busy, 3_600);
        held.lock().unwrap();
        touch(&young, 3_599);

        let hour = Duration::from_secs(3_600);
        sweep(directory.path().to_owned(), hour, now).await.unwrap();
        assert!(!part.exists() && !state.exists());
        assert!(others.iter().chain([&busy, &young]).all(|path| path.exists()));
        let missing = sweep(directory.path().join("missing"), hour, now).await;
        assert_eq!(missing.unwrap_err().kind(), ErrorKind::Invalid);
    }
}
