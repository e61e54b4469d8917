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
    /// What the method answers.
    type Reply: Serialize + DeserializeOwned + Send + 'static;
}
