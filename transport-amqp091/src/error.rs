//! What lapin and the broker say, in the words of the transport contract.

use lapin::ErrorKind as Lapin;
use postrider_core::{Error, ErrorKind};

/// The reply code of a protocol error, and its text.
pub(crate) fn reply(error: &lapin::Error) -> Option<(u16, &str)> {
    match error.kind() {
        Lapin::ProtocolError(error) => Some((error.get_id(), error.get_message().as_str())),
        _ => None,
    }
}

/// An error of `operation`. The broker's own words are kept: they name what it is about.
pub(crate) fn translate(operation: &'static str, error: lapin::Error) -> Error {
    let (kind, message) = match reply(&error) {
        Some((code, text)) => (kind_of(code, text), text.to_owned()),
        None => match error.kind() {
            Lapin::ChannelsLimitReached => (
                ErrorKind::Unavailable,
                "the connection has no channel left; close publishers or consumers".to_owned(),
            ),
            Lapin::AuthProviderError(_) => {
                (ErrorKind::Unauthorized, "the credentials could not be used".to_owned())
            }
            Lapin::IOError(_)
            | Lapin::InvalidChannel(_)
            | Lapin::InvalidChannelState(..)
            | Lapin::InvalidConnectionState(_)
            | Lapin::RuntimeShutdownError(_)
            | Lapin::MissingHeartbeatError => {
                (ErrorKind::Unavailable, format!("the connection is gone: {error}"))
            }
            _ => (ErrorKind::Internal, error.to_string()),
        },
    };
    Error::new(kind, operation, message).with_source(error)
}

fn kind_of(code: u16, text: &str) -> ErrorKind {
    match code {
        311 => ErrorKind::Invalid,
        403 if text.contains("exclusive use") => ErrorKind::Locked,
        403 => ErrorKind::Unauthorized,
        404 => ErrorKind::NotFound,
        405 => ErrorKind::Locked,
        406 if text.contains("inequivalent arg") => ErrorKind::Mismatch,
        406 => ErrorKind::Invalid,
        // A virtual host that is not there, or that this user may not open.
        530 if text.contains("not found") => ErrorKind::NotFound,
        530 => ErrorKind::Unauthorized,
        540 => ErrorKind::Unsupported,
        // Closed by an operator, out of resources, or failed inside.
        320 | 313 | 506 | 541 => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    }
}

/// The error of a step that did not come to its end in time.
pub(crate) fn late(operation: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, operation, "the broker did not answer in time")
}

/// The error of everything on a transport that was closed.
pub(crate) fn closed(operation: &'static str) -> Error {
    Error::new(ErrorKind::Closed, operation, "the transport is closed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reply_codes_have_their_kinds() {
        for (code, text, kind) in [
            (403, "ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use", ErrorKind::Locked),
            (403, "ACCESS_REFUSED - Login was refused", ErrorKind::Unauthorized),
            (404, "NOT_FOUND - no queue 'q' in vhost '/'", ErrorKind::NotFound),
            (405, "RESOURCE_LOCKED - cannot obtain exclusive access", ErrorKind::Locked),
            (406, "PRECONDITION_FAILED - inequivalent arg 'durable'", ErrorKind::Mismatch),
            (406, "PRECONDITION_FAILED - unknown delivery tag 7", ErrorKind::Invalid),
            (530, "NOT_ALLOWED - vhost x not found", ErrorKind::NotFound),
            (320, "CONNECTION_FORCED - bye", ErrorKind::Unavailable),
        ] {
            assert_eq!(kind_of(code, text), kind, "{code} {text}");
        }
    }
}
