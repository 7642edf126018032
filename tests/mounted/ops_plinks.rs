//! Linked files of a lower beyond the conformance table: every kind, every change, every way to
//! look at them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use rustix::fs::{AtFlags, CWD, OFlags};

use crate::calls::contents;
use crate::dialects;
use crate::fails;
use crate::plinks::{Entry, append, entries, flush, list};
use crate::process::{finish, following, run, unionfs};
use crate::spec::Dialect;
use crate::support::{Mount, Stack};

const RECORD: &str = "trusted.unionfs.plink";

/// Number and link count.
fn same(m: &Mount, names: &[&str], nlink: u64) {
    let number = m.stat(names[0]).unwrap().st_ino;
    for name in names {
        let stat = m.stat(name).unwrap();
        assert_eq!((stat.st_ino, stat.st_nlink), (number, nlink), "{name}");
    }
}

dialects! {
    fn every_kind_of_object(dialect) {
        let mut m = Stack::of(dialect)
            .lower(["a=1", "a~d/a", "s->t", "s~d/s", "fifo(p)", "p~d/p", "chr(n,1,3)", "n~d/n"])
            .mount();
        for name in ["a", "s", "p", "n"] {
            let other = format!("d/{name}");
            let before = m.stat(name).unwrap();
            same(&m, &[name, &other], 2);
            m.chown(name, 7, 8).unwrap();
            for _ in 0..2 {
                same(&m, &[name, &other], 2);
                let stat = m.stat(&other).unwrap();
                assert_eq!((stat.st_uid, stat.st_ino), (7, before.st_ino), "{name}");
                assert_eq!((stat.st_mode, stat.st_rdev), (before.st_mode, before.st_rdev));
                m.remount();
            }
            m.rename(&other, "moved").unwrap();
            same(&m, &[name, "moved"], 2);
            m.link(name, "linked").unwrap();
            same(&m, &[name, "moved", "linked"], 3);
            m.unlink(name).unwrap();
            m.remount();
            same(&m, &["moved", "linked"], 2);
            assert_eq!(m.stat("linked").unwrap().st_uid, 7);
            m.unlink("moved").unwrap();
            m.unlink("linked").unwrap();
            assert_eq!(entries(&m).len(), 0, "{name}");
        }
    }

    fn names_taken_away_without_a_copy(dialect) {
        let mut m = Stack::of(dialect).upper(["x=x"])
            .lower(["a=1", "a~b", "a~c", "a~d/e"]).mount();
        same(&m, &["a", "b", "c", "d/e"], 4);
        m.unlink("b").unwrap();
        for _ in 0..2 {
            same(&m, &["a", "c", "d/e"], 3);
            m.remount();
        }
        m.write("b", "another").unwrap();
        m.rename("x", "c").unwrap();
        for _ in 0..2 {
            same(&m, &["a", "d/e"], 2);
            m.assert_file("c", "x");
            m.remount();
        }
        // Nothing of its data was copied for that.
        fails!(rustix::fs::lstat(m.up("a")), NOENT);
        append(&m, "d/e", "2");
        for _ in 0..2 {
            same(&m, &["a", "d/e"], 2);
            m.assert_file("a", "12");
            m.remount();
        }
        fs::remove_dir_all(m.p("d")).unwrap();
        same(&m, &["a"], 1);
        m.unlink("a").unwrap();
        assert_eq!(entries(&m).len(), 0);
        m.remount();
        m.assert_ls("", &["b", "c"]);
    }

    fn an_open_file_without_a_name(dialect) {
        let mut m = Stack::of(dialect).lower(["a=1", "a~b", "p=2", "p~q"]).mount_with(following());
        let early = m.open("a", OFlags::RDONLY).unwrap();
        let late = m.open("b", OFlags::RDWR).unwrap();
        let lower = m.open("p", OFlags::RDONLY).unwrap();
        for name in ["b", "a", "q", "p"] {
            m.unlink(name).unwrap();
        }
        assert_eq!(entries(&m).len(), 0);
        rustix::io::pwrite(&late, b"x", 1).unwrap();
        assert_eq!(contents(&early), b"1x");
        assert_eq!(contents(&lower), b"2");
        for fd in [&early, &late, &lower] {
            assert_eq!(rustix::fs::fstat(fd).unwrap().st_nlink, 0);
        }
        fails!(rustix::fs::linkat(&early, "", CWD, m.p("n"), AtFlags::EMPTY_PATH), NOENT);
        drop((early, late, lower));
        m.remount();
        m.assert_ls("", &[]);
    }

    fn noplink_parts_the_names(dialect) {
        let mut m = Stack::of(dialect).lower(["a=old", "a~b", "a~c"]).mount_with("noplink");
        append(&m, "a", "new");
        for _ in 0..2 {
            m.assert_file("a", "oldnew");
            m.assert_file("b", "old");
            assert_eq!(m.stat("a").unwrap().st_nlink, 1);
            assert_ne!(m.stat("a").unwrap().st_ino, m.stat("b").unwrap().st_ino);
            assert!(!m.up(".wh..wh.plnk").exists());
            m.remount();
        }
        // What was parted stays so.
        m.unmount();
        m.mount_again_with("plink");
        append(&m, "b", "er");
        m.assert_file("c", "older");
        m.assert_file("a", "oldnew");
        assert_eq!(entries(&m).len(), 1);
        // And entries of a mount with plink are not followed, nor counted.
        m.unmount();
        m.mount_again_with("noplink");
        m.assert_file("b", "older");
        assert_eq!(m.stat("b").unwrap().st_nlink, if m.up("c").exists() { 2 } else { 1 });
        assert_eq!(entries(&m).len(), 1);
    }

    fn flushed_off_line(dialect) {
        let mut m = Stack::of(dialect)
            .lower(["a=1", "a~d/b", "p=2", "p~d/e/q", "p~d/r"])
            .mount();
        append(&m, "a", "+");
        append(&m, "d/r", "+");
        m.unlink("p").unwrap();
        let live = list(m.path());
        assert_eq!(live.len(), 4, "{live:?}");
        m.unmount();
        let upper = m.layers.upper_path().to_owned();
        let outcome = run(&["plink".as_ref(), "flush".as_ref(), upper.as_os_str()]);
        assert_eq!(outcome.status.code(), Some(1));
        assert!(outcome.stderr.contains("lowerdir"), "{}", outcome.stderr);
        let options = m.layers.options("");
        for verb in ["list", "flush"] {
            let mut command = Command::new(unionfs());
            command.args(["plink", verb, "-o"]).arg(&options).arg(&upper);
            let outcome = finish(&mut command);
            assert!(outcome.status.success(), "{}", outcome.stderr);
            if verb == "list" {
                assert_eq!(outcome.stdout.lines().collect::<Vec<_>>(), live);
            }
        }
        assert!(!upper.join(".wh..wh.plnk").exists());
        let number = |name: &str| fs::metadata(upper.join(name)).map(|meta| (meta.ino(), meta.nlink()));
        assert_eq!(number("a").unwrap(), (number("d/b").unwrap().0, 2));
        assert_eq!(number("d/r").unwrap(), (number("d/e/q").unwrap().0, 2));
        m.mount_again();
        same(&m, &["a", "d/b"], 2);
        same(&m, &["d/r", "d/e/q"], 2);
        m.assert_file("d/e/q", "2+");
        assert_eq!(list(m.path()), [""; 0]);
    }

    fn flushed_at_unmount(dialect) {
        let mut m = Stack::of(dialect).lower(["a=1", "a~d/b"]).mount_with("plink_flush=umount");
        append(&m, "a", "+");
        let number = m.stat("a").unwrap().st_ino;
        m.unmount();
        assert_eq!(entries(&m).len(), 0);
        assert_eq!(fs::read(m.up("d/b")).unwrap(), b"1+");
        m.mount_again();
        same(&m, &["a", "d/b"], 2);
        assert_eq!(m.stat("d/b").unwrap().st_ino, number);
    }
}

#[test]
fn names_of_one_file_in_two_layers() {
    let layers = Stack::new().lower(["a=1"]).lower(["x"]).build();
    fs::hard_link(layers.lowers[0].join("a"), layers.lowers[1].join("b")).unwrap();
    let mut m = layers.mount();
    same(&m, &["a", "b"], 2);
    append(&m, "b", "2");
    for _ in 0..2 {
        same(&m, &["a", "b"], 2);
        m.assert_file("a", "12");
        m.remount();
    }
    m.unlink("a").unwrap();
    m.remount();
    same(&m, &["b"], 1);
    m.assert_file("b", "12");
}

#[test]
fn a_read_only_mount_of_the_same_upper_shows_the_same() {
    let mut m = Stack::new()
        .lower(["a=1", "a~b", "p=2", "p~q", "p~r"])
        .mount();
    append(&m, "a", "2");
    m.unlink("q").unwrap();
    m.unmount();
    m.mount_again_with("ro");
    same(&m, &["a", "b"], 2);
    same(&m, &["p", "r"], 2);
    m.assert_file("b", "12");
    assert_eq!(list(m.path()).len(), 2);
    let outcome = run(&["plink".as_ref(), "flush".as_ref(), m.path().as_os_str()]);
    assert_eq!(outcome.status.code(), Some(1));
}

/// An upper may be moved with all its links; the names go on following.
#[test]
fn a_copied_upper() {
    let mut m = Stack::new().lower(["a=1", "a~b"]).mount();
    append(&m, "a", "2");
    let number = m.stat("a").unwrap().st_ino;
    m.unmount();
    let (upper, moved) = (
        m.layers.upper_path().to_owned(),
        m.layers.scratch().join("moved"),
    );
    let copied = Command::new("cp")
        .arg("-a")
        .arg(&upper)
        .arg(&moved)
        .status();
    assert!(copied.unwrap().success());
    fs::remove_dir_all(&upper).unwrap();
    let copied = Command::new("cp")
        .arg("-a")
        .arg(&moved)
        .arg(&upper)
        .status();
    assert!(copied.unwrap().success());
    fs::remove_dir_all(&moved).unwrap();
    m.mount_again();
    for _ in 0..2 {
        same(&m, &["a", "b"], 2);
        m.assert_file("b", "12");
        assert_eq!(m.stat("b").unwrap().st_ino, number);
        m.remount();
    }
    m.unlink("a").unwrap();
    same(&m, &["b"], 1);
    m.unlink("b").unwrap();
    assert_eq!(entries(&m).len(), 0);
}

/// A lower that was changed between two mounts: its file is not the one that was copied.
#[test]
fn another_file_with_the_same_number() {
    let layers = Stack::new().lower(["a=1", "a~b"]).build();
    let lower = layers.lowers[0].clone();
    let options = layers.options("");
    let mount = || {
        let outcome = run(&["-o".as_ref(), options.as_os_str(), layers.mnt.as_os_str()]);
        assert!(outcome.status.success(), "{}", outcome.stderr);
    };
    let unmount = || {
        let outcome = run(&["umount".as_ref(), layers.mnt.as_os_str()]);
        assert!(outcome.status.success(), "{}", outcome.stderr);
    };
    mount();
    fs::write(layers.mnt.join("a"), "copy").unwrap();
    unmount();
    fs::write(lower.join("b"), "another").unwrap();
    mount();
    let read = |name: &str| fs::read_to_string(layers.mnt.join(name)).unwrap();
    let (a, b) = (read("a"), read("b"));
    unmount();
    // `b` may have got its place in the upper before.
    let expected = if layers.upper_path().join("b").exists() {
        "copy"
    } else {
        "another"
    };
    assert_eq!((a.as_str(), b.as_str()), ("copy", expected));
}

/// Records can be forged by whoever may write the upper's reserved directory; a file does not become
/// a directory by that, and nothing hangs.
#[test]
fn an_entry_of_another_kind() {
    let mut m = Stack::new().lower(["a=1", "a~b"]).mount();
    append(&m, "a", "2");
    let record = xattr::get(m.up("a"), RECORD).unwrap().unwrap();
    m.unmount();
    let [Entry { name, ino }] = &entries(&m)[..] else {
        panic!("one entry")
    };
    let number = name.split_once('.').unwrap().0.to_owned();
    let record = String::from_utf8(record).unwrap();
    let plinks = m.up(".wh..wh.plnk");
    fs::remove_file(plinks.join(name)).unwrap();
    let _ = fs::remove_file(m.up("b"));
    fs::remove_file(m.up("a")).unwrap();
    fs::create_dir(plinks.join("new")).unwrap();
    let new = fs::metadata(plinks.join("new")).unwrap().ino();
    let place = plinks.join(format!("{number}.{new}"));
    fs::rename(plinks.join("new"), &place).unwrap();
    let record = record.replacen(&ino.to_string(), &new.to_string(), 1);
    xattr::set(&place, RECORD, record.as_bytes()).unwrap();
    m.mount_again();
    same(&m, &["a", "b"], 2);
    m.assert_file("b", "1");
    append(&m, "b", "3");
    m.assert_file("a", "13");
    m.remount();
    m.assert_file("a", "13");
}

/// Somebody takes an entry away under a live mount: an error, as its data are gone.
#[test]
fn an_entry_that_vanishes() {
    let layers = Stack::new().lower(["a=1", "a~d/b"]).build();
    let m = layers.mount();
    m.chmod("a", 0o600).unwrap();
    let [Entry { name, .. }] = &entries(&m)[..] else {
        panic!("one entry")
    };
    let _ = fs::remove_file(m.up("d/b"));
    fs::remove_file(m.up(".wh..wh.plnk").join(name)).unwrap();
    fails!(m.stat("d/b"), IO);
    m.assert_ls("", &["a", "d"]);
}

/// A crash within a flush may leave the record of an entry that is gone; the next flush takes it.
#[test]
fn a_record_without_its_entry() {
    let mut m = Stack::new().lower(["a=1", "a~b", "p=2", "p~q"]).mount();
    m.unlink("p").unwrap();
    let number = m.stat("a").unwrap().st_ino;
    m.unmount();
    let plinks = m.up(".wh..wh.plnk");
    std::os::unix::fs::symlink("1 77 1 2 0 0", plinks.join(format!("{number}.0"))).unwrap();
    m.mount_again();
    for _ in 0..2 {
        same(&m, &["a", "b"], 2);
        same(&m, &["q"], 1);
        assert_eq!(entries(&m).len(), 2);
        m.remount();
    }
    flush(&m);
    assert_eq!(entries(&m).len(), 1);
    m.remount();
    same(&m, &["a", "b"], 2);
    same(&m, &["q"], 1);
}

/// Numbers that users see cut are not the ones that entries go by.
#[test]
fn flushed_with_short_numbers() {
    let lower = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = |name: &str| lower.path().join(name);
    fs::create_dir(path("d")).unwrap();
    fs::write(path("a"), "1").unwrap();
    for name in ["b", "d/c"] {
        fs::hard_link(path("a"), path(name)).unwrap();
    }
    let options = format!("ino32_t,lowerdir+={}", lower.path().display());
    let mut m = Stack::new().lower(["x=0"]).mount_with(&options);
    append(&m, "a", "2");
    assert_eq!(list(m.path()).len(), 3);
    flush(&m);
    for _ in 0..2 {
        assert_eq!(entries(&m).len(), 0);
        same(&m, &["a", "b", "d/c"], 3);
        m.assert_file("d/c", "12");
        m.remount();
    }
}
