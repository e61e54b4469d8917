//! Certificates of encrypted connections.

use std::fmt;

use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};

/// Which certificates an `amqps` connection trusts, and which it shows. It needs the crate feature
/// `tls`.
#[derive(Clone, Default)]
pub struct Tls {
    authorities: Option<String>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    /// Trusts these authorities, certificates in PEM, beside those of the platform.
    #[must_use]
    pub fn with_authorities(mut self, pem: impl Into<String>) -> Self {
        self.authorities = Some(pem.into());
        self
    }

    /// Shows a client certificate, with its chain and its PKCS #8 key, both in PEM.
    #[must_use]
    pub fn with_identity(mut self, pem: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.identity = Some((pem.into(), key.into()));
        self
    }

    pub(crate) fn config(&self) -> OwnedTLSConfig {
        OwnedTLSConfig {
            identity: self.identity.clone().map(|(pem, key)| OwnedIdentity::PKCS8 { pem, key }),
            cert_chain: self.authorities.clone(),
        }
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
