//! What a mount is to be.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::options::{self, DataPath, Options, quote_path};
use crate::sys::cred;

use super::fault::Fault;
use super::{Error, Union};

/// Threads where requests may be held up: none of those that are shall keep others from being served.
const THREADS_FOR_DELAYS: usize = 32;

/// A union that is to be mounted; see [`Union::builder`].
#[derive(Clone, Debug, Default)]
#[must_use = "nothing is mounted before `mount`"]
pub struct Builder {
    lowers: Vec<PathBuf>,
    upper: Option<PathBuf>,
    work: Option<PathBuf>,
    options: Vec<OsString>,
    faults: Vec<Fault>,
    program: Option<PathBuf>,
}

impl Builder {
    /// A directory that is shown and never changed. The first one is on top: where two have the same
    /// name, it is shown. A [`Snapshot`](super::Snapshot) can be one too.
    pub fn lower(mut self, path: impl AsRef<Path>) -> Self {
        self.lowers.push(path.as_ref().to_owned());
        self
    }

    /// The directory that takes all changes. Without one the union is read-only. No two unions may
    /// have the same at a time.
    pub fn upper(mut self, path: impl AsRef<Path>) -> Self {
        self.upper = Some(path.as_ref().to_owned());
        self
    }

    /// Where objects are prepared before they appear in the upper, on its filesystem. Without it that
    /// is in the upper, under a reserved name.
    pub fn workdir(mut self, path: impl AsRef<Path>) -> Self {
        self.work = Some(path.as_ref().to_owned());
        self
    }

    /// Any mount option as one writes it after `-o`, such as `whiteout=overlay` or
    /// `threads=2,noatime`. One that is not known is an error at [`mount`](Self::mount).
    ///
    /// Unlike the program, a user other than root of the machine gets `open=cached` where nothing else is
    /// asked for: with `open=none` the kernel keeps for a while what is written, and an upper that is
    /// looked at from outside, or by [`Union::upper_changes`] where the kernel does not tell what is on its
    /// way (fusectl), may not have it yet.
    pub fn option(mut self, text: impl Into<OsString>) -> Self {
        self.options.push(text.into());
        self
    }

    /// Has requests fail or take longer. Faults count from the mount on, and begin anew with
    /// [`Union::reset`] and [`Union::restore`]; several may be given, each counts for itself.
    ///
    /// What the kernel does by itself cannot be met by them, so with the default `open=auto` reads
    /// and writes then come through this process (`open=cached`). A union without faults is served as
    /// if there were none such.
    ///
    /// # Example
    ///
    /// ```
    /// # let temp = tempfile::tempdir()?;
    /// # let dir = |name: &str| {
    /// #     let path = temp.path().join(name);
    /// #     std::fs::create_dir(&path).map(|()| path)
    /// # };
    /// # let (lower, upper, mnt) = (dir("lower")?, dir("upper")?, dir("mnt")?);
    /// use unionfs::{Fault, Operation, Union};
    ///
    /// let union = Union::builder()
    ///     .lower(&lower)
    ///     .upper(&upper)
    ///     .fault(Fault::fail(Operation::Write, libc::ENOSPC).nth(2))
    ///     .mount(&mnt)?;
    /// std::fs::write(union.join("first"), "fits")?;
    /// let full = std::fs::write(union.join("second"), "does not").unwrap_err();
    /// assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    /// std::fs::write(union.join("third"), "fits again")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn fault(mut self, fault: Fault) -> Self {
        self.faults.push(fault);
        self
    }

    /// Has the program `unionfs` at this path serve the mount as a process of its own, instead of threads
    /// of this one: for tests that are to survive what they do to their server, or that run the program
    /// as it is shipped. A name without a slash is looked for in `PATH`. It takes no
    /// [faults](Self::fault).
    ///
    /// # Example
    ///
    /// It needs the program, so it is not run with the documentation; the tests of this crate do.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), unionfs::Error> {
    /// let union = unionfs::Union::builder()
    ///     .lower("/usr/share/fixture")
    ///     .upper("/tmp/changes")
    ///     .spawned("unionfs")
    ///     .mount("/tmp/view")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn spawned(mut self, program: impl AsRef<Path>) -> Self {
        self.program = Some(program.as_ref().to_owned());
        self
    }

    /// Mounts over the directory `mountpoint`, which has to be there. The union answers when this
    /// returns.
    ///
    /// # Errors
    /// The first thing that is wrong, with nothing mounted.
    pub fn mount(self, mountpoint: impl AsRef<Path>) -> Result<Union, Error> {
        let mountpoint = mountpoint.as_ref();
        let real = std::fs::canonicalize(mountpoint).map_err(|e| {
            let reason = format_args!("mountpoint {}: {e}", mountpoint.display());
            Error::with(reason, "make the directory first")
        })?;
        Union::start(self.plan()?, real)
    }

    /// All of it, checked as far as words can be.
    fn plan(self) -> Result<Plan, Error> {
        let mut text = OsString::from("lowerdir=");
        for (n, lower) in self.lowers.iter().enumerate() {
            text.push(if n == 0 { "" } else { ":" });
            text.push(quote_path(lower));
        }
        let mut words = Vec::new();
        if !self.lowers.is_empty() {
            words.push(text);
        }
        for (name, path) in [("upperdir=", &self.upper), ("workdir=", &self.work)] {
            if let Some(path) = path {
                let mut word = OsString::from(name);
                word.push(quote_path(path));
                words.push(word);
            }
        }
        words.extend(self.options.iter().cloned());
        let mut options = options::parse(&words).map_err(Error::new)?;
        if let Some(word) = options.ignored.first() {
            let reason = format_args!("option {}: not known", word.display());
            return Err(Error::with(reason, "docs/OPTIONS.md has all of them"));
        }
        if options.has_relative_paths() {
            let base = std::env::current_dir()
                .map_err(|e| Error::new(format_args!("the current directory: {e}")))?;
            options.make_absolute(&base);
        }
        self.check(&mut options)?;
        if options.open == DataPath::Cached {
            words.push("open=cached".into());
        }
        Ok(Plan {
            options,
            words,
            faults: self.faults,
            program: self.program,
        })
    }

    /// What cannot be had together.
    fn check(&self, options: &mut Options) -> Result<(), Error> {
        if options.open == DataPath::Auto && !cred::is_real_root() {
            // What is written is to be in the upper at once, for who looks there.
            options.open = DataPath::Cached;
        }
        if options.remount {
            return Err(Error::with(
                "option remount: nothing is mounted yet",
                "leave it out",
            ));
        }
        if self.program.is_some() {
            if options.supervise {
                let next = "leave it out, or mount with the program and keep only its path";
                return Err(Error::with(
                    "option supervise: its processes outlive the test",
                    next,
                ));
            }
            if !self.faults.is_empty() {
                let next = "leave out `spawned` or the faults";
                return Err(Error::with("faults are met in this process only", next));
            }
            return Ok(());
        }
        for (is_set, name) in [
            (options.supervise, "supervise"),
            (options.auto_unmount, "auto_unmount"),
            (options.log.is_some(), "log"),
            (options.log_file.is_some(), "log_file"),
        ] {
            if is_set {
                let reason = format_args!("option {name}: only a daemon has it");
                return Err(Error::with(
                    reason,
                    "add `.spawned(\"unionfs\")` or leave it out",
                ));
            }
        }
        if self.faults.is_empty() {
            return Ok(());
        }
        match options.open {
            DataPath::Auto => options.open = DataPath::Cached,
            DataPath::Passthrough => {
                let reason =
                    "option open=passthrough: no fault is met where the kernel does the work";
                return Err(Error::with(
                    reason,
                    "leave the option out, or write open=cached",
                ));
            }
            DataPath::NoOpen | DataPath::Cached => {}
        }
        if options.threads.is_none() && self.faults.iter().any(Fault::is_delay) {
            options.threads = Some(THREADS_FOR_DELAYS);
        }
        Ok(())
    }
}

/// What a builder has come to.
#[derive(Debug)]
pub(super) struct Plan {
    pub options: Options,
    /// The same as texts of `-o`.
    pub words: Vec<OsString>,
    pub faults: Vec<Fault>,
    /// Who serves it, if not this process.
    pub program: Option<PathBuf>,
}
