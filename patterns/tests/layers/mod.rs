//! The tests of single middlewares, a file each kind.

pub(crate) mod breaking;
pub(crate) mod waiting;
