//! Running programs with a time limit, and what the system knows of mounts and daemons.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::path::Arg;

/// How long a program that was started may take.
const LIMIT: Duration = Duration::from_secs(30);

pub fn unionfs() -> &'static str {
    env!("CARGO_BIN_EXE_unionfs")
}

/// What a run of the program gave.
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the program to its end, which must come soon.
pub fn run<S: AsRef<OsStr>>(args: &[S]) -> Outcome {
    let mut command = Command::new(unionfs());
    command.args(args);
    finish(&mut command)
}

/// Runs a command to its end. Output goes through files: a daemon that kept a pipe would hold us.
pub fn finish(command: &mut Command) -> Outcome {
    finish_with_input(command.stdin(Stdio::null()))
}

/// Runs a shell script in `dir`, with `$unionfs` for the program, and returns what it printed. It has to
/// succeed.
pub fn script(dir: &Path, text: &str, settings: &[(&str, &OsStr)]) -> String {
    let mut command = Command::new("timeout");
    command
        .args(["-k5", "60", "sh", "-euc", text])
        .current_dir(dir)
        .env("unionfs", unionfs())
        .envs(settings.iter().copied());
    let outcome = finish(&mut command);
    let Outcome {
        status,
        stdout,
        stderr,
    } = outcome;
    assert!(status.success(), "{stdout}{stderr}");
    stdout
}

/// The same, with standard input as it was set.
pub fn finish_with_input(command: &mut Command) -> Outcome {
    let output = tempfile::tempdir().unwrap();
    let (out, err) = (output.path().join("out"), output.path().join("err"));
    command
        .stdout(fs::File::create(&out).unwrap())
        .stderr(fs::File::create(&err).unwrap());
    // A process that another test has just forked may still hold open what was just written here.
    let started = wait_for(LIMIT, || match command.spawn() {
        Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => None,
        result => Some(result),
    });
    let mut child = started.expect("the program is not busy for ever").unwrap();
    let status = wait_for(LIMIT, || child.try_wait().unwrap());
    let text = |path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    let Some(status) = status else {
        let _ = child.kill();
        let _ = child.wait();
        panic!("{command:?} did not end: {}", text(&err));
    };
    Outcome {
        status,
        stdout: text(&out),
        stderr: text(&err),
    }
}

/// Copies a program, by a process of its own: one that another test has just forked from this one would hold it
/// open for writing until it executes something, and nobody could run it meanwhile.
pub fn copy_program(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    let copied = Command::new("cp")
        .arg(from.as_ref())
        .arg(to.as_ref())
        .status();
    assert!(copied.unwrap().success(), "{}", to.as_ref().display());
}

/// Asks again until there is an answer or the time is over.
pub fn wait_for<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if start.elapsed() > limit {
            return None;
        }
        thread::sleep(Duration::from_millis(3));
    }
}

/// The minor device number of what is mounted exactly there. Does not ask the mount itself.
pub fn device_of(mnt: &Path) -> Option<u32> {
    let table = fs::read("/proc/self/mountinfo").unwrap();
    let lines = table.split(|byte| *byte == b'\n');
    let mut fields = lines.map(|line| line.split(|byte| *byte == b' ').collect::<Vec<_>>());
    let line = fields.find(|line| line.get(4) == Some(&mnt.as_os_str().as_bytes()))?;
    let device = std::str::from_utf8(line[2]).unwrap();
    device
        .split_once(':')
        .map(|(_, minor)| minor.parse().unwrap())
}

/// A file about a FUSE connection. The control filesystem is used without being mounted anywhere.
fn control(connection: u32, name: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let fs = rustix::mount::fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&fs)?;
    let attr = MountAttrFlags::empty();
    let root = rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attr)?;
    open_file_at(root, format!("{connection}/{name}"), flags, Mode::empty())
}

/// open(2) for this process alone. A program that another test starts at that moment would get the descriptor
/// too, and as a daemon keep it: the mount would be busy, and files never released.
pub fn open_file(path: impl Arg, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, mode)
}

/// The same for openat(2).
pub fn open_file_at(
    dir: impl AsFd, path: impl Arg, flags: OFlags, mode: Mode,
) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(dir, path, flags | OFlags::CLOEXEC, mode)
}

/// Ends a FUSE connection by force.
pub fn abort(connection: u32) {
    if let Ok(file) = control(connection, "abort", OFlags::WRONLY) {
        let _ = rustix::io::write(file, b"1");
    }
}

/// Requests of a FUSE connection that are not answered yet.
pub fn waiting(connection: u32) -> usize {
    let file = control(connection, "waiting", OFlags::RDONLY).unwrap();
    let mut text = [0; 32];
    let read = rustix::io::read(file, &mut text).unwrap();
    std::str::from_utf8(&text[..read])
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

/// Running processes of the program that were given this mount point.
pub fn daemons(mnt: &Path) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let given = line
            .split(|byte| *byte == 0)
            .any(|arg| arg == mnt.as_os_str().as_bytes());
        let ours = line
            .split(|byte| *byte == 0)
            .next()
            .is_some_and(|arg| arg.ends_with(b"unionfs"));
        if given && ours && alive(pid) {
            found.push(pid);
        }
    }
    found
}

/// Whether a process runs; one that only waits to be reaped does not. Its first thread may end before the
/// others do: these may be in the middle of a call, and have all descriptors and locks of the process.
pub fn alive(pid: i32) -> bool {
    let runs = |thread: fs::DirEntry| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    };
    fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|threads| threads.flatten().any(runs))
}

/// Whether some process sees the mount, in a mount namespace of its own.
pub fn held_elsewhere(connection: u32) -> bool {
    in_some_table(&format!(" 0:{connection} "))
}

/// The same, for a mount of which only the place is known.
pub fn mounted_elsewhere(mnt: &Path) -> bool {
    in_some_table(&format!(" {} ", mnt.display()))
}

fn in_some_table(text: &str) -> bool {
    let sees = |entry: fs::DirEntry| {
        fs::read_to_string(entry.path().join("mountinfo")).is_ok_and(|table| table.contains(text))
    };
    fs::read_dir("/proc").unwrap().flatten().any(sees)
}

/// Whether a process that another test has just forked, and that is about to run a program, has a copy
/// of a descriptor of something in that mount: closing ours is not the last close then.
pub fn held_by_a_fork(mnt: &Path) -> bool {
    let inside = |fd: fs::DirEntry| {
        fs::read_link(fd.path()).is_ok_and(|file| file.starts_with(mnt) && file != mnt)
    };
    let holds = |process: fs::DirEntry| {
        let pid: Option<u32> = process.file_name().to_str().and_then(|s| s.parse().ok());
        pid.is_some_and(|pid| pid != std::process::id())
            && fs::read_dir(process.path().join("fd")).is_ok_and(|fds| fds.flatten().any(inside))
    };
    fs::read_dir("/proc").unwrap().flatten().any(holds)
}

/// What the threads of a process wait for: what is left to see of one that hangs.
pub fn threads(pid: i32) -> String {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return "no such process".to_owned();
    };
    let describe = |task: fs::DirEntry| {
        let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let call = read("syscall");
        format!(
            "{} {} {}\n",
            read("comm").trim(),
            read("wchan"),
            call.trim()
        )
    };
    tasks.flatten().map(describe).collect()
}

/// The way of data that the whole run is about, if it is not the default: `UNIONFS_TEST_OPEN`.
pub fn way() -> Option<String> {
    std::env::var("UNIONFS_TEST_OPEN").ok()
}

/// Held for writing by a test that has the kernel drop its caches, and for reading by those that look
/// what is in them.
pub static CACHES: parking_lot::RwLock<()> = parking_lot::RwLock::new(());

/// True when the daemon is not asked for opens, and what is written comes to it late.
pub fn opens_unseen() -> bool {
    way().as_deref() == Some("none")
}

/// An option with which a file is copied up when it is opened for writing, not later.
pub fn copied_by_open() -> &'static str {
    if opens_unseen() { "open=cached" } else { "" }
}

/// An option with which descriptors that were opened before a copy-up follow to the upper.
pub fn following() -> &'static str {
    match way().as_deref() {
        None | Some("passthrough") => "open=cached",
        Some(_) => "",
    }
}
