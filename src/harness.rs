//! Unions for tests: mounted for as long as a value lives.
//!
//! It stands above `mount` beside the command line and the daemon, and is what the crate offers to
//! others; see `docs/DESIGN.md`.

mod builder;
mod change;
mod ending;
mod error;
mod fault;
mod heir;
mod served;
mod snapshot;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread;

use crate::sys::ioctl;
use crate::tools::{self, Difference};

use builder::Plan;
use ending::Seat;
use served::Served;
use snapshot::Pristine;

pub use builder::Builder;
pub use change::{Change, ChangeKind, Changes};
pub use error::Error;
pub use fault::{Fault, Operation};
pub use snapshot::Snapshot;

/// A mounted union, which is unmounted when this is dropped.
///
/// Any number of them may be mounted by one process at a time, from any thread; each has
/// threads of its own. Dropping one, in a panic too, takes the mount away whoever uses it, and waits until
/// its layers are left alone: when something is still open in it, for two seconds, after which its
/// users get errors. It does not panic; what could not be done is told on stderr.
///
/// A process that takes away a shared mapping of a file of the union that it has written to (munmap(2)) has what was
/// written stored while it holds the lock of its memory, and the threads that store it are its own: call msync(2) before, or have a
/// process of its own serve the union ([`Builder::spawned`]).
///
/// When the process is killed, or aborts, a shell that waits for that ends the connection and takes the mount
/// away.
///
/// # Example
///
/// ```
/// use std::fs;
/// use unionfs::{ChangeKind, Union};
///
/// # let temp = tempfile::tempdir()?;
/// # let dir = |name: &str| {
/// #     let path = temp.path().join(name);
/// #     fs::create_dir(&path).map(|()| path)
/// # };
/// let (fixture, upper, mnt) = (dir("fixture")?, dir("upper")?, dir("mnt")?);
/// fs::write(fixture.join("settings"), "color=red\n")?;
///
/// let mut union = Union::builder().lower(&fixture).upper(&upper).mount(&mnt)?;
/// // The program under test sees a directory that it may change.
/// fs::write(union.join("settings"), "color=blue\n")?;
/// fs::write(union.join("log"), "changed\n")?;
///
/// let changes: Vec<_> = union.upper_changes()?.map(|c| c.to_string()).collect();
/// assert_eq!(changes, ["A log", "M settings"]);
/// // The fixture is as it was, and so is the union when that is wanted.
/// assert_eq!(fs::read_to_string(fixture.join("settings"))?, "color=red\n");
/// union.reset()?;
/// assert_eq!(fs::read_to_string(union.join("settings"))?, "color=red\n");
/// assert_eq!(union.upper_changes()?.count(), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Union {
    plan: Plan,
    path: PathBuf,
    /// The upper as it was; `None` without one.
    pristine: Option<Pristine>,
    /// `None` after a failure to mount again.
    served: Option<Served>,
}

impl AsRef<Path> for Union {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

impl Union {
    /// Begins a union: name its layers, then [`mount`](Builder::mount) it.
    pub fn builder() -> Builder {
        Builder::default()
    }

    fn start(plan: Plan, path: PathBuf) -> Result<Self, Error> {
        let pristine = match &plan.options.upper {
            Some(upper) => Some(Pristine::of(upper)?),
            None => None,
        };
        let served = Served::start(&plan, &path)?;
        Ok(Self {
            plan,
            path,
            pristine,
            served: Some(served),
        })
    }

    /// Where it is mounted, without symbolic links.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path in it.
    #[must_use]
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.path.join(path)
    }

    /// What differs from the lowers, ordered by path. It takes time in proportion to what was changed,
    /// whatever the size of the lowers. Files that were opened for writing, but not changed, are not
    /// among it, nor are directories for what is in them.
    ///
    /// # Errors
    /// What reading the layers gives.
    pub fn upper_changes(&self) -> Result<Changes, Error> {
        self.settle()?;
        let options = &self.plan.options;
        // In a thread of its own, as opening layers may change what belongs to a thread.
        let read = || {
            let found = tools::differences(options, served::descriptors());
            found.map_err(Error::new)
        };
        let found = thread::scope(|scope| scope.spawn(read).join());
        let found = found.unwrap_or_else(|_| Err(Error::new("reading the changes panicked")))?;
        let mut found = found;
        if let (Some(upper), Some(pristine)) = (&options.upper, &self.pristine)
            && found.first().is_some_and(|(path, difference)| {
                path.as_os_str().is_empty() && *difference == Difference::Metadata
            })
            && pristine.has_root_of(upper)?
        {
            // It differs from the lower's, and did so from the beginning.
            found.remove(0);
        }
        let changes = found.into_iter().map(|(path, difference)| {
            let kind = match difference {
                Difference::Added => ChangeKind::Added,
                Difference::Modified => ChangeKind::Modified,
                Difference::Metadata => ChangeKind::Metadata,
                Difference::Deleted => ChangeKind::Deleted,
                Difference::Opaque => ChangeKind::Opaque,
            };
            Change::new(path, kind)
        });
        Ok(Changes::new(changes.collect()))
    }

    /// Undoes all changes: the upper becomes empty, and the union is mounted anew at its place. For the
    /// upper of one test that serves the next one too.
    ///
    /// # Errors
    /// [Busy](Error::is_busy), and nothing is undone, when something is still open in it. An error when
    /// the upper held changes before it was mounted: those are nothing to be thrown away;
    /// [`restore`](Self::restore) a snapshot.
    pub fn reset(&mut self) -> Result<(), Error> {
        let upper = self.upper()?.to_owned();
        if !self.pristine.as_ref().is_some_and(|upper| upper.empty) {
            return Err(Error::with(
                format_args!("{}: it held changes before the mount", upper.display()),
                "take a snapshot then, and restore that",
            ));
        }
        self.unmounted(|this| match &this.pristine {
            Some(pristine) => pristine.restore(&upper),
            None => Ok(()),
        })
    }

    /// Copies what was changed until now to a directory beside the upper, sharing data where the
    /// filesystem can. What others write meanwhile may or may not be in it.
    ///
    /// # Errors
    /// What making the copy gives; a read-only union has nothing to copy.
    ///
    /// # Example
    ///
    /// ```
    /// # use std::fs;
    /// # use unionfs::Union;
    /// # let temp = tempfile::tempdir()?;
    /// # let dir = |name: &str| {
    /// #     let path = temp.path().join(name);
    /// #     fs::create_dir(&path).map(|()| path)
    /// # };
    /// # let (fixture, upper, mnt) = (dir("fixture")?, dir("upper")?, dir("mnt")?);
    /// # let (upper2, mnt2) = (dir("upper2")?, dir("mnt2")?);
    /// let mut union = Union::builder().lower(&fixture).upper(&upper).mount(&mnt)?;
    /// fs::write(union.join("state"), "prepared")?;
    /// let prepared = union.snapshot()?;
    ///
    /// fs::remove_file(union.join("state"))?;
    /// union.restore(&prepared)?;
    /// assert_eq!(fs::read_to_string(union.join("state"))?, "prepared");
    ///
    /// // Or as the beginning of another union.
    /// let other = Union::builder().lower(&prepared).lower(&fixture).upper(&upper2).mount(&mnt2)?;
    /// assert_eq!(fs::read_to_string(other.join("state"))?, "prepared");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        let upper = self.upper()?;
        self.snapshot_in(upper.parent().unwrap_or(upper))
    }

    /// The same, with the copy in the directory `parent`.
    ///
    /// # Errors
    /// As [`snapshot`](Self::snapshot).
    pub fn snapshot_in(&self, parent: impl AsRef<Path>) -> Result<Snapshot, Error> {
        let upper = self.upper()?;
        // Names of linked files that are in a table only would point to the files of this upper.
        if self.served.is_some() && !self.plan.options.identity.noplink {
            let flushed = File::open(&self.path)
                .and_then(|dir| Ok(ioctl::control(&dir, ioctl::PLINK_FLUSH, 0)?));
            let answer = flushed.map_err(|e| {
                Error::new(format_args!("{}: pseudo-links: {e}", self.path.display()))
            })?;
            if answer[1] > 0 {
                let reason = format_args!("{} pseudo-links had to stay", answer[1]);
                return Err(Error::with(reason, "close the files of several names"));
            }
        }
        self.settle()?;
        Snapshot::take(upper, parent.as_ref())
    }

    /// Makes the changes those of a snapshot, of this union or of another one with the same lowers, and mounts
    /// the union anew at its place.
    ///
    /// # Errors
    /// [Busy](Error::is_busy), and nothing is changed, when something is still open in it. When the copy
    /// fails, the upper has a part of it, and the snapshot is as it was.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        let upper = self.upper()?.to_owned();
        self.unmounted(|_| snapshot::restore(&upper, snapshot))
    }

    /// Unmounts, and says what dropping would not: that something is still open in it.
    ///
    /// # Errors
    /// [Busy](Error::is_busy): the mount was taken away nevertheless, as by dropping. Data that could
    /// not be written.
    pub fn unmount(mut self) -> Result<(), Error> {
        match &mut self.served {
            Some(served) => {
                served.end(&self.path)?;
                self.served = None;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn upper(&self) -> Result<&Path, Error> {
        let upper = self.plan.options.upper.as_deref();
        upper
            .filter(|_| !self.plan.options.read_only)
            .ok_or_else(|| {
                let next = "give it an `upper` that takes changes";
                Error::with("the union is read-only", next)
            })
    }

    /// Has all that was written be in the upper.
    fn settle(&self) -> Result<(), Error> {
        let Some(served) = &self.served else {
            return Ok(());
        };
        let seat = Seat {
            path: &self.path,
            identity: served.identity,
        };
        if !seat.is_mounted() {
            return Err(Error::with(
                format_args!("{}: the union is not there any more", self.path.display()),
                "leave unmounting to this library",
            ));
        }
        seat.sync()
    }

    /// Does something while nothing is mounted.
    fn unmounted(&mut self, work: impl FnOnce(&Self) -> Result<(), Error>) -> Result<(), Error> {
        if let Some(served) = &mut self.served {
            served.end(&self.path)?;
            self.served = None;
        }
        let done = work(self);
        self.served = Some(Served::start(&self.plan, &self.path)?);
        done
    }
}

impl Drop for Union {
    fn drop(&mut self) {
        if let Some(served) = &mut self.served {
            served.end_anyhow(&self.path);
        }
    }
}
