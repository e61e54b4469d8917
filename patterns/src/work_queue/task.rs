use serde::{Serialize, de::DeserializeOwned};

/// Something to be done, as a type with a name.
///
/// # Example: two types of tasks in one queue
///
/// ```
/// use postrider_patterns::Task;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct DailyReport { day: String }
///
/// impl Task for DailyReport {
///     const TYPE: &'static str = "daily_report";
///     const QUEUE: &'static str = "generate_report";
/// }
///
/// #[derive(Serialize, Deserialize)]
/// struct YearlyReport { year: u16 }
///
/// impl Task for YearlyReport {
///     const TYPE: &'static str = "yearly_report";
///     const QUEUE: &'static str = "generate_report";
/// }
/// ```
pub trait Task: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Its name on the wire.
    const TYPE: &'static str;

    /// The queue that it is submitted to. Default: one of its own, named after its type.
    const QUEUE: &'static str = Self::TYPE;
}

/// A task that gives something back to a submitter that [tracks](crate::WorkQueue::submit_for_result)
/// it.
///
/// # Example: a task with a result
///
/// ```
/// use postrider_patterns::{Task, TaskWithResult, Worker};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct CountWords { text: String }
///
/// impl Task for CountWords { const TYPE: &'static str = "count_words"; }
/// impl TaskWithResult for CountWords { type Output = usize; }
///
/// let worker = Worker::new("count_words")
///     .on_result(|task: CountWords, _context| async move { Ok(task.text.split(' ').count()) });
/// # drop(worker);
/// ```
pub trait TaskWithResult: Task {
    /// What it gives back.
    type Output: Serialize + DeserializeOwned + Send + Sync + 'static;
}
