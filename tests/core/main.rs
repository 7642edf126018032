//! Tests of the union core through its public interface, against one plain directory.
//!
//! A random stack of layers is written to disk, merged by rules written anew here ([`merge`]), and
//! the result written out as one plain directory, the oracle. Every operation is done to both, and
//! after each one both trees must be the same. The same operations drive a real mount and, to check
//! the rules themselves, the kernel's overlayfs. Needs root.
#![allow(missing_docs, unreachable_pub, reason = "nothing outside uses this")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking, in its helpers too"
)]

mod concurrent;
mod draw;
#[cfg(feature = "shuttle")]
mod explorer;
#[cfg(feature = "faults")]
mod faults;
mod few;
mod harness;
mod invariants;
mod linked_races;
mod links;
mod merge;
mod model;
mod mounted;
mod nodes;
mod ops;
mod overlay;
mod ownership;
mod plain;
mod regressions;
mod tree;
mod union_life;
mod union_side;
mod union_view;
