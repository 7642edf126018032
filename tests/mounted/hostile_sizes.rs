//! Layers with more of everything than anyone makes by hand: levels, entries, bytes, attributes.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;

use crate::bare::Bare;
use crate::fails;
use crate::process::{following, unionfs};
use crate::regressions_copy_up::Image;
use crate::support::Stack;

const LEVELS: usize = 4000;

fn open_dir(at: impl std::os::fd::AsFd, name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    crate::process::open_file_at(at, name, flags, Mode::empty())
}

/// The directory `levels` times `d` below `root`: no path can say so much at once.
fn descend(root: &Path, levels: usize) -> rustix::io::Result<OwnedFd> {
    let mut dir = open_dir(CWD, root.to_str().unwrap())?;
    for _ in 0..levels {
        dir = open_dir(&dir, "d")?;
    }
    Ok(dir)
}

fn make_deep(root: &Path) {
    let mut dir = open_dir(CWD, root.to_str().unwrap()).unwrap();
    for level in 0..LEVELS {
        rustix::fs::mkdirat(&dir, "d", Mode::RWXU).unwrap();
        dir = open_dir(&dir, "d").unwrap();
        if level % 100 == 99 {
            put(&dir, "f", b"deep");
        }
    }
}

fn put(dir: &OwnedFd, name: &str, data: &[u8]) {
    let flags = OFlags::WRONLY | OFlags::CREATE;
    let file = crate::process::open_file_at(dir, name, flags, Mode::RWXU).unwrap();
    rustix::io::write(file, data).unwrap();
}

fn get(dir: &OwnedFd, name: &str) -> Vec<u8> {
    let file = crate::process::open_file_at(dir, name, OFlags::RDONLY, Mode::empty()).unwrap();
    let mut data = vec![0; 64];
    let got = rustix::io::read(file, &mut data).unwrap();
    data.truncate(got);
    data
}

/// Copy-up of all ancestors, renames of all of it, removal: no stack overflows and no descriptor is held
/// for long.
fn four_thousand_levels(options: &str) {
    let mut bare = Bare::new("/tmp");
    make_deep(&bare.lower());
    bare.mount(options, 120);
    let mnt = bare.mnt();
    let bottom = descend(&mnt, LEVELS).unwrap();
    assert_eq!(get(&bottom, "f"), b"deep");
    put(&bottom, "f", b"changed");
    put(&bottom, "n", b"new");
    drop(bottom);
    fs::rename(mnt.join("d"), mnt.join("e")).unwrap();
    fs::rename(mnt.join("e"), mnt.join("d")).unwrap();
    bare.unmount();
    bare.mount(options, 120);
    let bottom = descend(&mnt, LEVELS).unwrap();
    assert_eq!(get(&bottom, "f"), b"changed");
    assert_eq!(get(&bottom, "n"), b"new");
    assert_eq!(get(&descend(&mnt, 100).unwrap(), "f"), b"deep");
    drop(bottom);
    let rm = Command::new("rm").arg("-rf").arg(mnt.join("d")).status();
    assert!(rm.unwrap().success());
    assert_eq!(crate::calls::list(&mnt), [""; 0]);
    bare.unmount();
}

#[test]
fn four_thousand_levels_that_are_copied() {
    four_thousand_levels("");
}

#[test]
fn four_thousand_levels_that_are_redirected() {
    four_thousand_levels(",rename_dir=redirect");
}

/// What needs more descriptors than there are says so, and has done nothing.
#[test]
fn deeper_than_there_are_descriptors() {
    let mut bare = Bare::new("/tmp");
    make_deep(&bare.lower());
    let options = format!(
        "lowerdir={},upperdir={}",
        bare.lower().display(),
        bare.upper().display()
    );
    let mut command = Command::new("prlimit");
    command.args(["--nofile=400:400", unionfs(), "-o", &options]);
    bare.adopt(command.arg(bare.mnt()), 120);
    let mnt = bare.mnt();
    let bottom = descend(&mnt, LEVELS).unwrap();
    put(&bottom, "f", b"changed");
    match rustix::fs::rename(mnt.join("d"), mnt.join("e")) {
        Ok(()) => {
            assert_eq!(crate::calls::list(&mnt), ["e"]);
            fs::rename(mnt.join("e"), mnt.join("d")).unwrap();
        }
        Err(errno) => assert_eq!(errno, Errno::MFILE),
    }
    assert_eq!(crate::calls::list(&mnt), ["d"]);
    assert_eq!(get(&bottom, "f"), b"changed");
    put(&bottom, "f", b"again..");
    drop(bottom);
    assert_eq!(get(&descend(&mnt, LEVELS).unwrap(), "f"), b"again..");
    bare.unmount();
    let left = fs::read_dir(bare.upper().join(".wh..wh.orph"));
    assert!(left.map_or(0, Iterator::count) == 0, "something was left");
}

/// Tells names of a directory without keeping them.
fn count(dir: &Path) -> usize {
    let fd = open_dir(CWD, dir.to_str().unwrap()).unwrap();
    let mut space = vec![std::mem::MaybeUninit::uninit(); 1 << 16];
    let mut entries = RawDir::new(&fd, &mut space);
    let mut found = 0;
    while let Some(entry) = entries.next() {
        let entry = entry.unwrap();
        found += usize::from(!matches!(entry.file_name().to_bytes(), b"." | b".."));
    }
    found
}

#[test]
fn a_million_entries() {
    const ENTRIES: usize = 1_000_000;
    let mut bare = Bare::new("/dev/shm");
    let lower = open_dir(CWD, bare.lower().to_str().unwrap()).unwrap();
    for n in 0..ENTRIES {
        let mode = Mode::from_raw_mode(0o644);
        let name = format!("{n:07}");
        rustix::fs::mknodat(&lower, name.as_str(), FileType::RegularFile, mode, 0).unwrap();
    }
    drop(lower);
    bare.mount("", 240);
    let mnt = bare.mnt();
    assert_eq!(count(&mnt), ENTRIES);
    for n in (0..ENTRIES).step_by(ENTRIES / 50) {
        fs::write(mnt.join(format!("{n:07}")), "changed").unwrap();
        fs::write(mnt.join(format!("new{n}")), "new").unwrap();
        fs::remove_file(mnt.join(format!("{:07}", n + 1))).unwrap();
        assert!(fs::metadata(mnt.join(format!("absent{n}"))).is_err());
    }
    assert_eq!(count(&mnt), ENTRIES);
    let peak = bare.peak_kib();
    assert!(peak < PEAK_KIB, "{peak} KiB were needed");
    bare.unmount();
}

/// For a listing of a million names: about 500 bytes for each while it is put together, in a test build too.
const PEAK_KIB: u64 = 700 << 10;

/// The largest size that a file can have, where the filesystem does not say less (ext4: 16 TiB).
const SIZE: u64 = i64::MAX as u64;

#[test]
fn files_of_eight_exbibytes() {
    files_of_the_largest_size(Path::new("/dev/shm"));
}

#[test]
fn files_of_eight_exbibytes_on_xfs() {
    let image = Image::made_by(&["mkfs.xfs", "-q"], 400);
    files_of_the_largest_size(&image.mnt());
}

#[test]
fn files_of_eight_exbibytes_on_btrfs() {
    let image = Image::made_by(&["mkfs.btrfs", "-q"], 200);
    files_of_the_largest_size(&image.mnt());
}

/// Lower and upper, and a plain file to compare with, on one filesystem.
fn files_of_the_largest_size(place: &Path) {
    let mut bare = Bare::new(place.to_str().unwrap());
    let plain = bare.lower().join("../plain");
    for path in [bare.lower().join("big"), plain.clone()] {
        let file = fs::File::create(path).unwrap();
        file.set_len(SIZE).unwrap();
        file.write_all_at(b"head", 0).unwrap();
        file.write_all_at(b"tail", 1 << 62).unwrap();
    }
    bare.mount("", 60);
    let big = bare.mnt().join("big");
    for round in 0..2 {
        // What is asked of the largest offsets has the same answer as on the plain file, before and after
        // the copy-up.
        let file = |path: &Path| {
            let file = fs::OpenOptions::new()
                .read(true)
                .write(round > 0)
                .open(path);
            file.unwrap()
        };
        let (ours, theirs) = (file(&big), file(&plain));
        assert_eq!(ours.metadata().unwrap().len(), SIZE);
        for at in [0, (1 << 62) - 1, SIZE - 5, SIZE - 1, SIZE] {
            let mut data = [[1; 4], [2; 4]];
            let got = ours.read_at(&mut data[0], at).map_err(|e| e.raw_os_error());
            let want = theirs
                .read_at(&mut data[1], at)
                .map_err(|e| e.raw_os_error());
            assert_eq!(got, want, "read at {at}");
            let len = want.unwrap_or(0);
            assert_eq!(data[0][..len], data[1][..len]);
            for to in [SeekFrom::Data(at), SeekFrom::Hole(at)] {
                let (got, want) = (rustix::fs::seek(&ours, to), rustix::fs::seek(&theirs, to));
                assert_eq!(got, want, "{to:?}");
            }
            if round > 0 {
                let got = ours.write_at(b"abcdefgh", at).map_err(|e| e.raw_os_error());
                let want = theirs
                    .write_at(b"abcdefgh", at)
                    .map_err(|e| e.raw_os_error());
                assert_eq!(got, want, "write at {at}");
            }
        }
        if round > 0 {
            for (size, text) in [(SIZE, "the same"), (SIZE - 1, "less"), (SIZE, "more")] {
                ours.set_len(size).expect(text);
            }
            assert!(rustix::fs::ftruncate(&ours, SIZE + 1).is_err());
        }
        let mode = fs::Permissions::from_mode(0o600);
        fs::set_permissions(&big, mode).unwrap();
    }
    let copied = fs::metadata(bare.upper().join("big")).unwrap();
    assert_eq!(copied.len(), SIZE);
    assert!(
        copied.blocks() < 1000,
        "holes have become {} blocks",
        copied.blocks()
    );
    fs::hard_link(&big, bare.mnt().join("other")).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_TRUNC)
        .open(bare.mnt().join("other"))
        .unwrap();
    assert_eq!(fs::metadata(&big).unwrap().len(), 0);
    bare.unmount();
}

/// Where it does not fit, the caller is told why, at once, and nothing has changed. What fits is copied.
#[test]
fn files_that_the_upper_cannot_hold() {
    let image = Image::made_by(&["mkfs.ext4", "-q", "-m0"], 64);
    let upper = image.mnt().join("u");
    fs::create_dir(&upper).unwrap();
    let mut bare = Bare::new("/dev/shm");
    for name in ["big", "cut", "emptied"] {
        let file = fs::File::create(bare.lower().join(name)).unwrap();
        file.set_len(SIZE).unwrap();
        file.write_all_at(b"head", 0).unwrap();
        file.write_all_at(b"tail", 1 << 62).unwrap();
    }
    let options = format!(
        "lowerdir={},upperdir={}",
        bare.lower().display(),
        upper.display()
    );
    let mut command = Command::new(unionfs());
    bare.adopt(command.args(["-o", &options]).arg(bare.mnt()), 60);
    let big = bare.mnt().join("big");
    let too_large = |result: std::io::Result<()>| {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EFBIG));
    };
    let write = |path: &Path| fs::OpenOptions::new().write(true).open(path);
    let mode = fs::Permissions::from_mode(0o600);
    for _ in 0..2 {
        // Without opens it is the write that has it copied.
        too_large(write(&big).and_then(|file| file.write_all_at(b"x", 0)));
        too_large(fs::set_permissions(&big, mode.clone()));
        assert!(!upper.join("big").exists());
        let meta = fs::metadata(&big).unwrap();
        assert_eq!((meta.len(), meta.mode() & 0o777), (SIZE, 0o644));
        let mut data = [0; 4];
        fs::File::open(&big)
            .unwrap()
            .read_exact_at(&mut data, 1 << 62)
            .unwrap();
        assert_eq!(&data, b"tail");
    }
    nix::unistd::truncate(&bare.mnt().join("cut"), 1 << 30).unwrap();
    let cut = fs::metadata(upper.join("cut")).unwrap();
    assert_eq!(cut.len(), 1 << 30);
    assert!(cut.blocks() < 100, "{} blocks", cut.blocks());
    fs::write(bare.mnt().join("emptied"), "new").unwrap();
    assert_eq!(fs::read(upper.join("emptied")).unwrap(), b"new");
    fs::rename(&big, bare.mnt().join("moved")).unwrap_err();
    fs::remove_file(&big).unwrap();
    assert_eq!(crate::calls::list(&bare.mnt()).len(), 2);
    bare.unmount();
    let left = fs::read_dir(upper.join(".wh..wh.orph"));
    assert!(left.map_or(0, Iterator::count) == 0, "something was left");
}

/// The most that the kernel takes in one value, and in the list of names.
#[test]
fn attributes_of_many_thousand_bytes() {
    let mut bare = Bare::new("/dev/shm");
    let objects = ["f", "d", "d/g"];
    fs::create_dir(bare.lower().join("d")).unwrap();
    for name in ["f", "d/g"] {
        fs::write(bare.lower().join(name), "x").unwrap();
    }
    for name in objects {
        let path = bare.lower().join(name);
        for n in 0..100 {
            xattr::set(&path, format!("user.{}{n:03}", "n".repeat(200)), b"v").unwrap();
        }
        xattr::set(&path, "user.large", &[7; 10_000]).unwrap();
        xattr::set(&path, "user.largest", &[8; 65_536]).unwrap();
    }
    bare.mount(",metacopy=on", 60);
    for round in 0..2 {
        for name in objects {
            let path = bare.mnt().join(name);
            assert_eq!(xattr::list(&path).unwrap().count(), 102);
            assert_eq!(
                xattr::get(&path, "user.large").unwrap().unwrap(),
                [7; 10_000]
            );
            assert_eq!(
                xattr::get(&path, "user.largest").unwrap().unwrap(),
                [8; 65_536]
            );
            let mode = fs::Permissions::from_mode(0o700 + round);
            fs::set_permissions(&path, mode).unwrap();
            assert!(bare.upper().join(name).exists());
        }
    }
    fs::rename(bare.mnt().join("d"), bare.mnt().join("e")).unwrap();
    let path = bare.mnt().join("e/g");
    assert_eq!(
        xattr::get(path, "user.large").unwrap().unwrap(),
        [7; 10_000]
    );
    bare.unmount();
}

/// Symlinks that lead round in a circle, and fifos and devices, are what they are on a plain directory.
#[test]
fn symlinks_in_circles_fifos_and_devices() {
    let m = Stack::new()
        .lower([
            "a->b",
            "b->a",
            "self->self",
            "up/in->../up/in",
            "long->long/long",
            "fifo(p)",
            "chr(zero,1,5)",
            "d/fifo(p)",
            "f",
        ])
        .mount_with(following());
    for name in ["a", "self", "up/in", "long", "a/x"] {
        fails!(m.read(name), LOOP);
    }
    let open = |name| m.open(name, OFlags::RDONLY | OFlags::NONBLOCK);
    open("p").unwrap();
    fails!(m.open("p", OFlags::WRONLY | OFlags::NONBLOCK), NXIO);
    assert_eq!(rustix::io::read(open("zero").unwrap(), &mut [1; 4]), Ok(4));
    for name in ["a", "p", "zero", "d/p", "self"] {
        m.chown(name, 7, 8).unwrap();
        m.link(name, &format!("{name}-2")).unwrap();
        m.rename(name, &format!("{name}-3")).unwrap();
    }
    let meta = fs::symlink_metadata(m.p("zero-3")).unwrap();
    assert_eq!((meta.rdev(), meta.uid(), meta.nlink()), (0x105, 7, 2));
    m.rename("d", "e").unwrap();
    m.assert_ls("e", &["p-2", "p-3"]);
    let followed = rustix::fs::statat(CWD, m.p("a-3"), AtFlags::empty());
    fails!(followed, NOENT);
}
