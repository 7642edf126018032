//! What mount options do to a mount: each row of the table is tried, and those with an effect of
//! their own show it.

use std::fs;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use unionfs::options::table::{self, Row, Status};

use crate::process::{device_of, finish, run, unionfs, wait_for};
use crate::support::{Mount, Stack};

/// The line of a mount in the mount table: flags, type, source, options of the filesystem.
fn shown(mnt: &Path) -> [String; 4] {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let of = |line: &&str| line.split(' ').nth(4) == mnt.to_str();
    let line = table.lines().rfind(of).expect("mounted").to_owned();
    let (before, after) = line.split_once(" - ").unwrap();
    let flags = before.split(' ').nth(5).unwrap().to_owned();
    let mut after = after.split(' ').map(str::to_owned);
    std::array::from_fn(|at| {
        if at == 0 {
            flags.clone()
        } else {
            after.next().unwrap()
        }
    })
}

/// The example of a row, with its paths below `base`.
fn example(row: &Row, base: &Path) -> String {
    let mut text = row.example.to_owned();
    for dir in ["l1", "l2", "u"] {
        for before in ["=", ":"] {
            let real = format!("{before}{}/{dir}", base.display());
            text = text.replace(&format!("{before}/{dir}"), &real);
        }
    }
    text.replace("=/w", &format!("={}/w", base.display()))
}

#[test]
fn every_row_mounts_or_is_refused() {
    let base = tempfile::Builder::new()
        .prefix("unionfs-test-")
        .tempdir()
        .unwrap();
    for dir in ["l1", "l2", "u", "w", "mnt"] {
        fs::create_dir(base.path().join(dir)).unwrap();
    }
    fs::write(base.path().join("l1/f"), "text").unwrap();
    let mnt = base.path().join("mnt");
    // Without a mount there is nothing to change; tests/mount8 has it.
    for row in table::rows().filter(|row| row.names[0] != "remount") {
        let options = example(row, base.path());
        let outcome = run(&["-o", &options, mnt.to_str().unwrap()]);
        let mounted = device_of(&mnt).is_some();
        if row.status == Status::Refused {
            let what = format!("{options}: {}", outcome.stderr);
            assert!(!mounted && outcome.status.code() == Some(1), "{what}");
            assert_eq!(outcome.stderr.lines().count(), 1, "{what}");
            let name = row.names.iter().any(|name| outcome.stderr.contains(name));
            assert!(name && outcome.stderr.contains(row.text), "{what}");
            continue;
        }
        let text = mounted.then(|| fs::read_to_string(mnt.join("f")));
        let unmounted = wait_for(std::time::Duration::from_secs(5), || {
            rustix::mount::unmount(&mnt, UnmountFlags::empty()).ok()
        });
        assert!(outcome.status.success(), "{options}: {}", outcome.stderr);
        assert_eq!(outcome.stderr, "", "{options}");
        assert_eq!(
            text.expect("mounted").ok().as_deref(),
            Some("text"),
            "{options}"
        );
        assert!(unmounted.is_some(), "{options}: cannot be unmounted");
    }
}

#[test]
fn row_11_plain_ro_leaves_whiteouts_out() {
    let m = Stack::new()
        .lower(["wh(f)", "d/", "opq(d)"])
        .lower(["f=2", "d/b"])
        .branches(&["rw", "ro", "ro"])
        .mount();
    m.assert_file("f", "2");
    m.assert_ls("", &["d", "f"]);
    m.assert_ls("d", &["b"]);
    m.assert_upper([""; 0]);
}

#[test]
fn branches_with_wh_honour_whiteouts() {
    for permissions in [
        ["rw", "ro+wh", "ro+wh"],
        ["RW", "RO", "RO"],
        ["rw", "rr+wh", "ro"],
    ] {
        let stack = Stack::new()
            .lower(["wh(f)", "opq(d)"])
            .lower(["f=2", "d/b"]);
        let m = stack.branches(&permissions).mount();
        m.assert_ls("", &["d"]);
        m.assert_ls("d", &[]);
    }
}

#[test]
fn row_25_every_new_directory_is_opaque_by_diropq() {
    let m = Stack::new().lower([""; 0]).mount_with("diropq=a");
    fs::create_dir(m.p("d")).unwrap();
    m.assert_upper(["d/", "opq(d)"]);
}

#[test]
fn row_32_whiteouts_are_inodes_of_their_own_by_nolwh() {
    let m = Stack::new()
        .lower(["f", "g"])
        .branches(&["rw+nolwh", "ro+wh"])
        .mount();
    fs::remove_file(m.p("f")).unwrap();
    fs::remove_file(m.p("g")).unwrap();
    m.assert_upper(["wh(f)", "wh(g)"]);
    let ino = |name: &str| fs::symlink_metadata(m.up(name)).unwrap().ino();
    assert_ne!(ino(".wh.f"), ino(".wh.g"));
    assert!(!m.up(".wh..wh.aufs").exists());
}

/// The one-writable-branch part of row 27: a second writable branch is only read.
#[test]
fn row_27_a_second_writable_branch_is_only_read() {
    let m = Stack::new()
        .lower(["d/", "f"])
        .lower(["f"])
        .branches(&["rw", "rw", "ro+wh"])
        .mount();
    fs::write(m.p("d/n"), "n").unwrap();
    fs::remove_file(m.p("f")).unwrap();
    m.assert_ls("", &["d"]);
    m.assert_upper(["d/", "d/n", "wh(f)"]);
}

#[test]
fn kernel_flags_show() {
    for (option, flag) in [
        ("nosuid", "nosuid"),
        ("nodev", "nodev"),
        ("noexec", "noexec"),
        ("nosymfollow", "nosymfollow"),
        ("noatime", "noatime"),
        ("nodiratime", "nodiratime"),
        ("relatime", "relatime"),
        ("defaults", "relatime"),
    ] {
        let m = Stack::new().lower(["f"]).mount_with(option);
        let flags = shown(m.path())[0].clone();
        assert!(
            flags.split(',').any(|word| word == flag),
            "{option}: {flags}"
        );
    }
    let strict = Stack::new().lower(["f"]).mount_with("strictatime");
    assert!(!shown(strict.path())[0].contains("atime"));
    for option in ["sync", "dirsync", "lazytime", "ro"] {
        let m = Stack::new().lower(["f"]).mount_with(option);
        let words = shown(m.path())[3].clone();
        assert!(
            words.split(',').any(|word| word == option),
            "{option}: {words}"
        );
    }
}

#[test]
fn type_and_source_show() {
    let m = Stack::new().lower(["f"]).mount_with("fsname=a b:c");
    assert_eq!(shown(m.path())[1..3], ["fuse.unionfs", "a\\040b:c"]);
    let other = Stack::new().lower(["f"]).mount_with("subtype=other");
    assert_eq!(shown(other.path())[1..3], ["fuse.other", "unionfs"]);
    let size = Stack::new().lower(["f"]).mount_with("max_read=8192");
    assert!(shown(size.path())[3].contains("max_read=8192"));
}

/// The tree of one description, as it looks with `options`.
fn of(options: &str) -> Mount {
    let items = [
        "f=text | mode=0640 uid=5 gid=6 x:user.k=v",
        "d/ | mode=2750 uid=7 gid=8",
    ];
    Stack::new().lower(items).mount_with(options)
}

#[test]
fn masks_and_owners_that_are_shown() {
    let seen = |m: &Mount, name: &str| {
        let stat = fs::metadata(m.p(name)).unwrap();
        (stat.mode() & 0o7777, stat.uid(), stat.gid())
    };
    let m = of("umask=022,uid=1000");
    assert_eq!(seen(&m, "f"), (0o755, 1000, 6));
    assert_eq!(seen(&m, "d"), (0o2755, 1000, 8));
    let m = of("fmask=0133,dmask=027,gid=0");
    assert_eq!(seen(&m, "f"), (0o644, 5, 0));
    assert_eq!(seen(&m, "d"), (0o2750, 7, 0));
    fs::write(m.p("d/new"), "").unwrap();
    assert_eq!(seen(&m, "d/new"), (0o644, 0, 0));
    // What is stored is what it would be without them.
    fs::set_permissions(m.p("f"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(seen(&m, "f"), (0o644, 5, 0));
    let stored = fs::metadata(m.up("f")).unwrap();
    assert_eq!(
        (stored.mode() & 0o7777, stored.uid(), stored.gid()),
        (0o600, 5, 6)
    );
}

#[test]
fn attributes_can_be_left_out() {
    let m = of("noxattrs=1");
    let unsupported = Errno::OPNOTSUPP.raw_os_error();
    let errno = |error: std::io::Error| error.raw_os_error();
    assert_eq!(
        xattr::get(m.p("f"), "user.k").unwrap_err().raw_os_error(),
        Some(unsupported)
    );
    assert_eq!(
        errno(xattr::set(m.p("f"), "user.k", b"w").unwrap_err()),
        Some(unsupported)
    );
    assert_eq!(
        errno(xattr::remove(m.p("f"), "user.k").unwrap_err()),
        Some(unsupported)
    );
    assert_eq!(
        errno(xattr::list(m.p("f")).err().unwrap()),
        Some(unsupported)
    );
    drop(m);
    let m = of("noxattrs=0");
    assert_eq!(xattr::get(m.p("f"), "user.k").unwrap().unwrap(), b"v");
}

#[test]
fn direct_io_reads_and_writes() {
    let m = of("direct_io");
    let open = fs::OpenOptions::new()
        .read(true)
        .append(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(m.p("f"));
    std::io::Write::write_all(&mut open.unwrap(), b" more").unwrap();
    m.assert_file("f", "text more");
}

/// With timeouts of 0 the kernel asks again, and so sees what was changed in a layer behind us.
#[test]
fn timeouts_make_the_kernel_ask_again() {
    let change = |m: &Mount| {
        let before = fs::metadata(m.p("f")).unwrap().mode() & 0o777;
        assert!(fs::metadata(m.p("new")).is_err());
        let lower = &m.layers.lowers[0];
        fs::set_permissions(m.up("f"), fs::Permissions::from_mode(0o604)).unwrap();
        fs::write(m.up("new"), "").unwrap();
        assert!(lower.join("f").exists());
        let after = fs::metadata(m.p("f")).unwrap().mode() & 0o777;
        (before, after, fs::metadata(m.p("new")).is_ok())
    };
    let upper = || Stack::new().upper(["f | mode=0600"]).lower(["f"]);
    let m = upper().mount();
    assert_eq!(change(&m), (0o600, 0o600, false), "kept for ever");
    drop(m);
    let m = upper().mount_with("timeout=0");
    assert_eq!(change(&m), (0o600, 0o604, true), "asked again");
    drop(m);
    let m = upper().mount_with("attr_timeout=0,entry_timeout=0,negative_timeout=60");
    assert_eq!(change(&m), (0o600, 0o604, false), "negatives kept");
}

#[test]
fn df_shows_the_upper_or_the_sum() {
    let figures = |path: &Path| rustix::fs::statvfs(path).unwrap();
    let base = tempfile::Builder::new()
        .prefix("unionfs-test-")
        .tempdir()
        .unwrap();
    let (lower, upper, mnt) = ("lower", "upper", "mnt");
    let at = |name: &str| base.path().join(name);
    for (dir, size) in [(lower, "24m"), (upper, "8m"), (mnt, "")] {
        fs::create_dir(at(dir)).unwrap();
        if !size.is_empty() {
            let data = std::ffi::CString::new(format!("size={size}")).unwrap();
            let flags = rustix::mount::MountFlags::empty();
            rustix::mount::mount("none", at(dir), "tmpfs", flags, Some(&*data)).unwrap();
        }
    }
    let total = |more: &str| {
        let [lower, upper, mnt] = [lower, upper, mnt].map(at);
        let dirs = format!("lowerdir={},upperdir={}", lower.display(), upper.display());
        let outcome = run(&["-o", &format!("{dirs},{more}"), mnt.to_str().unwrap()]);
        assert!(outcome.status.success(), "{}", outcome.stderr);
        let seen = figures(&mnt);
        let gone = || rustix::mount::unmount(&mnt, UnmountFlags::empty()).ok();
        wait_for(std::time::Duration::from_secs(5), gone).expect("unmounted");
        assert_eq!(seen.f_namemax, 255);
        seen.f_blocks * seen.f_frsize
    };
    let seen = (total("rw"), total("nosum"), total("sum"));
    for dir in [lower, upper] {
        let gone = || rustix::mount::unmount(at(dir), UnmountFlags::empty()).ok();
        wait_for(std::time::Duration::from_secs(10), gone).expect("unmounted");
    }
    assert_eq!(seen, (8 << 20, 8 << 20, 32 << 20));
}

#[test]
fn allow_root_keeps_others_out() {
    let as_nobody = |m: &Mount| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "cat"])
            .arg(m.p("f"));
        finish(&mut command).status.success()
    };
    for (option, expected) in [
        ("allow_other", true),
        ("allow_root", false),
        ("noallow_other", false),
    ] {
        let m = Stack::new().lower(["f"]).mount_with(option);
        m.assert_file("f", "f");
        assert_eq!(as_nobody(&m), expected, "{option}");
    }
}

#[test]
fn unknown_options_warn_and_mount() {
    let m = Stack::new().lower(["f"]).build();
    let log = m.scratch().join("log");
    let options = m.options(&format!("frob,fruit=\"a,b\",log_file={}", log.display()));
    let mut command = Command::new(unionfs());
    let outcome = finish(command.arg("-o").arg(&options).arg(&m.mnt));
    assert!(outcome.status.success(), "{}", outcome.stderr);
    rustix::mount::unmount(&m.mnt, UnmountFlags::empty()).unwrap();
    let told = "unionfs: option frob is not known and has no effect\nunionfs: option fruit=\\\"a,b\\\" is not \
                known and has no effect\n";
    assert_eq!(outcome.stderr, told);
    // The log has a thread of its own, so it may be a moment behind.
    let logged = wait_for(std::time::Duration::from_secs(10), || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let all = text.contains("option frob is not known") && text.contains("fruit=");
        all.then_some(())
    });
    assert!(logged.is_some(), "{:?}", fs::read_to_string(&log));
}

#[test]
fn a_second_writable_branch_is_told() {
    let m = Stack::new().lower(["f"]).branches(&["rw", "rw"]).build();
    let options = m.options("");
    let outcome = finish(Command::new(unionfs()).arg("-o").arg(&options).arg(&m.mnt));
    rustix::mount::unmount(&m.mnt, UnmountFlags::empty()).unwrap();
    let told = "only the first branch can be written, this one is read-only";
    assert!(
        outcome.stderr.contains(told) && outcome.stderr.lines().count() == 1,
        "{}",
        outcome.stderr
    );
}
