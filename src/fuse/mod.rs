//! The FUSE side: requests in, replies out. The only module that names fuser.

mod again;
mod attributes;
mod control;
mod convert;
mod data;
mod dropping;
mod filesystem;
mod flags;
mod handover;
mod init;
mod injected;
mod io;
mod linger;
mod listing;
mod opening;
mod passthrough;
mod policy;
mod pool;
mod probe;
mod readers;
mod reply;
mod run;
mod spare;
mod turns;

pub(crate) use flags::kernel_flags;
pub(crate) use injected::{Effect, Injected, Rule};
pub(crate) use run::{FuseError, Session, Unmounter};
