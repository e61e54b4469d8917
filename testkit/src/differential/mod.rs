//! Differential tests: generated programs run on two brokers side by side, and what is seen on one
//! is compared with what is seen on the other.
//!
//! The *reference* is a broker in the process, which does everything at once; the *subject* is a
//! broker over a wire, which is waited for. A program is made from a seed and from what both sides
//! can do. After each step its outcome and the counts of all queues are compared. Where the two are
//! known to differ, [`DIFFERENCES`] says so, with the reason and with what is not compared.
//!
//! A program that fails is run again with more time between its steps: only a difference that
//! stays is one. It is then made as short as it fails with, and printed with its seed.

mod compare;
mod dice;
mod differences;
mod generate;
mod observe;
mod program;
mod run;
mod shrink;
mod side;
mod world;

pub use differences::{DIFFERENCES, KnownDifference};
pub use run::{Pair, Plan, Protocol, run};
