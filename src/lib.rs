//! unionfs: a union filesystem for FUSE.

pub mod cli;
pub mod daemon;
pub mod demo;
pub mod mount;
pub mod options;

mod sys;
