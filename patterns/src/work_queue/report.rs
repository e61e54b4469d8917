//! What workers tell the submitter of a tracked task.

use bytes::Bytes;
use postrider_core::Message;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{TaskProgress, TaskStatus};
use crate::{
    codec::{Codec, CodecError, Limits, read_or_default},
    handler::{ErrorClass, HandlerError},
    resilience::shorten,
};

/// The type of a report.
pub(super) const REPORT: &str = "postrider.task.report";

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum State {
    Running,
    Progress,
    Retrying,
    Done,
    Failed,
    Cancelled,
    Duplicate,
}

#[derive(Serialize)]
struct ReportBody<'a, R> {
    state: State,
    attempt: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorBody<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a R>,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    class: &'a str,
    code: &'a str,
    message: &'a str,
}

/// What a worker has to say, but for a result.
#[derive(Debug, Clone, Copy)]
pub(super) enum Said<'a> {
    Running,
    Progress(f64, &'a str),
    Retrying,
    Failed(&'a HandlerError),
    Cancelled,
    Duplicate,
}

pub(super) fn encode(
    codec: Codec,
    limits: Limits,
    attempt: u32,
    said: Said<'_>,
) -> Result<Bytes, CodecError> {
    let mut body = ReportBody::<()> {
        state: State::Running,
        attempt,
        progress: None,
        message: None,
        error: None,
        result: None,
    };
    body.state = match said {
        Said::Running => State::Running,
        Said::Progress(fraction, message) => {
            body.progress = Some(fraction);
            body.message = Some(shorten(message));
            State::Progress
        }
        Said::Retrying => State::Retrying,
        Said::Failed(error) => {
            body.error = Some(ErrorBody {
                class: error.class().as_str(),
                code: error.code(),
                message: shorten(error.message()),
            });
            State::Failed
        }
        Said::Cancelled => State::Cancelled,
        Said::Duplicate => State::Duplicate,
    };
    codec.encode_within(&body, limits)
}

/// That a task is done, with what it gives.
pub(super) fn encode_done<R: Serialize>(
    codec: Codec,
    limits: Limits,
    attempt: u32,
    result: Option<&R>,
) -> Result<Bytes, CodecError> {
    let state = State::Done;
    let body = ReportBody { state, attempt, progress: None, message: None, error: None, result };
    codec.encode_within(&body, limits)
}

#[derive(Deserialize)]
struct ReportHead {
    state: State,
    #[serde(default)]
    attempt: u32,
    #[serde(default)]
    progress: Option<f64>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    error: Option<ErrorHead>,
}

#[derive(Deserialize)]
struct ErrorHead {
    class: String,
    code: String,
    message: String,
}

/// What a submitter hears.
#[derive(Debug, PartialEq)]
pub(super) enum Heard {
    /// How it stands, of which delivery.
    Status(u32, TaskStatus),
    Progress(u32, TaskProgress),
}

pub(super) fn decode(message: &Message, limits: Limits) -> Result<Heard, CodecError> {
    let codec = Codec::of(message.content_type.as_deref(), &message.body)?;
    let head: ReportHead = codec.read(&message.body, limits)?;
    let attempt = head.attempt;
    let status = match head.state {
        State::Running => TaskStatus::Running { attempt },
        State::Retrying => TaskStatus::Retrying { attempt },
        State::Progress => {
            let fraction = within_bounds(head.progress.unwrap_or_default());
            let message = head.message.unwrap_or_default();
            return Ok(Heard::Progress(attempt, TaskProgress { fraction, message }));
        }
        State::Done => TaskStatus::Done,
        State::Failed => TaskStatus::Failed(failure(head.error)),
        State::Cancelled => TaskStatus::Cancelled,
        State::Duplicate => TaskStatus::Duplicate,
    };
    Ok(Heard::Status(attempt, status))
}

fn failure(error: Option<ErrorHead>) -> HandlerError {
    let Some(ErrorHead { class, code, message }) = error else {
        return HandlerError::internal("the worker did not say why");
    };
    let class = class.parse().unwrap_or(ErrorClass::Internal);
    HandlerError::new(class, message).with_code(code)
}

/// What is no number is nothing.
pub(super) fn within_bounds(fraction: f64) -> f64 {
    if fraction.is_nan() { 0.0 } else { fraction.clamp(0.0, 1.0) }
}

#[derive(Deserialize)]
struct Outcome<R> {
    result: Option<R>,
}

/// The result in the report that a task is done.
pub(super) fn decode_result<R: DeserializeOwned>(
    message: &Message,
    limits: Limits,
) -> Result<R, CodecError> {
    let codec = Codec::of(message.content_type.as_deref(), &message.body)?;
    let outcome: Outcome<R> = codec.read(&message.body, limits)?;
    read_or_default(outcome.result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(codec: Codec, body: Bytes) -> (Message, Heard) {
        let report = Message::new(body).with_content_type(codec.content_type());
        let heard = decode(&report, Limits::default()).unwrap();
        (report, heard)
    }

    #[test]
    fn what_is_said_is_heard() {
        let limits = Limits::default();
        let error = HandlerError::invalid("no such file").with_code("NO_FILE");
        for codec in [Codec::Json, Codec::MessagePack] {
            for (said, wanted) in [
                (Said::Running, TaskStatus::Running { attempt: 2 }),
                (Said::Retrying, TaskStatus::Retrying { attempt: 2 }),
                (Said::Failed(&error), TaskStatus::Failed(error.clone())),
                (Said::Cancelled, TaskStatus::Cancelled),
                (Said::Duplicate, TaskStatus::Duplicate),
            ] {
                let body = encode(codec, limits, 2, said).unwrap();
                assert_eq!(heard(codec, body).1, Heard::Status(2, wanted));
            }
            let body = encode(codec, limits, 1, Said::Progress(0.5, "half")).unwrap();
            let progress = TaskProgress { fraction: 0.5, message: "half".to_owned() };
            assert_eq!(heard(codec, body).1, Heard::Progress(1, progress));
            let body = encode_done(codec, limits, 1, Some(&7_u32)).unwrap();
            let (report, done) = heard(codec, body);
            assert_eq!(done, Heard::Status(1, TaskStatus::Done));
            assert_eq!(decode_result::<u32>(&report, limits).unwrap(), 7);
            let body = encode_done::<()>(codec, limits, 1, None).unwrap();
            let (report, _done) = heard(codec, body);
            decode_result::<()>(&report, limits).unwrap();
            decode_result::<u32>(&report, limits).unwrap_err();
        }
    }

    #[test]
    fn progress_stays_within_its_bounds() {
        for (fraction, wanted) in [(-1.0, 0.0), (0.25, 0.25), (7.0, 1.0), (f64::NAN, 0.0)] {
            assert!((within_bounds(fraction) - wanted).abs() < f64::EPSILON);
        }
    }
}
