//! What the kernel keeps of attributes and listings is what the daemon would say, after each change:
//! they are kept without end, so whatever changes by more than the kernel sees has to be told.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{DirEntryExt, FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{AtFlags, CWD, OFlags, RenameFlags, Statx, StatxFlags};

use crate::dialects;
use crate::process::{CACHES, finish, unionfs};
use crate::spec::Dialect;
use crate::support::{Mount, Stack};

/// Attributes that are compared, by name.
type Shown = Vec<(&'static str, u64)>;

fn attributes(path: &Path, how: AtFlags) -> Shown {
    let flags = AtFlags::SYMLINK_NOFOLLOW | how;
    let s: Statx = rustix::fs::statx(CWD, path, flags, StatxFlags::BASIC_STATS).unwrap();
    let time =
        |t: rustix::fs::StatxTimestamp| t.tv_sec.cast_unsigned() << 30 | u64::from(t.tv_nsec);
    vec![
        ("mode", s.stx_mode.into()),
        ("links", s.stx_nlink.into()),
        ("uid", s.stx_uid.into()),
        ("gid", s.stx_gid.into()),
        ("ino", s.stx_ino),
        ("size", s.stx_size),
        ("blocks", s.stx_blocks),
        ("atime", time(s.stx_atime)),
        ("mtime", time(s.stx_mtime)),
        ("ctime", time(s.stx_ctime)),
    ]
}

/// All objects of the mount.
fn paths(m: &Mount) -> Vec<PathBuf> {
    let mut found = vec![m.path().to_owned()];
    let mut at = 0;
    while let Some(path) = found.get(at).cloned() {
        at += 1;
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            found.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
    }
    found
}

/// Does `change`, then compares what the kernel has with what it gets when it must ask.
#[track_caller]
fn after(m: &Mount, what: &str, change: impl FnOnce()) {
    compare(m, what, false, change);
}

/// The same of what has the daemon copy without a change that a user asked for. That leaves no trace in what
/// the kernel knows, but in a time of change and in blocks, which are those of the copy once it asks.
#[track_caller]
fn after_copying(m: &Mount, what: &str, change: impl FnOnce()) {
    compare(m, what, true, change);
}

#[track_caller]
fn compare(m: &Mount, what: &str, copies: bool, change: impl FnOnce()) {
    // Everything is known before, after the reading that changes access times.
    for path in paths(m) {
        attributes(&path, AtFlags::empty());
    }
    change();
    let known = paths(m);
    let kept: BTreeMap<_, _> = known
        .iter()
        .map(|p| (p, attributes(p, AtFlags::empty())))
        .collect();
    let mut wrong = Vec::new();
    for path in &known {
        let asked = attributes(path, AtFlags::STATX_FORCE_SYNC);
        let is_dir = fs::symlink_metadata(path).unwrap().is_dir();
        // What is copied up into a directory, or with it, is such a copy.
        let traces = ["ctime", "blocks", "atime"];
        let may_stay =
            |name| (is_dir || copies) && traces.contains(&name) || is_dir && name == "size";
        for (old, new) in kept[path].iter().zip(&asked) {
            if old == new || may_stay(old.0) {
                continue;
            }
            let path = path.strip_prefix(m.path()).unwrap().display();
            wrong.push(format!(
                "{path}: {} is kept as {}, but is {}",
                old.0, old.1, new.1
            ));
        }
    }
    assert!(wrong.is_empty(), "after {what}:\n{}", wrong.join("\n"));
}

fn stack(dialect: Dialect, options: &str) -> Mount {
    let more = [
        "a/f=text",
        "a/g=text",
        "a/s/h=text",
        "a/s/deep/i=text",
        "b/",
        "p=p",
        "p~q",
        "p~a/r",
        "c/l->x",
    ];
    let big = format!("a/big={}", "x".repeat(40_000));
    Stack::of(dialect)
        .upper(["up/f=1", "up/f~up/g", "up/d/"])
        .lower(more.map(str::to_owned).into_iter().chain([big]))
        .lower(["a/t/j=text", "a/s/k=text", "b/m/n=1"].map(str::to_owned))
        .mount_with(options)
}

fn changes(m: &Mount) {
    let at = |name: &str| m.p(name);
    let write = |name: &str| fs::OpenOptions::new().write(true).open(at(name)).unwrap();
    after(m, "reading", || drop(fs::read(at("up/f")).unwrap()));
    after(m, "reading a lower", || drop(fs::read(at("a/f")).unwrap()));
    after_copying(m, "open for writing", || drop(write("a/s/deep/i")));
    after(m, "a write", || {
        write("a/s/h").write_all_at(b"T", 1).unwrap();
    });
    after(m, "cutting", || write("a/big").set_len(10_000).unwrap());
    after(m, "chmod", || {
        fs::set_permissions(at("a/t/j"), Permissions::from_mode(0o600)).unwrap();
    });
    after(m, "an attribute", || {
        xattr::set(at("a/g"), "user.k", b"v").unwrap();
    });
    after(m, "mkdir", || fs::create_dir(at("up/d/new")).unwrap());
    after(m, "a file", || {
        fs::write(at("up/d/new/file"), "text").unwrap();
    });
    after(m, "a symlink", || {
        symlink("x", at("up/d/new/link")).unwrap();
    });
    after(m, "link in the upper", || {
        fs::hard_link(at("up/f"), at("up/d/h")).unwrap();
    });
    after(m, "unlink of one of several", || {
        fs::remove_file(at("up/g")).unwrap();
    });
    after(m, "link of a lower's", || {
        fs::hard_link(at("p"), at("c/p")).unwrap();
    });
    after(m, "unlink of a lower's", || {
        fs::remove_file(at("q")).unwrap();
    });
    after(m, "rename over one of several", || {
        fs::rename(at("up/d/new/file"), at("c/p")).unwrap();
    });
    after(m, "rename of a file", || {
        fs::rename(at("a/g"), at("up/g")).unwrap();
    });
    after(m, "rename of a directory to another", || {
        fs::rename(at("up/d"), at("c/d")).unwrap();
    });
    after_copying(m, "rename of a merged directory", || {
        fs::rename(at("a"), at("c/a")).unwrap();
    });
    after_copying(m, "exchange", || {
        rustix::fs::renameat_with(CWD, at("c/a"), CWD, at("b/m"), RenameFlags::EXCHANGE).unwrap();
    });
    after(m, "whiteout", || {
        rustix::fs::renameat_with(CWD, at("b/m/f"), CWD, at("f"), RenameFlags::WHITEOUT).unwrap();
    });
    after(m, "copy_file_range", || {
        let (from, to) = (fs::File::open(at("up/f")).unwrap(), write("up/g"));
        rustix::fs::copy_file_range(from, None, to, None, 1).unwrap();
    });
    after(m, "chattr", || {
        let file = fs::File::open(at("up/f")).unwrap();
        let flags = rustix::fs::ioctl_getflags(&file).unwrap();
        rustix::fs::ioctl_setflags(&file, flags | rustix::fs::IFlags::NODUMP).unwrap();
    });
    after(m, "removal of a tree", || {
        fs::remove_dir_all(at("b/m")).unwrap();
    });
}

dialects! {
    fn attributes_are_those_of_the_daemon(dialect) {
        let _kept = CACHES.read();
        for way in ["cached", "none", "none,writeback=0"] {
            for options in ["", ",rename_dir=redirect,metacopy=on"] {
                let mut m = stack(dialect, &format!("open={way}{options}"));
                changes(&m);
                // Whoever keeps times and sizes meanwhile, they are stored.
                let stored = |m: &Mount| {
                    let of = |path: &PathBuf| {
                        let all = attributes(path, AtFlags::empty());
                        let late = ["atime", "ctime", "blocks"];
                        all.into_iter().filter(|(name, _)| !late.contains(name)).collect::<Vec<_>>()
                    };
                    paths(m).into_iter().map(|p| (of(&p), p)).collect::<Vec<_>>()
                };
                let mut before = stored(&m);
                m.remount();
                let mut after = stored(&m);
                before.sort();
                after.sort();
                assert_eq!(before, after);
            }
        }
    }
}

#[test]
fn a_flush_of_linked_files_changes_the_number_of_names() {
    let m = stack(Dialect::Aufs, "");
    after(&m, "a link", || {
        fs::hard_link(m.p("p"), m.p("c/p")).unwrap();
    });
    after(&m, "a removal", || fs::remove_file(m.p("q")).unwrap());
    after_copying(&m, "flush", || {
        let outcome = finish(
            Command::new(unionfs())
                .args(["plink", "flush"])
                .arg(m.path()),
        );
        assert!(outcome.status.success(), "{}", outcome.stderr);
    });
}

/// The number of `..` in a listing that the kernel keeps is that of the parent.
#[test]
fn a_moved_directory_lists_its_new_parent() {
    let m = Stack::new().upper(["a/d/f", "b/"]).lower(["x"]).mount();
    let parent = || {
        let dir = crate::process::open_file(
            m.p(if m.p("a/d").exists() { "a/d" } else { "b/d" }),
            OFlags::RDONLY,
            rustix::fs::Mode::empty(),
        );
        let mut all = rustix::fs::Dir::new(dir.unwrap()).unwrap();
        all.find_map(|e| {
            e.ok()
                .filter(|e| e.file_name().to_bytes() == b"..")
                .map(|e| e.ino())
        })
        .unwrap()
    };
    assert_eq!(parent(), m.stat("a").unwrap().st_ino);
    assert_eq!(parent(), m.stat("a").unwrap().st_ino);
    m.rename("a/d", "b/d").unwrap();
    assert_eq!(parent(), m.stat("b").unwrap().st_ino);
    let listed = fs::read_dir(m.p("b")).unwrap().next().unwrap().unwrap();
    assert_eq!(listed.ino(), m.stat("b/d").unwrap().st_ino);
}
