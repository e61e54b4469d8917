//! The URL of a broker: `amqp10://user:password@host:port/vhost?heartbeat=10`.

use std::{borrow::Cow, time::Duration};

use percent_encoding::percent_decode_str;
use postrider_core::{Error, ErrorKind, Result};
use postrider_rabbitmq::{check_connection_name, lower_scheme, unescaped};
use url::{Host, Url};

use crate::profile::{Broker, Profile};

/// How often either side must be heard of unless the URL says it.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// The least of it: brokers take no idle time below a second, and half of it is what they are told.
const SHORTEST_HEARTBEAT: Duration = Duration::from_secs(2);

/// How a client shows who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mechanism {
    Plain,
    Anonymous,
    External,
}

/// A broker's URL, read.
#[derive(Clone)]
pub(crate) struct Uri {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) mechanism: Mechanism,
    /// `None` for the broker's default.
    pub(crate) virtual_host: Option<String>,
    pub(crate) heartbeat: Duration,
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) name: Option<String>,
    pub(crate) encrypted: bool,
    /// What it says of the broker.
    pub(crate) profile: Profile,
    /// For people, without the password.
    pub(crate) shown: String,
}

fn invalid(why: &'static str) -> Error {
    Error::new(ErrorKind::Invalid, "connect", why)
}

fn decoded(text: &str) -> Result<Cow<'_, str>> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map_err(|_| invalid("names in the URL must be percent-encoded UTF-8"))
}

/// Reads a URL. What is wrong with it is told without repeating it, because it has a password.
pub(crate) fn parse(text: &str) -> Result<Uri> {
    const FORM: &str =
        "the URL of a broker over AMQP 1.0 is amqp10://user:password@host:port/vhost";
    let text = &*lower_scheme(text);
    let encrypted = match text.split_once("://") {
        Some(("amqp10", _)) => false,
        Some(("amqp10s", _)) => true,
        _ => return Err(invalid(FORM)),
    };
    if let Some(why) = unescaped(text) {
        return Err(invalid(why));
    }
    let url = Url::parse(text).map_err(|_| {
        invalid(
            "the URL cannot be read; in its user, password and virtual host, each of \
             @ : / ? # [ ] % must be percent-encoded, for example / as %2F",
        )
    })?;
    let host = match url.host() {
        Some(Host::Ipv6(address)) => address.to_string(),
        Some(host) => host.to_string(),
        None => return Err(invalid(FORM)),
    };
    let port = url.port().unwrap_or(if encrypted { 5671 } else { 5672 });
    let user = decoded(url.username())?.into_owned();
    let password = decoded(url.password().unwrap_or_default())?.into_owned();
    let (user, password, mechanism) = match user.is_empty() {
        true => ("guest".to_owned(), "guest".to_owned(), Mechanism::Plain),
        false => (user, password, Mechanism::Plain),
    };
    let virtual_host = decoded(url.path().strip_prefix('/').unwrap_or_default())?.into_owned();
    let virtual_host = Some(virtual_host).filter(|name| !name.is_empty() && name != "/");
    let mut uri = Uri {
        shown: shown(&url, &host, virtual_host.as_deref()),
        host,
        port,
        user,
        password,
        mechanism,
        virtual_host,
        heartbeat: HEARTBEAT,
        connect_timeout: None,
        name: None,
        encrypted,
        profile: Profile::default(),
    };
    for (option, value) in url.query_pairs() {
        let number = || value.parse::<u32>().map_err(|_| invalid("an option must be a number"));
        match &*option {
            "heartbeat" => {
                uri.heartbeat = Duration::from_secs(number()?.into());
                if uri.heartbeat < SHORTEST_HEARTBEAT {
                    return Err(invalid("the heartbeat must be at least 2 seconds"));
                }
            }
            "connection_timeout" => {
                uri.connect_timeout = Some(Duration::from_millis(number()?.into()));
            }
            "connection_name" => uri.name = Some(value.into_owned()),
            "auth_mechanism" => {
                uri.mechanism = match value.to_ascii_lowercase().as_str() {
                    "plain" => Mechanism::Plain,
                    "anonymous" => Mechanism::Anonymous,
                    "external" => Mechanism::External,
                    _ => {
                        return Err(invalid("auth_mechanism must be plain, anonymous or external"));
                    }
                };
            }
            "profile" => {
                uri.profile.broker = Some(match &*value {
                    "rabbitmq" => Broker::RabbitMq,
                    "rabbitmq3" => Broker::RabbitMq3,
                    "generic" => Broker::Other,
                    _ => return Err(invalid("profile must be rabbitmq, rabbitmq3 or generic")),
                });
            }
            "queue_address" => uri.profile.queue_address = Some(value.into_owned()),
            "exchange_address" => uri.profile.exchange_address = Some(value.into_owned()),
            "topology" if value == "provisioned" => uri.profile.provisioned = true,
            "topology" => return Err(invalid("topology may be provisioned, or left out")),
            _ => {
                return Err(invalid(
                    "the options of the URL are heartbeat, connection_timeout, connection_name, \
                     auth_mechanism, profile, topology, queue_address and exchange_address",
                ));
            }
        }
    }
    uri.name.as_deref().map_or(Ok(()), check_connection_name)?;
    Ok(uri)
}

fn shown(url: &Url, host: &str, virtual_host: Option<&str>) -> String {
    let mut shown = format!("{}://", url.scheme());
    if !url.username().is_empty() {
        shown.push_str(url.username());
        shown.push('@');
    }
    match host.contains(':') {
        true => shown.push_str(&format!("[{host}]")),
        false => shown.push_str(host),
    }
    if let Some(port) = url.port() {
        shown.push_str(&format!(":{port}"));
    }
    if virtual_host.is_some() {
        shown.push_str(url.path());
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        let uri = parse("amqp10://anna:s3cret@broker:5673/a%2Fb?heartbeat=5").unwrap();
        assert_eq!(uri.shown, "amqp10://anna@broker:5673/a%2Fb");
        assert_eq!((&*uri.user, &*uri.password), ("anna", "s3cret"));
        assert_eq!(uri.virtual_host.as_deref(), Some("a/b"));
        assert_eq!(uri.heartbeat, Duration::from_secs(5));
        for broken in [
            "amqp10://anna:s3cret@host:port",
            "http://anna:s3cret@host",
            "amqp10://a:s3cret@[",
            "amqp10://a:s3cret@host?heartbeat=1",
            "amqp10://a:s3cret@host?haertbeat=5",
        ] {
            let Err(error) = parse(broken) else { panic!("{broken} must be refused") };
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_explained() {
        let long = format!("amqp10://h?connection_name={}", "x".repeat(256));
        for (broken, why) in [
            ("amqp10://:s3cret@host", "no user"),
            ("amqp10://anna:s3cret/1@host", "percent-encoded"),
            ("amqp10://anna:1/s3cret@host", "percent-encoded"),
            ("amqp10://anna:s3cret#1@host", "percent-encoded"),
            (&*long, "has 256 bytes"),
        ] {
            let Err(error) = parse(broken) else { panic!("{broken} must be refused") };
            assert!(error.kind() == ErrorKind::Invalid && error.message().contains(why), "{error}");
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
        }
        let uri = parse("AMQP10S://anna:p@ss@host").unwrap();
        assert_eq!((&*uri.password, uri.encrypted), ("p@ss", true));
        assert_eq!(uri.shown, "amqp10s://anna@host");
    }

    #[test]
    fn it_may_say_what_the_broker_is() {
        let text = "amqp10://h?profile=generic&topology=provisioned&queue_address=q/%7Bqueue%7D\
                    &exchange_address={exchange}";
        let wanted = Profile::default()
            .with_broker(Broker::Other)
            .with_queue_address("q/{queue}")
            .with_exchange_address("{exchange}")
            .provisioned();
        assert_eq!(parse(text).unwrap().profile, wanted);
        assert_eq!(parse("amqp10://h").unwrap().profile, Profile::default());
        for broken in ["amqp10://h?profile=kafka", "amqp10://h?topology=yes"] {
            assert!(parse(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn what_is_left_out_is_the_default() {
        let uri = parse("amqp10://localhost").unwrap();
        assert_eq!((uri.port, &*uri.user, uri.virtual_host), (5672, "guest", None));
        let uri = parse("amqp10s://anna:x@[::1]/%2f").unwrap();
        assert_eq!((&*uri.host, uri.port, uri.virtual_host), ("::1", 5671, None));
        assert_eq!(uri.shown, "amqp10s://anna@[::1]");
    }
}
