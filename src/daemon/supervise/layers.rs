//! The layers' directories, for whoever opens the layers again.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::daemon::upgrade::Kept;
use crate::options::Options;
use crate::sys;

/// Handles of the directories that the options name, opened before the mount: afterwards a path may
/// lead into it.
pub(super) struct Layers {
    lowers: Vec<Option<OwnedFd>>,
    upper: Option<OwnedFd>,
    work: Option<OwnedFd>,
}

impl Layers {
    pub fn open(options: &Options) -> Self {
        let open = |path: &Path| {
            let path = path.as_os_str().as_bytes();
            // What is wrong with it the first server says.
            sys::at::open_root(path).ok()
        };
        let lowers = options.lowers.iter();
        Self {
            lowers: lowers.map(|lower| open(&lower.path)).collect(),
            upper: options.upper.as_deref().and_then(open),
            work: options.work.as_deref().and_then(open),
        }
    }

    pub fn none(lowers: usize) -> Self {
        Self {
            lowers: (0..lowers).map(|_| None).collect(),
            upper: None,
            work: None,
        }
    }

    pub fn put(&mut self, what: &str, index: u64, fd: OwnedFd) {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        match (what, self.lowers.get_mut(index)) {
            ("upper", _) => self.upper = Some(fd),
            ("work", _) => self.work = Some(fd),
            ("lower", Some(lower)) => *lower = Some(fd),
            _ => {}
        }
    }

    pub fn pass_on(&self, kept: &mut Kept) -> io::Result<()> {
        for (index, fd) in self.lowers.iter().enumerate() {
            if let Some(fd) = fd {
                kept.add("lower", (index as u64, 0), fd)?;
            }
        }
        for (what, fd) in [("upper", &self.upper), ("work", &self.work)] {
            if let Some(fd) = fd {
                kept.add(what, (0, 0), fd)?;
            }
        }
        Ok(())
    }

    /// All handles.
    pub fn all(&self) -> impl Iterator<Item = &OwnedFd> {
        let lowers = self.lowers.iter().flatten();
        lowers.chain(&self.upper).chain(&self.work)
    }

    /// Has the options name these; they are to be kept open until the layers are.
    pub fn put_into(self, options: &mut Options) -> Vec<OwnedFd> {
        let lowers = options.lowers.iter_mut().map(|lower| &mut lower.path);
        let others = [
            (options.upper.as_mut(), self.upper),
            (options.work.as_mut(), self.work),
        ];
        let others = others
            .into_iter()
            .filter_map(|(path, fd)| Some((path?, fd)));
        let all = lowers.zip(self.lowers).chain(others);
        let mut kept = Vec::new();
        for (path, fd) in all {
            if let Some(fd) = fd {
                let name = sys::fd::proc_path(fd.as_fd());
                *path = PathBuf::from(OsString::from_vec(name.to_vec()));
                kept.push(fd);
            }
        }
        kept
    }
}
