//! Which broker it is.

use std::io;

use futures_util::{AsyncReadExt, AsyncWriteExt};
use lapin::tcp::{AMQPUriTcpExt, TLSConfig};
use postrider_core::{Error, ErrorKind, Result};
use postrider_rabbitmq::Version;
use tokio::time::timeout;

use crate::{dial::Dial, encryption::explain};

/// The protocol header of AMQP 0.9.1.
const HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";

/// How TLS begins to say that it did not understand: RFC 8446, section 5.1.
const TLS_ALERT: u8 = 21;

/// The most that a broker's greeting may be.
const MAX_GREETING: usize = 64 * 1024;

/// Asks the broker for its version: it is in the greeting, which the client library keeps to
/// itself, so a connection of its own reads the greeting and ends.
pub(crate) async fn ask(dial: &Dial) -> Result<Version> {
    let failed = |error: io::Error| {
        let (kind, why) = explain(&error).unwrap_or_else(|| {
            (ErrorKind::Unavailable, format!("the broker cannot be reached: {error}"))
        });
        Error::new(kind, "connect", why).with_source(error)
    };
    let greeting = async {
        let runtime = lapin::runtime::default_runtime()
            .map_err(|error| crate::error::translate("connect", error))?;
        let stream = dial.uri.connect_with_config_async(TLSConfig::default(), &runtime);
        let mut stream = dial.encrypt(stream.await.map_err(failed)?).await.map_err(failed)?;
        stream.write_all(HEADER).await.map_err(failed)?;
        // One frame: type, channel, size, payload.
        let mut head = [0; 7];
        stream.read_exact(&mut head).await.map_err(failed)?;
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        if head[0] == TLS_ALERT {
            return Err(unsupported("this port of the server is for TLS; use amqps://"));
        }
        if head[0] != 1 || size > MAX_GREETING {
            return Err(unsupported("the server does not speak AMQP 0.9.1"));
        }
        let mut greeting = vec![0; size];
        stream.read_exact(&mut greeting).await.map_err(failed)?;
        Ok(greeting)
    };
    let greeting = timeout(dial.limit, greeting)
        .await
        .unwrap_or_else(|_| Err(crate::error::late("connect")))?;
    read(&greeting).ok_or_else(|| unsupported("the server is no RabbitMQ that is known"))
}

fn unsupported(why: &'static str) -> Error {
    Error::new(ErrorKind::Unsupported, "connect", why)
}

/// The version in the server properties of a greeting. One field is wanted of a nested table, so it
/// is looked for by its encoding: the short string of its name, then a long string.
fn read(greeting: &[u8]) -> Option<Version> {
    const FIELD: &[u8] = b"\x07versionS";
    let at = greeting.windows(FIELD.len()).position(|window| window == FIELD)? + FIELD.len();
    let size = u32::from_be_bytes(greeting.get(at..at + 4)?.try_into().ok()?) as usize;
    let text = std::str::from_utf8(greeting.get(at + 4..at + 4 + size)?).ok()?;
    Version::parse(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_tells_the_version() {
        let greeting =
            b"\x00\x0a\x00\x0a\x00\x09\x00\x00\x00\x30\x07productS\x00\x00\x00\x08RabbitMQ\
            \x07versionS\x00\x00\x00\x054.3.6\x08platformS\x00\x00\x00\x00";
        let version = read(greeting).unwrap();
        assert_eq!(version, Version { major: 4, minor: 3 });
        assert_eq!(read(b"\x07versionS\x00\x00\xff\xff4"), None);
        assert_eq!(read(b""), None);
    }
}
