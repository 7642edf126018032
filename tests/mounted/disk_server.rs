//! The server of a disk that remembers what comes to it: a FUSE filesystem of one file, in a process of its own.
//!
//! Of its own, since a test that maps a file of the disk, or whatever in its process does, may hold the
//! process's lock of its memory while it waits for the disk; a server in the same process would wait for that lock
//! as soon as it needs memory.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request,
    WriteFlags,
};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::disk_log::Event;
use crate::process::wait_for;

/// Set in the process that serves: the directory with all there is to it.
const SERVED: &str = "UNIONFS_TEST_DISK";
/// The test that is run for it.
const TEST: &str = "disk_log::cuts_go_on_while_a_namespace_has_the_last_one";
/// Files of that directory: the disk's content, what came to it, how many events that are, and whether
/// writes fail.
const CONTENT: &str = "content";
const LOG: &str = "log";
const COUNT: &str = "count";
const FAILS: &str = "fails";

const TTL: Duration = Duration::from_secs(3600);
const DISK: INodeNo = INodeNo(2);
/// Stands in the log in the place of an offset.
const FLUSH: u64 = u64::MAX;

struct Disk {
    content: File,
    size: u64,
    fails: File,
    count: File,
    log: Mutex<(File, u64)>,
}

impl Disk {
    fn new(dir: &Path) -> Self {
        let open = |name: &str| {
            let mut how = File::options();
            how.read(true).write(true).open(dir.join(name)).unwrap()
        };
        let content = open(CONTENT);
        Self {
            size: content.metadata().unwrap().len(),
            content,
            fails: open(FAILS),
            count: open(COUNT),
            log: Mutex::new((open(LOG), 0)),
        }
    }

    /// Notes an event, which counts when it is whole.
    fn note(&self, offset: u64, data: &[u8]) {
        let mut log = self.log.lock().unwrap();
        let head = [offset, data.len() as u64].map(u64::to_le_bytes).concat();
        log.0.write_all(&[&head, data].concat()).unwrap();
        log.1 += 1;
        self.count.write_all_at(&log.1.to_le_bytes(), 0).unwrap();
    }

    fn attr(&self, ino: INodeNo) -> FileAttr {
        let is_disk = ino == DISK;
        FileAttr {
            ino,
            size: if is_disk { self.size } else { 0 },
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_disk {
                FileType::RegularFile
            } else {
                FileType::Directory
            },
            perm: if is_disk { 0o600 } else { 0o700 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Disk {
    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &std::ffi::OsStr, reply: ReplyEntry) {
        if name == "disk" {
            reply.entry(&TTL, &self.attr(DISK), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Past the page cache: what the block layer sends arrives here in its order.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self, _req: &Request, _ino: INodeNo, _fh: FileHandle, offset: u64, size: u32,
        _flags: OpenFlags, _lock_owner: Option<LockOwner>, reply: ReplyData,
    ) {
        let mut data = vec![0; size as usize];
        let got = self.content.read_at(&mut data, offset).unwrap_or(0);
        reply.data(&data[..got]);
    }

    fn write(
        &self, _req: &Request, _ino: INodeNo, _fh: FileHandle, offset: u64, data: &[u8],
        _write_flags: WriteFlags, _flags: OpenFlags, _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut fails = [1];
        self.fails.read_exact_at(&mut fails, 0).unwrap();
        if fails != [0] || self.content.write_all_at(data, offset).is_err() {
            return reply.error(Errno::EIO);
        }
        self.note(offset, data);
        reply.written(u32::try_from(data.len()).unwrap());
    }

    fn fsync(
        &self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _data: bool, reply: ReplyEmpty,
    ) {
        self.note(FLUSH, &[]);
        reply.ok();
    }
}

/// Serves a disk if this process is there for that; returns whether it was.
pub fn serves() -> bool {
    let Some(dir) = std::env::var_os(SERVED) else {
        return false;
    };
    // Whoever began it waits for its end, or is gone.
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let dir = Path::new(&dir);
    fuser::mount(
        Disk::new(dir),
        dir.join("server"),
        &fuser::Config::default(),
    )
    .unwrap();
    true
}

/// The process that serves a disk.
pub struct Server(Child);

impl Server {
    /// Has the file `content` of `dir` served as `server/disk`.
    pub fn start(dir: &Path) -> Self {
        fs::write(dir.join(LOG), "").unwrap();
        fs::write(dir.join(COUNT), 0_u64.to_le_bytes()).unwrap();
        set_failing(dir, false);
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture", "--test-threads=1"])
            .env(SERVED, dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut server = Self(child);
        let begun = || {
            let ended = server.0.try_wait().unwrap();
            assert!(ended.is_none(), "the disk's server: {ended:?}");
            dir.join("server/disk").exists().then_some(())
        };
        wait_for(Duration::from_secs(30), begun).expect("the disk is there");
        server
    }

    /// Waits for the end, which comes with that of its mount.
    pub fn join(mut self) {
        let ended = || self.0.try_wait().unwrap();
        let status = wait_for(Duration::from_secs(30), ended);
        let status = status.expect("the disk's server ends");
        assert!(status.success() || std::thread::panicking(), "{status}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How many events came to the disk so far.
pub fn position(dir: &Path) -> usize {
    let mut count = [0; 8];
    let file = File::open(dir.join(COUNT)).unwrap();
    file.read_exact_at(&mut count, 0).unwrap();
    usize::try_from(u64::from_le_bytes(count)).unwrap()
}

/// Has writes fail, or not any longer.
pub fn set_failing(dir: &Path, fails: bool) {
    let mut how = File::options();
    let file = how
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join(FAILS));
    file.unwrap().write_all_at(&[u8::from(fails)], 0).unwrap();
}

/// The first `count` events.
pub fn events(dir: &Path, count: usize) -> Vec<Event> {
    let mut log = std::io::BufReader::new(File::open(dir.join(LOG)).unwrap());
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        let mut head = [0; 16];
        log.read_exact(&mut head).unwrap();
        let [offset, len] =
            [&head[..8], &head[8..]].map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()));
        let mut data = vec![0; usize::try_from(len).unwrap()];
        log.read_exact(&mut data).unwrap();
        all.push(match offset {
            FLUSH => Event::Flush,
            offset => Event::Write(offset, data),
        });
    }
    all
}
