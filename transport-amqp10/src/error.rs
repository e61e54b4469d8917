//! What the client library and the broker say, in the words of the transport contract.

use std::{fmt::Debug, io};

use fe2o3_amqp::{
    connection::OpenError,
    link::{
        LinkStateError, ReceiverAttachError, RecvError, SendError, SenderAttachError,
        SessionStopReason,
    },
};
use fe2o3_amqp_types::definitions;
use postrider_core::{Error, ErrorKind};

use crate::encryption::explain;

/// The error of a step that did not come to its end in time.
pub(crate) fn late(operation: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, operation, "the broker did not answer in time")
}

/// The error of everything on a transport that was closed.
pub(crate) fn closed(operation: &'static str) -> Error {
    Error::new(ErrorKind::Closed, operation, "the transport is closed")
}

/// The error of a step that the loss of the connection interrupted.
pub(crate) fn lost(operation: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, operation, "the connection was lost meanwhile")
}

/// The condition of an error of the protocol, such as `amqp:not-found`.
pub(crate) fn condition(error: &definitions::Error) -> String {
    match serde_amqp::to_value(&error.condition) {
        Ok(serde_amqp::Value::Symbol(symbol)) => symbol.0,
        _ => format!("{:?}", error.condition),
    }
}

/// What the broker says is wrong.
pub(crate) fn told(operation: &'static str, error: &definitions::Error) -> Error {
    let condition = condition(error);
    let text = error.description.clone().unwrap_or_else(|| condition.clone());
    Error::new(kind_of(&condition, &text), operation, text)
}

fn kind_of(condition: &str, text: &str) -> ErrorKind {
    match condition {
        "amqp:not-found" | "amqp:resource-deleted" => ErrorKind::NotFound,
        "amqp:unauthorized-access" => ErrorKind::Unauthorized,
        "amqp:resource-locked" => ErrorKind::Locked,
        "amqp:not-allowed" | "amqp:precondition-failed" if text.contains("exclusive") => {
            ErrorKind::Locked
        }
        "amqp:not-implemented" => ErrorKind::Unsupported,
        "amqp:invalid-field" | "amqp:precondition-failed" | "amqp:not-allowed" => {
            ErrorKind::Invalid
        }
        // Whatever else ends a link, a session or a connection may pass.
        _ => ErrorKind::Unavailable,
    }
}

fn of_session(operation: &'static str, reason: &SessionStopReason) -> Error {
    match reason {
        SessionStopReason::EndedWithError(error)
        | SessionStopReason::RemoteEndedWithError(error) => told(operation, error),
        other => lost(operation).with_context("session", format!("{other:?}")),
    }
}

fn gone(operation: &'static str, error: &impl Debug) -> Error {
    Error::new(ErrorKind::Unavailable, operation, format!("the link is gone: {error:?}"))
}

pub(crate) fn of_link(operation: &'static str, error: &LinkStateError) -> Error {
    match error {
        LinkStateError::SessionStopped(reason) => of_session(operation, reason),
        LinkStateError::RemoteClosedWithError(error)
        | LinkStateError::RemoteDetachedWithError(error) => told(operation, error),
        other => gone(operation, other),
    }
}

pub(crate) fn of_send(operation: &'static str, error: &SendError) -> Error {
    match error {
        SendError::LinkStateError(error) => of_link(operation, error),
        other => gone(operation, other),
    }
}

pub(crate) fn of_receive(operation: &'static str, error: &RecvError) -> Error {
    match error {
        RecvError::LinkStateError(error) => of_link(operation, error),
        other => gone(operation, other),
    }
}

pub(crate) fn of_sender(operation: &'static str, error: &SenderAttachError) -> Error {
    match error {
        SenderAttachError::SessionStopped(reason) => of_session(operation, reason),
        SenderAttachError::RemoteClosedWithError(error) => told(operation, error),
        other => gone(operation, other),
    }
}

pub(crate) fn of_receiver(operation: &'static str, error: &ReceiverAttachError) -> Error {
    match error {
        ReceiverAttachError::SessionStopped(reason) => of_session(operation, reason),
        ReceiverAttachError::RemoteClosedWithError(error) => told(operation, error),
        other => gone(operation, other),
    }
}

/// Why there is no stream to open a connection over, or no more.
pub(crate) fn of_io(error: io::Error) -> Error {
    let (kind, why) = explain(&error).unwrap_or_else(|| {
        (ErrorKind::Unavailable, format!("the broker cannot be reached: {error}"))
    });
    Error::new(kind, "connect", why).with_source(error)
}

/// Why a connection could not be opened.
pub(crate) fn of_open(error: OpenError, cause: Option<String>) -> Error {
    let (kind, why) = match &error {
        OpenError::RemoteClosedWithError(error) => {
            let told = told("connect", error);
            (told.kind(), told.message().to_owned())
        }
        OpenError::ProtocolHeaderMismatch { .. } => {
            (ErrorKind::Unsupported, "the server does not speak AMQP 1.0".to_owned())
        }
        other => {
            let why = cause.unwrap_or_else(|| format!("{other:?}"));
            (ErrorKind::Unavailable, format!("the connection could not be opened: {why}"))
        }
    };
    Error::new(kind, "connect", why).with_source(error)
}
