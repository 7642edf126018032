//! Pseudo-links: the copies that stand for lower files with several names.
//!
//! When such a file is copied up, the copy gets the entry `I.J` in `.wh..wh.plnk`, a hard link: I is
//! the inode number under which the union shows the file, J the copy's own. All names of the lower
//! file lead there from then on. A record says that the entry is ours, of which lower file, and how
//! many names of that file the union has taken away or given to the copy; it is an attribute of the
//! copy, or where none can be had, and where there is no copy, the target of a symlink `I.0`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::sys::sync::Mutex;
use rustix::fs::RenameFlags;

use crate::sys::{self, Errno, Result, Stat};

use super::name::{self, NameBuf};
use super::{origin, upper};

const RECORD_ATTRS: [&[u8]; 2] = [b"trusted.unionfs.plink", b"user.unionfs.plink"];
/// The change under way, see [`PlinkDir::set_intent`].
pub(crate) const INTENT: &[u8] = b"0.0";
/// A symlink before it gets its name.
const TEMPORARY: &[u8] = b"0.1";
/// Version of the text of records.
const VERSION: &str = "1";
/// Longest target of a symlink.
const TARGET_MAX: usize = 4095;

/// What tells a lower file from another one that got its inode number later.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Print {
    /// Of size and modification time.
    hash: u64,
    /// Time of birth in nanoseconds; 0 when the filesystem does not tell.
    born: u64,
}

impl Print {
    /// Of the object `name` of a lower's directory, with these attributes.
    pub fn of(dir: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> Self {
        // FNV-1a: the same in every build, and nobody's choice of a number helps them.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let seconds = stat.mtime.sec.to_le_bytes();
        let nanoseconds = u64::from(stat.mtime.nsec).to_le_bytes();
        for byte in [stat.size.to_le_bytes(), seconds, nanoseconds].concat() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        let born = sys::stat::born(dir, name).unwrap_or(0);
        Self { hash, born }
    }

    /// True unless the two are of different files.
    pub fn fits(&self, other: &Self) -> bool {
        let same_birth = self.born == other.born || self.born == 0 || other.born == 0;
        self.hash == other.hash && same_birth
    }
}

/// What is kept of a lower file with several names.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Record {
    /// The copy's inode number; 0 while there is none.
    pub upper: u64,
    /// Names of the lower file that the union does not show through the lower any more: taken away,
    /// or given to the copy.
    pub gone: u32,
    /// Names of the lower file.
    pub links: u32,
    /// The lower file.
    pub print: Print,
}

impl Record {
    pub fn text(&self) -> String {
        let Self {
            upper,
            gone,
            links,
            print,
        } = self;
        let Print { hash, born } = print;
        format!("{VERSION} {upper} {gone} {links} {hash:x} {born:x}")
    }

    /// Reads a record; returns what follows it.
    pub fn parse(text: &[u8]) -> Option<(Self, &[u8])> {
        let mut fields = text.splitn(7, |&b| b == b' ');
        let mut next = || std::str::from_utf8(fields.next()?).ok();
        if next()? != VERSION {
            return None;
        }
        let record = Self {
            upper: next()?.parse().ok()?,
            gone: next()?.parse().ok()?,
            links: next()?.parse().ok()?,
            print: Print {
                hash: u64::from_str_radix(next()?, 16).ok()?,
                born: u64::from_str_radix(next()?, 16).ok()?,
            },
        };
        Some((record, fields.next().unwrap_or_default()))
    }
}

/// A change that may be half done: of the number of names of file `number`, by what happens to the
/// name `path` of the union.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Intent {
    pub number: u64,
    /// The record after the change.
    pub record: Record,
    /// From the union's root, with slashes; empty when it is too long to be kept.
    pub path: Vec<u8>,
}

/// The entry of a copy.
pub(crate) fn entry_name(number: u64, upper: u64) -> NameBuf {
    NameBuf::from_slice(format!("{number}.{upper}").as_bytes())
}

/// The numbers in an entry's name, which are written in one way only.
pub(crate) fn parse_name(name: &[u8]) -> Option<(u64, u64)> {
    let (number, upper) = std::str::from_utf8(name).ok()?.split_once('.')?;
    let numbers = (number.parse().ok()?, upper.parse().ok()?);
    (*entry_name(numbers.0, numbers.1) == *name).then_some(numbers)
}

/// `.wh..wh.plnk` of the upper, made when first needed.
#[derive(Debug)]
pub(crate) struct PlinkDir {
    root: Arc<OwnedFd>,
    dir: Mutex<Option<Arc<OwnedFd>>>,
}

impl PlinkDir {
    /// The one below `root`; it need not be there.
    pub fn new(root: &Arc<OwnedFd>) -> Result<Self> {
        let dir = match sys::at::open_dir_path(&**root, name::PSEUDO_LINKS, true) {
            Ok(dir) => Some(Arc::new(dir)),
            Err(Errno::NOENT | Errno::NOTDIR) => None,
            Err(e) => return Err(e),
        };
        Ok(Self {
            root: Arc::clone(root),
            dir: Mutex::new(dir),
        })
    }

    /// The directory, if there is one.
    pub fn get(&self) -> Option<Arc<OwnedFd>> {
        self.dir.lock().clone()
    }

    /// The directory, made if need be.
    pub fn make(&self) -> Result<Arc<OwnedFd>> {
        let mut slot = self.dir.lock();
        if let Some(dir) = slot.as_ref() {
            return Ok(Arc::clone(dir));
        }
        let dir = Arc::new(upper::make_hidden_dir(&self.root, name::PSEUDO_LINKS)?);
        *slot = Some(Arc::clone(&dir));
        Ok(dir)
    }

    /// Removes the directory if nothing is in it.
    pub fn remove_empty(&self) {
        let mut slot = self.dir.lock();
        let remove = || sys::at::rmdir_at(&*self.root, name::PSEUDO_LINKS);
        if slot.is_some() && upper::keep_times(&self.root, remove).is_ok() {
            *slot = None;
        }
    }

    /// The numbers in the names of all entries, and the inode number of each.
    pub fn list(&self) -> Result<Vec<(u64, u64, u64)>> {
        let Some(dir) = self.get() else {
            return Ok(Vec::new());
        };
        let mut entries = Vec::new();
        let readable = sys::fd::reopen_dir(&*dir)?;
        sys::dir::for_each_entry(&readable, |entry| {
            if let Some((number, upper)) = parse_name(entry.name).filter(|(n, _)| *n > 1) {
                entries.push((number, upper, entry.ino));
            }
            Ok(())
        })?;
        // In an order that does not depend on where the filesystem has them.
        entries.sort_unstable();
        Ok(entries)
    }

    /// The record of file `number`, whose entry names `upper`.
    pub fn record(&self, number: u64, upper: u64) -> Result<Option<Record>> {
        let Some(dir) = self.get() else {
            return Ok(None);
        };
        let fits = |text: &Vec<u8>| {
            let record = Record::parse(text).map(|(record, _)| record);
            record.filter(|record| record.upper == upper)
        };
        let apart = match sys::at::readlink_at(&*dir, &entry_name(number, 0)) {
            Ok(text) => fits(&text),
            Err(Errno::NOENT | Errno::INVAL) => None,
            Err(e) => return Err(e),
        };
        if apart.is_some() || upper == 0 {
            return Ok(apart);
        }
        let entry = entry_name(number, upper);
        let text = origin::get_first(dir.as_fd(), &entry, RECORD_ATTRS)?;
        Ok(text.as_ref().and_then(fits))
    }

    /// True when the symlink of file `number` is about a copy that has no entry.
    pub fn is_leftover(&self, number: u64) -> Result<bool> {
        let Some(dir) = self.get() else {
            return Ok(false);
        };
        let record = match sys::at::readlink_at(&*dir, &entry_name(number, 0)) {
            Ok(text) => Record::parse(&text).map(|(record, _)| record),
            Err(Errno::NOENT | Errno::INVAL) => None,
            Err(e) => return Err(e),
        };
        let Some(upper) = record.map(|r| r.upper).filter(|upper| *upper != 0) else {
            return Ok(false);
        };
        let entry = sys::stat::stat_at(&*dir, &entry_name(number, upper));
        Ok(entry.is_err_and(|e| e == Errno::NOENT))
    }

    /// Writes the record of file `number`, in one step.
    pub fn set_record(&self, number: u64, record: &Record) -> Result<()> {
        sys::cred::enter_own();
        let dir = self.make()?;
        let apart = entry_name(number, 0);
        // A symlink counts before the attribute, so once there is one it is the one to write.
        let on_copy = record.upper != 0 && sys::stat::stat_at(&*dir, &apart).is_err();
        let entry = entry_name(number, record.upper);
        if on_copy && record_on(dir.as_fd(), &entry, record)? {
            return Ok(());
        }
        self.put_symlink(&apart, record.text().as_bytes())
    }

    /// The same for a copy that cannot carry it and has no entry yet.
    pub fn set_record_apart(&self, number: u64, record: &Record) -> Result<()> {
        sys::cred::enter_own();
        self.put_symlink(&entry_name(number, 0), record.text().as_bytes())
    }

    /// Removes the entry and the record of a file.
    pub fn remove(&self, number: u64, upper: u64) -> Result<()> {
        let Some(dir) = self.get() else {
            return Ok(());
        };
        // The record goes last: without its entry it makes no difference, and so it may stay.
        match sys::at::unlink_at(&*dir, &entry_name(number, upper)) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e),
        }
        match sys::at::unlink_at(&*dir, &entry_name(number, 0)) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => tracing::warn!(number, "a record in .wh..wh.plnk could not be removed: {e}"),
        }
        Ok(())
    }

    /// Removes a symlink that holds the record of a file whose copy's attribute holds a newer one.
    pub fn remove_symlink(&self, number: u64) -> Result<()> {
        match self.get() {
            Some(dir) => match sys::at::unlink_at(&*dir, &entry_name(number, 0)) {
                Err(Errno::NOENT) => Ok(()),
                result => result,
            },
            None => Ok(()),
        }
    }

    /// Says what is about to be done, before it is done. Should it remain, the change may have been
    /// made or not.
    pub fn set_intent(&self, intent: &Intent) -> Result<()> {
        sys::cred::enter_own();
        self.make()?;
        let head = format!("{} {} ", intent.number, intent.record.text());
        let mut text = head.into_bytes();
        if text.len() + intent.path.len() <= TARGET_MAX {
            text.extend_from_slice(&intent.path);
        }
        self.put_symlink(INTENT, &text)
    }

    /// The change that may be half done.
    pub fn intent(&self) -> Option<Intent> {
        let text = sys::at::readlink_at(&*self.get()?, INTENT).ok()?;
        let at = text.iter().position(|&b| b == b' ')?;
        let (record, path) = Record::parse(&text[at + 1..])?;
        Some(Intent {
            number: std::str::from_utf8(&text[..at]).ok()?.parse().ok()?,
            record,
            path: path.to_vec(),
        })
    }

    /// The change was made, or undone.
    pub fn clear_intent(&self) {
        let Some(dir) = self.get() else { return };
        for name in [INTENT, TEMPORARY] {
            match sys::at::unlink_at(&*dir, name) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => tracing::warn!("a note in .wh..wh.plnk could not be removed: {e}"),
            }
        }
    }

    fn put_symlink(&self, name: &[u8], target: &[u8]) -> Result<()> {
        let dir = self.make()?;
        match sys::at::symlink_at(target, &*dir, name) {
            Err(Errno::EXIST) => {}
            result => return result,
        }
        match sys::at::symlink_at(target, &*dir, TEMPORARY) {
            Err(Errno::EXIST) => {
                sys::at::unlink_at(&*dir, TEMPORARY)?;
                sys::at::symlink_at(target, &*dir, TEMPORARY)?;
            }
            result => result?,
        }
        sys::at::rename_at(&*dir, TEMPORARY, &*dir, name, RenameFlags::empty())
    }
}

/// Puts the record on a copy itself; false where it cannot carry one.
pub(crate) fn record_on(dir: BorrowedFd<'_>, name: &[u8], record: &Record) -> Result<bool> {
    origin::set_first(dir, name, RECORD_ATTRS, record.text().as_bytes())
}

/// Takes the record from a copy that stands for no other names any more.
pub(crate) fn clear_record(dir: BorrowedFd<'_>, name: &[u8]) {
    for attr in RECORD_ATTRS {
        // What remains counts for nothing without its entry.
        let _ = sys::xattr::remove(dir, name, attr);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            upper: 77,
            gone: 2,
            links: 5,
            print: Print {
                hash: u64::MAX,
                born: 3,
            },
        }
    }

    #[test]
    fn entries_are_written_in_one_way() {
        assert_eq!(parse_name(b"12.34"), Some((12, 34)));
        assert_eq!(parse_name(b"12.0"), Some((12, 0)));
        for name in [
            &b"012.34"[..],
            b"12.",
            b".34",
            b"12",
            b"1.2.3",
            b"+1.2",
            b"18446744073709551616.1",
        ] {
            assert_eq!(parse_name(name), None);
        }
    }

    #[test]
    fn records_survive_their_text() {
        let text = record().text();
        assert_eq!(
            Record::parse(text.as_bytes()),
            Some((record(), b"".as_slice()))
        );
        let longer = format!("{text} a b/c");
        let (_, rest) = Record::parse(longer.as_bytes()).unwrap();
        assert_eq!(rest, b"a b/c");
        for bad in [
            &b""[..],
            b"2 77 2 5 ff 3",
            b"1 77 2 5 ff",
            b"1 x 2 5 ff 3",
            b"user data",
        ] {
            assert_eq!(Record::parse(bad), None);
        }
    }

    #[test]
    fn an_unknown_time_of_birth_fits_any() {
        let print = |hash, born| Print { hash, born };
        assert!(print(1, 5).fits(&print(1, 5)));
        assert!(print(1, 5).fits(&print(1, 0)));
        assert!(!print(1, 5).fits(&print(1, 6)));
        assert!(!print(1, 5).fits(&print(2, 5)));
    }

    #[test]
    fn intents_and_records_on_disk() {
        let temp = tempfile::tempdir().unwrap();
        let root = sys::at::open_root(temp.path().as_os_str().as_encoded_bytes()).unwrap();
        let plinks = PlinkDir::new(&Arc::new(root)).unwrap();
        assert!(plinks.get().is_none() && plinks.intent().is_none());
        let mut intent = Intent {
            number: 9,
            record: record(),
            path: b"d/\xff b".to_vec(),
        };
        plinks.set_intent(&intent).unwrap();
        assert_eq!(plinks.intent().as_ref(), Some(&intent));
        intent.path = vec![b'x'; 5000];
        plinks.set_intent(&intent).unwrap();
        assert_eq!(plinks.intent().unwrap().path, b"");
        plinks.clear_intent();
        assert!(plinks.intent().is_none());
        let mut lone = record();
        lone.upper = 0;
        for gone in 0..3 {
            lone.gone = gone;
            plinks.set_record(9, &lone).unwrap();
            assert_eq!(plinks.record(9, 0).unwrap(), Some(lone));
            assert_eq!(plinks.record(9, 77).unwrap(), None);
        }
        assert_eq!(plinks.list().unwrap().len(), 1);
        plinks.remove(9, 0).unwrap();
        assert_eq!(plinks.list().unwrap(), []);
        plinks.remove_empty();
        assert!(!temp.path().join(".wh..wh.plnk").exists());
    }
}
