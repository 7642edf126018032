//! The FUSE side: requests in, replies out. The only module that names fuser.

mod convert;
mod filesystem;
mod init;
mod reply;
mod run;

pub(crate) use run::{FuseError, MountFlags, Session, Unmounter};
