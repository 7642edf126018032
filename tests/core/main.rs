//! Tests of the union core through its public interface, against one plain directory.
//!
//! A random stack of layers is written to disk, merged by rules written anew here ([`merge`]), and
//! the result written out as one plain directory, the oracle. Every operation is done to both, and
//! after each one both trees must be the same. The same operations drive a real mount and, to check
//! the rules themselves, the kernel's overlayfs.

mod concurrent;
mod harness;
mod invariants;
mod merge;
mod model;
mod mounted;
mod ops;
mod overlay;
mod plain;
mod regressions;
mod tree;
mod union_side;
