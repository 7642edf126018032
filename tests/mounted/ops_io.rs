//! Reading, writing and everything else that a descriptor of a file can do.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags};

use crate::calls::contents;
use crate::dialects;
use crate::fails;
use crate::process::{copy_program, finish};
use crate::spec::Dialect;
use crate::support::{Mount, Stack};

/// One file that comes from the upper and one from a lower, with the same content.
fn both(dialect: Dialect, content: &str) -> Mount {
    Stack::of(dialect)
        .upper([format!("u={content}")])
        .lower([format!("l={content}")])
        .mount()
}

dialects! {
    fn append(dialect) {
        let mut m = both(dialect, "start");
        for name in ["u", "l"] {
            let one = m.open(name, OFlags::WRONLY | OFlags::APPEND).unwrap();
            let two = m.open(name, OFlags::RDWR | OFlags::APPEND).unwrap();
            for (fd, text) in [(&one, "-1"), (&two, "-2"), (&one, "-3")] {
                rustix::io::write(fd, text.as_bytes()).unwrap();
            }
            m.assert_file(name, "start-1-2-3");
        }
        m.remount();
        m.assert_file("l", "start-1-2-3");
    }

    fn truncate(dialect) {
        let mut m = both(dialect, "some text");
        for name in ["u", "l"] {
            let fd = m.open(name, OFlags::RDWR).unwrap();
            rustix::fs::ftruncate(&fd, 4).unwrap();
            assert_eq!(contents(&fd), b"some");
            rustix::fs::ftruncate(&fd, 6).unwrap();
            assert_eq!(contents(&fd), b"some\0\0");
            fails!(rustix::fs::ftruncate(m.open(name, OFlags::RDONLY).unwrap(), 0), INVAL);
            let before = m.open(name, OFlags::RDONLY).unwrap();
            drop(m.open(name, OFlags::WRONLY | OFlags::TRUNC).unwrap());
            assert_eq!(m.stat(name).unwrap().st_size, 0);
            assert_eq!(contents(&before), b"", "{name}");
            m.write(name, "again").unwrap();
        }
        m.remount();
        m.assert_file("u", "again");
        m.assert_file("l", "again");
    }

    fn exclusive_creation(dialect) {
        let m = Stack::of(dialect)
            .upper(["u", "wh(w)", "s->nowhere"])
            .lower(["l", "w=old", "d/"])
            .mount();
        for name in ["u", "l", "s", "d"] {
            fails!(m.creat(name, 0o644), EXIST);
        }
        m.creat("w", 0o644).unwrap();
        m.assert_file("w", "");
        fails!(m.open("none", OFlags::WRONLY), NOENT);
        fails!(m.open("d", OFlags::WRONLY), ISDIR);
        fails!(m.open("l", OFlags::RDONLY | OFlags::DIRECTORY), NOTDIR);
        fails!(m.open("s", OFlags::RDONLY | OFlags::NOFOLLOW), LOOP);
        // Creation through a dangling symlink.
        m.open("s", OFlags::CREATE | OFlags::WRONLY).unwrap();
        m.assert_file("nowhere", "");
    }

    fn direct_io(dialect) {
        let mut m = both(dialect, &"0123456789abcdef".repeat(512));
        for name in ["u", "l"] {
            let reader = m.open(name, OFlags::RDONLY | OFlags::DIRECT).unwrap();
            let mut space = vec![0_u8; 3 * 4096];
            let at = space.as_ptr().align_offset(4096);
            let page = &mut space[at..at + 4096];
            assert_eq!(rustix::io::pread(&reader, &mut *page, 4096), Ok(4096));
            assert!(page.starts_with(b"0123456789abcdef"));
            page.fill(b'X');
            let writer = m.open(name, OFlags::RDWR | OFlags::DIRECT).unwrap();
            assert_eq!(rustix::io::pwrite(&writer, page, 0), Ok(4096));
            page.fill(0);
            assert_eq!(rustix::io::pread(&writer, &mut *page, 0), Ok(4096));
            assert!(page.iter().all(|byte| *byte == b'X'));
            let cached = fs::read(m.p(name)).unwrap();
            assert_eq!(cached.len(), 8192);
            assert!(cached[..4096].iter().all(|byte| *byte == b'X') && cached[4096] == b'0');
        }
        m.remount();
        assert!(fs::read(m.p("l")).unwrap().starts_with(b"XXXX"));
    }

    fn shared_mapping(dialect) {
        let mut m = both(dialect, &"0123456789abcdef".repeat(512));
        for name in ["u", "l"] {
            let fd = m.open(name, OFlags::RDWR).unwrap();
            let other = m.open(name, OFlags::RDWR).unwrap();
            let flags = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a new mapping of 8192 bytes of a file of that size, used within them.
            unsafe {
                let null = std::ptr::null_mut();
                let map = rustix::mm::mmap(null, 8192, flags, MapFlags::SHARED, &fd, 0).unwrap();
                let bytes = map.cast::<u8>();
                assert_eq!(bytes.read(), b'0');
                bytes.write(b'A');
                bytes.add(5000).write(b'B');
                rustix::mm::msync(map, 8192, MsyncFlags::SYNC).unwrap();
                assert_eq!(contents(&other)[0], b'A');
                rustix::io::pwrite(&other, b"CC", 8000).unwrap();
                assert_eq!(bytes.add(8001).read(), b'C', "a write is seen in the mapping");
                bytes.add(1).write(b'D');
                rustix::mm::munmap(map, 8192).unwrap();
            }
            drop(fd);
            rustix::fs::fsync(&other).unwrap();
            let data = fs::read(m.up(name)).unwrap();
            assert_eq!((data[0], data[1], data[5000], data[8001]), (b'A', b'D', b'B', b'C'));
        }
        m.remount();
        for name in ["u", "l"] {
            let data = fs::read(m.p(name)).unwrap();
            assert_eq!((data[0], data[1], data[5000], data[8001]), (b'A', b'D', b'B', b'C'));
        }
    }

    fn allocate(dialect) {
        let mut m = both(dialect, &"x".repeat(12288));
        for name in ["u", "l"] {
            let fd = m.open(name, OFlags::RDWR).unwrap();
            let size = || rustix::fs::fstat(&fd).unwrap().st_size;
            rustix::fs::fallocate(&fd, FallocateFlags::KEEP_SIZE, 0, 1 << 20).unwrap();
            assert_eq!(size(), 12288);
            assert!(fs::metadata(m.up(name)).unwrap().blocks() >= 2048);
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&fd, punch, 4096, 4096).unwrap();
            rustix::fs::fallocate(&fd, FallocateFlags::ZERO_RANGE, 8192, 100).unwrap();
            let data = contents(&fd);
            assert_eq!(data.len(), 12288);
            assert!(data[..4096].iter().all(|byte| *byte == b'x'));
            assert!(data[4096..8292].iter().all(|byte| *byte == 0));
            assert!(data[8292..].iter().all(|byte| *byte == b'x'));
            rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, 20000).unwrap();
            assert_eq!(size(), 20000);
            let reader = m.open(name, OFlags::RDONLY).unwrap();
            fails!(rustix::fs::fallocate(&reader, FallocateFlags::empty(), 0, 1), BADF);
        }
        m.remount();
        assert_eq!(m.stat("l").unwrap().st_size, 20000);
    }

    fn seek_for_data_and_holes(dialect) {
        let layers = Stack::of(dialect).lower([""; 0]).build();
        for file in [layers.lowers[0].join("l"), layers.upper_path().join("u")] {
            let file = fs::File::create(file).unwrap();
            file.set_len(4 << 20).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &[1; 4096], 1 << 20).unwrap();
        }
        let m = layers.mount();
        for name in ["u", "l"] {
            let fd = m.open(name, OFlags::RDONLY).unwrap();
            assert_eq!(rustix::fs::seek(&fd, SeekFrom::Data(0)), Ok(1 << 20), "{name}");
            assert_eq!(rustix::fs::seek(&fd, SeekFrom::Hole(1 << 20)), Ok((1 << 20) + 4096));
            assert_eq!(rustix::fs::seek(&fd, SeekFrom::Hole(5)), Ok(5));
            fails!(rustix::fs::seek(&fd, SeekFrom::Data(2 << 20)), NXIO);
            fails!(rustix::fs::seek(&fd, SeekFrom::Data(9 << 20)), NXIO);
            assert_eq!(rustix::fs::seek(&fd, SeekFrom::End(-1)), Ok((4 << 20) - 1));
        }
    }

    fn copy_range(dialect) {
        let text = "0123456789abcdef".repeat(1000);
        let m = both(dialect, &text);
        for (from, to) in [("l", "n1"), ("u", "n2"), ("l", "u"), ("u", "l")] {
            let source = m.open(from, OFlags::RDONLY).unwrap();
            let target = m.open(to, OFlags::RDWR | OFlags::CREATE).unwrap();
            let (mut at, mut into) = (16, 4);
            while at < 16000 {
                let left = usize::try_from(16000 - at).unwrap();
                let count = rustix::fs::copy_file_range(
                    &source, Some(&mut at), &target, Some(&mut into), left).unwrap();
                assert!(count > 0);
            }
            let data = contents(&target);
            assert!(data[4..15988] == text.as_bytes()[16..], "{from} to {to}");
            rustix::fs::ftruncate(&target, 0).unwrap();
            rustix::io::pwrite(&target, text.as_bytes(), 0).unwrap();
        }
        let fd = m.open("l", OFlags::RDWR).unwrap();
        let (mut at, mut into) = (0, 8000);
        let count =
            rustix::fs::copy_file_range(&fd, Some(&mut at), &fd, Some(&mut into), 8000).unwrap();
        let data = contents(&fd);
        assert!(data[..count] == data[8000..][..count]);
    }

    /// The kernel does not pass the request to a FUSE filesystem.
    fn clone_range(dialect) {
        let m = both(dialect, "text");
        let source = m.open("l", OFlags::RDONLY).unwrap();
        let target = m.open("n", OFlags::RDWR | OFlags::CREATE).unwrap();
        let answer = rustix::fs::ioctl_ficlone(&target, &source);
        assert_eq!(answer, Err(Errno::OPNOTSUPP));
        m.assert_file("n", "");
        assert!(!m.up("l").exists());
    }

    fn large_and_unaligned_io(dialect) {
        let m = Stack::of(dialect).lower([""; 0]).mount();
        let data: Vec<u8> = (0..5_000_011_u32).map(|at| (at * 7 % 253) as u8).collect();
        let fd = m.open("f", OFlags::RDWR | OFlags::CREATE).unwrap();
        let mut at = 0;
        while at < data.len() {
            let end = data.len().min(at + 1_234_567);
            at += rustix::io::pwrite(&fd, &data[at..end], at as u64).unwrap();
        }
        assert!(contents(&fd) == data);
        rustix::fs::fdatasync(&fd).unwrap();
        assert!(fs::read(m.up("f")).unwrap() == data);
        let mut part = vec![0; 70_001];
        assert_eq!(rustix::io::pread(&fd, &mut part, 4_999_999), Ok(12));
        assert_eq!(rustix::io::pread(&fd, &mut part, 6_000_000), Ok(0));
    }

    fn special_files(dialect) {
        let mut m = Stack::of(dialect).lower(["fifo(p)", "chr(null,1,3)"]).mount();
        fs::write(m.p("null"), "gone").unwrap();
        assert_eq!(fs::read(m.p("null")).unwrap(), b"");
        m.chmod("p", 0o600).unwrap();
        m.chmod("null", 0o600).unwrap();
        for _ in 0..2 {
            assert_eq!(m.stat("p").unwrap().st_mode, 0o010_600);
            assert_eq!(m.stat("null").unwrap().st_mode, 0o020_600);
            assert_eq!(m.stat("null").unwrap().st_rdev, rustix::fs::makedev(1, 3));
            m.remount();
        }
        let reader = m.open("p", OFlags::RDONLY | OFlags::NONBLOCK).unwrap();
        let writer = m.open("p", OFlags::WRONLY).unwrap();
        rustix::io::write(&writer, b"through").unwrap();
        assert_eq!(rustix::io::read(&reader, &mut [0; 20]), Ok(7));
    }
}

/// FS_IOC_FSGETXATTR, the request of lsattr -p and of backup programs.
#[test]
fn extended_flags() {
    let m = both(Dialect::Aufs, "text");
    for name in ["u", "l"] {
        let fd = m.open(name, OFlags::RDONLY).unwrap();
        let mut answer = [0xff_u32; 7];
        const FS_IOC_FSGETXATTR: libc::c_ulong = 0x801c_581f;
        let raw = std::os::fd::AsRawFd::as_raw_fd(&fd);
        // SAFETY: the request fills 28 bytes, the size of the array.
        let result = unsafe { libc::ioctl(raw, FS_IOC_FSGETXATTR, answer.as_mut_ptr()) };
        assert_eq!(result, 0, "{name}: {}", std::io::Error::last_os_error());
        assert_eq!(answer[3], 0, "{name}: project id");
    }
    assert!(!m.up("l").exists());
}

#[test]
fn program_from_a_lower_runs() {
    let layers = Stack::new().lower([""; 0]).build();
    let program = layers.lowers[0].join("true");
    copy_program("/bin/true", &program);
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let m = layers.mount();
    assert!(finish(&mut Command::new(m.p("true"))).status.success());
    m.chmod("true", 0o700).unwrap();
    assert!(finish(&mut Command::new(m.p("true"))).status.success());
    // While it does not run it can be written, and what is being written does not run.
    let writer = m.open("true", OFlags::WRONLY).unwrap();
    let refused = Command::new(m.p("true")).status().unwrap_err();
    assert_eq!(crate::calls::errno(&refused), Errno::TXTBSY);
    drop(writer);
}
