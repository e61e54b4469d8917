//! How connections are encrypted: rustls, on ring where the process has chosen nothing else.

use std::{error, io, sync::Arc};

use postrider_core::{Error, ErrorKind, Result};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};

use crate::Tls;

/// Reads and checks the certificates of a connection.
///
/// # Errors
///
/// [`ErrorKind::Invalid`], with what is wrong with them; keys are never told.
pub fn client_config(tls: &Tls) -> Result<Arc<ClientConfig>> {
    let provider = CryptoProvider::get_default().cloned();
    let provider = provider.unwrap_or_else(|| Arc::new(ring::default_provider()));
    let unusable = |error: rustls::Error| invalid(format!("TLS cannot be used: {error}"));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_root_certificates(trusted(tls.authorities())?);
    let config = match tls.identity() {
        Some((chain, key)) => {
            let chain = certificates("client certificate", chain)?;
            config.with_client_auth_cert(chain, private_key(key)?).map_err(|error| {
                invalid(format!("the client certificate and its key cannot be used: {error}"))
            })?
        }
        None => config.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// The name that the certificate of a host must have.
///
/// # Errors
///
/// [`ErrorKind::Invalid`] for what no certificate can name.
pub fn server_name(host: &str) -> Result<ServerName<'static>> {
    ServerName::try_from(host.to_owned())
        .map_err(|_| invalid("a certificate cannot be for this host name"))
}

fn invalid(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, "connect", why.into())
}

fn trusted(authorities: Option<&str>) -> Result<RootCertStore> {
    let mut trusted = RootCertStore::empty();
    let given = authorities.map(|pem| certificates("authorities", pem.as_bytes())).transpose()?;
    for authority in given.into_iter().flatten() {
        trusted.add(authority).map_err(|error| {
            invalid(format!("a certificate of the authorities cannot be read: {error}"))
        })?;
    }
    // A container may have no certificates of the platform, and need none.
    let platform = rustls_native_certs::load_native_certs();
    trusted.add_parsable_certificates(platform.certs);
    if !trusted.is_empty() {
        return Ok(trusted);
    }
    let why = platform.errors.first().map_or_else(String::new, |error| format!(": {error}"));
    Err(invalid(format!(
        "the platform has no certificates that can be trusted; name authorities{why}"
    )))
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
#[must_use]
pub fn explain(error: &io::Error) -> Option<(ErrorKind, String)> {
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
            "the server does not speak TLS on this port; use its port for TLS".to_owned(),
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
    fn refused(tls: &Tls, why: &str) {
        let error = client_config(tls).expect_err(why);
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
            refused(&Tls::default().with_authorities(pem), why);
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
            refused(&Tls::default().with_identity(chain, key), why);
        }
    }

    #[test]
    fn a_host_that_no_certificate_names_is_refused() {
        let error = server_name("-").unwrap_err();
        assert!(error.message().contains("for this host name"), "{error}");
    }
}
