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
