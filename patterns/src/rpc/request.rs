use serde::{Serialize, de::DeserializeOwned};

/// A typed request: its value is the parameters of the method that it names.
///
/// # Example: a request and its reply
///
/// ```
/// use postrider_patterns::Request;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct GetUserInfo { user_id: u64 }
///
/// #[derive(Serialize, Deserialize)]
/// struct UserInfo { name: String }
///
/// impl Request for GetUserInfo {
///     const METHOD: &'static str = "get_user_info";
///     type Reply = UserInfo;
/// }
/// ```
pub trait Request: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The name of the method on the wire.
    const METHOD: &'static str;
    /// Whether handling it twice is as good as handling it once. Then a client sends it again when
    /// its outcome is unknown, and a server that has handled it gives the reply that it stored.
    /// Default: false.
    const IDEMPOTENT: bool = false;
    /// What the method answers; of a method that answers by a stream, one item.
    type Reply: Serialize + DeserializeOwned + Send + 'static;
}
