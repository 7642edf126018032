//! What lives in `.wh..wh.orph`: objects that are in use and have no name, and what a crash leaves.

use std::fs;
use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};

use crate::calls::{contents, list};
use crate::dialects;
use crate::fails;
use crate::process::{device_of, run, wait_for};
use crate::spec::Dialect;
use crate::support::{Mount, Stack};

/// Names in the places for temporaries.
fn hidden(m: &Mount) -> Vec<String> {
    let places = [
        Some(m.up(".wh..wh.orph")),
        m.layers.work.as_ref().map(|work| work.join("work")),
    ];
    let there = places.into_iter().flatten().filter(|place| place.exists());
    there.flat_map(|place| list(&place)).collect()
}

fn gone(m: &Mount) {
    let all = || hidden(m).is_empty().then_some(());
    let step = std::time::Duration::from_secs(10);
    assert!(wait_for(step, all).is_some(), "{:?}", hidden(m));
}

/// More open files without a name than there are descriptors for: hidden links hold them.
fn many_without_names(m: &Mount) -> Vec<OwnedFd> {
    let mut open = Vec::new();
    for n in 0..120 {
        let name = format!("f{n}");
        let fd = m.open(&name, OFlags::RDWR).unwrap();
        m.unlink(&name).unwrap();
        rustix::io::pwrite(&fd, name.as_bytes(), 0).unwrap();
        open.push(fd);
    }
    for (n, fd) in open.iter().enumerate() {
        assert_eq!(contents(fd), format!("f{n}").into_bytes());
        assert_eq!(rustix::fs::fstat(fd).unwrap().st_nlink, 0);
    }
    assert!(!hidden(m).is_empty(), "nothing is held by a link");
    m.assert_ls("", &[]);
    fails!(m.stat(".wh..wh.orph"), NOENT);
    open
}

fn stack(dialect: Dialect) -> Stack {
    let items: Vec<String> = (0..120).map(|n| format!("f{n}=o")).collect();
    Stack::of(dialect)
        .upper(items)
        .lower(["f7=lower"])
        .descriptors(300)
}

dialects! {
    fn gone_with_the_last_reference(dialect) {
        let m = stack(dialect).mount();
        drop(many_without_names(&m));
        gone(&m);
    }

    fn left_by_a_crash_and_swept_by_the_next_mount(dialect) {
        let mut m = stack(dialect).mount();
        let open = many_without_names(&m);
        let before = hidden(&m);
        // Somebody else's attempt at this upper does not touch what is in use.
        let other = m.layers.scratch().join("other");
        fs::create_dir(&other).unwrap();
        let options = m.layers.options("");
        let outcome = run(&["-o".as_ref(), options.as_os_str(), other.as_os_str()]);
        assert_eq!(outcome.status.code(), Some(1));
        assert!(outcome.stderr.contains("in use"), "{}", outcome.stderr);
        assert!(device_of(&other).is_none());
        assert_eq!(hidden(&m), before);
        assert_eq!(contents(&open[3]), b"f3");
        rustix::process::kill_process(Pid::from_raw(m.pid()).unwrap(), Signal::KILL).unwrap();
        rustix::mount::unmount(m.path(), UnmountFlags::DETACH).unwrap();
        drop(open);
        m.ended().unwrap();
        assert_eq!(hidden(&m), before);
        // Reading alone takes nothing over.
        m.mount_again_with("ro");
        m.assert_ls("", &[]);
        assert_eq!(hidden(&m), before);
        m.unmount();
        m.mount_again_with("");
        assert_eq!(hidden(&m), [""; 0]);
        m.assert_ls("", &[]);
    }

    fn a_removed_directory_with_markers_stays_usable(dialect) {
        let mut m = Stack::of(dialect).lower(["d/a", "d/b", "d/in/c"]).mount();
        let fd = m.open("d", OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
        fs::remove_dir_all(m.p("d/in")).unwrap();
        m.unlink("d/a").unwrap();
        m.unlink("d/b").unwrap();
        m.rmdir("d").unwrap();
        assert_eq!(rustix::fs::fstat(&fd).unwrap().st_nlink, 0);
        fails!(rustix::fs::mkdirat(&fd, "new", rustix::fs::Mode::RWXU), NOENT);
        rustix::fs::fchmod(&fd, rustix::fs::Mode::from_raw_mode(0o711)).unwrap();
        assert_eq!(rustix::fs::fstat(&fd).unwrap().st_mode & 0o7777, 0o711);
        let entries = rustix::fs::Dir::read_from(&fd).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().to_bytes().to_vec());
        assert_eq!(names.filter(|name| name != b"." && name != b"..").count(), 0);
        m.mkdir("d").unwrap();
        m.assert_ls("d", &[]);
        drop(fd);
        gone(&m);
        m.remount();
        m.assert_ls("d", &[]);
        m.assert_upper(["d/", "opq(d)"]);
    }

    fn every_kind_copied_up_without_a_name(dialect) {
        let m = Stack::of(dialect).lower(["d/f=1", "d/s->t", "fifo(d/p)", "d/e/"]).mount();
        let names = ["d/f", "d/s", "d/p", "d/e"];
        let held = m.remembered(&names);
        fs::remove_dir_all(m.p("d")).unwrap();
        use rustix::fs::AtFlags;
        for (fd, name) in held.iter().zip(names) {
            let to = (Some(rustix::fs::Uid::from_raw(7)), None);
            rustix::fs::chownat(fd, "", to.0, to.1, AtFlags::EMPTY_PATH).unwrap();
            let stat = rustix::fs::statat(fd, "", AtFlags::EMPTY_PATH).unwrap();
            assert_eq!((stat.st_uid, stat.st_nlink), (7, 0), "{name}");
        }
        m.assert_ls("", &[]);
        drop(held);
        gone(&m);
        m.assert_upper(["wh(d)"]);
    }
}
