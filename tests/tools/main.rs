//! Commands on layers, with the built program and real mounts. Needs root.
#![allow(missing_docs, unreachable_pub, reason = "nothing outside uses this")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers too"
)]

mod apply;
mod apply_more;
mod check;
mod commit;
mod convert;
mod convert_forms;
mod diff;
mod diff_more;
mod engines;
mod in_use;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../mounted/process.rs"]
mod process;
mod progress;
mod run;
mod support;
mod user;
