//! The tests of single middlewares, a file each kind.

pub(crate) mod breaking;
#[cfg(feature = "metrics")]
pub(crate) mod measuring;
pub(crate) mod spans;
pub(crate) mod waiting;
