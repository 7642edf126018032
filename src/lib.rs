//! Union filesystems for tests: a program gets a tree that it may change, and the test sees what it changed.
//!
//! A union shows any number of read-only directories (lowers) and one writable directory (the upper) as
//! one tree. All changes go to the upper; the lowers stay as they are. So any number of tests can work on one
//! tree of fixtures at the same time, each with a view of its own, without copying it.
//!
//! ```
//! use std::fs;
//! use unionfs::Union;
//!
//! # let temp = tempfile::tempdir()?;
//! # let dir = |name: &str| {
//! #     let path = temp.path().join(name);
//! #     fs::create_dir(&path).map(|()| path)
//! # };
//! # let (fixture, upper, mnt) = (dir("fixture")?, dir("upper")?, dir("mnt")?);
//! # fs::write(fixture.join("a.log"), "")?;
//! # fs::write(fixture.join("a.txt"), "")?;
//! let union = Union::builder().lower(&fixture).upper(&upper).mount(&mnt)?;
//!
//! // Run the program under test here, in this process or another one.
//! fs::remove_file(union.join("a.log"))?;
//!
//! let changes: Vec<String> = union.upper_changes()?.map(|c| c.to_string()).collect();
//! assert_eq!(changes, ["D a.log"]);
//! assert!(fixture.join("a.log").exists());
//! // Dropped, also by a panic, it is unmounted.
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! - [`Union`] is the mount: [`reset`](Union::reset) brings the pristine tree back,
//!   [`snapshot`](Union::snapshot) and [`restore`](Union::restore) any other state.
//! - [`Builder`] says what it is made of, and takes every [mount option](Builder::option) of the program.
//! - [`Fault`] has operations fail or take long: a full disk, a slow one.
//! - [`Error`] says in one line what is wrong, and what to do next.
//!
//! `examples/tidy-up` in the repository is a small program that is tested so.
//!
//! # What it takes
//!
//! Linux with FUSE (`/dev/fuse`), and one of
//!
//! - root,
//! - an ordinary user with `fusermount3` (package `fuse3`) and a `/dev/fuse` that users may open, as most
//!   systems have it,
//! - a user namespace: `unshare -Urm cargo test`.
//!
//! A test that cannot mount fails with the reason. The examples of this documentation mount for real when
//! they are tested, but for the one of [`Builder::spawned`], which needs the program.
//!
//! # What it does to your process
//!
//! The union is served by threads of its own. Of what threads of a process share it changes nothing: not
//! the umask, the working directory, signal handlers, limits, nor the credentials of your threads. It starts
//! `fusermount3` where that is needed, and for each mount a shell that unmounts when the process is killed. A
//! test may use the mount from any thread, and from other programs.
//!
//! A process that is killed while one of its threads waits for an answer of its own mount ends only when the
//! connection does. The shell sees to that as root, and for others where `/sys/fs/fuse/connections` is
//! mounted, as it is on most systems; elsewhere prefer [`Builder::spawned`] for what may be killed.
//!
//! # What is stable
//!
//! Of this crate, what is documented here. The rest belongs to the program `unionfs`; it is reachable for the
//! project's own tests, is hidden from this documentation, and changes without notice.

// How the parts fit, and who may name whom: docs/DESIGN.md, tests/tidy.rs.
//
// main -> cli -> options          options is plain data, usable anywhere
//          |
//       daemon    harness         fork, ready pipe, signals, limits, log; guards for tests
//          |     /
//        mount                    open layers, build the Union, run
//        /   \
//     fuse    |                   the only module that names fuser
//        \    |
//        union                    the file system: values in, values out
//          |
//        layer                    what is on disk: names, xattrs, whiteouts, temporaries
//          |
//         sys                     one function per system call; all unsafe
//
// Arrows point downward only.

// The documentation for developers is built with private items, and `--cfg unionfs_internals`.
#![allow(rustdoc::private_intra_doc_links)]

#[cfg_attr(not(unionfs_internals), doc(hidden))]
pub mod cli;
#[cfg_attr(not(unionfs_internals), doc(hidden))]
pub mod ctl;
#[cfg_attr(not(unionfs_internals), doc(hidden))]
pub mod daemon;
#[cfg_attr(not(unionfs_internals), doc(hidden))]
pub mod demo;
mod fuse;
#[cfg(feature = "fuzzing")]
#[cfg_attr(not(unionfs_internals), doc(hidden))]
pub mod fuzzing;
mod harness;
mod layer;
#[cfg_attr(not(unionfs_internals), doc(hidden))]
pub mod mount;
#[cfg_attr(not(unionfs_internals), doc(hidden))]
pub mod options;
#[cfg_attr(not(unionfs_internals), doc(hidden))]
pub mod plink;
#[cfg_attr(not(unionfs_internals), doc(hidden))]
pub mod stats;
mod sys;
#[cfg_attr(not(unionfs_internals), doc(hidden))]
pub mod tools;
#[cfg_attr(not(unionfs_internals), doc(hidden))]
pub mod union;

pub use harness::{Builder, Change, ChangeKind, Changes, Error, Fault, Operation, Snapshot, Union};

/// Faults in system calls, for tests.
#[cfg(feature = "faults")]
#[cfg_attr(not(unionfs_internals), doc(hidden))]
pub use sys::fault::points as faults;
