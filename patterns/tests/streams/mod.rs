//! What streams do over any broker, one function each; the targets say which broker it is.
#![allow(dead_code)] // Each target runs a part of it.

pub(crate) mod files;
pub(crate) mod gigabyte;
pub(crate) mod hand;
pub(crate) mod hostile;
pub(crate) mod losses;
pub(crate) mod payloads;
pub(crate) mod world;
