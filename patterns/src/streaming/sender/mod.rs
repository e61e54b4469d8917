//! The side of the source.

mod client;
mod outgoing;
mod sending;
mod source;
mod transfer;
mod window;

pub use client::{StreamSender, StreamSenderBuilder};
pub use outgoing::Outgoing;
pub use source::Receipt;
pub use transfer::Transfer;
