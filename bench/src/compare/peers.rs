//! What is compared: how each is named and mounted.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;

use super::Result;

/// What a peer is, as it stands on the command line of a client: `kind`, `kind:program` or
/// `kind:program:options`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// No union at all: one directory with the merged tree.
    Plain,
    /// The kernel's.
    Overlayfs,
    /// No union, but a daemon: libfuse's passthrough_hp over what a plain directory has.
    Mirror(PathBuf),
    FuseOverlayfs(PathBuf),
    UnionfsFuse(PathBuf),
    /// Ours, with more mount options, or without.
    Unionfs(PathBuf, Option<String>),
}

impl Kind {
    pub(crate) fn to_text(&self) -> String {
        match self {
            Self::Plain => "plain".to_owned(),
            Self::Overlayfs => "overlayfs".to_owned(),
            Self::Mirror(program) => format!("mirror:{}", program.display()),
            Self::FuseOverlayfs(program) => format!("fuse-overlayfs:{}", program.display()),
            Self::UnionfsFuse(program) => format!("unionfs-fuse:{}", program.display()),
            Self::Unionfs(program, options) => {
                let options = options.as_deref().unwrap_or_default();
                format!("unionfs:{}:{options}", program.display())
            }
        }
    }

    pub(crate) fn from_text(text: &str) -> Result<Self> {
        let mut words = text.splitn(3, ':');
        let kind = words.next().unwrap_or_default();
        let program = words.next().map(PathBuf::from);
        let options = words.next().filter(|o| !o.is_empty()).map(str::to_owned);
        match (kind, program) {
            ("plain", None) => Ok(Self::Plain),
            ("overlayfs", None) => Ok(Self::Overlayfs),
            ("mirror", Some(program)) => Ok(Self::Mirror(program)),
            ("fuse-overlayfs", Some(program)) => Ok(Self::FuseOverlayfs(program)),
            ("unionfs-fuse", Some(program)) => Ok(Self::UnionfsFuse(program)),
            ("unionfs", Some(program)) => Ok(Self::Unionfs(program, options)),
            _ => Err(format!("no such peer: {text}").into()),
        }
    }

    /// Whether it shows one directory that has the whole tree.
    pub(crate) fn is_one_directory(&self) -> bool {
        matches!(self, Self::Plain | Self::Mirror(_))
    }

    /// Whether the kernel asks a daemon.
    pub(crate) fn is_fuse(&self) -> bool {
        !matches!(self, Self::Plain | Self::Overlayfs)
    }
}

/// Something to compare.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub name: String,
    pub kind: Kind,
}

/// Directories of one mount. `lowers` has the top one first.
#[derive(Debug)]
pub(crate) struct Dirs {
    pub lowers: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
    pub mnt: PathBuf,
}

/// A mounted peer; unmounted, and its daemon gone, when dropped.
#[derive(Debug)]
pub(crate) struct Mounted {
    /// The daemon, when there is one.
    pub daemon: Option<Child>,
    mnt: Option<PathBuf>,
}

impl Mounted {
    /// Mounts `kind`. A plain directory is there already and is left alone.
    pub(crate) fn new(kind: &Kind, dirs: &Dirs, rootless: bool) -> Result<Self> {
        for dir in [&dirs.upper, &dirs.work, &dirs.mnt] {
            fs::create_dir_all(dir)?;
        }
        match kind {
            Kind::Plain => Ok(Self {
                daemon: None,
                mnt: None,
            }),
            Kind::Overlayfs => {
                let extra = if rootless { ",userxattr" } else { "" };
                let options = format!("{}{extra}", overlay_options(dirs));
                let mut mount = Command::new("mount");
                mount.args(["-t", "overlay", "overlay", "-o", &options]);
                super::command(mount.arg(&dirs.mnt))?;
                Ok(Self {
                    daemon: None,
                    mnt: Some(dirs.mnt.clone()),
                })
            }
            _ => start(kind, dirs, rootless),
        }
    }

    /// Unmounts, and waits for the daemon.
    pub(crate) fn end(mut self) -> Result<()> {
        self.unmount()
    }

    fn unmount(&mut self) -> Result<()> {
        if let Some(mnt) = self.mnt.take() {
            rustix::mount::unmount(&mnt, UnmountFlags::DETACH)
                .map_err(|e| format!("umount {}: {e}", mnt.display()))?;
        }
        let Some(mut daemon) = self.daemon.take() else {
            return Ok(());
        };
        let start = Instant::now();
        while daemon.try_wait()?.is_none() {
            if start.elapsed() > Duration::from_secs(10) {
                daemon.kill()?;
                daemon.wait()?;
                return Err("the daemon does not end after umount".into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // After `end` there is nothing left to do.
        let _ = self.unmount();
    }
}

fn overlay_options(dirs: &Dirs) -> String {
    let lowers: Vec<_> = dirs
        .lowers
        .iter()
        .map(|l| l.display().to_string())
        .collect();
    format!(
        "lowerdir={},upperdir={},workdir={}",
        lowers.join(":"),
        dirs.upper.display(),
        dirs.work.display()
    )
}

/// The daemon in the foreground, so that its id is known.
fn start(kind: &Kind, dirs: &Dirs, rootless: bool) -> Result<Mounted> {
    // It must not stay behind when the client is killed.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]);
    match kind {
        Kind::Unionfs(program, more) => {
            let mut options = overlay_options(dirs);
            if let Some(more) = more {
                options = format!("{options},{more}");
            }
            command.arg(program).args(["mount", "-f", "-o", &options]);
        }
        Kind::FuseOverlayfs(program) => {
            command
                .arg(program)
                .args(["-f", "-o", &overlay_options(dirs)]);
        }
        Kind::UnionfsFuse(program) => {
            let mut branches = format!("{}=RW", dirs.upper.display());
            for lower in &dirs.lowers {
                branches = format!("{branches}:{}=RO", lower.display());
            }
            command.arg(program);
            command.args(["-f", "-o", "cow,allow_other,suid,dev", &branches]);
        }
        Kind::Mirror(program) => {
            command.arg(program).args(mirror_options(rootless));
            command.arg(&dirs.upper);
        }
        Kind::Plain | Kind::Overlayfs => return Err("has no daemon".into()),
    }
    let before = fs::metadata(&dirs.mnt)?.dev();
    let daemon = command
        .arg(&dirs.mnt)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(dirs.work.with_file_name("daemon.log"))?)
        .spawn()
        .map_err(|e| format!("setpriv: {e}"))?;
    let mut mounted = Mounted {
        daemon: Some(daemon),
        mnt: None,
    };
    let start = Instant::now();
    while fs::metadata(&dirs.mnt)?.dev() == before {
        let gone = match &mut mounted.daemon {
            Some(daemon) => daemon.try_wait()?,
            None => None,
        };
        if let Some(status) = gone {
            return Err(format!("{status}: {}", said(dirs)).into());
        }
        if start.elapsed() > Duration::from_secs(10) {
            if let Some(daemon) = &mut mounted.daemon {
                daemon.kill()?;
            }
            return Err("no mount after 10 s".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    mounted.mnt = Some(dirs.mnt.clone());
    Ok(mounted)
}

/// What passthrough_hp is fastest with. One thread is at least as fast as two or four, with a descriptor of its own
/// for each or without, also for four clients; splice makes no difference.
fn mirror_options(rootless: bool) -> Vec<&'static str> {
    let mut options = vec!["--foreground", "--single", "-o", "allow_other,suid,dev"];
    if rootless {
        // The kernel offers passthrough and refuses it there; who asks for it goes without writeback.
        options.push("--nopassthrough");
    }
    options
}

/// The last line that the daemon wrote.
fn said(dirs: &Dirs) -> String {
    let log = fs::read_to_string(dirs.work.with_file_name("daemon.log")).unwrap_or_default();
    log.lines().last().unwrap_or("no message").to_owned()
}

/// What a program says about its version, in one line.
pub(crate) fn version(kind: &Kind) -> String {
    let (program, name) = match kind {
        Kind::Plain => return "one directory on the same filesystem as the uppers".to_owned(),
        Kind::Overlayfs => return "the kernel's".to_owned(),
        Kind::Mirror(_) => {
            return "libfuse's passthrough_hp over one directory: what FUSE takes without a union"
                .to_owned();
        }
        Kind::FuseOverlayfs(program) => (program, "fuse-overlayfs"),
        Kind::UnionfsFuse(program) => (program, "unionfs-fuse"),
        Kind::Unionfs(program, _) => (program, "unionfs"),
    };
    let Ok(output) = Command::new(program).arg("--version").output() else {
        return "cannot be run".to_owned();
    };
    let text = [output.stdout, output.stderr].concat();
    own_line(&String::from_utf8_lossy(&text), name).to_owned()
}

/// The line that is about the program: libraries tell their versions too.
fn own_line<'a>(text: &'a str, name: &str) -> &'a str {
    let own = text.lines().find(|line| line.starts_with(name));
    own.or_else(|| text.lines().next()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_among_those_of_libraries() {
        let text =
            "fusermount3 version: 3.14.0\nfuse-overlayfs: version 1.10\nFUSE library version 3\n";
        assert_eq!(
            own_line(text, "fuse-overlayfs"),
            "fuse-overlayfs: version 1.10"
        );
        assert_eq!(own_line("1.0\n", "unionfs"), "1.0");
        assert_eq!(own_line("", "unionfs"), "");
    }

    #[test]
    fn kinds_are_read_as_written() {
        for kind in [
            Kind::Plain,
            Kind::Overlayfs,
            Kind::Mirror("/bin/passthrough_hp".into()),
            Kind::FuseOverlayfs("/usr/bin/fuse-overlayfs".into()),
            Kind::UnionfsFuse("unionfs-fuse".into()),
            Kind::Unionfs("/bin/unionfs".into(), None),
            Kind::Unionfs("/bin/unionfs".into(), Some("open=none,volatile".to_owned())),
        ] {
            assert_eq!(Kind::from_text(&kind.to_text()).ok(), Some(kind));
        }
        assert!(Kind::from_text("aufs").is_err());
        assert!(Kind::from_text("unionfs").is_err());
    }
}
