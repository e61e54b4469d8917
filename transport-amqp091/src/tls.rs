//! Certificates of encrypted connections.

use std::fmt;

/// Which certificates an `amqps` connection trusts, and which it shows. It needs the crate feature
/// `tls`. What is wrong with them is an error of connecting.
///
/// # Example: an authority of one's own, and a client certificate instead of a password
///
/// ```no_run
/// use postrider_transport_amqp091::{Amqp091, Options, Tls};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let tls = Tls::default()
///     .with_authorities(std::fs::read_to_string("ca.pem")?)
///     .with_identity(std::fs::read("client.pem")?, std::fs::read("client.key")?);
/// let url = "amqps://broker.example.com/shop?auth_mechanism=external";
/// let broker = Amqp091::connect_with(url, Options::default().with_tls(tls)).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct Tls {
    pub(crate) authorities: Option<String>,
    /// The certificate with its chain, and the key.
    pub(crate) identity: Option<(Vec<u8>, Vec<u8>)>,
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

impl fmt::Debug for Tls {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("authorities", &self.authorities.is_some())
            .field("identity", &self.identity.is_some())
            .finish()
    }
}
