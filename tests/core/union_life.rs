//! The end of a union and its next life.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use unionfs::mount::open_union;
use unionfs::options::{RenameDir, WhiteoutForm};

use crate::invariants::Raw;
use crate::union_side::UnionSide;

/// Uppers that become lowers in one case.
const MOST_FROZEN: usize = 3;

impl UnionSide {
    /// Ends this union; nothing may be left in it or in the upper's reserved places.
    pub fn close(&mut self) {
        self.kept.clear();
        self.forget();
        assert_eq!(
            self.union().inode_count(),
            1,
            "inodes remain after all was forgotten"
        );
        self.union = None;
        let upper = self.options.upper.as_ref();
        let orphans = upper.map(|upper| upper.join(".wh..wh.orph"));
        let work = self.options.work.as_ref().map(|work| work.join("work"));
        for dir in orphans.into_iter().chain(work) {
            assert_eq!(
                listing(&dir),
                Vec::<PathBuf>::new(),
                "leftovers of temporaries"
            );
        }
        self.frozen.iter().for_each(Raw::check_unchanged);
    }

    pub fn reopen(&mut self) {
        let union = open_union(&self.options).expect("the layers make a union again");
        self.union = Some(union);
    }

    /// The next mount, with other options: what one way of renaming directories wrote, the others
    /// find. Now and then the upper has become a lower.
    pub fn remount(&mut self) {
        self.remounts += 1;
        let freezes = self.remounts.is_multiple_of(2) && self.frozen.len() < MOST_FROZEN;
        // How many names of a file were taken away counts only in the upper where that was done, so
        // there must not be any of which some are left; and overlayfs parts names that are changed.
        let upper = self.options.upper.clone().filter(|_| freezes);
        let for_kernel = self.options.whiteout == WhiteoutForm::Overlay;
        let is_whole = |upper: &PathBuf| {
            let links = listing(&upper.join(".wh..wh.plnk"));
            let is_count = |path: &PathBuf| path.extension().is_some_and(|n| n == "0");
            !(links.iter().any(is_count) || for_kernel && has_links(upper))
        };
        let upper = upper.filter(is_whole);
        if upper.is_some() {
            // Pseudo-links are followed in the upper only.
            self.flush().unwrap();
        }
        self.close();
        self.options.rename_dir = match self.options.rename_dir {
            RenameDir::Copy => RenameDir::Redirect,
            RenameDir::Redirect => RenameDir::Exdev,
            RenameDir::Exdev => RenameDir::Copy,
        };
        self.options.metacopy = !self.options.metacopy;
        if let Some(upper) = upper {
            self.freeze(upper);
        }
        self.reopen();
    }

    /// Puts a new upper above this one.
    fn freeze(&mut self, upper: PathBuf) {
        let next = upper.with_file_name(format!("upper{}", self.remounts));
        std::fs::create_dir(&next).unwrap();
        let from = std::fs::metadata(&upper).unwrap();
        std::os::unix::fs::chown(&next, Some(from.uid()), Some(from.gid())).unwrap();
        for attr in xattrs(&upper) {
            let value = xattr::get(&upper, &attr).unwrap().unwrap_or_default();
            xattr::set(&next, &attr, &value).unwrap();
        }
        std::fs::set_permissions(&next, from.permissions()).unwrap();
        crate::tree::set_times(
            &next,
            (from.mtime(), u32::try_from(from.mtime_nsec()).unwrap()),
        );
        self.frozen.push(Raw::of(std::slice::from_ref(&upper)));
        self.options.lowers.insert(0, upper.into());
        self.options.upper = Some(next);
    }
}

/// Attributes of a directory that users see, as a new one in its place would have.
fn xattrs(path: &Path) -> Vec<std::ffi::OsString> {
    let is_record = |name: &str| name.contains("overlay") || name.contains("unionfs");
    let names = xattr::list(path).unwrap();
    names
        .filter(|name| !is_record(&name.to_string_lossy()))
        .collect()
}

/// True when something but a whiteout has more than one name.
fn has_links(dir: &Path) -> bool {
    listing(dir).iter().any(|path| {
        let meta = std::fs::symlink_metadata(path).unwrap();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if meta.is_dir() {
            has_links(path)
        } else {
            meta.nlink() > 1 && !name.starts_with(".wh.")
        }
    })
}

fn listing(dir: &Path) -> Vec<PathBuf> {
    match std::fs::read_dir(dir) {
        Ok(entries) => entries.map(|e| e.unwrap().path()).collect(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => panic!("{}: {e}", dir.display()),
    }
}
