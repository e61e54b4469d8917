//! AMQP URIs: `amqp://user:password@host:port/vhost?heartbeat=10`.

use std::mem;

use lapin::uri::{AMQPScheme, AMQPUri};
use postrider_core::{Error, ErrorKind, Result};
use postrider_rabbitmq::{check_connection_name, lower_scheme, unescaped};
use url::{Host, Url};

/// The heartbeat in seconds unless the URI names one: half of it passes between two frames at most,
/// so that a dead peer is noticed within it.
const HEARTBEAT: u16 = 30;

/// A broker's URI, and the same for people: without the password.
#[derive(Clone)]
pub(crate) struct Uri {
    /// With the scheme of a plain connection: the encryption is not lapin's.
    pub(crate) broker: AMQPUri,
    pub(crate) encrypted: bool,
    /// What the connections are called in the broker's tools.
    pub(crate) name: Option<String>,
    pub(crate) shown: String,
}

/// Reads a URI. What is wrong with it is told without repeating it, because it has a password.
pub(crate) fn parse(url: &str) -> Result<Uri> {
    let invalid = |why: &'static str| Err(Error::new(ErrorKind::Invalid, "connect", why));
    let url = &*lower_scheme(url);
    if !(url.starts_with("amqp://") || url.starts_with("amqps://")) {
        return invalid("the URL of a RabbitMQ broker is amqp://user:password@host:port/vhost");
    }
    if let Some(why) = unescaped(url) {
        return invalid(why);
    }
    let (Ok(mut broker), Ok(url)) = (url.parse::<AMQPUri>(), Url::parse(url)) else {
        return invalid(
            "the URL cannot be read; in its user, password and virtual host, each of \
             @ : / ? # [ ] % must be percent-encoded, for example / as %2F",
        );
    };
    broker.query.heartbeat.get_or_insert(HEARTBEAT);
    if let Some(Host::Ipv6(address)) = url.host() {
        // lapin's parser takes it for no host at all, which is localhost.
        broker.authority.host = address.to_string();
    }
    let name = url.query_pairs().find(|(option, _)| option == "connection_name");
    let name = name.map(|(_, name)| name.into_owned());
    name.as_deref().map_or(Ok(()), check_connection_name)?;
    let scheme = mem::replace(&mut broker.scheme, AMQPScheme::AMQP);
    let authority = &broker.authority;
    let host = match authority.host.contains(':') {
        true => format!("[{}]", authority.host),
        false => authority.host.clone(),
    };
    let mut shown = format!("{scheme}://{}@{host}", authority.userinfo.username);
    if authority.port != scheme.default_port() {
        shown.push_str(&format!(":{}", authority.port));
    }
    if broker.vhost != "/" {
        shown.push_str(&format!("/{}", broker.vhost.replace('/', "%2f")));
    }
    Ok(Uri { broker, name, encrypted: scheme == AMQPScheme::AMQPS, shown })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_meant_is_explained() {
        let long = format!("amqp://h?connection_name={}", "x".repeat(256));
        for (broken, why) in [
            ("amqp://:s3cret@host", "no user"),
            ("amqp://anna:s3cret/1@host", "percent-encoded"),
            ("amqp://anna:1/s3cret@host", "percent-encoded"),
            ("amqp://anna:s3cret#1@host", "percent-encoded"),
            (&*long, "has 256 bytes"),
        ] {
            let Err(error) = parse(broken) else { panic!("{broken} must be refused") };
            assert!(error.kind() == ErrorKind::Invalid && error.message().contains(why), "{error}");
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
        }
        let uri = parse("AMQPS://anna:p@ss@host").unwrap();
        assert_eq!((&*uri.broker.authority.userinfo.password, uri.encrypted), ("p@ss", true));
        assert_eq!(uri.shown, "amqps://anna@host");
    }

    #[test]
    fn a_password_is_never_shown() {
        let uri = parse("amqp://anna:s3cret@broker:5673/a%2Fb?heartbeat=5").unwrap();
        assert_eq!(uri.shown, "amqp://anna@broker:5673/a%2fb");
        assert_eq!(uri.broker.vhost, "a/b");
        assert_eq!(uri.broker.query.heartbeat, Some(5));
        assert_eq!(parse("amqp://a?connection_name=a%20b").unwrap().name.as_deref(), Some("a b"));
        assert_eq!(parse("amqp://localhost").unwrap().broker.query.heartbeat, Some(HEARTBEAT));
        let uri = parse("amqps://anna@[::1]:5671").unwrap();
        assert_eq!((&*uri.broker.authority.host, uri.encrypted), ("::1", true));
        assert_eq!(uri.shown, "amqps://anna@[::1]");
        for broken in
            ["amqp://anna:s3cret@host:port", "http://anna:s3cret@host", "amqp://a:s3cret@["]
        {
            let Err(error) = parse(broken) else { panic!("{broken} must be refused") };
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
        }
    }
}
