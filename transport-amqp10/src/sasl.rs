//! Telling the broker who connects, before the connection is opened: AMQP 1.0 part 5, section 5.3.
//!
//! The client library's own way refuses EXTERNAL over a stream that it did not open, and passwords
//! that do not fit into 512 bytes, as tokens often do not.

use bytes::{BufMut, Bytes, BytesMut};
use fe2o3_amqp::frames::sasl::{Frame, FrameCodec};
use fe2o3_amqp_types::{
    primitives::{Binary, Symbol},
    sasl::{SaslCode, SaslInit},
};
use postrider_core::{Error, ErrorKind, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::codec::{Decoder, Encoder};

use crate::{
    error::of_io,
    uri::{Mechanism, Uri},
};

/// The protocol header of SASL: part 5, section 5.3.1.
const HEADER: &[u8; 8] = b"AMQP\x03\x01\x00\x00";

/// How TLS begins to say that it did not understand: RFC 8446, section 5.1.
const TLS_ALERT: u8 = 21;

/// The smallest frame, and the largest that is read, in bytes. The protocol has 512 for the latter.
const FRAME: std::ops::RangeInclusive<usize> = 8..=4096;

/// Logs in on a stream on which nothing was said yet.
///
/// # Errors
///
/// [`ErrorKind::Unauthorized`] when the broker refuses it, [`ErrorKind::Unsupported`] when the server
/// does not speak AMQP 1.0, and [`ErrorKind::Unavailable`] when it goes away.
pub(crate) async fn log_in(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    uri: &Uri,
) -> Result<()> {
    stream.write_all(HEADER).await.map_err(of_io)?;
    stream.flush().await.map_err(of_io)?;
    let mut header = [0; 8];
    // An alert of TLS is shorter than a header.
    let (first, rest) = header.split_at_mut(1);
    stream.read_exact(first).await.map_err(of_io)?;
    if first[0] == TLS_ALERT {
        return Err(unsupported("this port of the server is for TLS; use amqp10s://"));
    }
    stream.read_exact(rest).await.map_err(of_io)?;
    if header != *HEADER {
        return Err(unsupported("the server does not speak AMQP 1.0 with SASL"));
    }
    let name = uri.mechanism.name();
    let Frame::Mechanisms(offered) = read(stream).await? else {
        return Err(unsupported("the server does not name the ways to log in"));
    };
    let mut offered = offered.sasl_server_mechanisms.0.iter().map(|mechanism| &*mechanism.0);
    if !offered.clone().any(|offered| offered == name) {
        let others = offered.by_ref().collect::<Vec<_>>().join(", ");
        let why = format!("the broker does not offer {name} to this client, but {others}");
        return Err(Error::new(ErrorKind::Unauthorized, "connect", why));
    }
    let init = SaslInit {
        mechanism: Symbol::from(name),
        initial_response: Some(Binary::from(response(uri))),
        hostname: Some(uri.host.clone()),
    };
    write(stream, Frame::Init(init)).await?;
    match read(stream).await? {
        Frame::Outcome(outcome) => outcome_of(name, &outcome.code),
        _ => Err(unsupported("the broker asks for more than a user and a password")),
    }
}

impl Mechanism {
    /// Its name: RFC 4616, RFC 4505 and RFC 4422, appendix A.
    const fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::Anonymous => "ANONYMOUS",
            Self::External => "EXTERNAL",
        }
    }
}

fn response(uri: &Uri) -> Vec<u8> {
    match uri.mechanism {
        Mechanism::Plain => format!("\0{}\0{}", uri.user, uri.password).into_bytes(),
        Mechanism::Anonymous | Mechanism::External => Vec::new(),
    }
}

fn outcome_of(name: &str, code: &SaslCode) -> Result<()> {
    let (kind, why) = match code {
        SaslCode::Ok => return Ok(()),
        SaslCode::Auth => (ErrorKind::Unauthorized, "the broker refuses the credentials"),
        SaslCode::Sys | SaslCode::SysTemp => {
            (ErrorKind::Unavailable, "the broker cannot check the credentials for now")
        }
        SaslCode::SysPerm => (ErrorKind::Unauthorized, "the broker cannot check the credentials"),
    };
    Err(Error::new(kind, "connect", format!("{why} ({name})")))
}

fn unsupported(why: &'static str) -> Error {
    Error::new(ErrorKind::Unsupported, "connect", why)
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Frame> {
    let size = stream.read_u32().await.map_err(of_io)? as usize;
    if !FRAME.contains(&size) {
        return Err(unsupported("the server says something that is not SASL"));
    }
    let mut frame = BytesMut::zeroed(size - 4);
    stream.read_exact(&mut frame).await.map_err(of_io)?;
    match (FrameCodec {}).decode(&mut frame) {
        Ok(Some(frame)) => Ok(frame),
        _ => Err(unsupported("the server says something that is not SASL")),
    }
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), frame: Frame) -> Result<()> {
    let bytes = encoded(frame)?;
    stream.write_all(&bytes).await.map_err(of_io)?;
    stream.flush().await.map_err(of_io)
}

fn encoded(frame: Frame) -> Result<Bytes> {
    let mut body = BytesMut::new();
    let encoded = (FrameCodec {}).encode(frame, &mut body);
    let size = u32::try_from(4 + body.len()).ok().filter(|_| encoded.is_ok());
    let size = size.ok_or_else(|| {
        Error::new(ErrorKind::Invalid, "connect", "the credentials cannot be written")
    })?;
    let mut bytes = BytesMut::with_capacity(4 + body.len());
    bytes.put_u32(size);
    bytes.extend_from_slice(&body);
    Ok(bytes.freeze())
}

#[cfg(test)]
mod tests {
    use fe2o3_amqp_types::sasl::{SaslMechanisms, SaslOutcome};
    use tokio::io::duplex;

    use super::*;
    use crate::uri::parse;

    fn offering(names: &[&'static str]) -> Bytes {
        let names: Vec<_> = names.iter().copied().map(Symbol::from).collect();
        encoded(Frame::Mechanisms(SaslMechanisms { sasl_server_mechanisms: names.into() })).unwrap()
    }

    fn saying(code: SaslCode) -> Bytes {
        encoded(Frame::Outcome(SaslOutcome { code, additional_data: None })).unwrap()
    }

    /// What comes of it, and what the server was told, when the server says this and goes away.
    async fn against(url: &str, said: &[&[u8]]) -> (Result<()>, Vec<u8>) {
        let (mut client, mut server) = duplex(64 * 1024);
        server.write_all(&said.concat()).await.unwrap();
        server.shutdown().await.unwrap();
        let outcome = log_in(&mut client, &parse(url).unwrap()).await;
        drop(client);
        let mut told = Vec::new();
        server.read_to_end(&mut told).await.unwrap();
        (outcome, told)
    }

    #[tokio::test]
    async fn each_mechanism_is_answered_with_what_it_wants() {
        let offered = offering(&["PLAIN", "ANONYMOUS", "EXTERNAL"]);
        let all: [&[u8]; 3] = [HEADER, &offered, &saying(SaslCode::Ok)];
        let token = "t".repeat(2_000);
        for (url, name, wanted) in [
            ("amqp10://anna:s3cret@h".to_owned(), "PLAIN", "\0anna\0s3cret".to_owned()),
            (format!("amqp10://a:{token}@h"), "PLAIN", format!("\0a\0{token}")),
            ("amqp10://h?auth_mechanism=anonymous".to_owned(), "ANONYMOUS", String::new()),
            ("amqp10s://h?auth_mechanism=external".to_owned(), "EXTERNAL", String::new()),
        ] {
            let (outcome, told) = against(&url, &all).await;
            outcome.unwrap();
            let told = told.strip_prefix(HEADER).unwrap();
            let init = FrameCodec {}.decode(&mut BytesMut::from(&told[4..])).unwrap();
            let Some(Frame::Init(init)) = init else { panic!("{init:?}") };
            assert_eq!(&*init.mechanism.0, name);
            assert_eq!(init.initial_response, Some(Binary::from(wanted.into_bytes())));
        }
    }

    #[tokio::test]
    async fn whatever_else_a_server_says_is_an_error_that_tells_it() {
        let plain = offering(&["PLAIN"]);
        let hostile = [HEADER.to_vec(), vec![0xff; 64]].concat();
        for (said, kind, why) in [
            (
                &[&HEADER[..], &plain, &saying(SaslCode::Auth)][..],
                ErrorKind::Unauthorized,
                "refuses",
            ),
            (&[&HEADER[..], &plain, &saying(SaslCode::SysTemp)], ErrorKind::Unavailable, "for now"),
            (
                &[HEADER, &offering(&["X", "Y"])],
                ErrorKind::Unauthorized,
                "PLAIN to this client, but X, Y",
            ),
            (&[b"\x15\x03\x03\x00\x02\x02\x32"], ErrorKind::Unsupported, "is for TLS"),
            (&[b"AMQP\x00\x00\x09\x01"], ErrorKind::Unsupported, "does not speak AMQP 1.0"),
            (&[&hostile], ErrorKind::Unsupported, "not SASL"),
            (&[HEADER, b"\0\0\0\x08\x02\x01\0\0"], ErrorKind::Unsupported, "not SASL"),
            (&[HEADER, &saying(SaslCode::Ok)], ErrorKind::Unsupported, "ways to log in"),
            (&[HEADER, &plain, &plain], ErrorKind::Unsupported, "asks for more"),
            (&[HEADER, &plain], ErrorKind::Unavailable, "cannot be reached"),
            (&[], ErrorKind::Unavailable, "cannot be reached"),
        ] {
            let error = against("amqp10://anna:s3cret@h", said).await.0.unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.message().contains(why), "{error}: {why}");
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
        }
    }
}
