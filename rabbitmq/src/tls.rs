//! Certificates of encrypted connections.

use std::fmt;

/// Which certificates an encrypted connection trusts, and which it shows. It needs the transport's
/// crate feature `tls`. What is wrong with them is an error of connecting.
///
/// # Example: an authority of one's own, and a client certificate instead of a password
///
/// ```no_run
/// use postrider_rabbitmq::Tls;
///
/// # fn main() -> std::io::Result<()> {
/// let tls = Tls::default()
///     .with_authorities(std::fs::read_to_string("ca.pem")?)
///     .with_identity(std::fs::read("client.pem")?, std::fs::read("client.key")?);
/// # Ok(()) }
/// ```
///
/// It goes into the transport's options; RabbitMQ takes the certificate for the password when the
/// URL ends in `?auth_mechanism=external`.
#[derive(Clone, Default)]
pub struct Tls {
    authorities: Option<String>,
    /// The certificate with its chain, and the key.
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    /// Trusts these authorities, certificates in PEM, beside those of the platform.
    #[must_use]
    pub fn with_authorities(mut self, pem: impl Into<String>) -> Self {
        self.authorities = Some(pem.into());
        self
    }

    /// Shows a client certificate with its chain, the client's own first, and its key: PKCS #8,
    /// PKCS #1 or SEC 1, not encrypted. Both in PEM.
    #[must_use]
    pub fn with_identity(mut self, pem: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.identity = Some((pem.into(), key.into()));
        self
    }
}

impl Tls {
    /// The authorities that are trusted beside those of the platform, in PEM.
    #[must_use]
    pub fn authorities(&self) -> Option<&str> {
        self.authorities.as_deref()
    }

    /// The client certificate with its chain, and the key, both in PEM.
    #[must_use]
    pub fn identity(&self) -> Option<(&[u8], &[u8])> {
        self.identity.as_ref().map(|(chain, key)| (&**chain, &**key))
    }
}

impl fmt::Debug for Tls {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("authorities", &self.authorities.is_some())
            .field("identity", &self.identity.is_some())
            .finish()
    }
}
