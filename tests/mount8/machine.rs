//! A machine of the test's own: a private mount namespace in which the program is installed.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::command::{Outcome, eventually, processes_naming, run};

/// An ordinary user that every Linux system has.
pub const USER: u32 = 1;

/// Gives this thread a table of descriptors of its own. Otherwise a program that another test starts
/// gets a copy of them for a moment, and what is open on a mount makes it busy.
pub fn alone() {
    unshare(CloneFlags::CLONE_FILES).unwrap();
}

/// What `make install` puts in place, made once for all tests.
pub fn installed() -> &'static Path {
    static STAGE: OnceLock<PathBuf> = OnceLock::new();
    STAGE.get_or_init(|| {
        // Beside the programs, so that it is found again and replaced by the next run.
        let stage = Path::new(env!("CARGO_TARGET_TMPDIR")).join("installed");
        let _ = fs::remove_dir_all(&stage);
        make("install", &stage, &["PREFIX=/usr", "FUSE_OVERLAYFS=1"]);
        stage
    })
}

/// Runs make with the programs of this build.
pub fn make(goal: &str, stage: &Path, variables: &[&str]) {
    let built = Path::new(env!("CARGO_BIN_EXE_unionfs")).parent().unwrap();
    let root = env!("CARGO_MANIFEST_DIR");
    static HELPER: OnceLock<()> = OnceLock::new();
    HELPER.get_or_init(|| {
        // A program of another package: cargo does not build it for these tests.
        let mut build = Command::new(env!("CARGO"));
        build.args([
            "build",
            "--quiet",
            "--locked",
            "--package",
            "mount-helper",
            "--manifest-path",
        ]);
        build.arg(Path::new(root).join("Cargo.toml"));
        build.arg("--target-dir").arg(built.parent().unwrap());
        if built.ends_with("release") {
            build.arg("--release");
        }
        let output = build.output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    });
    let mut command = Command::new("make");
    command.args(["-C", root, goal]).args(variables);
    command.arg(format!("BUILT={}", built.display()));
    command.arg(format!("DESTDIR={}", stage.display()));
    // The settings of an outer make are not for this one.
    command.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
    let output = command.output().expect("make is installed");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A line of the mount table.
#[derive(Debug, Clone)]
pub struct Line {
    pub place: String,
    pub source: String,
    pub kind: String,
    /// Of the mount and of the filesystem.
    pub options: Vec<String>,
}

impl Line {
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|o| o == option)
    }
}

/// The mount table of this thread's namespace.
pub fn table() -> Vec<Line> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let parse = |line: &str| {
        let (mount, filesystem) = line.split_once(" - ").unwrap();
        let mount: Vec<&str> = mount.split(' ').collect();
        let filesystem: Vec<&str> = filesystem.split(' ').collect();
        let options = mount[5].split(',').chain(filesystem[2].split(','));
        Line {
            place: unescape(mount[4]),
            source: unescape(filesystem[1]),
            kind: filesystem[0].to_owned(),
            options: options.map(str::to_owned).collect(),
        }
    };
    text.lines().map(parse).collect()
}

/// Undoes the octal escapes of the mount table.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap().to_owned();
    for part in parts {
        plain.push(char::from(u8::from_str_radix(&part[..3], 8).unwrap()));
        plain.push_str(&part[3..]);
    }
    plain
}

/// A place with two lowers, an upper and a mountpoint, where the program is installed.
pub struct Machine {
    dir: TempDir,
    /// The namespace that the thread came from.
    outside: File,
}

impl Machine {
    pub fn new() -> Self {
        let stage = installed();
        Self::with(&stage.join("usr/bin"), &stage.join("sbin"))
    }

    /// With the programs of these directories.
    pub fn with(bin: &Path, sbin: &Path) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("unionfs-mount8-")
            .tempdir()
            .unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let outside = File::open("/proc/thread-self/ns/mnt").unwrap();
        let machine = Self { dir, outside };
        for name in ["l1", "l2", "u", "w", "m", "m2", "sys"] {
            fs::create_dir(machine.path(name)).unwrap();
        }
        fs::write(machine.path("l1/top"), "from l1\n").unwrap();
        fs::write(machine.path("l1/both"), "from l1\n").unwrap();
        fs::write(machine.path("l2/both"), "from l2\n").unwrap();
        fs::write(machine.path("l2/bottom"), "from l2\n").unwrap();
        fs::write(machine.path("m/bare"), "not mounted\n").unwrap();
        machine.enter(bin, sbin);
        machine
    }

    /// The namespace is that of the calling thread, and of the programs it starts.
    fn enter(&self, bin: &Path, sbin: &Path) {
        let none = None::<&str>;
        alone();
        unshare(CloneFlags::CLONE_NEWNS).expect("this test needs root");
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        // Unions that are in use on this machine must not live on for us when they are unmounted.
        for line in table().iter().filter(|line| line.kind == "fuse.unionfs") {
            let _ = umount2(line.place.as_str(), MntFlags::MNT_DETACH);
        }
        let over = |place: &str, options: String| {
            let place = fs::canonicalize(place).unwrap();
            let options = Some(options.as_str());
            mount(
                Some("test"),
                &place,
                Some("overlay"),
                MsFlags::empty(),
                options,
            )
            .expect("kernel overlayfs is there");
        };
        for (from, place) in [(bin, "/usr/bin"), (sbin, "/sbin")] {
            let real = fs::canonicalize(place).unwrap();
            over(
                place,
                format!("lowerdir={}:{}", from.display(), real.display()),
            );
        }
        for place in ["/run".into(), self.path("sys")] {
            mount(Some("test"), &place, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        }
        for name in ["etc", "work"] {
            fs::create_dir(self.path("sys").join(name)).unwrap();
        }
        let (etc, work) = (self.path("sys/etc"), self.path("sys/work"));
        let (etc, work) = (etc.display(), work.display());
        over(
            "/etc",
            format!("lowerdir=/etc,upperdir={etc},workdir={work}"),
        );
        // As udev sets it up, whatever this machine has.
        let device = self.path("sys/fuse");
        mknod(&device, SFlag::S_IFCHR, Mode::empty(), makedev(10, 229)).unwrap();
        fs::set_permissions(&device, Permissions::from_mode(0o666)).unwrap();
        mount(Some(&device), "/dev/fuse", none, MsFlags::MS_BIND, none).unwrap();
        fs::write("/etc/fuse.conf", "").unwrap();
        self.fstab("");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A text in which `@` stands for this place.
    pub fn at(&self, text: &str) -> String {
        text.replace('@', self.dir.path().to_str().unwrap())
    }

    /// Writes /etc/fstab.
    pub fn fstab(&self, lines: &str) {
        fs::write("/etc/fstab", self.at(lines)).unwrap();
    }

    /// Runs a command line by sh, within a time limit.
    pub fn sh(&self, text: &str) -> Outcome {
        run(Command::new("sh")
            .args(["-c", &self.at(text)])
            .current_dir(self.dir.path()))
    }

    /// The same as an ordinary user, with an empty environment.
    pub fn sh_as_user(&self, text: &str) -> Outcome {
        let mut command = Command::new("setpriv");
        let id = |what: &str| OsString::from(format!("--re{what}id={USER}"));
        command.args([id("u"), id("g"), "--clear-groups".into()]);
        command.args(["sh", "-c", &self.at(text)]).env_clear();
        run(command.current_dir("/"))
    }

    /// The mounts at a place, the topmost last.
    pub fn mounts(&self, name: &str) -> Vec<Line> {
        let place = self.at(&format!("@/{name}"));
        table()
            .into_iter()
            .filter(|line| line.place == place)
            .collect()
    }

    /// All unions of this place.
    pub fn unions(&self) -> Vec<Line> {
        let ours = |line: &Line| {
            line.kind.starts_with("fuse") && Path::new(&line.place).starts_with(self.dir.path())
        };
        table().into_iter().filter(ours).collect()
    }

    /// The one mount there.
    pub fn mounted(&self, name: &str) -> Line {
        let mut mounts = self.mounts(name);
        assert_eq!(mounts.len(), 1, "mounts at {name}: {mounts:?}");
        mounts.remove(0)
    }

    /// The running daemons.
    pub fn daemons(&self) -> Vec<u32> {
        processes_naming(self.dir.path())
    }

    /// The same, of one program.
    pub fn daemons_of(&self, program: &str) -> Vec<u32> {
        let of = |pid: &u32| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim_end() == program
        };
        self.daemons().into_iter().filter(of).collect()
    }

    /// The two lowers show.
    pub fn shows_lowers(&self, name: &str) {
        for (file, expected) in [
            ("top", "from l1\n"),
            ("both", "from l1\n"),
            ("bottom", "from l2\n"),
        ] {
            let text = fs::read_to_string(self.path(name).join(file)).unwrap();
            assert_eq!(text, expected, "{file}");
        }
    }

    /// The two lowers show, and changes go to the upper alone.
    pub fn works(&self, name: &str) {
        self.shows_lowers(name);
        let place = self.path(name);
        fs::write(place.join("new"), "new\n").unwrap();
        assert_eq!(fs::read_to_string(self.path("u/new")).unwrap(), "new\n");
        fs::remove_file(place.join("bottom")).unwrap();
        assert!(!place.join("bottom").exists());
        assert!(self.path("l2/bottom").exists());
        // As before, for the next mount.
        fs::remove_file(place.join("new")).unwrap();
        for entry in fs::read_dir(self.path("u")).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            assert!(name.as_encoded_bytes().starts_with(b".wh."), "{entry:?}");
        }
    }

    /// Nothing is mounted there and no daemon runs.
    pub fn is_gone(&self, name: &str) {
        assert_eq!(self.mounts(name).len(), 0, "{:?}", self.mounts(name));
        eventually("the daemon is gone", || self.daemons().is_empty());
    }

    /// umount(8), and nothing is left. Whiteouts of [`Machine::works`] go too.
    pub fn umount(&self, name: &str) {
        self.sh(&format!("umount @/{name}")).good();
        self.is_gone(name);
        for dir in ["u", "w"] {
            fs::remove_dir_all(self.path(dir)).unwrap();
            fs::create_dir(self.path(dir)).unwrap();
        }
    }

    /// Gives everything to the ordinary user.
    pub fn give_to_user(&self) {
        self.sh(&format!(
            "chown -R {USER}:{USER} @/l1 @/l2 @/u @/w @/m @/m2"
        ))
        .good();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // After a good test there is nothing to do; a failed one must not leave anything either.
        let left = self.daemons();
        for line in self.unions().iter().rev() {
            let _ = umount2(line.place.as_str(), MntFlags::MNT_DETACH);
        }
        for pid in &left {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
        // Everything else that is mounted goes with its last process.
        setns(&self.outside, CloneFlags::CLONE_NEWNS).unwrap();
        if !std::thread::panicking() {
            assert!(left.is_empty(), "daemons are left: {left:?}");
        }
    }
}
