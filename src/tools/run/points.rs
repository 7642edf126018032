//! Places to mount on, where an ordinary user's unions show none.
//!
//! His unions do not enter what is mounted in their lowers, and he may not clone a lower's mount without
//! that (`open_tree`). So uppers get a directory or file at each such place for as long as the view
//! lasts, which hides the lower's.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::layer::opaque;
use crate::layer::remove_tree::remove_tree;
use crate::sys::{self, Errno};

use super::super::commit::give_dir;
use super::{Result, Shown, at};

/// What was put into uppers; to be taken out again.
pub(super) struct Points {
    /// Upper and path in it.
    places: Vec<(PathBuf, PathBuf)>,
    /// Directories on the way there.
    above: Vec<PathBuf>,
}

impl Points {
    /// Puts a place for each of `paths` into the upper of the union in which it is.
    pub fn put<'a>(unions: &[Shown], paths: impl Iterator<Item = &'a Path>) -> Result<Self> {
        let mut points = Self {
            places: Vec::new(),
            above: Vec::new(),
        };
        for path in paths {
            let home = unions.iter().filter(|union| path.starts_with(&union.path));
            // A union's own root is mounted on the place in the union above.
            let home = home.filter(|union| path != union.path);
            let Some(home) = home.max_by_key(|union| union.path.as_os_str().len()) else {
                continue;
            };
            let inner = path.strip_prefix(&home.path).unwrap_or(path);
            points.places.push((home.upper.clone(), inner.to_owned()));
            put_one(home, path, inner, &mut points.above).map_err(|e| at(path, e))?;
        }
        Ok(points)
    }

    /// Takes them out, while nothing is mounted.
    pub fn take(self) -> Result<()> {
        for (upper, inner) in self.places.iter().rev() {
            let take = || {
                let above = inner
                    .parent()
                    .map_or_else(|| upper.clone(), |p| upper.join(p));
                let above = sys::at::open_root(above.as_os_str().as_bytes())?;
                let name = inner.file_name().unwrap_or_default();
                crate::layer::upper::keep_times(&above, || remove_tree(&above, name.as_bytes()))
            };
            match take() {
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(e) => return Err(at(&upper.join(inner), e)),
            }
        }
        for dir in self.above.iter().rev() {
            // Unless there is something in it now.
            let _ = fs::remove_dir(dir);
        }
        Ok(())
    }
}

fn put_one(home: &Shown, path: &Path, inner: &Path, made: &mut Vec<PathBuf>) -> io::Result<()> {
    let Some(lower) = home.options.lowers.first() else {
        return Ok(());
    };
    let open = |path: &Path| sys::at::open_root(path.as_os_str().as_bytes());
    let mut below = PathBuf::new();
    for name in inner.parent().into_iter().flat_map(Path::components) {
        below.push(name);
        let dir = home.upper.join(&below);
        match fs::create_dir(&dir) {
            Ok(()) => {
                made.push(dir.clone());
                alike(&open(&lower.path.join(&below))?, &open(&dir)?)?;
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    let place = home.upper.join(inner);
    if !path.is_dir() {
        return File::create(&place).map(drop);
    }
    match fs::create_dir(&place) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    use std::os::fd::AsFd;
    opaque::set_attr(open(&place)?.as_fd(), b"")?;
    let above = home.upper.join(inner.parent().unwrap_or(Path::new("")));
    let from = lower.path.join(inner.parent().unwrap_or(Path::new("")));
    alike(&open(&from)?, &open(&above)?)
}

/// Gives a directory of an upper the attributes of one below it, as far as this user may.
pub(super) fn alike(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    match give_dir(from, to) {
        // An id or attribute that he cannot give; times and mode at least.
        Err(Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP | Errno::ACCESS) => {
            let stat = sys::stat::fstat(from)?;
            sys::at::chmod_at(to, b"", stat.mode & 0o7777)?;
            let time = |time| sys::at::SetTime::At(time);
            sys::at::utimens_at(to, b"", time(stat.atime), time(stat.mtime))?;
            Ok(())
        }
        result => Ok(result?),
    }
}
