//! What the brokers accept as the name of a queue, an exchange or a routing key.

use crate::{Error, ErrorKind, Result};

/// The longest name or routing key in bytes: a short string of AMQP 0.9.1.
pub const MAX_NAME_BYTES: usize = 255;

/// Checks a name or routing key that a message is sent to; it may be empty.
///
/// # Errors
///
/// [`ErrorKind::Invalid`] when it is longer than [`MAX_NAME_BYTES`] or has a line break or a NUL.
pub fn check_name(operation: &'static str, name: &str) -> Result<()> {
    let complaint = if name.len() > MAX_NAME_BYTES {
        format!("a name may have {MAX_NAME_BYTES} bytes and this one has {}", name.len())
    } else if name.contains(['\r', '\n', '\0']) {
        "a name must not have a line break or a NUL".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Invalid, operation, complaint).with_context("name", name))
}

/// Whether a name is one that brokers keep for what they make themselves.
#[must_use]
pub fn is_reserved_name(name: &str) -> bool {
    name.starts_with("amq.")
}

/// Checks the name of a queue or exchange that is to be declared.
///
/// # Errors
///
/// [`ErrorKind::Invalid`] when it is empty or breaks a rule of [`check_name`], and
/// [`ErrorKind::Unauthorized`] for one that [is reserved](is_reserved_name).
pub fn check_declared_name(operation: &'static str, name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::new(
            ErrorKind::Invalid,
            operation,
            "a queue or exchange that is declared must have a name",
        ));
    }
    if is_reserved_name(name) {
        return Err(Error::new(
            ErrorKind::Unauthorized,
            operation,
            "names that begin with 'amq.' belong to the broker; choose another",
        )
        .with_context("name", name));
    }
    check_name(operation, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_held_to_the_limits_of_the_protocol() {
        assert!(check_name("send", &"x".repeat(255)).is_ok());
        let kind = |name: &str| check_declared_name("declare", name).unwrap_err().kind();
        assert_eq!(check_name("send", &"x".repeat(256)).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(kind(""), ErrorKind::Invalid);
        assert_eq!(kind("two\nlines"), ErrorKind::Invalid);
        assert_eq!(kind("amq.mine"), ErrorKind::Unauthorized);
    }
}
