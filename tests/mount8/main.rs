//! Mounting as people and programs do it: real mount(8), umount, findmnt, df, and a real fstab.
//!
//! Each test has a mount namespace of its own, where `make install` has been: the helpers are in
//! /sbin, the daemon in /usr/bin, /etc/fstab and /etc/fuse.conf are the test's. The machine itself is
//! not changed. Needs root, /dev/fuse and what tests/setup.sh installs.

// In a test they are how a failure is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../cli/support.rs"]
#[allow(dead_code)] // The other user needs more of it.
mod command;
mod machine;

mod again;
mod bad;
mod documents;
mod forms;
mod generic;
mod helper;
mod life;
mod namespace;
mod package;
mod remount;
mod seen;
mod users;
