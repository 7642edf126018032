//! As containers/storage, containerd and docker call a mount program: its arguments, and what they
//! rely on afterwards.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};

use crate::idmap;
use crate::process::{self, daemons, device_of, finish, wait_for};
use crate::ways_user::good;

const STEP: Duration = Duration::from_secs(15);

/// A store as containers/storage lays it out: layers in directories, short links to them in `l`.
pub struct Store {
    dir: tempfile::TempDir,
}

impl Store {
    /// `layers` layers with one file each, and one container.
    pub fn new(layers: usize) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("unionfs-test-")
            .tempdir()
            .unwrap();
        let store = Self { dir };
        for n in 0..layers {
            let diff = store.path(&format!("layer{n}/diff"));
            fs::create_dir_all(&diff).unwrap();
            fs::write(diff.join(format!("f{n}")), format!("{n}")).unwrap();
            fs::write(diff.join("all"), format!("{n}")).unwrap();
        }
        fs::create_dir(store.path("l")).unwrap();
        for n in 0..layers {
            symlink(format!("../layer{n}/diff"), store.path(&link(n))).unwrap();
        }
        for name in ["diff", "work", "merged"] {
            fs::create_dir_all(store.path("container").join(name)).unwrap();
        }
        store
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn merged(&self) -> PathBuf {
        self.path("container/merged")
    }

    /// The options of podman run, with layers relative to the store (as older ones have it) or not.
    fn options(&self, layers: usize, absolute: bool) -> OsString {
        let base = self.dir.path().display().to_string();
        let prefix = if absolute {
            format!("{base}/")
        } else {
            String::new()
        };
        let lowers: Vec<String> = (0..layers)
            .map(|n| format!("{prefix}{}", link(n)))
            .collect();
        let (lowers, home) = (lowers.join(":"), format!("{base}/container"));
        format!("lowerdir={lowers},upperdir={home}/diff,workdir={home}/work,,volatile").into()
    }

    /// The call: `BIN -o OPTS MERGED`, in the store, output closed but for a pipe for errors, which
    /// is read to its end.
    fn call(&self, options: &OsStr) -> String {
        let mut command = Command::new(process::unionfs());
        command
            .arg("-o")
            .arg(options)
            .arg(self.merged())
            .current_dir(self.dir.path());
        call(&mut command)
    }

    /// Nothing runs or is mounted any more.
    fn gone(&self) {
        let gone = wait_for(STEP, || daemons(&self.merged()).is_empty().then_some(()));
        assert!(gone.is_some(), "the daemon stays");
        assert!(device_of(&self.merged()).is_none(), "it is still mounted");
    }

    fn unmount(&self) {
        unmount(self.merged(), UnmountFlags::DETACH).unwrap();
        self.gone();
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        for place in ["container/merged", "other", "bound"] {
            let place = self.path(place);
            if device_of(&place).is_some() {
                let _ = unmount(&place, UnmountFlags::DETACH);
            }
        }
    }
}

/// A link as containers/storage makes them: 26 characters.
pub fn link(n: usize) -> String {
    format!("l/{n:0>26}")
}

/// Runs `command` as Go's `cmd.Run()` does with a buffer for stderr: until the end of the pipe.
pub fn call(command: &mut Command) -> String {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut pipe = child.stderr.take().unwrap();
    let (sender, text) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        pipe.read_to_string(&mut text).unwrap();
        sender.send(text).unwrap();
    });
    let text = text.recv_timeout(STEP).expect("stderr is kept open");
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}: {text}");
    text
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn podman_run() {
    for absolute in [true, false] {
        let store = Store::new(3);
        assert_eq!(store.call(&store.options(3, absolute)), "");
        let merged = store.merged();
        // How containers/storage knows that it is mounted.
        let kind = rustix::fs::statfs(&merged).unwrap().f_type;
        assert_eq!(kind, 0x6573_5546);
        assert_eq!(read(merged.join("all")), "0");
        assert_eq!(read(merged.join("f2")), "2");
        fs::write(merged.join("new"), "new").unwrap();
        store.unmount();
        assert_eq!(read(store.path("container/diff/new")), "new");
    }
}

#[test]
fn images_of_many_layers() {
    for layers in [120, 500] {
        let store = Store::new(layers);
        let options = store.options(layers, true);
        assert!(options.len() > 4096 * layers / 120, "{}", options.len());
        assert_eq!(store.call(&options), "");
        let merged = store.merged();
        assert_eq!(read(merged.join("all")), "0");
        assert_eq!(
            read(merged.join(format!("f{}", layers - 1))),
            (layers - 1).to_string()
        );
        assert_eq!(fs::read_dir(&merged).unwrap().count(), layers + 1);
        store.unmount();
    }
}

/// Words that other mount programs take or do not know do no harm, and say nothing.
#[test]
fn words_of_callers() {
    let store = Store::new(2);
    let lowers = store.options(2, true).into_string().unwrap();
    let lowers = lowers.split(',').next().unwrap().to_owned();
    let good = store.options(2, true).into_string().unwrap();
    let cases = [
        good.replace(",,volatile", ","),
        lowers.clone(),
        format!("{lowers}:{}", store.path("container/diff").display()),
        good.replace(",,volatile", ",volatile"),
        good.replace(",,volatile", ",private"),
        format!("{good},uidmapping=:0:0:5000,gidmapping=:0:0:5000"),
        format!("{good},context=\"system_u:object_r:x:s0:c1,c2\""),
    ];
    for options in cases {
        assert_eq!(store.call(options.as_ref()), "", "{options}");
        assert_eq!(read(store.merged().join("f1")), "1");
        let writable = fs::write(store.merged().join("new"), "").is_ok();
        assert_eq!(writable, options.contains("upperdir="), "{options}");
        store.unmount();
    }
}

/// What composefs and idmapped layers rely on: they are mounted for the call only.
#[test]
fn layers_whose_mounts_go_right_after_the_call() {
    let store = Store::new(2);
    fs::create_dir(store.path("bound")).unwrap();
    let bound = store.path("bound");
    for mapped in [false, true] {
        if mapped {
            idmap::mount(&store.path("layer0/diff"), &bound, (0, 70_000, 10));
        } else {
            rustix::mount::mount_bind(store.path("layer0/diff"), &bound).unwrap();
        }
        fs::create_dir_all(store.path("layer0/diff/deep/er")).unwrap();
        fs::write(store.path("layer0/diff/deep/er/file"), "deep").unwrap();
        let second = store.path(&link(1));
        let home = store.path("container");
        let options = format!(
            "lowerdir={}:{},upperdir={}/diff,workdir={}/work",
            bound.display(),
            second.display(),
            home.display(),
            home.display()
        );
        assert_eq!(store.call(options.as_ref()), "");
        unmount(&bound, UnmountFlags::DETACH).unwrap();
        let merged = store.merged();
        assert_eq!(read(merged.join("deep/er/file")), "deep");
        let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(merged.join("f0")).unwrap());
        assert_eq!(owner, if mapped { 70_000 } else { 0 });
        fs::write(merged.join("f0"), "changed").unwrap();
        assert_eq!(read(merged.join("f0")), "changed");
        fs::remove_dir_all(merged.join("deep")).unwrap();
        assert_eq!(
            fs::read_dir(&bound).unwrap().count(),
            0,
            "a lower is still mounted"
        );
        store.unmount();
        assert_eq!(read(store.path("layer0/diff/f0")), "0");
        for name in ["diff", "work"] {
            fs::remove_dir_all(home.join(name)).unwrap();
            fs::create_dir(home.join(name)).unwrap();
        }
    }
}

/// podman unmounts in several ways, and then removes the mountpoint or moves something over it.
#[test]
fn every_way_to_unmount() {
    let ways: [&[&str]; 4] = [
        &["fusermount3", "-u"],
        &["fusermount", "-u"],
        &["umount"],
        &[],
    ];
    for words in ways {
        let store = Store::new(1);
        store.call(&store.options(1, true));
        let merged = store.merged();
        let open = words
            .is_empty()
            .then(|| fs::File::open(merged.join("f0")).unwrap());
        match words.first() {
            Some(program) => good(&finish(
                Command::new(program).args(&words[1..]).arg(&merged),
            )),
            None => {
                let root = fs::File::open(&merged).unwrap();
                rustix::fs::syncfs(root).unwrap();
                unmount(&merged, UnmountFlags::DETACH).unwrap();
            }
        }
        // At once, whether or not the daemon has ended.
        fs::remove_dir(&merged).unwrap();
        fs::create_dir(store.path("container/next")).unwrap();
        fs::rename(store.path("container/next"), &merged).unwrap();
        if let Some(mut file) = open {
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, "0");
        }
        store.gone();
    }
}

/// podman diff and commit mount a layer and its parent at once and compare what they show.
#[test]
fn a_layer_and_its_parent_at_once() {
    let store = Store::new(2);
    let other = store.path("other");
    fs::create_dir(&other).unwrap();
    store.call(&store.options(2, true));
    let merged = store.merged();
    fs::write(merged.join("f0"), "changed").unwrap();
    let parent = format!(
        "lowerdir={}:{}",
        store.path(&link(0)).display(),
        store.path(&link(1)).display()
    );
    let with_upper = parent.replace(
        '=',
        &format!("={}:", store.path("container/diff").display()),
    );
    for (options, expected) in [(parent, "0"), (with_upper, "changed")] {
        let mut command = Command::new(process::unionfs());
        assert_eq!(call(command.arg("-o").arg(&options).arg(&other)), "");
        assert_eq!(read(other.join("f0")), expected);
        assert_eq!(read(merged.join("f0")), "changed");
        let device = |path| std::os::unix::fs::MetadataExt::dev(&fs::metadata(path).unwrap());
        assert_ne!(device(&other), device(&merged));
        unmount(&other, UnmountFlags::DETACH).unwrap();
        let gone = wait_for(STEP, || daemons(&other).is_empty().then_some(()));
        assert!(gone.is_some(), "{options}");
    }
    store.unmount();
}

/// What the caller has open beside stdio is its own: a lock, say, must not live as long as a mount.
#[test]
fn nothing_of_the_caller_is_kept() {
    let store = Store::new(1);
    let mut command = Command::new("sh");
    let script = "exec 8>held; flock 8; \"$0\" \"$@\" 7</dev/null 9<&8";
    command.args(["-euc", script, process::unionfs(), "-o"]);
    command.arg(store.options(1, false)).arg(store.merged());
    command.current_dir(store.dir.path()).process_group(0);
    assert_eq!(call(&mut command), "");
    good(&finish(
        Command::new("flock")
            .arg("-n")
            .arg(store.path("held"))
            .arg("true"),
    ));
    let pid = daemons(&store.merged())[0];
    for fd in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let target = fs::read_link(fd.path()).unwrap_or_default();
        assert!(!target.ends_with("held"), "{}", fd.path().display());
    }
    // Nor does the end of the caller's process group reach it.
    let stat = read(format!("/proc/{pid}/stat"));
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    assert_eq!(
        (fields[2], fields[3]),
        (&*pid.to_string(), &*pid.to_string()),
        "group, session"
    );
    store.unmount();
}

/// containerd-shim adopts the daemon, and is told of its end like of any child's.
#[test]
fn a_caller_that_adopts_orphans() {
    let store = Store::new(1);
    let script = "import ctypes, os, subprocess, sys\n\
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n\
        subprocess.run(sys.argv[1:], check=True)\n\
        print(os.listdir(sys.argv[-1]), flush=True)\n\
        subprocess.run(['umount', sys.argv[-1]], check=True)\n\
        pid, status = os.wait()\n\
        print(status, flush=True)\n";
    let mut command = Command::new("timeout");
    command.args(["20", "python3", "-c", script, process::unionfs(), "-o"]);
    command.arg(store.options(1, false)).arg(store.merged());
    let outcome = finish(command.current_dir(store.dir.path()));
    good(&outcome);
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert!(lines[0].contains("f0"), "{lines:?}");
    assert_eq!(lines[1], "0", "the daemon's exit status");
    store.gone();
}

/// Few descriptors may be had: the soft limit is raised, and a low hard limit is lived with.
#[test]
fn limits_of_descriptors() {
    let store = Store::new(50);
    for (limits, in_force) in [("64:4000", "4000"), ("100:100", "100")] {
        let mut command = Command::new("prlimit");
        command
            .arg(format!("--nofile={limits}"))
            .arg(process::unionfs())
            .arg("-o");
        command.arg(store.options(50, false)).arg(store.merged());
        assert_eq!(call(command.current_dir(store.dir.path())), "");
        let pid = daemons(&store.merged())[0];
        let text = read(format!("/proc/{pid}/limits"));
        let line = text
            .lines()
            .find(|line| line.starts_with("Max open files"))
            .unwrap();
        assert_eq!(line.split_whitespace().nth(3), Some(in_force));
        assert_eq!(read(store.merged().join("f49")), "49");
        store.unmount();
    }
    let mut command = Command::new("prlimit");
    command
        .arg("--nofile=30:30")
        .arg(process::unionfs())
        .arg("-o");
    command.arg(store.options(50, false)).arg(store.merged());
    let outcome = finish(command.current_dir(store.dir.path()));
    assert_eq!(outcome.status.code(), Some(1));
    assert!(outcome.stderr.contains("lowerdir="), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("Too many open files"),
        "{}",
        outcome.stderr
    );
    store.gone();
}

/// A failure is one line, told before the caller goes on.
#[test]
fn failures_are_one_line() {
    let store = Store::new(1);
    fs::write(store.path("file"), "").unwrap();
    let options = store.options(1, true).into_string().unwrap();
    let (link, merged) = (link(0), store.merged());
    let cases = [
        (
            options.replace(&link, "l/missing"),
            merged.clone(),
            "lowerdir=",
        ),
        (
            options.replace("container/diff", "nowhere"),
            merged.clone(),
            "upperdir=",
        ),
        (
            options.replace("container/work", "file"),
            merged,
            "workdir=",
        ),
        (options.clone(), store.path("file"), "mountpoint"),
        (options, store.path("nowhere"), "mountpoint"),
    ];
    for (options, place, word) in cases {
        let outcome = process::run(&[OsStr::new("-o"), options.as_ref(), place.as_os_str()]);
        assert_eq!(outcome.status.code(), Some(1), "{options}");
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
        assert!(outcome.stderr.contains(word), "{word}: {}", outcome.stderr);
        store.gone();
        assert!(daemons(&place).is_empty());
    }
}

/// The daemon ends by itself when the connection is aborted, or its file system was taken away by
/// the end of a mount namespace.
#[test]
fn ends_with_its_mount() {
    let store = Store::new(1);
    store.call(&store.options(1, true));
    process::abort(device_of(&store.merged()).unwrap());
    let pid = wait_for(STEP, || daemons(&store.merged()).is_empty().then_some(()));
    assert!(
        pid.is_some(),
        "the daemon survives the end of its connection"
    );
    unmount(store.merged(), UnmountFlags::DETACH).unwrap();
    let script = "\"$0\" -o \"$1\" \"$2\"; test -e \"$2/f0\"; umount \"$2\"";
    let mut command = Command::new("timeout");
    command.args([
        "20",
        "unshare",
        "-m",
        "sh",
        "-euc",
        script,
        process::unionfs(),
    ]);
    command.arg(store.options(1, true)).arg(store.merged());
    good(&finish(&mut command));
    store.gone();
}
