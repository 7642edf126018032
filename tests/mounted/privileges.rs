//! What the process that serves a mount has given up, and that what it does goes on without that.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::process::Command;

use crate::calls::Caller;
use crate::process::{copy_program, daemons, finish, unionfs};
use crate::regressions_copy_up::Image;
use crate::support::{Mount, Stack};
use crate::user::{DeviceMode, Place};

/// Capabilities that docs/SECURITY.md lists, by number.
const NEEDED: [u32; 14] = [0, 1, 2, 3, 4, 6, 7, 9, 19, 21, 27, 31, 32, 33];

fn needed() -> u64 {
    NEEDED.iter().fold(0, |all, number| all | 1 << number)
}

/// What /proc says of each thread of a process.
fn threads(pid: i32) -> Vec<BTreeMap<String, String>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let status = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("status")).ok()?;
        let fields = text.lines().filter_map(|line| line.split_once(":\t"));
        Some(
            fields
                .map(|(key, value)| (key.into(), value.trim().into()))
                .collect(),
        )
    };
    tasks.filter_map(status).collect()
}

/// Every thread, those that serve too, has what is needed and no more.
fn assert_given_up(pid: i32, alone: bool) {
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("CapEff:\t"));
    let own = u64::from_str_radix(own.unwrap(), 16).unwrap();
    let threads = threads(pid);
    assert!(threads.len() > 2, "{threads:?}");
    for thread in threads {
        for (set, expected) in [
            ("CapEff", needed() & own),
            ("CapPrm", needed() & own),
            ("CapBnd", needed() & own),
            ("CapInh", 0),
            ("CapAmb", 0),
        ] {
            let has = u64::from_str_radix(&thread[set], 16).unwrap();
            // A thread lays one aside for the moment of making a backing file.
            let has = if set == "CapEff" {
                has | has & expected
            } else {
                has
            };
            assert_eq!(has & !expected, 0, "{set} of {}", thread["Name"]);
            assert!(
                set == "CapEff" || has == expected,
                "{set} of {}: {has:x}",
                thread["Name"]
            );
        }
        assert_eq!(
            thread["NoNewPrivs"],
            u8::from(alone).to_string(),
            "{}",
            thread["Name"]
        );
    }
}

/// Something of everything that takes a capability of the daemon's.
fn use_all(m: &Mount) {
    m.write("f", "changed").unwrap();
    m.chown("f", 7, 8).unwrap();
    m.chmod("f", 0o6755).unwrap();
    xattr::set(m.p("f"), "trusted.k", b"v").unwrap();
    m.mknod("null", rustix::fs::FileType::CharacterDevice, 0o600, 0x103)
        .unwrap();
    m.mknod("block", rustix::fs::FileType::BlockDevice, 0o600, 0x700)
        .unwrap();
    let tool = |program: &str, args: &[&str]| {
        let outcome = finish(Command::new(program).args(args).arg(m.p("f")));
        assert!(outcome.status.success(), "{program}: {}", outcome.stderr);
    };
    tool("setcap", &["cap_net_raw+ep"]);
    tool("chattr", &["+i"]);
    tool("chattr", &["-i"]);
    m.chmod("shut", 0).unwrap();
    m.write("shut/new", "x").unwrap();
    Caller::user(1000).call(|| m.write("open/mine", "x").unwrap());
    assert_eq!(m.stat("open/mine").unwrap().st_uid, 1000);
    m.rename("shut", "moved").unwrap();
    fs::remove_dir_all(m.p("moved")).unwrap();
}

#[test]
fn of_root() {
    let mut m = Stack::new()
        .lower(["f", "shut/x", "open/ | mode=777"])
        .mount();
    assert_given_up(m.pid(), true);
    use_all(&m);
    assert_given_up(m.pid(), true);
    m.unmount();
}

#[test]
fn of_a_mount_that_takes_no_changes() {
    let m = Stack::new().read_only().lower(["f"]).mount();
    m.assert_file("f", "f");
    assert_given_up(m.pid(), true);
}

/// The process that keeps the mount has to start others; the servers give up the same as ever, the next
/// ones too.
#[test]
fn of_servers_that_are_replaced() {
    let m = Stack::new()
        .lower(["f", "shut/x", "open/ | mode=777"])
        .mount_with("supervise");
    let server = || {
        crate::process::wait_for(std::time::Duration::from_secs(10), || {
            let all = daemons(m.path());
            let serves = |pid: &&i32| threads(**pid).len() > 2;
            let pid = *all.iter().find(serves)?;
            threads(pid)
                .iter()
                .all(|t| t["NoNewPrivs"] == "1")
                .then_some(pid)
        })
    };
    let first = server().unwrap();
    assert_given_up(first, true);
    use_all(&m);
    let pid = rustix::process::Pid::from_raw(first).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    m.write("f", "again").unwrap();
    let next = server().unwrap();
    assert_ne!(first, next);
    assert_given_up(next, true);
    m.assert_file("f", "again");
}

/// A server of a program that was executed by `upgrade` begins with all that root has.
#[test]
fn of_servers_of_another_program() {
    let m = Stack::new()
        .lower(["f", "shut/x", "open/ | mode=777"])
        .mount_with("supervise");
    let keeper = crate::supervise::keeper(m.path());
    let mut before = crate::supervise::server(m.path(), keeper);
    let program = m.layers.scratch().join("unionfs");
    copy_program(unionfs(), &program);
    for program in [program.as_path(), unionfs().as_ref()] {
        let outcome = finish(Command::new(program).arg("upgrade").arg(m.path()));
        assert!(outcome.status.success(), "{}", outcome.stderr);
        let pid = crate::supervise::server(m.path(), keeper);
        assert_ne!(pid, before);
        assert_eq!(fs::read_link(format!("/proc/{pid}/exe")).unwrap(), program);
        // It has answered, so it serves.
        assert_given_up(pid, true);
        before = pid;
    }
    use_all(&m);
    assert_given_up(before, true);
}

/// fusermount3 is set-user-id, and has to end what it began.
#[test]
fn through_fusermount3() {
    let _device = DeviceMode::set(0o666);
    let place = Place::new();
    let text = r#"
$unionfs -f -o "$options" "$mnt" &
until mountpoint -q "$mnt"; do sleep 0.02; done
grep -E '^(CapEff|NoNewPrivs)' "/proc/$!/status"
kill -TERM $!
wait $!
! mountpoint -q "$mnt"
"#;
    let outcome = place.script(&[], text);
    place.check();
    assert!(
        outcome.status.success(),
        "{}{}",
        outcome.stdout,
        outcome.stderr
    );
    assert_eq!(
        outcome.stdout,
        "CapEff:\t0000000000000000\nNoNewPrivs:\t0\n"
    );
}

/// With CAP_SYS_RESOURCE a daemon that writes what users write would take the blocks that are set aside,
/// and would not be held by quotas either (which the kernel asks about in the same way).
#[test]
fn what_is_set_aside_on_a_disk_stays() {
    let image = Image::made_by(&["mkfs.ext4", "-q", "-m20"], 64);
    // For someone else; by default it is root's, as whom the daemon writes.
    let outcome = finish(
        Command::new("mount")
            .args(["-o", "remount,resuid=12345"])
            .arg(image.mnt()),
    );
    assert!(outcome.status.success(), "{}", outcome.stderr);
    let m = Stack::new()
        .upper_at(&image.mnt())
        .lower(["open/ | mode=777"])
        .mount();
    let fill = |name: &str| {
        let mut file = fs::File::create(m.p(name)).unwrap();
        let piece = vec![1; 1 << 20];
        let written = (0..100).try_for_each(|_| file.write_all(&piece));
        // Where the kernel keeps what is written, this tells.
        let done = written.and_then(|()| file.sync_all());
        assert_eq!(done.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    };
    Caller::user(1000).call(|| fill("open/x"));
    let left = rustix::fs::statvfs(image.mnt()).unwrap();
    assert!(left.f_bavail < 1000, "{} are left", left.f_bavail);
    assert!(
        left.f_bfree > left.f_blocks / 10,
        "{} are left",
        left.f_bfree
    );
}
