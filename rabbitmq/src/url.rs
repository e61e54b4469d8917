//! What is wrong with a broker's URL, told without repeating it, because it has a password.

use postrider_core::{Error, ErrorKind, MAX_NAME_BYTES, Result};

/// The URL with its scheme in small letters, as RFC 3986 has it in section 3.1.
#[must_use]
pub fn lower_scheme(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => format!("{}://{rest}", scheme.to_ascii_lowercase()),
        None => url.to_owned(),
    }
}

/// Why a URL cannot be meant as it is written, if so: there is a password without a user, or a
/// character in a name that ends it there. An `@` behind the host is one that belongs to a password,
/// and a fragment is nothing that a broker has.
#[must_use]
pub fn unescaped(url: &str) -> Option<&'static str> {
    let (_, rest) = url.split_once("://")?;
    let (before, fragment) = match rest.split_once('#') {
        Some((before, fragment)) => (before, Some(fragment)),
        None => (rest, None),
    };
    let (place, options) = before.split_once('?').unwrap_or((before, ""));
    let (authority, path) = place.split_once('/').unwrap_or((place, ""));
    let first_option = options.split_once('=').map_or(options, |(name, _)| name);
    if fragment.is_some() || path.contains('@') || first_option.contains('@') {
        return Some(
            "the URL does not mean what it should: in its user, password and virtual host, each of \
             @ : / ? # [ ] % must be percent-encoded, for example # as %23, / as %2F and @ as %40",
        );
    }
    let is_nobody = |(user, password): (&str, &str)| user.is_empty() && !password.is_empty();
    let login = authority.rsplit_once('@').map(|(login, _)| login);
    login.and_then(|login| login.split_once(':')).is_some_and(is_nobody).then_some(
        "the URL has a password and no user, and nobody else's name is guessed; write user:password@",
    )
}

/// Checks the name of a connection, as brokers show it.
///
/// # Errors
///
/// [`ErrorKind::Invalid`] for one that is longer than [`MAX_NAME_BYTES`], which would not fit into the
/// first frame with all else that is in it.
pub fn check_connection_name(name: &str) -> Result<()> {
    if name.len() <= MAX_NAME_BYTES {
        return Ok(());
    }
    let why = format!(
        "the name of the connection has {} bytes and may have {MAX_NAME_BYTES}; shorten \
         connection_name, or what Options::name says",
        name.len()
    );
    Err(Error::new(ErrorKind::Invalid, "connect", why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_a_password_too_early_is_told() {
        for broken in [
            "amqp://anna:12/34@host",
            "amqp://anna:12#34@host",
            "amqp://anna:12?34@host",
            "amqp://anna:12?34@host?heartbeat=5",
            "amqp://anna:x@host/v#h",
        ] {
            assert!(unescaped(broken).is_some_and(|why| why.contains("%23")), "{broken}");
        }
        for sound in [
            "amqp://anna:p@ss@host",
            "amqp://anna:12%2F34%23%40@host:5672/a%2Fb?heartbeat=5&queue_address=a@b",
            "amqp://host/vhost",
            "amqp://anna@host",
            "amqp://:@host",
            "no URL",
        ] {
            assert_eq!(unescaped(sound), None, "{sound}");
        }
    }

    #[test]
    fn a_password_without_a_user_is_nobodys() {
        let why = unescaped("amqp://:s3cret@host").unwrap();
        assert!(why.contains("no user") && !why.contains("s3cret"), "{why}");
    }

    #[test]
    fn a_scheme_is_the_same_in_capitals() {
        assert_eq!(lower_scheme("AmQp10://Anna@Host/V"), "amqp10://Anna@Host/V");
        assert_eq!(lower_scheme("nothing"), "nothing");
    }

    #[test]
    fn the_name_of_a_connection_is_bounded() {
        check_connection_name(&"x".repeat(255)).unwrap();
        let error = check_connection_name(&"x".repeat(256)).unwrap_err();
        assert!(error.kind() == ErrorKind::Invalid && error.message().contains("256"), "{error}");
    }
}
