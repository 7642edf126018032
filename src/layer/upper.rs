//! The writable layer: its whiteouts, opaque marks and temporaries.

use crate::sys::sync::atomic::{AtomicU64, Ordering};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use crate::sys::sync::Mutex;
use rustix::fs::{OFlags, RenameFlags};

use crate::options::WhiteoutForm;
use crate::sys::at::SetTime;
use crate::sys::copy::Refusals;
use crate::sys::{self, Errno, FileKind, Result, Stat};

use super::ability::Abilities;
use super::name::{self, NameBuf};
use super::opaque;
use super::order::Order;
use super::remove_tree::remove_tree;
use super::served::UpperMount;

/// Mode of whiteouts and opaque markers, as aufs makes them.
const MARKER_MODE: u32 = 0o444;

/// The ACL that new objects inherit from their directory.
pub(crate) const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// How whiteouts and opaque marks are written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Markers {
    /// The dialect.
    pub form: WhiteoutForm,
    /// A whiteout file is an inode of its own (aufs's `nolwh`).
    pub separate: bool,
    /// New directories are marked opaque even where nothing is below (aufs's `diropq=a`).
    pub always_opaque: bool,
}

/// The writable layer's state beyond its root directory.
#[derive(Debug)]
pub(crate) struct Upper {
    root: Arc<OwnedFd>,
    markers: Markers,
    /// Where temporaries go when a workdir was given; otherwise `.wh..wh.orph` below the root.
    workdir: Option<Arc<OwnedFd>>,
    /// The directory of temporaries once it was needed.
    temp_dir: Mutex<Option<Arc<OwnedFd>>>,
    temp_seq: AtomicU64,
    /// Files can have several names.
    links: bool,
    /// What can be done here; `None` where that could not be found out.
    abilities: Option<Abilities>,
    /// The form of whiteouts that was asked for.
    asked: WhiteoutForm,
    /// What its filesystem promises about data and names.
    pub order: Order,
    /// How it cannot copy.
    pub refusals: Refusals,
    /// What it is served from.
    pub mount: UpperMount,
    /// Holds the lock on the upper for as long as the union lives.
    _lock: OwnedFd,
}

/// An object without a visible name, in the directory of temporaries. It is removed when dropped,
/// unless it was published.
#[derive(Debug)]
pub(crate) struct Temp {
    /// The directory that holds it.
    pub dir: Arc<OwnedFd>,
    pub(super) name: NameBuf,
    pub(super) published: bool,
}

impl Temp {
    /// The directory that holds it.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Its name there.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// Moves it to `name` in `parent` in one step.
    pub fn publish(mut self, parent: impl AsFd, name: &[u8], flags: RenameFlags) -> Result<()> {
        move_to(
            (self.dir.as_fd(), &self.name),
            (parent.as_fd(), name),
            flags,
        )?;
        // After an exchange the temporary name holds what was replaced, which goes with the drop.
        self.published = !flags.contains(RenameFlags::EXCHANGE);
        Ok(())
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.published
            && let Err(e) = remove_tree(&*self.dir, &self.name)
        {
            // It stays invisible and is swept at the next mount.
            tracing::warn!("a temporary object of the upper could not be removed: {e}");
        }
    }
}

impl Upper {
    /// Takes the upper over: `lock` is held from now on, and leftovers of a crash are removed.
    pub fn new(
        root: Arc<OwnedFd>, workdir: Option<Arc<OwnedFd>>, mount: UpperMount, markers: Markers,
        lock: OwnedFd,
    ) -> Self {
        let upper = Self {
            mount,
            order: Order::of(&*root),
            refusals: Refusals::default(),
            root,
            asked: markers.form,
            abilities: None,
            markers,
            workdir,
            temp_dir: Mutex::new(None),
            temp_seq: AtomicU64::new(0),
            links: true,
            _lock: lock,
        };
        upper.sweep();
        upper
    }

    /// What cannot be done here, in words; `None` where that could not be found out.
    pub fn missing(&self) -> Option<Vec<&'static str>> {
        self.abilities.map(Abilities::missing)
    }

    /// The form in which whiteouts are written, and the one that was asked for.
    pub fn forms(&self) -> (WhiteoutForm, WhiteoutForm) {
        (self.markers.form, self.asked)
    }

    /// Finds out what can be done here, has the log say what cannot, and settles the form of
    /// whiteouts. The directory of temporaries is gone again afterwards if it was made for that.
    ///
    /// # Errors
    /// When no change could be taken at all.
    pub fn find_abilities(&mut self, path: &Path) -> Result<Abilities> {
        let (parent, dir) = self.temp_place();
        let before = sys::stat::stat_at(&**parent, dir);
        let found = Abilities::find_out(self)?;
        self.markers.form = found.form(self, self.markers.form, path);
        self.links = found.links;
        self.abilities = Some(found);
        found.report(path);
        if before.is_err() && self.temp_dir.lock().take().is_some() {
            let (parent, dir) = self.temp_place();
            keep_times(parent, || sys::at::rmdir_at(&**parent, dir))?;
        }
        Ok(found)
    }

    /// Where the directory of temporaries is, or would be.
    fn temp_place(&self) -> (&Arc<OwnedFd>, &'static [u8]) {
        match &self.workdir {
            Some(workdir) => (workdir, b"work"),
            None => (&self.root, name::ORPHANS),
        }
    }

    /// The form in which whiteouts and opaque marks are written.
    pub fn form(&self) -> WhiteoutForm {
        self.markers.form
    }

    /// True when new directories are marked opaque even where nothing is below.
    pub fn always_opaque(&self) -> bool {
        self.markers.always_opaque
    }

    /// True when files can have several names.
    pub fn has_links(&self) -> bool {
        self.links
    }

    /// Removes what a crash left in the reserved places. A failure costs space, nothing else.
    fn sweep(&self) {
        for (parent, dir) in [
            (Some(&self.root), name::ORPHANS),
            (self.workdir.as_ref(), b"work".as_slice()),
        ] {
            let Some(parent) = parent else { continue };
            let Ok(fd) = sys::at::open_dir_path(&**parent, dir, true) else {
                continue;
            };
            if let Err(e) = sweep_dir(&fd) {
                tracing::warn!("leftovers in the upper could not be removed: {e}");
            }
        }
    }

    /// The directory of temporaries, made when first needed.
    fn temp_dir(&self) -> Result<Arc<OwnedFd>> {
        let mut slot = self.temp_dir.lock();
        if let Some(dir) = slot.as_ref() {
            return Ok(Arc::clone(dir));
        }
        let (parent, dir) = self.temp_place();
        let fd = Arc::new(make_hidden_dir(parent, dir)?);
        *slot = Some(Arc::clone(&fd));
        Ok(fd)
    }

    /// Makes a temporary object: `make` gets its directory and name and is called again with
    /// another name while the name is taken.
    pub fn temp(&self, mut make: impl FnMut(BorrowedFd<'_>, &[u8]) -> Result<()>) -> Result<Temp> {
        let dir = self.temp_dir()?;
        loop {
            let seq = self.temp_seq.fetch_add(1, Ordering::Relaxed);
            let mut name = NameBuf::from_slice(name::META_PREFIX);
            name.extend_from_slice(format!("{seq:08x}").as_bytes());
            match make(dir.as_fd(), &name) {
                Ok(()) => {
                    return Ok(Temp {
                        dir,
                        name,
                        published: false,
                    });
                }
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// An unnamed file of the upper's filesystem, or a named temporary where it has none.
    pub fn temp_file(&self, mode: u32) -> Result<(OwnedFd, Option<Temp>)> {
        sys::cred::enter_own();
        match sys::at::open_tmpfile(&*self.root, mode) {
            Ok(fd) => return Ok((fd, None)),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL | Errno::NOSYS) => {}
            Err(e) => return Err(e),
        }
        let mut file = None;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let temp = self.temp(|dir, name| {
            file = Some(sys::at::open_at(dir, name, flags, mode, false)?);
            Ok(())
        })?;
        file.map(|f| (f, Some(temp))).ok_or(Errno::IO)
    }

    /// Moves `name` of `parent` among the temporaries; it is gone for users, and from disk when
    /// the result is dropped.
    pub fn take_away(&self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<Temp> {
        sys::cred::enter_own();
        self.temp(|dir, temp| sys::at::rename_at(parent, name, dir, temp, RenameFlags::NOREPLACE))
    }

    /// Hides `name` of `parent` from the lowers, in place of whatever stands there; an existing
    /// directory must have been moved away or be given as `replace_dir`.
    ///
    /// In the `.wh.` form the marker stands beside the name, so what was there has to be removed
    /// afterwards by the caller; returns whether that is so.
    pub fn write_whiteout(
        &self, parent: BorrowedFd<'_>, name: &[u8], is_dir: bool,
    ) -> Result<bool> {
        sys::cred::enter_own();
        if self.form() == WhiteoutForm::Aufs
            && let Some(marker) = name::whiteout_of(name)
        {
            self.write_marker(parent, &marker)?;
            return Ok(true);
        }
        let temp = self.temp(|dir, temp| sys::at::mknod_at(dir, temp, libc::S_IFCHR, 0))?;
        let flags = if is_dir {
            RenameFlags::EXCHANGE
        } else {
            RenameFlags::empty()
        };
        match temp.publish(parent, name, flags) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)
                if is_dir && name::whiteout_of(name).is_some() =>
            {
                self.write_marker_beside(parent, name)?;
                Ok(true)
            }
            result => result.map(|()| false),
        }
    }

    /// Makes the whiteout file beside `name`, whatever the upper's form.
    pub fn write_marker_beside(&self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        sys::cred::enter_own();
        let marker = name::whiteout_of(name).ok_or(Errno::NAMETOOLONG)?;
        self.write_marker(parent, &marker)
    }

    /// Removes the whiteout file beside `name`, if there is one.
    pub fn remove_marker(&self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        let Some(marker) = name::whiteout_of(name) else {
            return Ok(());
        };
        match sys::at::unlink_at(parent, &marker) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Makes the directory `entry` of `parent` opaque.
    pub fn set_opaque(&self, parent: BorrowedFd<'_>, entry: &[u8]) -> Result<()> {
        sys::cred::enter_own();
        match self.form() {
            WhiteoutForm::Overlay => opaque::set_attr(parent, entry),
            WhiteoutForm::Aufs => {
                let dir = sys::at::open_dir_path(parent, entry, true)?;
                keep_times(&dir, || self.write_marker(dir.as_fd(), name::OPAQUE))
            }
        }
    }

    /// Takes back what [`Self::set_opaque`] did.
    pub fn clear_opaque(&self, parent: BorrowedFd<'_>, entry: &[u8]) -> Result<()> {
        match self.form() {
            WhiteoutForm::Overlay => opaque::clear_attr(parent, entry),
            WhiteoutForm::Aufs => {
                let dir = sys::at::open_dir_path(parent, entry, true)?;
                keep_times(&dir, || match sys::at::unlink_at(&dir, name::OPAQUE) {
                    Err(Errno::NOENT) => Ok(()),
                    result => result,
                })
            }
        }
    }

    /// Puts a whiteout at `name` itself in place of the whiteout file beside it.
    pub fn write_device(&self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        self.replace_by_device(parent, name)?;
        self.remove_marker(parent, name)
    }

    /// Puts a whiteout device at `name` in place of what is no directory.
    pub fn replace_by_device(&self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        sys::cred::enter_own();
        let temp = self.temp(|dir, temp| sys::at::mknod_at(dir, temp, libc::S_IFCHR, 0))?;
        temp.publish(parent, name, RenameFlags::empty())
    }

    /// Flushes all that was written to the upper's filesystem.
    pub fn sync(&self) -> Result<()> {
        sys::file::sync_filesystem(sys::fd::reopen_dir(&*self.root)?)
    }

    /// Makes a whiteout or opaque file: a hard link to the base, so that all of them cost one
    /// inode; a file of its own where no link can be had.
    fn write_marker(&self, dir: BorrowedFd<'_>, marker: &[u8]) -> Result<()> {
        if self.markers.separate {
            make_marker(dir, marker)?;
            return Self::check_marker(dir, marker);
        }
        for _ in 0..2 {
            match sys::at::link_at(&*self.root, name::WHITEOUT_BASE, dir, marker) {
                Ok(()) => return Ok(()),
                Err(Errno::EXIST) => return Self::check_marker(dir, marker),
                Err(Errno::NOENT) => {
                    keep_times(&self.root, || {
                        make_marker(self.root.as_fd(), name::WHITEOUT_BASE)
                    })?;
                }
                Err(Errno::MLINK) => {
                    make_marker(dir, marker)?;
                    self.renew_base();
                    return Ok(());
                }
                Err(_) => return make_marker(dir, marker),
            }
        }
        make_marker(dir, marker)
    }

    /// An entry that is already there under a marker's name must be a marker.
    fn check_marker(dir: BorrowedFd<'_>, marker: &[u8]) -> Result<()> {
        let stat: Stat = sys::stat::stat_at(dir, marker)?;
        if stat.kind() == FileKind::Regular {
            Ok(())
        } else {
            Err(Errno::IO)
        }
    }

    /// Starts a new group of links after the base reached the filesystem's limit. Without a base
    /// the next whiteout makes one, so failures do no harm.
    fn renew_base(&self) {
        let _ = keep_times(&self.root, || {
            sys::at::unlink_at(&*self.root, name::WHITEOUT_BASE)?;
            make_marker(self.root.as_fd(), name::WHITEOUT_BASE)
        });
    }
}

/// Moves an object that no one can see yet to its place.
///
/// An ordinary user may not give a directory another parent without the right to write it, so it
/// gets that right for the moment.
pub(crate) fn move_to(
    from: (BorrowedFd<'_>, &[u8]), to: (BorrowedFd<'_>, &[u8]), flags: RenameFlags,
) -> Result<()> {
    let rename = || sys::at::rename_at(from.0, from.1, to.0, to.1, flags);
    let result = rename();
    if result != Err(Errno::ACCESS) {
        return result;
    }
    let stat = sys::stat::stat_at(from.0, from.1)?;
    if !stat.kind().is_dir() || stat.mode & libc::S_IWUSR != 0 {
        return result;
    }
    let mode = stat.mode & 0o7777;
    sys::at::chmod_at(from.0, from.1, mode | libc::S_IWUSR)?;
    let result = rename();
    let at = if result.is_ok() { to } else { from };
    sys::at::chmod_at(at.0, at.1, mode)?;
    result
}

/// Makes a directory that users do not see, unless it is there.
pub(crate) fn make_hidden_dir(parent: &OwnedFd, name: &[u8]) -> Result<OwnedFd> {
    sys::cred::enter_own();
    keep_times(parent, || match sys::at::mkdir_at(parent, name, 0o700) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e),
    })?;
    let fd = sys::at::open_dir_path(parent, name, true)?;
    make_neutral(&fd)?;
    Ok(fd)
}

/// Takes from the directory of temporaries what objects made in it would inherit.
fn make_neutral(dir: &OwnedFd) -> Result<()> {
    let stat = sys::stat::fstat(dir)?;
    if stat.mode & libc::S_ISGID != 0 {
        sys::at::chmod_at(dir, b"", stat.mode & !libc::S_ISGID)?;
    }
    match sys::xattr::remove(dir.as_fd(), b"", DEFAULT_ACL) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Makes a change in `dir` that users do not see, so they do not see it in its times either.
pub(crate) fn keep_times(dir: &OwnedFd, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = sys::stat::fstat(dir)?;
    change()?;
    let (atime, mtime) = (SetTime::At(before.atime), SetTime::At(before.mtime));
    if let Err(e) = sys::at::utimens_at(dir, b"", atime, mtime) {
        // The change is made; who took this for its failure would go on as if it were not.
        tracing::warn!("the times of a directory could not be kept: {e}");
    }
    Ok(())
}

/// Makes an empty marker file.
fn make_marker(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    match sys::at::open_at(dir, name, flags, MARKER_MODE, false) {
        Ok(_) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Removes everything with a temporary's name.
fn sweep_dir(dir: &OwnedFd) -> Result<()> {
    let mut leftovers = Vec::new();
    let readable = sys::fd::reopen_dir(dir)?;
    sys::dir::for_each_entry(&readable, |entry| {
        if entry.name.starts_with(name::META_PREFIX) {
            leftovers.push(NameBuf::from_slice(entry.name));
        }
        Ok(())
    })?;
    leftovers.iter().try_for_each(|name| remove_tree(dir, name))
}
