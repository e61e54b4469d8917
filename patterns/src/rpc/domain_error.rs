//! Errors of a service's domain, which come back to the caller as what they are.

use std::{borrow::Cow, fmt, sync::Arc};

use bytes::Bytes;
use postrider_core::HeaderValue;
use serde::{Serialize, de::DeserializeOwned};

use crate::codec::{Codec, CodecError, Limits};

/// What a domain error may hold: it travels in a header, and headers must fit into one frame.
const LIMITS: Limits = Limits { max_body_bytes: 16 * 1024 };

/// An error of a service's domain that callers get as a value of its own type.
///
/// # Example: an error and its way back
///
/// ```
/// use std::{borrow::Cow, sync::Arc};
/// use postrider_core::Transport;
/// use postrider_patterns::{CallOptions, DomainError, HandlerError, RpcClient, RpcServer};
/// use postrider_transport_inmemory::InMemory;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
/// #[error("only {left} are left")]
/// struct OutOfStock { left: u32 }
///
/// impl DomainError for OutOfStock {
///     fn code(&self) -> Cow<'static, str> { "OUT_OF_STOCK".into() }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let transport: Arc<dyn Transport> = Arc::new(InMemory::connect("memory://")?);
/// let _server = RpcServer::new("inventory")
///     .method_named("reserve", |wanted: u32, _context| async move {
///         if wanted > 20 {
///             return Err(HandlerError::domain(OutOfStock { left: 20 }));
///         }
///         Ok(20 - wanted)
///     })
///     .start(&transport)
///     .await?;
/// let client = RpcClient::new(&transport).await?;
/// let options = CallOptions::default();
/// let error = client.call_named::<_, u32>("inventory", "reserve", &21, options).await.unwrap_err();
/// assert_eq!(error.domain(), Some(OutOfStock { left: 20 }));
/// assert_eq!(error.to_string(), "rejected, OUT_OF_STOCK: only 20 are left");
/// # Ok(())
/// # }
/// ```
pub trait DomainError:
    std::error::Error + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// The code on the wire, for clients that know no types. Each error has one of its own.
    fn code(&self) -> Cow<'static, str>;
}

/// A domain error to be written in whatever codec the reply has.
#[derive(Clone)]
pub(crate) struct Detail(Arc<dyn Fn(Codec) -> Result<Bytes, CodecError> + Send + Sync>);

impl Detail {
    pub(crate) fn new<E: DomainError>(error: E) -> Self {
        Self(Arc::new(move |codec| codec.encode_within(&error, LIMITS)))
    }

    /// As it stands in a header.
    ///
    /// # Errors
    ///
    /// When it cannot be written in this codec, or is too large for a header.
    pub(super) fn header(&self, codec: Codec) -> Result<HeaderValue, CodecError> {
        let written = (self.0)(codec)?;
        Ok(match codec {
            Codec::Json => HeaderValue::Text(String::from_utf8_lossy(&written).into_owned().into()),
            Codec::MessagePack => HeaderValue::Bytes(written),
        })
    }
}

/// Two are the same when they are of one error: an error's value cannot be compared here.
impl PartialEq for Detail {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Detail {}

impl fmt::Debug for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Detail").finish_non_exhaustive()
    }
}

/// What a rejection brought with it, not read yet; see [`RpcError::domain`](super::RpcError::domain).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectionDetail {
    codec: Codec,
    bytes: Bytes,
}

impl RejectionDetail {
    pub(super) fn of(codec: Codec, header: &HeaderValue) -> Option<Self> {
        let bytes = match header {
            HeaderValue::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            HeaderValue::Bytes(bytes) => bytes.clone(),
            _ => return None,
        };
        Some(Self { codec, bytes })
    }

    pub(super) fn read<E: DomainError>(&self) -> Result<E, CodecError> {
        self.codec.read(&self.bytes, LIMITS)
    }
}
