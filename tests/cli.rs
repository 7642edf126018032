//! The program as its callers see it: exit codes, stderr, mounts and processes that come and go.
//!
//! Needs what mounting needs (root, /dev/fuse); a test that cannot run here fails.

// In a test they are how a failure is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "cli/support.rs"]
mod support;

#[path = "cli/demo.rs"]
mod demo;
#[path = "cli/errors.rs"]
mod errors;
#[path = "cli/life.rs"]
mod life;
