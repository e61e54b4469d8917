use thiserror::Error;

use crate::{codec::CodecError, handler::HandlerError};

/// How a tracked task stands, as far as its submitter has heard.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TaskStatus {
    /// It is submitted, and nobody has begun it.
    Queued,
    /// A worker is at it.
    Running {
        /// The how-manieth delivery it is, from 1.
        attempt: u32,
    },
    /// A try has failed, and it waits for the next one.
    Retrying {
        /// The how-manieth delivery has failed.
        attempt: u32,
    },
    /// It is done.
    Done,
    /// It was given up and is kept among the dead letters.
    Failed(HandlerError),
    /// It was called off: it was not run, or run without success.
    Cancelled,
    /// It is not run because a task of the same unique key is or was.
    Duplicate,
    /// What becomes of it will not be known here, for this reason. It may be done all the same.
    Unknown(String),
}

impl TaskStatus {
    /// Whether it stays as it is.
    #[must_use]
    pub const fn is_end(&self) -> bool {
        !matches!(self, Self::Queued | Self::Running { .. } | Self::Retrying { .. })
    }
}

/// How far a task is, as its handler says.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TaskProgress {
    /// From 0 to 1.
    pub fraction: f64,
    /// What it is at, for people.
    pub message: String,
}

/// What is known of a tracked task.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TaskState {
    /// How it stands.
    pub status: TaskStatus,
    /// The last progress that was heard of.
    pub progress: Option<TaskProgress>,
}

/// Why a tracked task has no result.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TaskError {
    /// It was given up and is kept among the dead letters.
    #[error("the task has failed: {0}")]
    Failed(HandlerError),
    /// It was called off.
    #[error("the task was called off")]
    Cancelled,
    /// A task of the same unique key is or was run in its place.
    #[error("the task is a duplicate of another with the same key")]
    Duplicate,
    /// What becomes of it is not known. It may be done all the same.
    #[error("what becomes of the task is not known: {cause}")]
    Unknown {
        /// Why.
        cause: String,
    },
    /// It is done, and its result is not what it should be.
    #[error("the task is done, and its result cannot be read: {0}")]
    Codec(#[from] CodecError),
}
