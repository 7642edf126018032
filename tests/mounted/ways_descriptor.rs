//! A mount that somebody else made, given to the program as an open descriptor: `/dev/fd/N`.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Pid, Signal, kill_process};

use crate::process::{self, Outcome, alive, device_of, finish, finish_with_input, wait_for};
use crate::support::Stack;
use crate::user::{Place, USER};
use crate::ways_user::good;

const STEP: Duration = Duration::from_secs(15);

/// What `podman run --preserve-fds` or mount.fuse3 do before they start the program.
struct Opened {
    fd: OwnedFd,
    place: Place,
}

impl Opened {
    fn new(place: Place, more: &str) -> Self {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let fd = crate::process::open_file("/dev/fuse", flags, Mode::empty()).unwrap();
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0{more}",
            fd.as_raw_fd()
        );
        let data = std::ffi::CString::new(data).unwrap();
        let (none, mnt) = (MountFlags::empty(), &place.layers.mnt);
        rustix::mount::mount("opener", mnt, "fuse.opener", none, data.as_c_str()).unwrap();
        Self { fd, place }
    }

    fn mnt(&self) -> &Path {
        &self.place.layers.mnt
    }

    /// `wrapper` and the program, with the descriptor and its name for the mountpoint.
    fn command(&self, wrapper: &[&str], options: &str) -> Command {
        let mut command = passing(&self.fd);
        command.args(wrapper).arg(&self.place.program);
        command.arg("-o").arg(self.place.layers.options(options));
        command.arg(PASSED);
        command
    }

    /// Starts the daemon in the background.
    fn start(&self, wrapper: &[&str], options: &str) -> i32 {
        good(&finish_with_input(&mut self.command(wrapper, options)));
        self.daemon().expect("exit 0, but there is no daemon")
    }

    fn daemon(&self) -> Option<i32> {
        let program = self.place.program.as_os_str();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.find(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).next() == Some(program.as_encoded_bytes()) && alive(*pid)
        })
    }

    fn gone(&self) {
        let gone = wait_for(STEP, || self.daemon().is_none().then_some(()));
        assert!(gone.is_some(), "the daemon stays");
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Some(connection) = device_of(self.mnt()) {
            process::abort(connection);
            let _ = rustix::mount::unmount(self.mnt(), UnmountFlags::DETACH);
        }
        self.place.check();
    }
}

/// What the descriptor is called in a command of [`passing`].
const PASSED: &str = "/dev/fd/3";

/// Runs the words to be added with `fd` as descriptor 3. It comes by way of standard input, so that
/// no program that another test starts at the same moment inherits it.
fn passing(fd: impl AsFd) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "exec 3<&0 </dev/null; exec \"$@\"", "sh"]);
    command.stdin(fd.as_fd().try_clone_to_owned().unwrap());
    command
}

fn status(pid: i32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .unwrap();
    line.trim_start_matches(':').trim().to_owned()
}

fn end(child: &mut Child) -> Option<i32> {
    let ended = wait_for(STEP, || child.try_wait().unwrap());
    ended.unwrap_or_else(|| panic!("it does not end")).code()
}

const SANDBOXED: [&str; 6] = [
    "setpriv",
    "--reuid=1",
    "--regid=1",
    "--clear-groups",
    "--no-new-privs",
    "--bounding-set=-all",
];

fn as_user(user: u32, script: &str, mnt: &Path) -> Outcome {
    let ids = [format!("--reuid={user}"), format!("--regid={user}")];
    let mut command = Command::new("timeout");
    command
        .args(["20", "setpriv"])
        .args(ids)
        .arg("--clear-groups");
    finish(command.args(["sh", "-euc", script]).env("mnt", mnt))
}

/// The daemon needs no right at all but to read and write its layers.
#[test]
fn a_sandbox_without_any_right() {
    let opened = Opened::new(Place::new(), ",allow_other");
    let pid = opened.start(&SANDBOXED, "");
    assert_eq!(status(pid, "CapBnd"), "0000000000000000");
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    let work = "test \"$(cat $mnt/f)\" = lower; echo new > $mnt/f; rm $mnt/g; rm -r $mnt/d\n\
                mkdir $mnt/d; mv $mnt/h $mnt/d/i; ln -s x $mnt/l; chmod 600 $mnt/e/z\n\
                ls -A $mnt $mnt/d; stat -f -c %T-%l $mnt";
    let outcome = as_user(USER, work, opened.mnt());
    good(&outcome);
    let mnt = opened.mnt().display();
    let expected = format!("{mnt}:\nd\ne\nf\nl\ns\n\n{mnt}/d:\ni\nfuseblk-255\n");
    assert_eq!(outcome.stdout, expected);
    rustix::mount::unmount(opened.mnt(), UnmountFlags::empty()).unwrap();
    opened.gone();
    let upper = crate::spec::read_back(opened.place.layers.upper_path(), false);
    let expected = [
        "d/", "d/i", "e/", "e/z", "f", "l", "opq(d)", "wh(g)", "wh(h)",
    ];
    assert_eq!(upper, expected);
}

/// The opener did not ask the kernel to check permissions. It does all the same.
#[test]
fn permissions_are_checked_whatever_the_opener_said() {
    // Also where there are no ACLs, which otherwise see to the checks.
    for options in ["", "noacl", "xattr_permissions=2"] {
        let opened = Opened::new(Place::new(), ",allow_other");
        opened.start(&["env"], options);
        let line = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = line
            .lines()
            .find(|line| line.contains(&opened.mnt().display().to_string()));
        assert!(line.unwrap().contains("fuse.opener opener"));
        good(&as_user(USER, "chmod 600 $mnt/g", opened.mnt()));
        for script in [
            "cat $mnt/g",
            "echo x > $mnt/f",
            "touch $mnt/new",
            "rm $mnt/f",
        ] {
            let outcome = as_user(2, script, opened.mnt());
            assert!(
                outcome.stderr.contains("ermission denied"),
                "{script}: {}",
                outcome.stderr
            );
        }
        good(&as_user(USER, "cat $mnt/g; echo x > $mnt/f", opened.mnt()));
        rustix::mount::unmount(opened.mnt(), UnmountFlags::empty()).unwrap();
        opened.gone();
    }
}

/// SIGTERM ends it: nothing written is lost, and the mount is the opener's to take away.
#[test]
fn a_signal_ends_it_without_loss() {
    let opened = Opened::new(Place::of(0), ",allow_other");
    let mut foreground = opened.command(&["env"], "log=error");
    let mut child = foreground.arg("-f").spawn().unwrap();
    wait_for(STEP, || fs::exists(opened.mnt().join("f")).ok()).expect("it is served");
    let file = opened.mnt().join("f");
    fs::write(&file, "0123456789").unwrap();
    let mapped = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&file)
        .unwrap();
    // SAFETY: nothing else is mapped there, and it is unmapped before the end.
    let at = unsafe {
        let (read_write, shared) = (
            rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
            rustix::mm::MapFlags::SHARED,
        );
        rustix::mm::mmap(std::ptr::null_mut(), 10, read_write, shared, &mapped, 0).unwrap()
    };
    // SAFETY: ten bytes are mapped, and nobody else has the pointer.
    unsafe { at.cast::<[u8; 10]>().write(*b"abcdefghij") };
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(end(&mut child), Some(0));
    // SAFETY: it was mapped above and is not used any more.
    unsafe { rustix::mm::munmap(at, 10).unwrap() };
    drop(mapped);
    let upper = fs::read_to_string(opened.place.layers.upper_path().join("f")).unwrap();
    assert_eq!(upper, "abcdefghij");
    assert!(device_of(opened.mnt()).is_some(), "it was unmounted");
}

#[test]
fn descriptors_that_cannot_be_served() {
    let place = Place::of(0);
    let file = OwnedFd::from(fs::File::open("/dev/null").unwrap());
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let unmounted = crate::process::open_file("/dev/fuse", flags, Mode::empty()).unwrap();
    let cases = [
        (&file, "/dev/fd/987", "no such descriptor"),
        (&file, "/dev/fd/99999999999", "no such descriptor"),
        (&file, "/dev/fd/+3", "no such descriptor"),
        (&file, "/dev/fd/", "no such descriptor"),
        (&file, "/dev/fd/4000000000", "no such descriptor"),
        (&file, "/dev/fd/0", "input and output"),
        (&file, PASSED, "not a descriptor of /dev/fuse"),
        (&unmounted, PASSED, "nothing is mounted"),
    ];
    for (fd, name, words) in cases {
        let mut command = passing(fd);
        command.arg(&place.program).arg("-o");
        command.arg(place.layers.options("")).arg(name);
        let outcome = finish_with_input(&mut command);
        let line = outcome.stderr.trim_end();
        assert_eq!(outcome.status.code(), Some(1), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
        let expected = line.contains(words);
        assert!(
            expected && line.starts_with("unionfs: mountpoint /dev/fd/"),
            "{line}"
        );
    }
    place.check();
}

/// Two daemons cannot share a connection: the second waits for a first request that never comes.
#[test]
fn a_connection_that_is_served_already() {
    let opened = Opened::new(Place::of(0), "");
    opened.start(&["env"], "");
    let second = Stack::new().lower(["x"]).build();
    let mut command = passing(&opened.fd);
    command.arg(process::unionfs()).arg("-o");
    command.arg(second.options("")).arg(PASSED);
    let outcome = finish_with_input(&mut command);
    assert!(
        outcome.stderr.contains("somebody else serves it"),
        "{}",
        outcome.stderr
    );
    assert_eq!(fs::read_to_string(opened.mnt().join("f")).unwrap(), "lower");
    rustix::mount::unmount(opened.mnt(), UnmountFlags::empty()).unwrap();
    opened.gone();
}

/// mount.fuse3 mounts, gives up all rights, and runs the program with `/dev/fd/N`.
#[test]
fn mount_fuse3_drops_privileges() {
    let place = Place::of(0);
    let text = "mkdir bin; ln -s \"$unionfs\" bin/unionfs; chmod 777 lower1/d\n\
        PATH=$scratch/bin:$PATH mount.fuse3 overlay \"$mnt\" -t unionfs \\\n\
            -o drop_privileges,allow_other -o \"$options\"\n\
        cat \"$mnt/f\"; echo\n\
        pid=$(pgrep -f \"unionfs.*$scratch\" | while read p; do\n\
            tr '\\0' '\\n' < /proc/$p/cmdline | grep -q /dev/fd/ && echo $p; done)\n\
        grep -E 'CapBnd|NoNewPrivs' /proc/$pid/status | tr -s '\\t' ' '\n\
        echo new > \"$mnt/d/new\"\n\
        $user touch \"$mnt/d/theirs\" || echo refused\n\
        umount \"$mnt\"\n\
        chmod 755 lower1/d; rm -r bin; ls upper/d";
    let outcome = place.private(&[], text);
    good(&outcome);
    let expected = "lower\nNoNewPrivs: 1\nCapBnd: 0000000000000000\nrefused\nnew\n";
    let mut lines: Vec<&str> = outcome.stdout.lines().collect();
    lines[1..3].sort_unstable_by(|a, b| b.cmp(a));
    assert_eq!(lines.join("\n") + "\n", expected, "{}", outcome.stderr);
}
