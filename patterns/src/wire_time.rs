//! How moments stand in bodies and headers.

use chrono::{DateTime, SecondsFormat, Utc};

/// RFC 3339 with milliseconds and `Z`.
pub(crate) fn text(moment: DateTime<Utc>) -> String {
    moment.to_rfc3339_opts(SecondsFormat::Millis, true)
}
