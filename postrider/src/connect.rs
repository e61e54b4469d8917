//! The transport by its URL.

use std::sync::Arc;

use postrider_core::{Error, ErrorKind, Result, Transport};

/// The URL schemes that [`connect`] takes, by the features of this build.
#[must_use]
pub fn schemes() -> &'static [&'static str] {
    &[
        #[cfg(feature = "inmemory")]
        "memory",
        #[cfg(feature = "amqp091")]
        "amqp",
        #[cfg(all(feature = "amqp091", feature = "tls"))]
        "amqps",
        #[cfg(feature = "amqp10")]
        "amqp10",
        #[cfg(all(feature = "amqp10", feature = "tls"))]
        "amqp10s",
    ]
}

/// Connects to the broker that `url` names.
///
/// `memory://name` is a broker inside this process, the same for all who use that name;
/// `memory://` is a new one for each call.
///
/// Cancellation safe.
///
/// # Errors
///
/// [`ErrorKind::Invalid`] for what is no URL of a broker, [`ErrorKind::Unsupported`] for a scheme
/// that is not among the features of this build, and what the transport says.
///
/// # Example: an unknown scheme says what there is
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let _transport = postrider::connect("MEMORY://loft").await.unwrap();
/// let error = postrider::connect("carrier-pigeon://loft").await.unwrap_err();
/// assert!(error.to_string().contains("memory://"));
/// # }
/// ```
#[allow(clippy::unused_async)] // Connecting over a network waits.
pub async fn connect(url: &str) -> Result<Arc<dyn Transport>> {
    // What is no scheme may be a password.
    let is_scheme = |text: &str| {
        text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    };
    let Some((scheme, rest)) = url.split_once("://").filter(|(scheme, _)| is_scheme(scheme)) else {
        return Err(Error::new(
            ErrorKind::Invalid,
            "connect",
            format!("this is no broker URL; it begins with {}", known()),
        ));
    };
    // RFC 3986, section 3.1: its case says nothing.
    let scheme = &*scheme.to_ascii_lowercase();
    let url = &*format!("{scheme}://{rest}");
    match scheme {
        #[cfg(feature = "inmemory")]
        "memory" => Ok(Arc::new(postrider_transport_inmemory::InMemory::connect(url)?)),
        #[cfg(feature = "amqp091")]
        "amqp" => Ok(Arc::new(postrider_transport_amqp091::Amqp091::connect(url).await?)),
        #[cfg(all(feature = "amqp091", feature = "tls"))]
        "amqps" => Ok(Arc::new(postrider_transport_amqp091::Amqp091::connect(url).await?)),
        #[cfg(feature = "amqp10")]
        "amqp10" => Ok(Arc::new(postrider_transport_amqp10::Amqp10::connect(url).await?)),
        #[cfg(all(feature = "amqp10", feature = "tls"))]
        "amqp10s" => Ok(Arc::new(postrider_transport_amqp10::Amqp10::connect(url).await?)),
        _ => Err(Error::new(
            ErrorKind::Unsupported,
            "connect",
            format!("this build has no transport for '{scheme}://'; it has {}", known()),
        )),
    }
}

fn known() -> String {
    match schemes() {
        [] => "none: switch on the feature of a transport".to_owned(),
        schemes => {
            let urls: Vec<_> = schemes.iter().map(|scheme| format!("{scheme}://")).collect();
            urls.join(", ")
        }
    }
}
