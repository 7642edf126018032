//! The library for test authors, as its users have it. Needs root; `users.rs` runs what is in `anyone`
//! again as an ordinary user, through fusermount3 and in a user namespace.
#![allow(missing_docs, unreachable_pub, reason = "nothing outside uses this")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers too"
)]

mod anyone;
mod place;
mod process_state;
mod root;
mod users;
