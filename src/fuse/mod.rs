//! The FUSE side: requests in, replies out. The only module that names fuser.

mod convert;
mod filesystem;
mod flags;
mod init;
mod listing;
mod policy;
mod reply;
mod run;
mod spare;

pub(crate) use flags::kernel_flags;
pub(crate) use run::{FuseError, Session, Unmounter};
