//! The side that the payload goes to.

mod file;
mod incoming;
mod offers;
mod orphans;
mod server;
mod session;

pub use file::Saved;
pub use incoming::Incoming;
pub use server::StreamReceiver;
