//! Names and listings: bytes that are no text, long names, large and changing directories.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags, RawDir, SeekFrom};

use crate::dialects;
use crate::fails;
use crate::spec::Dialect;
use crate::support::{Mount, Stack};

fn odd_names() -> Vec<OsString> {
    let mut names: Vec<Vec<u8>> = vec![
        b"\xff\xfe\x80".to_vec(),
        b"new\nline".to_vec(),
        b" ".to_vec(),
        b"-rf".to_vec(),
        b"tab\tand\x01".to_vec(),
        b"...".to_vec(),
        b".wh".to_vec(),
        b"wh.x".to_vec(),
        b"a:b,c=d\\e".to_vec(),
        "\u{e9}\u{4e2d}".as_bytes().to_vec(),
        vec![0x80; 255],
        vec![b'x'; 255],
        vec![b'y'; 252],
        b"*?[]'\"$".to_vec(),
    ];
    names.sort();
    names.into_iter().map(OsString::from_vec).collect()
}

fn listed(m: &Mount, dir: &str) -> Vec<OsString> {
    let mut names: Vec<_> = fs::read_dir(m.p(dir))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    names
}

dialects! {
    fn names_are_bytes(dialect) {
        let names = odd_names();
        let layers = Stack::of(dialect).lower(["l/"]).build();
        for name in &names {
            fs::write(layers.lowers[0].join("l").join(name), name.as_bytes()).unwrap();
        }
        let mut m = layers.mount();
        m.mkdir("u").unwrap();
        for name in &names {
            fs::write(m.p("u").join(name), name.as_bytes()).unwrap();
        }
        for dir in ["u", "l"] {
            assert_eq!(listed(&m, dir), names);
            for name in &names {
                let path = m.p(dir).join(name);
                assert_eq!(fs::read(&path).unwrap(), name.as_bytes());
                rustix::fs::chmod(&path, Mode::from_raw_mode(0o600)).unwrap();
            }
        }
        m.remount();
        for dir in ["u", "l"] {
            assert_eq!(listed(&m, dir), names);
            for name in &names {
                let path = m.p(dir).join(name);
                assert_eq!(fs::read(&path).unwrap(), name.as_bytes());
                fs::rename(&path, m.p(dir).join("moved")).unwrap();
                fs::rename(m.p(dir).join("moved"), &path).unwrap();
                fs::remove_file(&path).unwrap();
                fs::create_dir(&path).unwrap();
                assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
                fs::remove_dir(&path).unwrap();
            }
        }
        m.remount();
        assert!(listed(&m, "l").is_empty() && listed(&m, "u").is_empty());
        let target = OsStr::from_bytes(b"\xff\n/x");
        std::os::unix::fs::symlink(target, m.p("s")).unwrap();
        assert_eq!(fs::read_link(m.p("s")).unwrap().as_os_str(), target);
    }

    fn a_thousand_levels(dialect) {
        let deep = "d/".repeat(1000);
        let layers = Stack::of(dialect).lower([""; 0]).build();
        let bottom = layers.lowers[0].join(&deep);
        fs::create_dir_all(&bottom).unwrap();
        fs::write(bottom.join("f"), "deep").unwrap();
        let mut m = layers.mount();
        let file = format!("{deep}f");
        m.assert_file(&file, "deep");
        m.chmod(&file, 0o600).unwrap();
        m.write(&format!("{deep}n"), "new").unwrap();
        m.assert_ls(&deep, &["f", "n"]);
        m.remount();
        assert_eq!(m.mode(&file), 0o600);
        fs::remove_dir_all(m.p("d")).unwrap();
        fails!(m.stat("d"), NOENT);
        m.assert_upper(["wh(d)"]);
    }
}

/// Entries from a position to the end: name and the position after it.
fn entries(fd: &OwnedFd, from: u64) -> Vec<(Vec<u8>, u64)> {
    rustix::fs::seek(fd, SeekFrom::Start(from)).unwrap();
    let mut space = [MaybeUninit::uninit(); 4096];
    let mut dir = RawDir::new(fd, &mut space);
    let mut found = Vec::new();
    while let Some(entry) = dir.next() {
        let entry = entry.unwrap();
        found.push((
            entry.file_name().to_bytes().to_vec(),
            entry.next_entry_cookie(),
        ));
    }
    found
}

fn counts(names: impl Iterator<Item = Vec<u8>>) -> BTreeMap<Vec<u8>, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    counts
}

/// What stays is found once from any earlier position, whatever comes and goes.
#[test]
fn positions_survive_changes() {
    let lower: Vec<String> = (0..600).map(|index| format!("l{index}=")).collect();
    let upper: Vec<String> = (0..600).map(|index| format!("u{index}=")).collect();
    let m = Stack::new().upper(&upper).lower(&lower).mount();
    let fd = m.open("", OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
    let all = entries(&fd, 0);
    assert_eq!(all.len(), 1202, "with . and ..");
    for at in [0, 1, 2, 3, 400, 900, 1200] {
        let position = all[at].1;
        let (seen, rest) = all.split_at(at + 1);
        // Take away one seen and one unseen entry, and add one.
        let gone: Vec<&Vec<u8>> = [&seen[seen.len() / 2].0, &rest.first().unwrap_or(&seen[0]).0]
            .into_iter()
            .filter(|name| !name.starts_with(b".") && m.p(OsStr::from_bytes(name)).exists())
            .collect();
        for name in &gone {
            fs::remove_file(m.p(OsStr::from_bytes(name))).unwrap();
        }
        let added = format!("new{at}");
        m.write(&added, "").unwrap();
        let found = counts(entries(&fd, position).into_iter().map(|entry| entry.0));
        for (name, _) in rest {
            let exists = m.p(OsStr::from_bytes(name)).exists();
            let count = found.get(name).copied().unwrap_or(0);
            let right = if exists { count == 1 } else { count <= 1 };
            assert!(
                right,
                "{} {count} times after {at}",
                String::from_utf8_lossy(name)
            );
        }
        for (name, _) in seen {
            let again = found.contains_key(name);
            assert!(!again, "{} again after {at}", String::from_utf8_lossy(name));
        }
    }
    // From the start the present state is seen.
    let fresh = m.open("", OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
    for fd in [&fresh, &fd] {
        let found = counts(entries(fd, 0).into_iter().map(|entry| entry.0));
        assert!(found.values().all(|count| *count == 1));
        let mut names: Vec<_> = found
            .into_keys()
            .filter(|name| !name.starts_with(b"."))
            .collect();
        names.sort();
        let now: Vec<Vec<u8>> = listed(&m, "").into_iter().map(OsString::into_vec).collect();
        assert_eq!(names, now);
    }
}

#[test]
fn large_listing_while_others_come_and_go() {
    let layers = Stack::new().lower(["d/"]).lower(["d/"]).build();
    let dirs = [
        layers.upper_path().join("d"),
        layers.lowers[0].join("d"),
        layers.lowers[1].join("d"),
    ];
    fs::create_dir(&dirs[0]).unwrap();
    for index in 0..20_000 {
        fs::write(dirs[index % 3].join(format!("keep-{index}")), "").unwrap();
        if index % 10 == 0 {
            // The same name in two layers is one entry.
            fs::write(dirs[(index + 1) % 3].join(format!("keep-{index}")), "").unwrap();
        }
    }
    let m = layers.mount();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                let name = format!("d/temporary-{}", rounds % 50);
                m.write(&name, "").unwrap();
                m.rename(&name, &format!("{name}-moved")).unwrap();
                m.unlink(&format!("{name}-moved")).unwrap();
                rounds += 1;
            }
            rounds
        });
        for _ in 0..8 {
            let names = fs::read_dir(m.p("d"))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_vec());
            let found = counts(names);
            let twice: Vec<_> = found
                .iter()
                .filter(|(_, count)| **count > 1)
                .take(3)
                .collect();
            assert!(twice.is_empty(), "{twice:?}");
            let kept = found
                .keys()
                .filter(|name| name.starts_with(b"keep-"))
                .count();
            assert_eq!(kept, 20_000);
        }
        done.store(true, Ordering::Relaxed);
        let rounds = worker.join().unwrap();
        assert!(
            rounds > 10,
            "only {rounds} rounds of changes during 8 listings"
        );
    });
    let found = listed(&m, "d");
    assert_eq!(found.len(), 20_000);
}
