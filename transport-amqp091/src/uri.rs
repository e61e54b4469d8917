//! AMQP URIs: `amqp://user:password@host:port/vhost?heartbeat=10`.

use lapin::uri::{AMQPScheme, AMQPUri};
use postrider_core::{Error, ErrorKind, Result};

/// The heartbeat in seconds unless the URI names one: half of it passes between two frames at most,
/// so that a dead peer is noticed within it.
const HEARTBEAT: u16 = 30;

/// A broker's URI, and the same for people: without the password.
#[derive(Clone)]
pub(crate) struct Uri {
    pub(crate) broker: AMQPUri,
    pub(crate) shown: String,
}

/// Reads a URI. What is wrong with it is told without repeating it, because it has a password.
pub(crate) fn parse(url: &str) -> Result<Uri> {
    let invalid = |why: &'static str| Err(Error::new(ErrorKind::Invalid, "connect", why));
    if !(url.starts_with("amqp://") || url.starts_with("amqps://")) {
        return invalid("the URL of a RabbitMQ broker is amqp://user:password@host:port/vhost");
    }
    if cfg!(not(feature = "tls")) && url.starts_with("amqps://") {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "connect",
            "amqps:// needs the crate feature 'tls'",
        ));
    }
    let Ok(mut broker) = url.parse::<AMQPUri>() else {
        return invalid("the URL cannot be read; names in it must be percent-encoded");
    };
    broker.query.heartbeat.get_or_insert(HEARTBEAT);
    let (scheme, port) = match broker.scheme {
        AMQPScheme::AMQP => ("amqp", 5672),
        AMQPScheme::AMQPS => ("amqps", 5671),
    };
    let authority = &broker.authority;
    let mut shown = format!("{scheme}://{}@{}", authority.userinfo.username, authority.host);
    if authority.port != port {
        shown.push_str(&format!(":{}", authority.port));
    }
    if broker.vhost != "/" {
        shown.push_str(&format!("/{}", broker.vhost.replace('/', "%2f")));
    }
    Ok(Uri { broker, shown })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        let uri = parse("amqp://anna:s3cret@broker:5673/a%2Fb?heartbeat=5").unwrap();
        assert_eq!(uri.shown, "amqp://anna@broker:5673/a%2fb");
        assert_eq!(uri.broker.vhost, "a/b");
        assert_eq!(uri.broker.query.heartbeat, Some(5));
        assert_eq!(parse("amqp://localhost").unwrap().broker.query.heartbeat, Some(HEARTBEAT));
        for broken in
            ["amqp://anna:s3cret@host:port", "http://anna:s3cret@host", "amqp://a:s3cret@["]
        {
            let Err(error) = parse(broken) else { panic!("{broken} must be refused") };
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
        }
    }
}
