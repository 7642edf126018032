//! Conformance rows about linked files of a lower: 51-54 (see docs/FORMAT.md).

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use rustix::fs::OFlags;

use crate::dialects;
use crate::fails;
use crate::plinks::{append, entries, flush};
use crate::spec::Dialect;
use crate::support::Stack;

/// How directories are renamed, and where data may stay: of no matter for names of files.
const MODES: [&str; 3] = ["", "rename_dir=redirect,metacopy=on", "rename_dir=exdev"];

dialects! {
    fn row_51_names_follow(dialect) {
        MODES.into_iter().for_each(|mode| row_51(dialect, mode));
    }

    fn row_52_link_of_a_lower_file(dialect) {
        for mode in MODES {
            row_52(dialect, &format!("plink,{mode}"));
            row_52(dialect, &format!("noplink,{mode}"));
        }
    }

    fn row_53_the_changed_name_goes(dialect) {
        MODES.into_iter().for_each(|mode| row_53(dialect, mode));
    }

    fn row_54_an_entry_of_someone_else(dialect) {
        for mode in MODES {
            // With any number, and with the one that the lower file shows.
            row_54(dialect, mode, false);
            row_54(dialect, mode, true);
        }
    }
}

fn row_51(dialect: Dialect, mode: &str) {
    let mut m = Stack::of(dialect).lower(["a=old", "a~b"]).mount_with(mode);
    let before = m.stat("a").unwrap();
    assert_eq!(
        (before.st_ino, before.st_nlink),
        (m.stat("b").unwrap().st_ino, 2)
    );
    append(&m, "a", "new");
    for _ in 0..2 {
        for name in ["a", "b"] {
            let stat = m.stat(name).unwrap();
            assert_eq!((stat.st_ino, stat.st_nlink), (before.st_ino, 2), "{name}");
            m.assert_file(name, "oldnew");
        }
        let inside = fs::symlink_metadata(m.up("a")).unwrap();
        let entries = entries(&m);
        assert_eq!(entries.len(), 1, "{entries:?}");
        assert_eq!(
            entries[0].name,
            format!("{}.{}", before.st_ino, inside.ino())
        );
        assert_eq!(entries[0].ino, inside.ino());
        m.remount();
    }
    flush(&m);
    for _ in 0..2 {
        assert_eq!(entries(&m).len(), 0);
        let (a, b) = (
            fs::metadata(m.up("a")).unwrap(),
            fs::metadata(m.up("b")).unwrap(),
        );
        assert_eq!((a.ino(), a.nlink()), (b.ino(), 2));
        for name in ["a", "b"] {
            let stat = m.stat(name).unwrap();
            assert_eq!((stat.st_ino, stat.st_nlink), (before.st_ino, 2), "{name}");
            m.assert_file(name, "oldnew");
        }
        m.remount();
    }
    m.assert_upper(["a", "b"]);
}

fn row_52(dialect: Dialect, option: &str) {
    let mut m = Stack::of(dialect).lower(["a=1"]).mount_with(option);
    let before = m.stat("a").unwrap().st_ino;
    m.link("a", "c").unwrap();
    for _ in 0..2 {
        for name in ["a", "c"] {
            let stat = m.stat(name).unwrap();
            assert_eq!((stat.st_ino, stat.st_nlink), (before, 2), "{option} {name}");
            m.assert_file(name, "1");
        }
        m.remount();
    }
    flush(&m);
    let (a, c) = (
        fs::metadata(m.up("a")).unwrap(),
        fs::metadata(m.up("c")).unwrap(),
    );
    assert_eq!((a.ino(), a.nlink()), (c.ino(), 2), "{option}");
    assert_eq!(entries(&m).len(), 0);
    assert!(!m.up(".wh..wh.plnk").exists(), "{option}");
}

fn row_53(dialect: Dialect, mode: &str) {
    let mut m = Stack::of(dialect).lower(["a=old", "a~b"]).mount_with(mode);
    let before = m.stat("b").unwrap().st_ino;
    append(&m, "a", "new");
    m.unlink("a").unwrap();
    for _ in 0..2 {
        fails!(m.stat("a"), NOENT);
        m.assert_file("b", "oldnew");
        let stat = m.stat("b").unwrap();
        assert_eq!((stat.st_ino, stat.st_nlink), (before, 1));
        assert_eq!(entries(&m).len(), 1);
        m.remount();
    }
    let left: Vec<String> = m
        .afterwards()
        .into_iter()
        .filter(|entry| entry != "b")
        .collect();
    assert_eq!(left, ["wh(a)"]);
    m.unlink("b").unwrap();
    assert_eq!(entries(&m).len(), 0);
    m.remount();
    m.assert_ls("", &[]);
    m.assert_upper(["wh(a)", "wh(b)"]);
}

fn row_54(dialect: Dialect, mode: &str, of_lower: bool) {
    let layers = Stack::of(dialect)
        .upper(["a=new"])
        .lower(["a=old", "a~b"])
        .build();
    let plinks = layers.upper_path().join(".wh..wh.plnk");
    fs::create_dir(&plinks).unwrap();
    fs::set_permissions(&plinks, fs::Permissions::from_mode(0o700)).unwrap();
    let inside = fs::metadata(layers.upper_path().join("a")).unwrap().ino();
    let lower = fs::metadata(layers.lowers[0].join("b")).unwrap().ino();
    let entry = plinks.join(format!("{}.{inside}", if of_lower { lower } else { 100 }));
    fs::hard_link(layers.upper_path().join("a"), &entry).unwrap();
    let mut m = layers.mount_with(mode);
    for _ in 0..2 {
        m.assert_file("b", "old");
        m.assert_file("a", "new");
        let stat = m.stat("a").unwrap();
        assert_eq!(stat.st_nlink, 1);
        assert_ne!(stat.st_ino, m.stat("b").unwrap().st_ino);
        assert!(entry.exists());
        m.remount();
    }
    append(&m, "b", "er");
    for _ in 0..2 {
        m.assert_file("b", "older");
        m.assert_file("a", "new");
        m.remount();
    }
    flush(&m);
    assert!(!entry.exists());
    m.assert_file("b", "older");
    m.assert_file("a", "new");
    assert_eq!(m.stat("a").unwrap().st_nlink, 1);
}

/// What aufs's own tools rely on: the numbers in an entry's name, and what the entry is.
#[test]
fn row_51_as_aufs_tools_look_at_it() {
    let m = Stack::new()
        .lower(["a=old", "a~b", "s->t", "s~z", "fifo(p)", "p~q"])
        .mount();
    append(&m, "a", "new");
    m.chown("s", 7, 7).unwrap();
    m.chown("p", 7, 7).unwrap();
    let found = entries(&m);
    assert_eq!(found.len(), 3);
    for entry in found {
        let (number, inside) = entry.name.split_once('.').unwrap();
        // auplink: which names have this number?
        let find = Command::new("find")
            .arg(m.path())
            .args(["-inum", number])
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(find.stdout).unwrap().lines().count(),
            2,
            "{number}"
        );
        // auchk: which objects of the branch have this one?
        assert_eq!(inside.parse::<u64>().unwrap(), entry.ino);
    }
    let fd = m.open("b", OFlags::RDONLY).unwrap();
    assert_eq!(crate::calls::contents(&fd), b"oldnew");
}
