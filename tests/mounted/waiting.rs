//! While a file is copied up, everything else goes on, stat of that very file too, however many wait for
//! the copy. The lower is one whose reads are held up until the test lets them go.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyXattr, Request,
};
use rustix::fs::{AtFlags, CWD, RenameFlags, StatxFlags};
use rustix::mount::UnmountFlags;

use crate::process::{copied_by_open, wait_for, waiting};
use crate::spec::Dialect;
use crate::support::{Mount, Stack};

const BIG: INodeNo = INodeNo(2);
const SIZE: u64 = 1 << 20;
/// More than threads that read requests.
const WRITERS: usize = 16;
const TTL: Duration = Duration::from_secs(3600);

/// Reads that wait to be answered; `None` when none has to.
type Held = Arc<Mutex<Option<Vec<(ReplyData, u32)>>>>;

/// The same for reading the directory.
type HeldLists = Arc<Mutex<Option<Vec<(ReplyDirectory, u64)>>>>;

/// A filesystem with one file, of zeros.
struct Slow(Held, HeldLists);

impl Slow {
    fn attr(ino: INodeNo) -> FileAttr {
        let is_big = ino == BIG;
        FileAttr {
            ino,
            size: if is_big { SIZE } else { 0 },
            blocks: SIZE / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_big {
                FileType::RegularFile
            } else {
                FileType::Directory
            },
            perm: if is_big { 0o644 } else { 0o755 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Slow {
    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &std::ffi::OsStr, reply: ReplyEntry) {
        if name == "big" {
            reply.entry(&TTL, &Self::attr(BIG), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &Self::attr(ino));
    }

    fn readdir(
        &self, _req: &Request, _ino: INodeNo, _fh: FileHandle, offset: u64, reply: ReplyDirectory,
    ) {
        match self.1.lock().unwrap().as_mut() {
            Some(held) => held.push((reply, offset)),
            None => list(reply, offset),
        }
    }

    fn read(
        &self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _offset: u64, size: u32,
        _flags: OpenFlags, _lock_owner: Option<LockOwner>, reply: ReplyData,
    ) {
        match self.0.lock().unwrap().as_mut() {
            Some(held) => held.push((reply, size)),
            None => reply.data(&vec![0; size as usize]),
        }
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, size: u32, reply: ReplyXattr) {
        if size == 0 {
            reply.size(0);
        } else {
            reply.data(&[]);
        }
    }

    fn getxattr(
        &self, _req: &Request, _ino: INodeNo, _name: &std::ffi::OsStr, _size: u32,
        reply: ReplyXattr,
    ) {
        reply.error(Errno::ENODATA);
    }
}

fn list(mut reply: ReplyDirectory, offset: u64) {
    if offset == 0 {
        let _ = reply.add(BIG, 1, FileType::RegularFile, "big");
    }
    reply.ok();
}

/// Such a filesystem, mounted.
struct SlowLower {
    at: tempfile::TempDir,
    held: Held,
    lists: HeldLists,
    server: Option<BackgroundSession>,
}

impl SlowLower {
    fn new() -> Self {
        let at = tempfile::tempdir().unwrap();
        let (held, lists) = (Held::default(), HeldLists::default());
        let slow = Slow(Arc::clone(&held), Arc::clone(&lists));
        let server = fuser::spawn_mount(slow, at.path(), &fuser::Config::default()).unwrap();
        let server = Some(server);
        Self {
            at,
            held,
            lists,
            server,
        }
    }

    /// Below it one with files that are not held up, and an upper.
    fn stack(&self, dialect: Dialect, options: &str) -> Mount {
        let others = (0..100).map(|n| format!("other{n}=text"));
        let mut layers = Stack::of(dialect).lower(others).build();
        layers.lowers.push(self.at.path().to_owned());
        let options = [options, copied_by_open()];
        let options = options.into_iter().filter(|option| !option.is_empty());
        layers.mount_with(&options.collect::<Vec<_>>().join(","))
    }

    fn hold(&self) {
        *self.held.lock().unwrap() = Some(Vec::new());
    }

    fn holds(&self) -> bool {
        self.held
            .lock()
            .unwrap()
            .as_ref()
            .is_some_and(|held| !held.is_empty())
    }

    fn let_go(&self) {
        let held = self.held.lock().unwrap().take();
        for (reply, size) in held.into_iter().flatten() {
            reply.data(&vec![0; size as usize]);
        }
        let lists = self.lists.lock().unwrap().take();
        for (reply, offset) in lists.into_iter().flatten() {
            list(reply, offset);
        }
    }
}

impl Drop for SlowLower {
    fn drop(&mut self) {
        self.let_go();
        // Another test that has just forked may still hold what was opened in it.
        let gone = || rustix::mount::unmount(self.at.path(), UnmountFlags::empty()).ok();
        wait_for(Duration::from_secs(20), gone).expect("nothing uses the lower");
        self.server.take().unwrap().join().unwrap();
    }
}

/// A stat that asks the daemon.
fn stat(path: &Path) {
    rustix::fs::statx(
        CWD,
        path,
        AtFlags::STATX_FORCE_SYNC,
        StatxFlags::BASIC_STATS,
    )
    .unwrap();
}

/// Requests on their way through this mount.
fn under_way(m: &Mount) -> usize {
    let number = rustix::fs::minor(fs::metadata(m.path()).unwrap().dev());
    waiting(number)
}

/// Has many change `big` while its data do not come, and uses the rest meanwhile.
///
/// So many of the changes come to the daemon; the kernel lets one change attributes at a time.
fn rest_goes_on(
    slow: &SlowLower, m: &Mount, at_once: usize, change: impl Fn(PathBuf) + Clone + Send + 'static,
) {
    slow.hold();
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let (change, path) = (change.clone(), m.p("big"));
            thread::spawn(move || change(path))
        })
        .collect();
    let all = || (slow.holds() && under_way(m) >= at_once).then_some(());
    wait_for(Duration::from_secs(20), all).expect("the copy waits, and all others for it");
    for n in 0..100 {
        let other = format!("other{n}");
        stat(&m.p(&other));
        stat(&m.p("big"));
        m.assert_file(&other, "text");
        m.write(&format!("new{n}"), "new").unwrap();
        m.chmod(&other, 0o600).unwrap();
        m.rename(&other, &format!("moved{n}")).unwrap();
    }
    assert!(slow.holds(), "all that while nothing was copied");
    slow.let_go();
    for writer in writers {
        writer.join().unwrap();
    }
    assert_eq!(fs::metadata(m.p("big")).unwrap().len(), SIZE);
}

fn open(path: PathBuf) {
    drop(File::options().write(true).open(path).unwrap());
}

#[test]
fn a_file_that_is_copied_up_stops_nothing_else() {
    let slow = SlowLower::new();
    let m = slow.stack(Dialect::Aufs, "");
    rest_goes_on(&slow, &m, WRITERS, open);
}

#[test]
fn a_copy_for_the_sake_of_attributes_stops_nothing_else() {
    let slow = SlowLower::new();
    let m = slow.stack(Dialect::Aufs, "");
    rest_goes_on(&slow, &m, 1, |path| {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    });
    assert_eq!(m.mode("big"), 0o600);
    assert_eq!(fs::metadata(m.up("big")).unwrap().len(), SIZE);
}

#[test]
fn data_of_a_metacopy_that_are_fetched_stop_nothing_else() {
    let slow = SlowLower::new();
    let mut m = slow.stack(Dialect::Overlay, "metacopy=on");
    m.chmod("big", 0o600).unwrap();
    // The next daemon does not see by its blocks that the data are elsewhere, as after a copying that
    // was cut short.
    m.unmount();
    let file = File::options().write(true).open(m.up("big")).unwrap();
    file.write_all_at(&vec![0; SIZE as usize], 0).unwrap();
    m.mount_again();
    rest_goes_on(&slow, &m, WRITERS, open);
}

/// A directory is being read for long, while names in it change and one of its files is copied up.
#[test]
fn a_directory_that_is_being_read_stops_nothing_else() {
    let slow = SlowLower::new();
    let m = slow.stack(Dialect::Aufs, "");
    stat(&m.p("other0"));
    // After that the directory has to be read anew.
    m.rename_with("other3", "other4", RenameFlags::EXCHANGE)
        .unwrap();
    *slow.lists.lock().unwrap() = Some(Vec::new());
    let root = m.path().to_owned();
    let reader = thread::spawn(move || crate::calls::list(&root));
    let is_held = || {
        let lists = slow.lists.lock().unwrap();
        lists.as_ref().is_some_and(|l| !l.is_empty()).then_some(())
    };
    wait_for(Duration::from_secs(20), is_held).expect("the lower is asked");
    let path = m.p("other0");
    // The kernel lets nobody change names of a directory that is being read, but attributes.
    let change = thread::spawn(move || {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    });
    let is_done = || change.is_finished().then_some(());
    let done = wait_for(Duration::from_secs(20), is_done);
    let is_held_still = is_held().is_some();
    slow.let_go();
    change.join().unwrap();
    done.expect("a file is copied up meanwhile");
    assert!(is_held_still);
    let names = reader.join().unwrap();
    assert_eq!(names.len(), 101);
    m.unlink("other1").unwrap();
    m.write("new", "").unwrap();
    let now = m.ls("");
    assert!(now.len() == 101 && !now.contains(&"other1".to_owned()));
    assert_eq!(m.mode("other0"), 0o600);
    m.assert_file("new", "");
}
