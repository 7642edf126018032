//! A stack of layers in a temporary directory, and the program run on it within a time limit.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Longer than the program's own limits.
const LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unionfs"));
    command.env_remove("RUST_LOG");
    command
}

/// What a program did.
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// The one line of a failure, without the program's name.
    pub fn complaint(&self) -> &str {
        assert_eq!(self.code, Some(1), "stderr: {}", self.stderr);
        let line = self.stderr.strip_suffix('\n').expect("a line ends");
        assert!(!line.contains('\n'), "more than one line: {}", self.stderr);
        line.strip_prefix("unionfs: ")
            .expect("the line names the program")
    }

    pub fn good(&self) -> &Self {
        assert_eq!(self.code, Some(0), "stderr: {}", self.stderr);
        assert_eq!(self.stderr, "");
        self
    }
}

/// Runs to the end of the program and of its output, which a daemon must not hold open.
pub fn run(command: &mut Command) -> Outcome {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = loop {
        match command.spawn() {
            Ok(child) => break child,
            // A process that another test has just forked may still hold open what was just
            // written here.
            Err(error)
                if error.kind() == std::io::ErrorKind::ExecutableFileBusy
                    && start.elapsed() < LIMIT =>
            {
                thread::sleep(POLL);
            }
            Err(error) => panic!("the program does not start: {error}"),
        }
    };
    let out = collect(child.stdout.take().expect("piped"));
    let err = collect(child.stderr.take().expect("piped"));
    let code = wait(&mut child).code();
    let deadline = Instant::now() + LIMIT;
    while !(out.is_finished() && err.is_finished()) {
        assert!(
            Instant::now() < deadline,
            "the program ended, but not its output"
        );
        thread::sleep(POLL);
    }
    let text = |thread: thread::JoinHandle<String>| thread.join().expect("reading works");
    Outcome {
        code,
        stdout: text(out),
        stderr: text(err),
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).expect("the pipe can be read");
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Waits for the end of a child, but not for ever.
pub fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait().expect("it is our child") {
            return status;
        }
        if Instant::now() > deadline {
            child.kill().expect("it can be killed");
            panic!("the program does not end");
        }
        thread::sleep(POLL);
    }
}

pub fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.try_into().expect("a pid")), signal).expect("the process is there");
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "still not: {what}");
        thread::sleep(POLL);
    }
}

/// Two lowers and an upper with a few files, and a place to mount them.
pub struct Fixture {
    dir: TempDir,
}

impl Fixture {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for name in ["l1", "l2", "u", "w", "m"] {
            fs::create_dir(dir.path().join(name)).expect("an empty directory");
        }
        fs::write(dir.path().join("l1/top"), "from l1\n").expect("writable");
        fs::write(dir.path().join("l2/bottom"), "from l2\n").expect("writable");
        fs::write(dir.path().join("m/bare"), "not mounted\n").expect("writable");
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The usual options, and `more` after them.
    pub fn options(&self, more: &str) -> OsString {
        let root = self.dir.path().display();
        format!("lowerdir={root}/l1:{root}/l2,upperdir={root}/u,workdir={root}/w{more}").into()
    }

    /// Starts in the background with the usual options, which must work.
    pub fn mount(&self, more: &str) {
        let outcome = run(program()
            .arg("-o")
            .arg(self.options(more))
            .arg(self.path("m")));
        outcome.good();
        assert_eq!(outcome.stdout, "");
    }

    /// Starts in the foreground and waits until it is mounted.
    pub fn foreground(&self, more: &str) -> Child {
        let log = File::create(self.path("stderr")).expect("writable");
        let mut child = program()
            .args(["mount", "-f", "-o"])
            .arg(self.options(more))
            .arg(self.path("m"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the program starts");
        let deadline = Instant::now() + LIMIT;
        while !self.is_mounted() {
            let ended = child.try_wait().expect("it is our child");
            let said = || fs::read_to_string(self.path("stderr")).unwrap_or_default();
            assert!(ended.is_none(), "it ended: {}", said());
            assert!(Instant::now() < deadline, "it does not mount: {}", said());
            thread::sleep(POLL);
        }
        // Whoever unmounts it before the first answer has made the mounting fail.
        let _ = fs::metadata(self.path("m"));
        child
    }

    pub fn is_mounted(&self) -> bool {
        self.mount_line().is_some()
    }

    /// The last words of the mount's line in mountinfo: type, source, options.
    pub fn mount_line(&self) -> Option<Vec<String>> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
        let place = self
            .path("m")
            .canonicalize()
            .unwrap_or_else(|_| self.path("m"));
        let place = place.to_str().expect("a plain name").to_owned();
        let line = mounts
            .lines()
            .find(|line| line.split(' ').nth(4) == Some(&place))?;
        let words = line.split(" - ").nth(1)?.split(' ');
        Some(words.map(str::to_owned).collect())
    }

    /// The daemons that were started with a path of this fixture.
    pub fn daemons(&self) -> Vec<u32> {
        processes_naming(self.dir.path())
    }
}

/// The processes whose command line has `path` in it; those that have ended have none.
pub fn processes_naming(path: &Path) -> Vec<u32> {
    let wanted = path.as_os_str().as_bytes();
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        // A process may end while we look.
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.windows(wanted.len()).any(|part| part == wanted)
    })
    .collect()
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // A failed test must leave neither mounts nor daemons; after a good one both are gone.
        let _ = umount2(&self.path("m"), MntFlags::MNT_DETACH);
        for pid in self.daemons() {
            if pid != std::process::id() {
                let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            }
        }
    }
}
