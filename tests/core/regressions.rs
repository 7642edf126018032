//! Defects that the random test has found, each in its smallest form.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use rustix::io::Errno;
use tempfile::TempDir;
use unionfs::mount::open_union;
use unionfs::options::{Options, WhiteoutForm};
use unionfs::union::{Caller, Make, OpenMode, ROOT, SetAttr, Time, Union};

use crate::model::acl;
use crate::plain::prepare_thread;
use crate::tree::set_times;

const BY_ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 0,
};
const OLD: (i64, u32) = (1_000_000_000, 7);
const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

/// One lower and one upper, empty at first.
struct Stack {
    base: TempDir,
    form: WhiteoutForm,
    metacopy: bool,
}

impl Stack {
    fn new(form: WhiteoutForm) -> Self {
        prepare_thread();
        let base = tempfile::tempdir().unwrap();
        for layer in ["lower", "upper"] {
            fs::create_dir(base.path().join(layer)).unwrap();
        }
        let metacopy = false;
        Self {
            base,
            form,
            metacopy,
        }
    }

    fn lower(&self, path: &str) -> PathBuf {
        self.base.path().join("lower").join(path)
    }

    fn upper(&self, path: &str) -> PathBuf {
        self.base.path().join("upper").join(path)
    }

    fn union(&self) -> Union {
        let options = Options {
            lowers: vec![self.lower("").into()],
            upper: Some(self.upper("")),
            whiteout: self.form,
            metacopy: self.metacopy,
            ..Options::default()
        };
        open_union(&options).unwrap()
    }
}

const FORMS: [WhiteoutForm; 2] = [WhiteoutForm::Aufs, WhiteoutForm::Overlay];

/// The node at a path; its references are never given back.
fn walk(union: &Union, path: &str) -> Result<u64, Errno> {
    path.split('/').try_fold(ROOT, |id, name| {
        Ok(union.lookup(id, name.as_bytes())?.ok_or(Errno::NOENT)?.id)
    })
}

fn mtime(union: &Union, id: u64) -> (i64, u32) {
    let Time { sec, nsec } = union.getattr(id).unwrap().stat.mtime;
    (sec, nsec)
}

fn chmod(union: &Union, id: u64, mode: u32) {
    let set = SetAttr {
        mode: Some(mode),
        ..SetAttr::default()
    };
    union.setattr(id, &set, BY_ROOT).unwrap();
}

fn mkfifo(path: &Path) {
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
}

fn set_acl(path: &Path, attr: &str) {
    rustix::fs::setxattr(path, attr, &acl(7, 5), XattrFlags::empty()).unwrap();
}

#[test]
fn making_the_place_of_temporaries_keeps_the_time_of_the_root() {
    for form in FORMS {
        let stack = Stack::new(form);
        mkfifo(&stack.lower("a"));
        set_times(&stack.upper(""), OLD);
        let union = stack.union();
        // Copying up a fifo takes a named temporary.
        chmod(&union, walk(&union, "a").unwrap(), 0o600);
        assert_eq!(mtime(&union, ROOT), OLD);
    }
}

#[test]
fn making_the_base_of_whiteouts_keeps_the_time_of_the_root() {
    for form in FORMS {
        let stack = Stack::new(form);
        fs::create_dir(stack.lower("d")).unwrap();
        fs::write(stack.lower("d/f"), "x").unwrap();
        set_times(&stack.upper(""), OLD);
        let union = stack.union();
        union.unlink(walk(&union, "d").unwrap(), b"f").unwrap();
        assert_eq!(mtime(&union, ROOT), OLD);
    }
}

#[test]
fn a_default_acl_of_the_root_is_not_given_to_what_is_copied_up() {
    let stack = Stack::new(WhiteoutForm::Aufs);
    fs::create_dir(stack.lower("dir")).unwrap();
    fs::write(stack.lower("file"), "x").unwrap();
    mkfifo(&stack.lower("fifo"));
    set_acl(&stack.upper(""), DEFAULT);
    let union = stack.union();
    for name in ["dir", "file", "fifo"] {
        let id = walk(&union, name).unwrap();
        chmod(&union, id, 0o640);
        for attr in [ACCESS, DEFAULT] {
            let got = union.getxattr(id, attr.as_bytes());
            assert_eq!(got, Err(Errno::NODATA), "{attr} of {name}");
        }
        assert_eq!(
            union.getattr(id).unwrap().stat.mode & 0o7777,
            0o640,
            "{name}"
        );
    }
}

#[test]
fn what_is_made_over_a_whiteout_inherits_from_its_directory_not_from_the_root() {
    for form in FORMS {
        let stack = Stack::new(form);
        // A name that leaves no room for `.wh.` has its whiteout at the name itself in both forms.
        let name = "n".repeat(252);
        fs::create_dir(stack.lower("d")).unwrap();
        fs::write(stack.lower("d").join(&name), "x").unwrap();
        std::os::unix::fs::chown(stack.upper(""), Some(0), Some(1000)).unwrap();
        rustix::fs::chmodat(
            CWD,
            stack.upper(""),
            Mode::from_raw_mode(0o2775),
            rustix::fs::AtFlags::empty(),
        )
        .unwrap();
        set_acl(&stack.upper(""), DEFAULT);
        let union = stack.union();
        let dir = walk(&union, "d").unwrap();
        for make in [
            Make::Directory { mode: 0o755 },
            Make::Node {
                mode: libc::S_IFIFO | 0o644,
                rdev: 0,
            },
        ] {
            let _ = union.rmdir(dir, name.as_bytes());
            let _ = union.unlink(dir, name.as_bytes());
            let made = union
                .make(dir, name.as_bytes(), make, BY_ROOT, 0o022)
                .unwrap();
            let stat = made.attr.stat;
            assert_eq!((stat.uid, stat.gid), (0, 0), "{make:?}");
            assert_eq!(stat.mode & 0o2000, 0, "{make:?}");
            let acl = union.getxattr(made.id, ACCESS.as_bytes());
            assert_eq!(acl, Err(Errno::NODATA), "{make:?}");
        }
    }
}

#[test]
fn removing_an_acl_that_is_not_there_succeeds() {
    let stack = Stack::new(WhiteoutForm::Aufs);
    fs::create_dir(stack.lower("d")).unwrap();
    let union = stack.union();
    let id = walk(&union, "d").unwrap();
    for attr in [ACCESS, DEFAULT] {
        assert_eq!(union.removexattr(id, attr.as_bytes()), Ok(()), "{attr}");
    }
    assert_eq!(union.removexattr(id, b"user.none"), Err(Errno::NODATA));
}

#[test]
fn a_directory_that_is_renamed_to_a_lowers_name_keeps_its_time() {
    for form in FORMS {
        for flags in [0, 2] {
            let stack = Stack::new(form);
            for dir in ["from", "to"] {
                fs::create_dir(stack.lower(dir)).unwrap();
                set_times(&stack.lower(dir), OLD);
            }
            let union = stack.union();
            let id = walk(&union, "from").unwrap();
            union.rename(ROOT, b"from", ROOT, b"to", flags).unwrap();
            assert_eq!(mtime(&union, id), OLD, "{form:?}, flags {flags}");
            assert_eq!(walk(&union, "to").unwrap(), id);
        }
    }
}

#[test]
fn renaming_a_directory_with_a_merged_directory_in_it_loses_nothing() {
    for form in FORMS {
        let stack = Stack::new(form);
        fs::create_dir_all(stack.lower("a/sub")).unwrap();
        fs::write(stack.lower("a/sub/one"), "1").unwrap();
        fs::write(stack.lower("a/sub/two"), "2").unwrap();
        let union = stack.union();
        let write = OpenMode {
            append: false,
            write: true,
            truncate: false,
        };
        // Now `a` and `sub` are in the upper, and `sub` is merged with the lower's one.
        union
            .open(walk(&union, "a/sub/one").unwrap(), write, BY_ROOT)
            .unwrap();
        let result = union.rename(ROOT, b"a", ROOT, b"b", 0);
        assert!(matches!(result, Ok(()) | Err(Errno::XDEV)), "{result:?}");
        drop(union);
        let union = stack.union();
        let at = if result.is_ok() { "b" } else { "a" };
        for name in ["one", "two"] {
            let path = format!("{at}/sub/{name}");
            assert!(walk(&union, &path).is_ok(), "{path} after {result:?}");
        }
    }
}

#[test]
fn the_number_of_a_known_file_stays_when_it_is_copied_up() {
    let stack = Stack::new(WhiteoutForm::Aufs);
    fs::write(stack.lower("a"), "").unwrap();
    let union = stack.union();
    let id = walk(&union, "a").unwrap();
    let before = union.getattr(id).unwrap().ino;
    let write = OpenMode {
        append: false,
        write: true,
        truncate: false,
    };
    union.open(id, write, BY_ROOT).unwrap();
    assert_eq!(union.getattr(id).unwrap().ino, before, "after the copy-up");
    let again = union.lookup(ROOT, b"a").unwrap().unwrap();
    assert_eq!((again.id, again.attr.ino), (id, before), "looked up again");
}

#[test]
fn what_a_layer_lost_behind_our_back_is_looked_for_anew() {
    let stack = Stack::new(WhiteoutForm::Aufs);
    let lower = stack.base.path().join("lower");
    fs::create_dir(lower.join("d")).unwrap();
    for name in ["d/gone", "d/other"] {
        fs::write(lower.join(name), "x").unwrap();
    }
    fs::create_dir(lower.join("d/dir")).unwrap();
    let union = stack.union();
    let dir = union.lookup(ROOT, b"d").unwrap().unwrap();
    let list = || {
        let mut names = Vec::new();
        let each = |entry: &unionfs::union::DirEntry| {
            names.push(entry.name.to_vec());
            true
        };
        union.readdir(dir.id, 0, each).unwrap();
        names.sort();
        names
    };
    assert_eq!(list(), [&b"."[..], b"..", b"dir", b"gone", b"other"]);
    fs::remove_file(lower.join("d/gone")).unwrap();
    fs::remove_dir(lower.join("d/dir")).unwrap();
    fs::write(lower.join("d/dir"), "no directory").unwrap();
    assert!(union.lookup(dir.id, b"gone").unwrap().is_none());
    assert_eq!(union.unlink(dir.id, b"gone"), Err(Errno::NOENT));
    let other = union.lookup(dir.id, b"dir").unwrap().unwrap();
    assert_eq!(other.attr.kind(), unionfs::union::FileKind::Regular);
    assert_eq!(list(), [&b"."[..], b"..", b"dir", b"other"]);
    union.unlink(dir.id, b"other").unwrap();
    assert_eq!(list(), [&b"."[..], b"..", b"dir"]);
    union.forget(other.id, 1);
    union.forget(dir.id, 1);
}

#[test]
fn ranges_of_one_file_may_not_overlap_though_its_data_are_in_a_lower() {
    let stack = Stack::new(WhiteoutForm::Aufs);
    fs::write(stack.lower("f"), vec![b'x'; 40_000]).unwrap();
    let options = Options {
        lowers: vec![stack.lower("").into()],
        upper: Some(stack.upper("")),
        metacopy: true,
        ..Options::default()
    };
    let union = open_union(&options).unwrap();
    let id = walk(&union, "f").unwrap();
    let set = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    union.setattr(id, &set, BY_ROOT).unwrap();
    let copied = union.copy_range((id, 0), None, (id, 100), 4097, BY_ROOT);
    assert_eq!(copied, Err(Errno::INVAL));
    assert_eq!(
        union.copy_range((id, 0), None, (id, 30_000), 4097, BY_ROOT),
        Ok(4097)
    );
}
