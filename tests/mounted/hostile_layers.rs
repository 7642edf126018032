//! Layers that somebody else made, with bad intent: marks and records of every wrong kind.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::bare::Bare;
use crate::calls::list;
use crate::fails;
use crate::support::Stack;

/// What may stand at a name.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Symlink,
    Dangling,
    File,
    Fifo,
    Device,
    Empty,
    Directory,
}

const ALL: [Kind; 7] = [
    Kind::Symlink,
    Kind::Dangling,
    Kind::File,
    Kind::Fifo,
    Kind::Device,
    Kind::Empty,
    Kind::Directory,
];

impl Kind {
    /// Makes it at `path`, two levels below where the layers are.
    fn make(self, path: &Path) {
        let node = |kind, device| rustix::fs::mknodat(CWD, path, kind, Mode::RWXU, device);
        match self {
            Self::Symlink => symlink("../secret", path).unwrap(),
            Self::Dangling => symlink("../nowhere", path).unwrap(),
            Self::File => fs::write(path, "data").unwrap(),
            Self::Fifo => node(FileType::Fifo, 0).unwrap(),
            Self::Device => node(FileType::CharacterDevice, 0x103).unwrap(),
            Self::Empty => fs::create_dir(path).unwrap(),
            Self::Directory => {
                fs::create_dir_all(path.join(".wh..wh.00000000/z")).unwrap();
                fs::create_dir(path.join("5.6")).unwrap();
                symlink("../../secret", path.join(".wh..wh.00000001")).unwrap();
                symlink("../../../secret", path.join(".wh..wh.00000000/s")).unwrap();
                symlink("../../secret/f", path.join("0.0")).unwrap();
                symlink("../../secret", path.join("7.0")).unwrap();
                fs::write(path.join("9.10"), "x").unwrap();
                node_at(&path.join("7.8"), FileType::Fifo);
                node_at(&path.join("0.1"), FileType::Fifo);
            }
        }
    }

    fn is_dir(self) -> bool {
        matches!(self, Self::Empty | Self::Directory)
    }
}

fn node_at(path: &Path, kind: FileType) {
    rustix::fs::mknodat(CWD, path, kind, Mode::RWXU, 0).unwrap();
}

fn lower(bare: &Bare) {
    let l = bare.lower();
    fs::create_dir_all(l.join("d/in")).unwrap();
    for name in ["f", "g", "h", "d/x"] {
        fs::write(l.join(name), name).unwrap();
    }
    fs::hard_link(l.join("h"), l.join("h2")).unwrap();
}

/// A little of everything that needs marks, temporaries and pseudo-links.
fn work(mnt: &Path) {
    fs::write(mnt.join("f"), "changed").unwrap();
    fs::remove_file(mnt.join("g")).unwrap();
    fs::remove_dir_all(mnt.join("d")).unwrap();
    fs::create_dir(mnt.join("d")).unwrap();
    assert_eq!(list(&mnt.join("d")), [""; 0]);
    fs::write(mnt.join("h"), "both").unwrap();
    assert_eq!(fs::read_to_string(mnt.join("h2")).unwrap(), "both");
    symlink("t", mnt.join("s")).unwrap();
    fs::rename(mnt.join("f"), mnt.join("f2")).unwrap();
    node_at(&mnt.join("p"), FileType::Fifo);
    assert_eq!(list(mnt), ["d", "f2", "h", "h2", "p", "s"]);
}

/// The reserved names of an upper: what is no place for marks is refused with a word, never followed.
#[test]
fn metadata_of_the_wrong_type() {
    for name in [".wh..wh.plnk", ".wh..wh.orph", ".wh..wh.aufs"] {
        for kind in ALL {
            let mut bare = Bare::new("/tmp");
            lower(&bare);
            kind.make(&bare.upper().join(name));
            let is_right = kind.is_dir() != name.ends_with("aufs") && kind != Kind::Symlink;
            let is_right = is_right && (kind.is_dir() || kind == Kind::File);
            match bare.try_mount("", 30) {
                Ok(()) => {
                    assert!(is_right, "{name} {kind:?} was taken");
                    work(&bare.mnt());
                    bare.unmount();
                    bare.mount("", 30);
                    assert_eq!(fs::read_to_string(bare.mnt().join("h2")).unwrap(), "both");
                    bare.unmount();
                }
                Err(text) => assert!(!is_right && text.contains(name), "{name} {kind:?}: {text}"),
            }
            bare.assert_secret();
        }
    }
}

/// So is the place of temporaries in a workdir.
#[test]
fn the_place_of_temporaries_is_no_directory() {
    for kind in ALL {
        let mut bare = Bare::new("/tmp");
        lower(&bare);
        let workdir = bare.upper().with_file_name("w");
        fs::create_dir(&workdir).unwrap();
        kind.make(&workdir.join("work"));
        let options = format!(",workdir={},whiteout=overlay", workdir.display());
        match bare.try_mount(&options, 30) {
            Ok(()) => {
                assert!(kind.is_dir(), "{kind:?} was taken");
                work(&bare.mnt());
                bare.unmount();
            }
            Err(text) => {
                assert!(!kind.is_dir(), "{kind:?}: {text}");
                assert!(text.contains("work is not a directory"), "{text}");
            }
        }
        bare.assert_secret();
    }
}

/// Marks that are no files hide nothing by themselves; what they are about is EIO, and the rest works.
#[test]
fn marks_of_the_wrong_type_in_any_layer() {
    for kind in ALL {
        for in_upper in [false, true] {
            let mut bare = Bare::new("/tmp");
            lower(&bare);
            let layer = if in_upper { bare.upper() } else { bare.lower() };
            fs::create_dir_all(layer.join("e")).unwrap();
            fs::write(layer.join("e/y"), "y").unwrap();
            kind.make(&layer.join("e/.wh..wh..opq"));
            kind.make(&layer.join(".wh.g"));
            bare.mount("", 30);
            let mnt = bare.mnt();
            assert_eq!(list(&mnt.join("e")), ["y"]);
            let g = fs::symlink_metadata(mnt.join("g")).map_err(|e| e.raw_os_error().unwrap());
            match (kind, in_upper) {
                (Kind::File, true) => assert_eq!(g.err(), Some(libc::ENOENT)),
                (Kind::File, false) => assert!(g.is_ok(), "{g:?}"),
                (_, true) => assert_eq!(g.err(), Some(libc::EIO), "{kind:?}"),
                // An entry beats the mark beside it.
                (_, false) => assert!(g.is_ok() || g.err() == Some(libc::EIO)),
            }
            let _ = fs::remove_file(mnt.join("g"));
            let _ = fs::write(mnt.join("g"), "new");
            fs::write(mnt.join("e/z"), "z").unwrap();
            fs::rename(mnt.join("e"), mnt.join("e2")).unwrap();
            fs::remove_dir_all(mnt.join("e2")).unwrap();
            let _ = fs::create_dir(mnt.join("e2"));
            bare.unmount();
            bare.assert_secret();
        }
    }
}

/// No value of a record leads out of the layers below, or to what a layer hides.
#[test]
fn redirects_that_would_lead_out() {
    let long = "a/".repeat(3000);
    let values: [&[u8]; 14] = [
        b"../secret",
        b"..",
        b"/..",
        b"/../secret",
        b"/d/../../secret",
        b"/d/./x",
        b"d/../../secret",
        b"/",
        b"",
        b"/d\0/x",
        b"/s",
        b"/.wh..wh.plnk",
        b"/hidden",
        long.as_bytes(),
    ];
    for attr in ["trusted.overlay.redirect", "user.overlay.redirect"] {
        for value in values {
            let mut bare = Bare::new("/dev/shm");
            lower(&bare);
            symlink("../secret", bare.lower().join("s")).unwrap();
            fs::create_dir(bare.lower().join("hidden")).unwrap();
            fs::write(bare.upper().join(".wh.hidden"), "").unwrap();
            let dir = bare.upper().join("r");
            fs::create_dir(&dir).unwrap();
            xattr::set(&dir, attr, value).unwrap();
            let file = bare.upper().join("m");
            fs::File::create(&file).unwrap().set_len(100).unwrap();
            xattr::set(&file, attr, value).unwrap();
            xattr::set(&file, attr.replace("redirect", "metacopy"), b"").unwrap();
            for options in ["", ",userxattr"] {
                bare.mount(options, 30);
                let mnt = bare.mnt();
                let text = format!("{attr} {:?} {options}", value.escape_ascii().to_string());
                if let Ok(names) = fs::read_dir(mnt.join("r")) {
                    let names: Vec<_> = names.flatten().map(|e| e.file_name()).collect();
                    assert!(names.is_empty(), "{text}: {names:?}");
                }
                let read = fs::read(mnt.join("m")).map_err(|e| e.raw_os_error().unwrap());
                assert_eq!(read, Err(libc::EIO), "{text}");
                // With the open, or where opens are not seen, when what was written has to go somewhere.
                let open = fs::OpenOptions::new().write(true).open(mnt.join("m"));
                let write = open.and_then(|mut file| {
                    file.write_all(b"x")?;
                    file.sync_all()
                });
                assert!(write.is_err(), "{text}");
                let _ = fs::write(mnt.join("r/f"), "x");
                let _ = fs::rename(mnt.join("r"), mnt.join("r2"));
                let _ = fs::rename(mnt.join("r2"), mnt.join("r"));
                bare.unmount();
                bare.assert_secret();
                let _ = fs::remove_file(dir.join("f"));
            }
        }
    }
}

/// Records of numbers can be given to files by whoever packs a layer: no two files become one by that.
#[test]
fn forged_numbers_make_no_file_another() {
    for prefix in ["trusted", "user"] {
        let layers = Stack::new()
            .upper(["a=one", "b=two", "d/c=three", "e/"])
            .lower(["l=low", "e/x"])
            .build();
        let number = |path: &Path| fs::symlink_metadata(path).unwrap().ino();
        let lower = layers.lowers[0].clone();
        // What the union makes of a number on disk: seen once, then forged.
        let m = layers.mount();
        let shown: Vec<u64> = ["a", "l", "e", ""]
            .iter()
            .map(|n| number(&m.p(n)))
            .collect();
        let mut m = m;
        m.unmount();
        let copies = format!("{prefix}.unionfs.copies");
        for dir in ["", "d", "e"] {
            xattr::set(m.up(dir), &copies, b"y").unwrap();
        }
        let forge = |name: &str, ino: u64| {
            let own = number(&m.up(name));
            let value = [ino.to_le_bytes(), own.to_le_bytes()].concat();
            xattr::set(m.up(name), format!("{prefix}.unionfs.ino"), &value).unwrap();
        };
        forge("b", shown[0]);
        forge("d/c", shown[1]);
        forge("d", shown[2]);
        forge("e", shown[3]);
        m.mount_again();
        for _ in 0..2 {
            for (name, text) in [("a", "one"), ("b", "two"), ("d/c", "three"), ("l", "low")] {
                m.assert_file(name, text);
            }
            m.assert_ls("", &["a", "b", "d", "e", "l"]);
            m.assert_ls("e", &["x"]);
            m.assert_ls("d", &["c"]);
            m.remount();
        }
        // All are in use at once, and each is changed.
        let kept = m.remembered(&["a", "b", "d/c", "l", "e", "d"]);
        for (name, text) in [("a", "ONE"), ("b", "TWO"), ("d/c", "THREE"), ("l", "LOW")] {
            m.write(name, text).unwrap();
        }
        for (name, text) in [("a", "ONE"), ("b", "TWO"), ("d/c", "THREE"), ("l", "LOW")] {
            m.assert_file(name, text);
        }
        m.write("e/new", "x").unwrap();
        m.assert_ls("", &["a", "b", "d", "e", "l"]);
        m.unlink("b").unwrap();
        m.assert_file("a", "ONE");
        drop(kept);
        assert_eq!(fs::read_to_string(lower.join("l")).unwrap(), "low");
    }
}

/// Entries among the pseudo-links that name files of others, with records that were made up.
#[test]
fn forged_pseudo_links_give_no_file_other_data() {
    let layers = Stack::new()
        .upper(["mine=mine"])
        .lower(["h=low", "h~h2", "one=one"])
        .build();
    let plinks = layers.upper_path().join(".wh..wh.plnk");
    fs::create_dir(&plinks).unwrap();
    let mine = layers.upper_path().join("mine");
    let copy = fs::metadata(&mine).unwrap().ino();
    let m = layers.mount();
    let (h, one) = (m.stat("h").unwrap().st_ino, m.stat("one").unwrap().st_ino);
    let mut m = m;
    m.unmount();
    fs::create_dir_all(&plinks).unwrap();
    for number in [h, one, 2, u64::MAX] {
        fs::hard_link(&mine, plinks.join(format!("{number}.{copy}"))).unwrap();
        for record in [
            "1 {} 4294967295 4294967295 0 0",
            "1 0 0 0 ffffffffffffffff 0",
            "",
            "1 1",
        ] {
            let record = record.replace("{}", &copy.to_string());
            let _ = fs::remove_file(plinks.join(format!("{number}.0")));
            if symlink(&record, plinks.join(format!("{number}.0"))).is_err() {
                continue;
            }
            let _ = xattr::set(&mine, "trusted.unionfs.plink", record.as_bytes());
            m.mount_again();
            for (name, text) in [
                ("h", "low"),
                ("h2", "low"),
                ("one", "one"),
                ("mine", "mine"),
            ] {
                m.assert_file(name, text);
                assert!(m.stat(name).unwrap().st_nlink < 1 << 31);
            }
            m.chmod("h", 0o600).unwrap();
            m.assert_file("h2", "low");
            m.assert_file("mine", "mine");
            m.unmount();
            let _ = fs::remove_file(m.up("h"));
            for entry in fs::read_dir(&plinks).into_iter().flatten().flatten() {
                let ours = entry.file_name() != *format!("{number}.{copy}");
                if ours {
                    let _ = fs::remove_file(entry.path());
                }
            }
            fs::create_dir_all(&plinks).unwrap();
        }
        let _ = fs::remove_file(plinks.join(format!("{number}.{copy}")));
    }
    fs::remove_dir_all(&plinks).unwrap();
    m.mount_again();
}

/// The base of whiteouts is linked, never written, so it may be a link to anything.
#[test]
fn the_base_of_whiteouts_is_a_link_to_something_else() {
    let mut bare = Bare::new("/tmp");
    lower(&bare);
    let other = bare.upper().with_file_name("other");
    fs::write(&other, "of another").unwrap();
    fs::hard_link(&other, bare.upper().join(".wh..wh.aufs")).unwrap();
    bare.mount("", 30);
    work(&bare.mnt());
    fs::remove_dir(bare.mnt().join("d")).unwrap();
    bare.unmount();
    let meta = fs::metadata(&other).unwrap();
    assert_eq!(fs::read_to_string(&other).unwrap(), "of another");
    assert_eq!(meta.mode() & 0o7777, 0o644);
    fs::remove_file(other).unwrap();
}

/// Names of reserved form that lead somewhere are no names of a union.
#[test]
fn reserved_names_cannot_be_reached() {
    let m = Stack::new()
        .upper([".wh..wh.plnk/", ".wh..wh.orph/", "f"])
        .lower([
            ".wh..wh.secret/x",
            ".wh.x",
            "d/.wh.y",
            "d/.wh..wh..opq",
            "g",
        ])
        .mount();
    fails!(m.stat(".wh..wh.secret/x"), NOENT);
    let names = [
        ".wh..wh.plnk",
        ".wh..wh.secret",
        ".wh.x",
        "d/.wh.y",
        "d/.wh..wh..opq",
    ];
    for name in names {
        fails!(m.stat(name), NOENT);
        fails!(m.open(name, OFlags::RDONLY), NOENT);
        fails!(m.rename("f", name), PERM);
        fails!(m.link("f", name), PERM);
        fails!(m.symlink("f", name), PERM);
    }
}
