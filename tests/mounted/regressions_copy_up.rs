//! Defects seen in other union filesystems: copies that are incomplete, needless, or in the way.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use rustix::fs::{AtFlags, CWD, OFlags, RenameFlags, Timespec, Timestamps};

use crate::dialects;
use crate::fails;
use crate::process::finish;
use crate::spec::Dialect;
use crate::support::{Mount, Stack};

const MIB: u64 = 1 << 20;

/// A file of real data, not of holes.
fn big_file(path: &Path, size: u64) {
    let mut file = fs::File::create(path).unwrap();
    let chunk: Vec<u8> = (0..MIB).map(|at| (at * 31 % 251) as u8).collect();
    for _ in 0..size / MIB {
        file.write_all(&chunk).unwrap();
    }
}

/// Bytes the daemon read and wrote so far.
fn traffic(m: &Mount) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{}/io", m.pid())).unwrap();
    let field = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        line.trim().parse::<u64>().unwrap()
    };
    (field("rchar:"), field("wchar:"))
}

/// What the work made the daemon move, in MiB.
fn moved(m: &Mount, work: impl FnOnce()) -> (u64, u64) {
    let before = traffic(m);
    work();
    let after = traffic(m);
    ((after.0 - before.0) / MIB, (after.1 - before.1) / MIB)
}

fn with_big(dialect: Dialect, names: &[&str]) -> Mount {
    let layers = Stack::of(dialect).lower(["small=new"]).build();
    for name in names {
        big_file(&layers.lowers[0].join(name), 16 * MIB);
    }
    layers.mount()
}

dialects! {
    fn removal_and_truncation_copy_no_data(dialect) {
        let m = with_big(dialect, &["unlinked", "truncated", "shortened", "replaced", "target"]);
        let (read, written) = moved(&m, || {
            m.unlink("unlinked").unwrap();
            drop(m.open("truncated", OFlags::WRONLY | OFlags::TRUNC).unwrap());
            rustix::fs::ftruncate(m.open("target", OFlags::WRONLY | OFlags::TRUNC).unwrap(), 0)
                .unwrap();
            m.rename("small", "replaced").unwrap();
        });
        assert!(read < 2 && written < 2, "{read} MiB read, {written} MiB written");
        m.assert_ls("", &["replaced", "shortened", "target", "truncated"]);
        m.assert_file("truncated", "");
        m.assert_file("replaced", "new");
    }

    fn attribute_changes_copy_data_at_most_once(dialect) {
        let m = with_big(dialect, &["f"]);
        let (_, written) = moved(&m, || {
            m.chmod("f", 0o600).unwrap();
            m.chown("f", 3, 4).unwrap();
            let past = Timespec { tv_sec: 1, tv_nsec: 2 };
            let times = Timestamps { last_access: past, last_modification: past };
            rustix::fs::utimensat(CWD, m.p("f"), &times, AtFlags::empty()).unwrap();
            xattr::set(m.p("f"), "user.k", b"v").unwrap();
        });
        assert!(written <= 18, "{written} MiB written for a file of 16 MiB");
        let f = m.stat("f").unwrap();
        assert_eq!((f.st_mode & 0o7777, f.st_uid, f.st_gid, f.st_mtime), (0o600, 3, 4, 1));
        assert!(fs::read(m.p("f")).unwrap() == fs::read(m.layers.lowers[0].join("f")).unwrap());
    }

    fn exchange_and_link_copy_once(dialect) {
        let m = with_big(dialect, &["f", "g"]);
        let (_, written) = moved(&m, || {
            m.rename_with("f", "g", RenameFlags::EXCHANGE).unwrap();
            m.rename("f", "h").unwrap();
        });
        assert!(written <= 36, "{written} MiB written for two files of 16 MiB");
    }

    fn holes_are_kept(dialect) {
        let layers = Stack::of(dialect).lower([""; 0]).build();
        let lower = layers.lowers[0].join("f");
        let file = fs::File::create(&lower).unwrap();
        file.set_len(256 * MIB + 123).unwrap();
        for at in [0, 3 * MIB, 100 * MIB + 5000, 256 * MIB] {
            file.write_all_at(&[7; 9000], at).unwrap();
        }
        file.set_len(256 * MIB + 1000).unwrap();
        drop(file);
        let m = layers.mount();
        m.chmod("f", 0o600).unwrap();
        let (before, after) = (fs::metadata(&lower).unwrap(), fs::metadata(m.up("f")).unwrap());
        assert_eq!(before.len(), after.len());
        assert!(after.blocks() <= before.blocks() + 64, "{} blocks", after.blocks());
        let copy = fs::File::open(m.p("f")).unwrap();
        let mut data = vec![0; 9002];
        for at in [3 * MIB, 100 * MIB + 5000] {
            copy.read_exact_at(&mut data, at - 1).unwrap();
            assert!(data[0] == 0 && data[9001] == 0 && data[1..9001].iter().all(|b| *b == 7));
        }
        copy.read_exact_at(&mut data[..1000], 256 * MIB).unwrap();
        assert!(data[..1000].iter().all(|byte| *byte == 7));
        let mut rest = vec![0; 1 << 20];
        copy.read_exact_at(&mut rest, 200 * MIB).unwrap();
        assert!(rest.iter().all(|byte| *byte == 0));
    }

    fn file_of_nothing_but_a_hole(dialect) {
        let layers = Stack::of(dialect).lower([""; 0]).build();
        let lower = layers.lowers[0].join("f");
        fs::File::create(&lower).unwrap().set_len(64 * MIB).unwrap();
        let m = layers.mount();
        m.chmod("f", 0o600).unwrap();
        let copy = fs::metadata(m.up("f")).unwrap();
        assert_eq!((copy.len(), copy.blocks()), (64 * MIB, fs::metadata(lower).unwrap().blocks()));
    }

    fn times_of_the_parents_are_kept(dialect) {
        let past = "mode=0755 mtime=1000.5 atime=2000.6";
        let m = Stack::of(dialect)
            .lower([format!("d/e/f | {past}"), format!("d/e/ | {past}"), format!("d/ | {past}")])
            .mount();
        m.chmod("d/e/f", 0o600).unwrap();
        for name in ["d", "d/e", "d/e/f"] {
            for path in [m.p(name), m.up(name)] {
                let meta = fs::metadata(&path).unwrap();
                assert_eq!((meta.mtime(), meta.mtime_nsec()), (1000, 5), "{}", path.display());
            }
        }
    }

    /// What a crash left must neither get in the way of a copy-up nor into its result, whatever
    /// it is called: these are the names that aufs, overlayfs and this program give.
    fn stale_temporaries(dialect) {
        let names = [".wh..wh.f.0000", ".wh..wh.f.0001", ".wh..wh.00000000", ".wh..wh.00000001",
            ".wh..wh.00000002", "#0", "#1", "0", "f"];
        let layers = Stack::of(dialect)
            .upper([".wh..wh.f.0000=stale", ".wh..wh.f.0001/x=stale", "d/.wh..wh.g.0000=stale"])
            .lower(["f=1", "d/g=2", "s->f", "e/h=3", "k=4"])
            .build();
        let orphans = layers.upper_path().join(".wh..wh.orph");
        let mut places = vec![orphans];
        if let Some(work) = &layers.work {
            places.extend([work.clone(), work.join("work")]);
        }
        for place in &places {
            fs::create_dir_all(place.join(".wh..wh.00000003/x")).unwrap();
            for name in names {
                fs::write(place.join(name), "stale data that is longer").unwrap();
            }
        }
        let mut m = layers.mount();
        for round in 0..2 {
            m.chmod("f", 0o600).unwrap();
            m.chmod("d/g", 0o600).unwrap();
            m.chown("s", 5, 5).unwrap();
            m.chmod("e/h", 0o600).unwrap();
            for (name, text) in [("f", "1"), ("d/g", "2"), ("e/h", "3"), ("s", "1")] {
                m.assert_file(name, text);
            }
            if round == 0 {
                m.unlink("k").unwrap();
            }
            m.assert_ls("", &["d", "e", "f", "s"]);
            m.assert_ls("d", &["g"]);
            m.remount();
        }
        // Only the places of our own are swept: a workdir may hold a user's files beside ours.
        for place in places.iter().filter(|place| Some(*place) != m.layers.work.as_ref()) {
            let left = crate::calls::list(place);
            assert!(!left.iter().any(|name| name.starts_with(".wh..wh.0")), "{left:?}");
        }
        m.unmount();
        for place in places.iter().take(2) {
            fs::remove_dir_all(place).unwrap();
            fs::create_dir(place).unwrap();
        }
    }

    /// Racing copy-ups of one file give one result, and no write is lost.
    fn racing_copy_ups(dialect) {
        let layers = Stack::of(dialect).lower([""; 0]).build();
        for round in 0..8 {
            big_file(&layers.lowers[0].join(format!("d{round}")), 2 * MIB);
        }
        let m = layers.mount();
        for round in 0..8 {
            let name = format!("d{round}");
            let start = std::sync::Barrier::new(8);
            thread::scope(|scope| {
                for writer in 0..8_u64 {
                    let (m, name, start) = (&m, &name, &start);
                    scope.spawn(move || {
                        start.wait();
                        let fd = m.open(name, OFlags::RDWR).unwrap();
                        let mark = [writer as u8 + 1; 100];
                        assert_eq!(rustix::io::pwrite(&fd, &mark, writer * 4096), Ok(100));
                    });
                }
            });
            let mut expected = fs::read(m.layers.lowers[0].join(&name)).unwrap();
            for writer in 0..8 {
                expected[writer * 4096..][..100].fill(writer as u8 + 1);
            }
            assert!(fs::read(m.p(&name)).unwrap() == expected, "{name} seen in the mount");
            assert!(fs::read(m.up(&name)).unwrap() == expected, "{name} in the upper");
        }
    }
}

/// An ext4 filesystem of its own in a file.
pub struct Image {
    dir: tempfile::TempDir,
}

impl Image {
    fn new(mib: u64) -> Self {
        Self::made_by(&["mkfs.ext4", "-q", "-m0"], mib)
    }

    pub fn made_by(mkfs: &[&str], mib: u64) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("unionfs-image-")
            .tempdir()
            .unwrap();
        let file = dir.path().join("image");
        fs::File::create(&file).unwrap().set_len(mib * MIB).unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        let image = Self { dir };
        let mnt = image.mnt();
        let run = |command: &mut Command| {
            let outcome = finish(command);
            assert!(outcome.status.success(), "{command:?}: {}", outcome.stderr);
        };
        run(Command::new(mkfs[0]).args(&mkfs[1..]).arg(&file));
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&file)
            .arg(mnt));
        image
    }

    pub fn mnt(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::empty();
        let mnt = self.mnt();
        let gone = crate::process::wait_for(std::time::Duration::from_secs(10), || {
            rustix::mount::unmount(&mnt, flags).ok()
        });
        if gone.is_none() {
            let _ = rustix::mount::unmount(&mnt, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

#[test]
fn no_space_in_the_middle_of_a_copy_up() {
    let image = Image::new(16);
    let layers = Stack::new()
        .upper_at(&image.mnt())
        .lower(["small=old", "d/x"])
        .build();
    big_file(&layers.lowers[0].join("big"), 32 * MIB);
    let lower = layers.lowers[0].join("big");
    let m = layers.mount();
    let reader = m.open("big", OFlags::RDONLY).unwrap();
    for _ in 0..3 {
        fails!(m.chmod("big", 0o600), NOSPC);
        fails!(
            m.open("big", OFlags::RDWR).and_then(|fd| {
                rustix::io::write(&fd, b"x")?;
                rustix::fs::fsync(fd)
            }),
            NOSPC
        );
        fails!(m.rename("big", "d/big"), NOSPC);
    }
    assert_eq!(m.mode("big"), fs::metadata(&lower).unwrap().mode() & 0o7777);
    assert!(fs::read(m.p("big")).unwrap() == fs::read(&lower).unwrap());
    drop(reader);
    m.assert_upper(["d/"].into_iter().filter(|_| m.up("d").exists()));
    // The space is there again for what fits.
    big_file(&m.p("fits"), 8 * MIB);
    m.chmod("small", 0o600).unwrap();
    m.assert_file("small", "old");
    m.unlink("big").unwrap();
    fails!(m.stat("big"), NOENT);
    drop(m);
    drop(image);
}
