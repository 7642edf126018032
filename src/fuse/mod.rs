//! The FUSE side: requests in, replies out. The only module that names fuser.

mod again;
mod answers;
mod attributes;
mod clock;
mod closing;
mod control;
mod convert;
mod data;
mod desk;
mod dropping;
mod filesystem;
mod flags;
mod handover;
mod init;
mod injected;
mod io;
mod layers;
mod leftover;
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
mod status;
mod trace;
mod turns;
mod watching;

pub(crate) use flags::kernel_flags;
pub(crate) use injected::{Effect, Injected, Rule};
pub(crate) use run::{FuseError, Session, Unmounter};
