//! What this broker refuses to declare beyond what every broker refuses.

use postrider_core::{Error, ErrorKind, Queue, QueueKind, Result};

pub(crate) fn check_queue(queue: &Queue) -> Result<()> {
    queue.check()?;
    if queue.kind == QueueKind::Stream {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "declare",
            "the in-memory broker has no stream queues",
        )
        .with_context("queue", queue.name.clone())
        .with_context("argument", "kind"));
    }
    Ok(())
}
