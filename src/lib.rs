//! unionfs: a union filesystem for FUSE.
//!
//! ```text
//! main -> cli -> options          options is plain data, usable anywhere
//!          |
//!       daemon                    fork, ready pipe, signals, limits, log
//!          |
//!        mount                    open layers, build the Union, run
//!        /   \
//!     fuse    |                   the only module that names fuser
//!        \    |
//!        union                    the file system: values in, values out
//!          |
//!        layer                    what is on disk: names, xattrs, whiteouts, temporaries
//!          |
//!         sys                     one function per system call; all unsafe
//! ```
//!
//! Arrows point downward only.

// The documentation is built with private items.
#![allow(rustdoc::private_intra_doc_links)]

pub mod cli;
pub mod daemon;
pub mod demo;
mod fuse;
mod layer;
pub mod mount;
pub mod options;
pub mod plink;
pub mod stats;
mod sys;
pub mod tools;
pub mod union;

/// Faults in system calls, for tests.
#[cfg(feature = "faults")]
pub use sys::fault::points as faults;
