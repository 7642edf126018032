//! Defects seen in other union filesystems: modes, owners and the bits that must go or stay.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{FileType, Mode, OFlags};

use crate::calls::Caller;
use crate::fails;
use crate::support::{Mount, Stack};

fn owner(m: &Mount, name: &str) -> (u32, u32) {
    let stat = m.stat(name).unwrap();
    (stat.st_uid, stat.st_gid)
}

#[test]
fn umask_is_applied_to_what_is_made() {
    let mut m = Stack::new().upper(["u/"]).lower(["l/"]).mount();
    for (dir, umask) in [("u", 0o027), ("l", 0o002), (".", 0)] {
        let at = |name: &str| format!("{dir}/{name}{umask}");
        Caller::root().umask(umask).call(|| {
            m.mkdir_mode(&at("d"), 0o777).unwrap();
            m.creat(&at("f"), 0o666).unwrap();
            m.mknod(&at("p"), FileType::Fifo, 0o666, 0).unwrap();
            m.mknod(&at("s"), FileType::Socket, 0o777, 0).unwrap();
            let zero = rustix::fs::makedev(1, 5);
            m.mknod(&at("c"), FileType::CharacterDevice, 0o666, zero)
                .unwrap();
        });
    }
    let check = |m: &Mount| {
        for (dir, umask) in [("u", 0o027), ("l", 0o002), (".", 0)] {
            for (name, mode) in [
                ("d", 0o777),
                ("f", 0o666),
                ("p", 0o666),
                ("s", 0o777),
                ("c", 0o666),
            ] {
                let path = format!("{dir}/{name}{umask}");
                assert_eq!(m.mode(&path), mode & !umask, "{path}");
            }
        }
    };
    check(&m);
    m.remount();
    check(&m);
    assert_eq!(m.stat("c0").unwrap().st_rdev, rustix::fs::makedev(1, 5));
}

#[test]
fn umask_is_not_applied_to_what_is_copied_up() {
    let lower = [
        "t/ | mode=1777",
        "g/s/ | mode=2775 gid=50",
        "g/ | mode=0777",
        "f | mode=0666",
    ];
    let mut m = Stack::new().lower(lower).mount();
    Caller::root().umask(0o077).call(|| {
        m.creat("t/f", 0o666).unwrap();
        m.creat("g/s/f", 0o666).unwrap();
        rustix::fs::ftruncate(m.open("f", OFlags::WRONLY).unwrap(), 0).unwrap();
    });
    m.remount();
    for (name, mode) in [("t", 0o1777), ("g", 0o777), ("g/s", 0o2775), ("f", 0o666)] {
        assert_eq!(m.mode(name), mode, "{name}");
        assert_eq!(
            fs::metadata(m.up(name)).unwrap().mode() & 0o7777,
            mode,
            "{name}"
        );
    }
    assert_eq!(m.mode("t/f"), 0o600);
}

#[test]
fn setgid_directory_gives_its_group() {
    let mut m = Stack::new()
        .upper(["u/ | mode=2777 gid=50"])
        .lower(["l/ | mode=2777 gid=50"])
        .mount();
    for dir in ["u", "l"] {
        Caller::user(1000).call(|| {
            m.mkdir(&format!("{dir}/d")).unwrap();
            m.mkdir(&format!("{dir}/d/e")).unwrap();
            m.creat(&format!("{dir}/f"), 0o644).unwrap();
            m.symlink("f", &format!("{dir}/s")).unwrap();
            m.mknod(&format!("{dir}/p"), FileType::Fifo, 0o644, 0)
                .unwrap();
        });
    }
    m.remount();
    for dir in ["u", "l"] {
        for name in ["d", "d/e", "f", "s", "p"] {
            assert_eq!(
                owner(&m, &format!("{dir}/{name}")),
                (1000, 50),
                "{dir}/{name}"
            );
        }
        assert_eq!(m.mode(&format!("{dir}/d")), 0o2755);
        assert_eq!(m.mode(&format!("{dir}/d/e")), 0o2755);
        assert_eq!(m.mode(&format!("{dir}/f")), 0o644);
    }
}

/// A group-executable file made setgid by somebody outside of the group loses the bit.
#[test]
fn setgid_at_creation_needs_the_group() {
    let m = Stack::new().lower(["l/ | mode=2777 gid=50"]).mount();
    let plain = m.layers.scratch().join("plain");
    fs::create_dir(&plain).unwrap();
    std::os::unix::fs::chown(&plain, None, Some(50)).unwrap();
    rustix::fs::chmod(&plain, Mode::from_raw_mode(0o2777)).unwrap();
    let modes = |dir: &std::path::Path| -> Vec<u32> {
        let make = |name: &str| {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
            let path = dir.join(name);
            let fd = crate::process::open_file(&path, flags, Mode::from_raw_mode(0o2775)).unwrap();
            rustix::fs::fstat(fd).unwrap().st_mode & 0o7777
        };
        vec![
            Caller::user(1000).call(|| make("out")),
            Caller::user(1000).groups(&[50]).call(|| make("in")),
            make("root"),
        ]
    };
    assert_eq!(modes(&m.p("l")), modes(&plain));
}

#[test]
fn copy_up_keeps_setuid_and_setgid() {
    let m = Stack::new()
        .lower(["f | mode=6755 uid=7 gid=8", "d/ | mode=3775 uid=7 gid=8"])
        .mount();
    let past = rustix::fs::Timespec {
        tv_sec: 5,
        tv_nsec: 0,
    };
    let times = rustix::fs::Timestamps {
        last_access: past,
        last_modification: past,
    };
    for (name, mode) in [("f", 0o6755), ("d", 0o3775)] {
        let flags = rustix::fs::AtFlags::empty();
        rustix::fs::utimensat(rustix::fs::CWD, m.p(name), &times, flags).unwrap();
        assert_eq!(m.mode(name), mode);
        let up = fs::metadata(m.up(name)).unwrap();
        assert_eq!((up.mode() & 0o7777, up.uid(), up.gid()), (mode, 7, 8));
    }
}

/// The file is group-executable, so both bits go; root's own write leaves them.
#[test]
fn setuid_goes_when_another_user_changes_the_data() {
    let items = [
        "w | mode=6777 uid=1000 gid=1000",
        "t=text | mode=6777 uid=1000 gid=1000",
        "o | mode=6777 uid=1000 gid=1000",
        "a | mode=6777 uid=1000 gid=1000",
        "r | mode=6777 uid=1000 gid=1000",
    ];
    for lower in [true, false] {
        let stack = Stack::new();
        let mut m = if lower {
            stack.lower(items).mount()
        } else {
            stack.upper(items).lower([""; 0]).mount()
        };
        Caller::user(1001).call(|| {
            let fd = m.open("w", OFlags::WRONLY).unwrap();
            rustix::io::write(&fd, b"x").unwrap();
            let fd = m.open("t", OFlags::WRONLY).unwrap();
            rustix::fs::ftruncate(&fd, 1).unwrap();
            m.open("o", OFlags::WRONLY | OFlags::TRUNC).unwrap();
            let fd = m.open("a", OFlags::WRONLY | OFlags::APPEND).unwrap();
            rustix::io::write(&fd, b"x").unwrap();
        });
        let fd = m.open("r", OFlags::WRONLY).unwrap();
        rustix::io::write(&fd, b"x").unwrap();
        drop(fd);
        for _ in 0..2 {
            for name in ["w", "t", "o", "a"] {
                assert_eq!(m.mode(name), 0o777, "{name}, lower: {lower}");
            }
            assert_eq!(m.mode("r"), 0o6777, "root writes, lower: {lower}");
            m.remount();
        }
    }
}

#[test]
fn setuid_goes_at_chown_and_setgid_at_chmod_from_outside() {
    let m = Stack::new()
        .upper([
            "u | mode=6755 uid=1000 gid=1000",
            "v | mode=0755 uid=1000 gid=50",
        ])
        .lower([
            "l | mode=6755 uid=1000 gid=1000",
            "k | mode=0755 uid=1000 gid=50",
        ])
        .mount();
    for name in ["u", "l"] {
        m.chown(name, 1001, 1001).unwrap();
        assert_eq!(m.mode(name), 0o755, "{name}");
        assert_eq!(owner(&m, name), (1001, 1001));
    }
    for name in ["v", "k"] {
        Caller::user(1000).call(|| m.chmod(name, 0o2755)).unwrap();
        assert_eq!(
            m.mode(name),
            0o755,
            "{name}: the caller is not in the group"
        );
        Caller::user(1000)
            .groups(&[50])
            .call(|| m.chmod(name, 0o2755))
            .unwrap();
        assert_eq!(m.mode(name), 0o2755, "{name}");
    }
}

#[test]
fn objects_belong_to_their_maker() {
    let mut m = Stack::new()
        .upper(["u/ | mode=0777"])
        .lower(["l/ | mode=0777"])
        .mount();
    for dir in ["u", "l"] {
        Caller {
            uid: 1000,
            gid: 1005,
            groups: vec![],
            umask: 0,
        }
        .call(|| {
            m.mkdir(&format!("{dir}/d")).unwrap();
            m.creat(&format!("{dir}/f"), 0o644).unwrap();
            m.symlink("f", &format!("{dir}/s")).unwrap();
            m.mknod(&format!("{dir}/p"), FileType::Fifo, 0o644, 0)
                .unwrap();
            m.link(&format!("{dir}/f"), &format!("{dir}/h")).unwrap();
        });
    }
    m.remount();
    for dir in ["u", "l"] {
        for name in ["d", "f", "s", "p", "h"] {
            assert_eq!(
                owner(&m, &format!("{dir}/{name}")),
                (1000, 1005),
                "{dir}/{name}"
            );
        }
    }
}

#[test]
fn permissions_are_checked() {
    let m = Stack::new()
        .upper([
            "pu/ | mode=0700",
            "pu/f",
            "gu/ | mode=0775 gid=60",
            "ro | mode=0644",
        ])
        .lower([
            "pl/ | mode=0700",
            "pl/f",
            "gl/ | mode=0775 gid=60",
            "rl | mode=0644",
        ])
        .mount();
    let user = Caller::user(1000);
    for side in ["u", "l"] {
        let (private, group) = (format!("p{side}/f"), format!("g{side}/n"));
        user.call(|| {
            fails!(m.read(&private), ACCESS);
            fails!(m.stat(&private), ACCESS);
            fails!(m.creat(&group, 0o644), ACCESS);
        });
        user.clone().groups(&[60]).call(|| {
            m.creat(&group, 0o644).unwrap();
            m.unlink(&group).unwrap();
        });
    }
    user.call(|| {
        for name in ["ro", "rl"] {
            fails!(m.open(name, OFlags::WRONLY), ACCESS);
            fails!(m.chmod(name, 0o777), PERM);
            fails!(m.chown(name, 1000, 1000), PERM);
            fails!(m.unlink(name), ACCESS);
            fails!(m.rename(name, "x"), ACCESS);
        }
        fails!(m.mkdir("x"), ACCESS);
    });
    // A refused change must not have copied anything up.
    m.assert_upper(["pu/", "pu/f", "gu/", "ro", "gl/"]);
}

#[test]
fn sticky_directory_protects_the_files_of_others() {
    let items = [
        "t/ | mode=1777",
        "t/f | uid=1000 mode=0666",
        "t/d/ | uid=1000 mode=0777",
    ];
    for lower in [true, false] {
        let stack = Stack::new();
        let mut m = if lower {
            stack.lower(items).mount()
        } else {
            stack.upper(items).lower([""; 0]).mount()
        };
        Caller::user(1001).call(|| {
            m.creat("t/mine", 0o644).unwrap();
            fails!(m.unlink("t/f"), PERM);
            fails!(m.rmdir("t/d"), PERM);
            fails!(m.rename("t/f", "t/g"), PERM);
            fails!(m.rename("t/mine", "t/f"), PERM);
            m.unlink("t/mine").unwrap();
        });
        Caller::user(1000).call(|| {
            m.unlink("t/f").unwrap();
            m.rmdir("t/d").unwrap();
            // The whiteout in the way belongs to somebody else.
            m.creat("t/f", 0o644).unwrap();
        });
        m.assert_ls("t", &["f"]);
        m.remount();
        m.assert_ls("t", &["f"]);
        assert_eq!(m.mode("t"), 0o1777);
    }
}

/// A stat that asks for the mode alone must not be answered from what the kernel remembers of
/// before the write; nor may the file run with the rights it had.
#[test]
fn set_id_bits_that_a_write_cleared_do_not_come_back_from_a_cache() {
    let m = Stack::new()
        .upper(["up | mode=6755 uid=0"])
        .lower(["low | mode=6755 uid=0"])
        .mount();
    let mode_only = |name: &str| {
        let flags = rustix::fs::AtFlags::empty();
        let want = rustix::fs::StatxFlags::MODE;
        let path = m.p(name);
        rustix::fs::statx(rustix::fs::CWD, &path, flags, want)
            .unwrap()
            .stx_mode
            & 0o7777
    };
    fs::set_permissions(
        m.p("up"),
        std::os::unix::fs::PermissionsExt::from_mode(0o6757),
    )
    .unwrap();
    fs::set_permissions(
        m.p("low"),
        std::os::unix::fs::PermissionsExt::from_mode(0o6757),
    )
    .unwrap();
    for name in ["up", "low"] {
        assert_eq!(mode_only(name), 0o6757);
        Caller::user(1000).call(|| {
            let mut file = fs::OpenOptions::new().append(true).open(m.p(name)).unwrap();
            std::io::Write::write_all(&mut file, b"more").unwrap();
        });
        assert_eq!(mode_only(name), 0o757, "{name}");
        fs::set_permissions(
            m.p(name),
            std::os::unix::fs::PermissionsExt::from_mode(0o6757),
        )
        .unwrap();
        Caller::user(1000).call(|| {
            let open = fs::OpenOptions::new()
                .write(true)
                .truncate(true)
                .open(m.p(name));
            drop(open.unwrap());
        });
        assert_eq!(mode_only(name), 0o757, "{name}, truncated");
    }
}
