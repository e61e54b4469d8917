//! Turns a plain connection into an encrypted one.
//!
//! lapin could do it by itself, but it reads the certificates anew for each connection, passes over
//! authorities that it cannot read, and needs some of the platform even where others are given.

use std::{error, io, sync::Arc};

use futures_util::io::{AsyncRead, AsyncWrite};
use lapin::tcp::{AsyncTcpStream, RustlsConnector, RustlsConnectorConfig};
use postrider_core::{Error, ErrorKind, Result};
use rustls::{
    AlertDescription, CertificateError, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};

use postrider_rabbitmq::Tls;

/// The certificates of a connection, read and checked, and the host that must show its own.
#[derive(Clone)]
pub(crate) struct Encryption {
    connector: RustlsConnector,
    host: Arc<str>,
}

impl Encryption {
    pub(crate) fn new(tls: &Tls, host: &str) -> Result<Self> {
        if ServerName::try_from(host).is_err() {
            return Err(invalid("a certificate cannot be for this host name"));
        }
        let config = trusted(tls.authorities())?;
        let connector = match tls.identity() {
            Some((chain, key)) => {
                let chain = certificates("client certificate", chain)?;
                config.connector_with_single_cert(chain, private_key(key)?).map_err(|error| {
                    invalid(format!("the client certificate and its key cannot be used: {error}"))
                })
            }
            None => config
                .connector_with_no_client_auth()
                .map_err(|error| invalid(format!("TLS cannot be used: {error}"))),
        };
        Ok(Self { connector: connector?, host: host.into() })
    }

    /// Encrypts a connection on which nothing was said yet.
    pub(crate) async fn wrap<S>(&self, stream: AsyncTcpStream<S>) -> io::Result<AsyncTcpStream<S>>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        stream.into_rustls(&self.connector, &self.host).await
    }
}

fn invalid(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, "connect", why.into())
}

fn trusted(authorities: Option<&str>) -> Result<RustlsConnectorConfig> {
    let given = match authorities {
        Some(pem) => certificates("authorities", pem.as_bytes())?,
        None => Vec::new(),
    };
    let mut readable = RootCertStore::empty();
    for authority in &given {
        readable.add(authority.clone()).map_err(|error| {
            invalid(format!("a certificate of the authorities cannot be read: {error}"))
        })?;
    }
    let own = RustlsConnectorConfig::default().with_parsable_certificates(given);
    match own.clone().with_native_certs() {
        Ok(with_platform) => Ok(with_platform),
        // A container may have no certificates, and need none.
        Err(_) if authorities.is_some() => Ok(own),
        Err(error) => Err(invalid(format!(
            "the platform has no certificates that can be trusted; name authorities: {error}"
        ))),
    }
}

fn certificates(whose: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    // What is wrong is not told in the parser's words: they repeat the line, and when arguments
    // are mixed up, it is the key's.
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(invalid(format!("the PEM of the {whose} holds no certificate"))),
        Err(_) => Err(invalid(format!("the PEM of the {whose} cannot be read"))),
    }
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| {
        invalid("the PEM of the client's key holds no private key, or only an encrypted one")
    })
}

/// What a failure of TLS is to the caller; nothing for other failures.
pub(crate) fn explain(error: &io::Error) -> Option<(ErrorKind, String)> {
    let tls = error.get_ref().and_then(|inner| {
        let inner: &(dyn error::Error + 'static) = inner;
        inner.downcast_ref::<rustls::Error>()
    })?;
    Some(match tls {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => (
            ErrorKind::Unauthorized,
            "the broker's certificate is from no authority that is trusted; \
             `Tls::with_authorities` adds one"
                .to_owned(),
        ),
        rustls::Error::InvalidCertificate(why) => (
            ErrorKind::Unauthorized,
            format!("the broker's certificate is not to be trusted: {why}"),
        ),
        rustls::Error::AlertReceived(
            alert @ (AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied),
        ) => (
            ErrorKind::Unauthorized,
            format!("the broker refuses the client certificate, or wants one: {alert:?}"),
        ),
        rustls::Error::InvalidMessage(_) => (
            ErrorKind::Unsupported,
            "the server does not speak TLS on this port; use its port for amqps".to_owned(),
        ),
        other => (ErrorKind::Unsupported, format!("TLS with the broker failed: {other}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Valid as PEM, no certificate and no key.
    const NONSENSE: &str = "-----BEGIN CERTIFICATE-----\nczNjcmV0\n-----END CERTIFICATE-----\n";

    #[track_caller]
    fn refused(tls: &Tls, host: &str, why: &str) {
        let Err(error) = Encryption::new(tls, host) else { panic!("{why}: it must be refused") };
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.message().contains(why), "{error}");
        let told = format!("{error} {error:?} {tls:?}");
        assert!(!told.contains("s3cret") && !told.contains("czNjcmV0"), "{told}");
    }

    #[test]
    fn bad_authorities_are_named() {
        for (pem, why) in [
            ("", "authorities holds no certificate"),
            ("s3cret", "authorities holds no certificate"),
            ("-----BEGIN CERTIFICATE-----\ns3cret", "authorities cannot be read"),
            ("-----BEGIN CERTIFICATE----- s3cret", "authorities cannot be read"),
            (NONSENSE, "a certificate of the authorities cannot be read"),
        ] {
            refused(&Tls::default().with_authorities(pem), "localhost", why);
        }
    }

    #[test]
    fn a_bad_identity_is_named_and_its_key_is_not_told() {
        for (chain, key, why) in [
            ("s3cret", "s3cret", "client certificate holds no certificate"),
            ("-----BEGIN CERTIFICATE----- s3cret", "s3cret", "client certificate cannot be read"),
            (NONSENSE, "s3cret", "client's key holds no private key"),
            (NONSENSE, "-----BEGIN PRIVATE KEY----- s3cret", "client's key holds no private key"),
            (NONSENSE, NONSENSE, "client's key holds no private key"),
            (
                NONSENSE,
                "-----BEGIN PRIVATE KEY-----\nczNjcmV0\n-----END PRIVATE KEY-----\n",
                "the client certificate and its key cannot be used",
            ),
        ] {
            refused(&Tls::default().with_identity(chain, key), "localhost", why);
        }
    }

    #[test]
    fn a_host_that_no_certificate_names_is_refused() {
        refused(&Tls::default(), "-", "for this host name");
    }
}
