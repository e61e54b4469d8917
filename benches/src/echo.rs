//! The call that is measured, and its bodies on the wire for twins that write them by hand.

use bytes::Bytes;
use postrider_patterns::Request;
use serde::{Deserialize, Serialize};

/// A request of 256 bytes.
#[derive(Debug, Serialize, Deserialize)]
pub struct Echo {
    /// What comes back.
    pub body: Bytes,
}

impl Request for Echo {
    const METHOD: &'static str = "echo";
    type Reply = Bytes;
}

/// The request on the wire: what Postrider sends too.
#[derive(Serialize, Deserialize)]
pub(crate) struct EchoBody {
    pub(crate) method: String,
    pub(crate) params: Echo,
    pub(crate) timestamp: String,
}

/// The reply on the wire.
#[derive(Serialize, Deserialize)]
pub(crate) struct EchoReply {
    pub(crate) status: String,
    pub(crate) data: Bytes,
}
