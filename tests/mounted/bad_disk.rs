//! An upper whose disk fails.

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::calls;
use crate::disk_log::Logged;
use crate::support::Stack;

/// What went wrong with writing a file back is told to everyone who had it open, once, as on a plain
/// directory, which is looked at first.
#[test]
fn everyone_is_told_of_a_failed_write_back() {
    let options = ["-O", "^has_journal", "-b", "4096"];
    for way in [None, Some("open=cached"), Some("open=passthrough")] {
        let disk = Logged::new("ext4", 16 << 20, &options, "defaults");
        let m = way.map(|way| Stack::new().upper_at(&disk.at).lower(["l"]).mount_with(way));
        let path = match &m {
            Some(m) => m.p("f"),
            None => disk.at.join("f"),
        };
        let open = |flags| calls::open(&path, OFlags::RDWR | flags).unwrap();
        let (first, second) = (open(OFlags::CREATE), open(OFlags::empty()));
        rustix::io::write(&first, b"good").unwrap();
        rustix::fs::fsync(&first).unwrap();
        rustix::io::pwrite(&first, b"lost", 0).unwrap();
        disk.set_failing(true);
        let told = rustix::fs::fsync(&first);
        disk.set_failing(false);
        assert_eq!(told, Err(Errno::IO), "{way:?}");
        let third = open(OFlags::empty());
        assert_eq!(rustix::fs::fsync(&third), Ok(()), "{way:?}: opened since");
        assert_eq!(
            rustix::fs::fsync(&second),
            Err(Errno::IO),
            "{way:?}: as well"
        );
        for fd in [&first, &second, &third] {
            assert_eq!(rustix::fs::fsync(fd), Ok(()), "{way:?}: once");
        }
        drop((first, second, third));
        drop(m);
    }
}
