//! Files whose attributes are in the upper and whose data are still in a lower.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use rustix::fs::{OFlags, RenameFlags};

use crate::dialects;
use crate::fails;
use crate::process::{following, opens_unseen};
use crate::spec::Dialect;
use crate::support::{Mount, Stack};

const RECORD: &str = "trusted.overlay.metacopy";

fn data() -> String {
    "0123456789abcdef".repeat(10_000)
}

fn is_metacopy(m: &Mount, name: &str) -> bool {
    xattr::get(m.up(name), RECORD).unwrap().is_some()
}

/// A file of 160,000 bytes, and attributes of it that only the upper has.
fn changed(dialect: Dialect) -> Mount {
    changed_with(dialect, "metacopy=on")
}

fn changed_with(dialect: Dialect, options: &str) -> Mount {
    let m = Stack::of(dialect)
        .lower([
            format!("d/f={} | mode=0644 mtime=7", data()),
            "small=s".to_owned(),
        ])
        .mount_with(options);
    m.chmod("d/f", 0o600).unwrap();
    m.chown("d/f", 5, 6).unwrap();
    xattr::set(m.p("d/f"), "user.k", b"v").unwrap();
    m
}

#[track_caller]
fn is_whole(m: &Mount, name: &str, content: &str) {
    let meta = fs::symlink_metadata(m.p(name)).unwrap();
    assert_eq!(
        (meta.mode() & 0o7777, meta.uid(), meta.gid()),
        (0o600, 5, 6)
    );
    assert_eq!(meta.mtime(), 7);
    assert_eq!(meta.len(), content.len() as u64);
    assert!(
        meta.blocks() * 512 >= meta.len(),
        "{} blocks",
        meta.blocks()
    );
    assert_eq!(
        xattr::get(m.p(name), "user.k").unwrap().as_deref(),
        Some(&b"v"[..])
    );
    assert!(m.read(name).unwrap() == content, "the data of {name}");
}

/// A file that shows five bytes.
#[track_caller]
fn shows_start(m: &Mount, name: &str) {
    assert_eq!(m.stat(name).unwrap().st_size, 5);
    let file = fs::File::open(m.p(name)).unwrap();
    let mut bytes = [0; 16];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 5);
    assert_eq!(&bytes[..5], b"01234");
    assert_eq!(file.read_at(&mut bytes, 5).unwrap(), 0);
    assert_eq!(file.read_at(&mut bytes, 90_000).unwrap(), 0);
    m.assert_file(name, "01234");
}

dialects! {
    fn attributes_without_data(dialect) {
        let mut m = changed(dialect);
        let ino = m.stat("d/f").unwrap().st_ino;
        for _ in 0..2 {
            is_whole(&m, "d/f", &data());
            assert_eq!(m.stat("d/f").unwrap().st_ino, ino);
            assert!(is_metacopy(&m, "d/f"));
            assert!(fs::metadata(m.up("d/f")).unwrap().blocks() * 512 < 20_000);
            assert!(!xattr::list(m.p("d/f")).unwrap().any(|name| name == RECORD));
            m.remount();
        }
        m.chmod("small", 0o600).unwrap();
        assert!(!is_metacopy(&m, "small"), "a small file is copied whole");
    }

    /// The first change of the data brings all of them; before that, opening does.
    fn data_follow_when_written(dialect) {
        let mut m = changed_with(dialect, &format!("metacopy=on,{}", following()));
        let reader = fs::File::open(m.p("d/f")).unwrap();
        let ino = m.stat("d/f").unwrap().st_ino;
        let before = reader.metadata().unwrap();
        let file = fs::OpenOptions::new().write(true).open(m.p("d/f")).unwrap();
        assert_eq!(file.metadata().unwrap().mtime(), before.mtime());
        file.write_all_at(b"WRITE", 3).unwrap();
        drop(file);
        let mut expected = data();
        expected.replace_range(3..8, "WRITE");
        let mut start = [0; 16];
        reader.read_exact_at(&mut start, 0).unwrap();
        assert_eq!(&start, b"012WRITE89abcdef");
        drop(reader);
        for _ in 0..2 {
            assert!(!is_metacopy(&m, "d/f"));
            assert!(m.read("d/f").unwrap() == expected);
            assert_eq!(m.stat("d/f").unwrap().st_ino, ino);
            m.remount();
        }
    }

    fn truncated_and_extended(dialect) {
        for size in [0_i64, 5, 100_000, 200_000] {
            let mut m = changed(dialect);
            m.remount();
            nix::unistd::truncate(&m.p("d/f"), size).unwrap();
            let mut expected = data();
            let len = usize::try_from(size).unwrap();
            expected.truncate(len);
            expected.push_str(&"\0".repeat(len - expected.len()));
            for _ in 0..2 {
                assert!(m.read("d/f").unwrap() == expected, "{size}");
                assert!(!is_metacopy(&m, "d/f"));
                m.remount();
            }
        }
        let m = changed(dialect);
        m.open("d/f", OFlags::WRONLY | OFlags::TRUNC).unwrap();
        m.assert_file("d/f", "");
        let mut file = fs::OpenOptions::new().append(true).open(m.p("d/f")).unwrap();
        file.write_all(b"more").unwrap();
        m.assert_file("d/f", "more");
    }

    /// What a crash leaves between the cut of such a file and the end of its record: nothing after the cut shows.
    fn cut_and_not_whole_yet(dialect) {
        let mut m = changed(dialect);
        m.unmount();
        nix::unistd::truncate(&m.up("d/f"), 5).unwrap();
        m.mount_again_with("metacopy=on");
        for _ in 0..2 {
            shows_start(&m, "d/f");
            m.remount();
        }
        // The same in a lower, which stays as it is.
        let below = format!("f={}", data());
        let layers = Stack::of(dialect).lower(["f=01234"]).lower([below]).build();
        xattr::set(layers.lowers[0].join("f"), RECORD, b"").unwrap();
        let m = layers.mount_with("metacopy=on");
        shows_start(&m, "f");
    }

    /// A file finds its data under another name, in a moved directory, and without a name.
    fn renamed_linked_and_unlinked(dialect) {
        for mode in ["rename_dir=copy", "rename_dir=redirect"] {
            let mut m = changed(dialect);
            m.unmount();
            m.mount_again_with(&format!("metacopy=on,{mode}"));
            m.rename("d", "e").unwrap();
            for _ in 0..2 {
                is_whole(&m, "e/f", &data());
                m.remount();
            }
            m.link("e/f", "linked").unwrap();
            m.rename("e/f", "g").unwrap();
            m.rename_with("g", "small", RenameFlags::EXCHANGE).unwrap();
            m.mkdir("new").unwrap();
            m.rename("small", "new/h").unwrap();
            for _ in 0..2 {
                is_whole(&m, "new/h", &data());
                is_whole(&m, "linked", &data());
                assert_eq!(m.stat("linked").unwrap().st_nlink, 2);
                m.remount();
            }
            let open = fs::OpenOptions::new().read(true).open(m.p("linked")).unwrap();
            m.unlink("linked").unwrap();
            m.unlink("new/h").unwrap();
            open.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
            let mut all = vec![0; 160_000];
            open.read_exact_at(&mut all, 0).unwrap();
            assert!(all == data().as_bytes());
        }
    }

    /// A read-only descriptor sees no moment without the data.
    fn an_unlinked_file_gets_its_data(dialect) {
        let m = changed(dialect);
        let file = fs::OpenOptions::new().read(true).write(true).open(m.p("d/f")).unwrap();
        m.unlink("d/f").unwrap();
        file.write_all_at(b"W", 159_999).unwrap();
        let mut all = vec![0; 160_000];
        file.read_exact_at(&mut all, 0).unwrap();
        assert_eq!((all[0], all[159_998], all[159_999]), (b'0', b'e', b'W'));
    }
}

/// What protects a file stays with it when its data follow.
#[test]
fn set_id_bits_and_capabilities() {
    let m = Stack::new()
        .lower([format!("f={} | mode=0644", data()), format!("c={}", data())])
        .mount_with("metacopy=on");
    m.chmod("f", 0o4755).unwrap();
    assert!(is_metacopy(&m, "f"));
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr::set(m.p("c"), "security.capability", &capability).unwrap();
    for name in ["f", "c"] {
        drop(fs::OpenOptions::new().write(true).open(m.p(name)).unwrap());
        // Without a word of the open nothing has to be there yet.
        assert_eq!(is_metacopy(&m, name), opens_unseen());
    }
    assert_eq!(m.stat("f").unwrap().st_mode & 0o7777, 0o4755);
    let kept = xattr::get(m.p("c"), "security.capability").unwrap();
    assert_eq!(kept.as_deref(), Some(&capability[..]));
}

/// By default the data come along.
#[test]
fn off_by_default() {
    let m = Stack::new().lower([format!("f={}", data())]).mount();
    m.chmod("f", 0o600).unwrap();
    assert!(!is_metacopy(&m, "f"));
    assert!(fs::read(m.up("f")).unwrap() == data().as_bytes());
    fails!(m.stat("g"), NOENT);
}

/// A file of a lower whose data are in another lower is whole once its directory was copied.
#[test]
fn of_a_lower_in_a_renamed_directory() {
    let m = Stack::new()
        .lower([format!(
            "d/f={} | mode=0600 mtime=7 x:{RECORD}=",
            "x".repeat(160_000)
        )])
        .lower([format!("d/f={}", data()), "d/g".to_owned()])
        .build();
    // Holes for data, as overlayfs writes it.
    let holes = fs::OpenOptions::new()
        .write(true)
        .open(m.lowers[0].join("d/f"))
        .unwrap();
    holes.set_len(0).unwrap();
    holes.set_len(160_000).unwrap();
    let times = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
    holes.set_times(times).unwrap();
    drop(holes);
    let mut m = m.mount_with(following());
    let open = fs::File::open(m.p("d/f")).unwrap();
    let mut start = [0; 4];
    open.read_exact_at(&mut start, 0).unwrap();
    m.rename("d", "e").unwrap();
    let file = fs::OpenOptions::new().write(true).open(m.p("e/f")).unwrap();
    file.write_all_at(b"WRITE", 0).unwrap();
    drop(file);
    // What the daemon reads, not what the kernel remembers.
    rustix::fs::fadvise(&open, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    open.read_exact_at(&mut start, 1).unwrap();
    assert_eq!(
        (&start, m.stat("e/f").unwrap().st_mode & 0o7777),
        (b"RITE", 0o600)
    );
    drop(open);
    let expected = format!("WRITE{}", &data()[5..]);
    for _ in 0..2 {
        assert!(m.read("e/f").unwrap() == expected);
        assert!(!is_metacopy(&m, "e/f"));
        m.remount();
    }
}

/// Attributes that change while the data come are not put back to what they were before.
#[test]
fn attributes_that_change_while_the_data_come() {
    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    let layers = Stack::new().lower([""; 0]).build();
    let block = vec![7; 1 << 20];
    for name in NAMES {
        let mut file = fs::File::create(layers.lowers[0].join(name)).unwrap();
        (0..48).for_each(|_| file.write_all(&block).unwrap());
    }
    let m = layers.mount_with("metacopy=on,volatile");
    for (round, name) in NAMES.into_iter().enumerate() {
        m.chmod(name, 0o640).unwrap();
        assert!(is_metacopy(&m, name));
        std::thread::scope(|scope| {
            let open = || {
                let file = fs::OpenOptions::new().write(true).open(m.p(name));
                file.unwrap().write_all_at(&[7], 0).unwrap();
            };
            let opened = scope.spawn(open);
            std::thread::sleep(std::time::Duration::from_millis(2 + 6 * round as u64));
            m.chmod(name, 0o700).unwrap();
            xattr::set(m.p(name), "user.k", b"v").unwrap();
            opened.join().unwrap();
        });
        let stored = fs::metadata(m.up(name)).unwrap();
        assert_eq!(stored.mode() & 0o7777, 0o700, "{name}");
        assert_eq!(xattr::get(m.up(name), "user.k").unwrap().unwrap(), b"v");
        assert!(!is_metacopy(&m, name));
    }
}

/// A small file has blocks enough for its size when its attributes need one.
#[test]
fn small_files_with_large_attributes() {
    let layers = Stack::new()
        .upper(["d/one=......", "d/two=......"])
        .lower(["d/one=data-1", "d/two=data-2"])
        .build();
    for name in ["one", "two"] {
        let path = layers.upper_path().join("d").join(name);
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(0)
            .unwrap();
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(6)
            .unwrap();
        xattr::set(&path, "user.long", &[b'v'; 600]).unwrap();
        xattr::set(&path, RECORD, b"").unwrap();
    }
    let mut m = layers.mount();
    fs::hard_link(m.p("d/two"), m.p("link")).unwrap();
    fs::rename(m.p("d/one"), m.p("moved")).unwrap();
    fs::rename(m.p("d"), m.p("e")).unwrap();
    let check = |m: &Mount| {
        for (name, content) in [("moved", "data-1"), ("e/two", "data-2"), ("link", "data-2")] {
            assert_eq!(fs::read_to_string(m.p(name)).unwrap(), content, "{name}");
        }
    };
    m.remount();
    check(&m);
}

/// A copying of data that was cut short leaves some of them, and the record that they are elsewhere:
/// none of them may be taken for the file's, and nothing be done to the lower's file in its place.
#[test]
fn data_that_came_in_part() {
    let layers = Stack::new()
        .upper(["d/f=x", "d/g=x", "d/h=x"])
        .lower(["f", "g", "h"].map(|name| format!("d/{name}={}", data())))
        .build();
    for name in ["f", "g", "h"] {
        let path = layers.upper_path().join("d").join(name);
        fs::write(&path, "#".repeat(100_000)).unwrap();
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(160_000)
            .unwrap();
        xattr::set(&path, RECORD, b"").unwrap();
    }
    let mut m = layers.mount();
    let flags = std::process::Command::new("chattr")
        .arg("+d")
        .arg(m.p("d/h"))
        .status()
        .unwrap();
    assert!(flags.success());
    fs::rename(m.p("d/f"), m.p("moved")).unwrap();
    fs::rename(m.p("d"), m.p("e")).unwrap();
    let check = |m: &Mount| {
        for name in ["moved", "e/g", "e/h"] {
            assert!(fs::read_to_string(m.p(name)).unwrap() == data(), "{name}");
        }
    };
    check(&m);
    m.remount();
    check(&m);
    assert!(!is_metacopy(&m, "e/h"), "its flags are its own");
}
