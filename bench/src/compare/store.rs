//! Where layers and uppers are: ext4 images in memory.
//!
//! All mounts are in a mount namespace of our own, which goes with the process. An upper is on a filesystem
//! that was just made, since ext4 searches past what was removed before.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::UnmountFlags;

use super::data::{self, Sizes};
use super::{Result, command};

/// Number of lowers.
pub(crate) const LAYERS: usize = 5;
/// What of the Debian root is in which layer; the rest is in the first, the lowest.
const PARTS: [&[&str]; LAYERS - 1] = [
    &["./usr/include/*", "./usr/lib/gcc/*", "./usr/libexec/gcc/*"],
    &["./usr/lib/python3*", "./usr/bin/python3*"],
    &[
        "./usr/share/doc/*",
        "./usr/share/perl*",
        "./usr/share/zoneinfo*",
    ],
    &[
        "./etc/*",
        "./var/lib/dpkg/*",
        "./usr/bin/git*",
        "./usr/lib/git-core/*",
    ],
];
/// Inodes of the images; a Debian root has a tenth of that.
const INODES: &str = "250000";

/// The image at `run`.
const RUN: &str = "run.img";

/// Where a peer has what must not be in the directory it shows.
pub(crate) const BESIDE: &str = "beside";

/// First of the ids that an ordinary user has in his namespace.
pub(crate) const FIRST_ID: u32 = 100_000;
pub(crate) const IDS: u32 = 65_536;

/// The lowers below `layers`, the top one first.
pub(crate) fn lowers(layers: &Path) -> Vec<PathBuf> {
    let layer = |n: usize| layers.join(format!("l{n}"));
    (0..LAYERS).rev().map(layer).collect()
}

/// Layers, and images made when asked for.
#[derive(Debug)]
pub(crate) struct Store {
    base: tempfile::TempDir,
    rootless: bool,
    mounted: Vec<PathBuf>,
}

impl Store {
    /// An empty place in memory. The process must be in a mount namespace of its own.
    pub(crate) fn new(rootless: bool) -> Result<Self> {
        let base = tempfile::Builder::new().prefix("bench.").tempdir()?;
        let mut store = Self {
            base,
            rootless,
            mounted: Vec::new(),
        };
        let at = store.path("");
        let mut mount = Command::new("mount");
        command(
            mount
                .args(["-t", "tmpfs", "-o", "mode=755,size=80%", "bench"])
                .arg(&at),
        )?;
        store.mounted.push(at);
        for dir in ["bin", "layers", "run", BESIDE] {
            fs::create_dir(store.path(dir))?;
        }
        if rootless {
            give_away(&store.path(BESIDE))?;
            store.open_device()?;
        }
        Ok(store)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        match name {
            "" => self.base.path().to_owned(),
            name => self.base.path().join(name),
        }
    }

    /// /dev/fuse for everybody, in our mount namespace only.
    fn open_device(&mut self) -> Result<()> {
        let device = self.path("fuse");
        let metadata = fs::metadata("/dev/fuse")?;
        let number = std::os::unix::fs::MetadataExt::rdev(&metadata);
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &device,
            rustix::fs::FileType::CharacterDevice,
            mode,
            number,
        )?;
        fs::set_permissions(&device, fs::Permissions::from_mode(0o666))?;
        command(
            Command::new("mount")
                .arg("--bind")
                .arg(&device)
                .arg("/dev/fuse"),
        )?;
        self.mounted.push("/dev/fuse".into());
        Ok(())
    }

    /// A copy of a program where everybody can reach it.
    pub(crate) fn program(&self, name: &str, program: &Path) -> Result<PathBuf> {
        let to = self.path("bin").join(name);
        fs::copy(program, &to).map_err(|e| format!("{}: {e}", program.display()))?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
        Ok(to)
    }

    fn image(&self, name: &str, size: u64) -> Result<PathBuf> {
        let image = self.path(name);
        fs::File::create(&image)?.set_len(size)?;
        // Nothing is left to be written in the background.
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-m", "0", "-N", INODES]);
        mkfs.args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"]);
        command(mkfs.arg(&image))?;
        Ok(image)
    }

    fn mount(&mut self, image: &Path, at: &Path) -> Result<()> {
        fs::create_dir_all(at)?;
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop,noatime,noinit_itable"]);
        command(mount.arg(image).arg(at))?;
        self.mounted.push(at.to_owned());
        Ok(())
    }

    /// Makes the lowers, from the tar of a Debian root if there is one. What is called the tar is unpacked
    /// by a workload.
    pub(crate) fn make_layers(&mut self, debian: Option<&Path>, sizes: &Sizes) -> Result<PathBuf> {
        let layers = self.path("layers");
        let image = self.image("layers.img", 8 << 30)?;
        self.mount(&image, &layers)?;
        let dirs: Vec<PathBuf> = lowers(&layers).into_iter().rev().collect();
        for dir in &dirs {
            fs::create_dir(dir)?;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
        }
        if let Some(tar) = debian {
            unpack(tar, &dirs)?;
        }
        data::make(&dirs, sizes, debian.is_some())?;
        self.make_tar(debian, &dirs)?;
        if self.rootless {
            give_away(&layers)?;
        }
        let mut read_only = Command::new("mount");
        command(read_only.args(["-o", "remount,ro"]).arg(&layers))?;
        Ok(layers)
    }

    /// The tar that is unpacked: the lowest layer of the Debian root, or the small tree.
    fn make_tar(&self, debian: Option<&Path>, dirs: &[PathBuf]) -> Result<()> {
        let mut tar = Command::new("tar");
        tar.arg("-cf").arg(self.path("layers").join("untar.tar"));
        match debian {
            Some(_) => tar.arg("-C").arg(&dirs[0]).args(["--exclude=./srv", "."]),
            None => tar.arg("-C").arg(&dirs[1]).arg("srv"),
        };
        command(&mut tar)
    }

    /// A fresh, empty filesystem at `run`.
    pub(crate) fn fresh(&mut self) -> Result<PathBuf> {
        let run = self.path("run");
        let image = self.image(RUN, 6 << 30)?;
        self.mount(&image, &run)?;
        if self.rootless {
            chown(&run, Some(FIRST_ID), Some(FIRST_ID))?;
        }
        Ok(run)
    }

    /// What a plain directory starts from, at `run`: a copy if it will be changed.
    pub(crate) fn plain(&mut self, template: &Path, changes: bool) -> Result<PathBuf> {
        let run = self.path("run");
        if !changes {
            self.mount(template, &run)?;
            return Ok(run);
        }
        let image = self.path(RUN);
        let mut copy = Command::new("cp");
        command(copy.arg("--sparse=always").arg(template).arg(&image))?;
        self.mount(&image, &run)?;
        Ok(run)
    }

    /// Throws away what [`fresh`](Self::fresh) or [`plain`](Self::plain) made.
    pub(crate) fn discard(&mut self) -> Result<()> {
        let run = self.path("run");
        self.mounted.retain(|m| *m != run);
        command(Command::new("umount").arg("-l").arg(&run))?;
        match fs::remove_file(self.path(RUN)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// An image of what the layers show when merged; the kernel's overlayfs says what that is.
    pub(crate) fn make_template(&mut self) -> Result<PathBuf> {
        let layers = self.path("layers");
        let (merged, full) = (self.path("merged"), self.path("full"));
        fs::create_dir_all(&merged)?;
        // Nothing is copied up in a plain directory, so the file for that is left out.
        let hide = self.path("hide");
        fs::create_dir_all(hide.join("srv"))?;
        whiteout(&hide.join("srv/huge"))?;
        if self.rootless {
            give_away(&hide)?;
        }
        let mut list = vec![hide.display().to_string()];
        list.extend(lowers(&layers).iter().map(|l| l.display().to_string()));
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "overlay", "-o"]);
        command(
            mount
                .arg(format!("lowerdir={}", list.join(":")))
                .arg(&merged),
        )?;
        self.mounted.push(merged.clone());
        let image = self.image("plain.img", 6 << 30)?;
        self.mount(&image, &full)?;
        // mkfs's, which an ordinary user may not look into.
        fs::remove_dir(full.join("lost+found"))?;
        let mut copy = Command::new("cp");
        command(copy.arg("-a").arg(merged.join(".")).arg(&full))?;
        for at in [full, merged] {
            command(Command::new("umount").arg(&at))?;
            self.mounted.retain(|m| *m != at);
        }
        Ok(image)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        for at in self.mounted.iter().rev() {
            // The namespace ends with the process anyway.
            let _ = rustix::mount::unmount(at, UnmountFlags::DETACH);
        }
    }
}

/// The Debian root, each part into its layer. Devices are left out: a user namespace could not have them.
fn unpack(tar: &Path, dirs: &[PathBuf]) -> Result<()> {
    let tar_into = |dir: &Path| {
        let mut command = Command::new("tar");
        command.args(["-xp", "--numeric-owner", "--wildcards", "--exclude=./dev/*"]);
        command.arg("-f").arg(tar).arg("-C").arg(dir);
        command
    };
    let mut base = tar_into(&dirs[0]);
    for part in PARTS.concat() {
        base.arg(format!("--exclude={part}"));
    }
    command(&mut base)?;
    for (dir, parts) in dirs[1..].iter().zip(PARTS) {
        // Not every architecture has every part.
        for part in parts {
            let _ = tar_into(dir)
                .arg(part)
                .stderr(std::process::Stdio::null())
                .status()?;
        }
    }
    whiteouts(
        &dirs[0].join("usr/share"),
        &dirs[LAYERS - 1].join("usr/share"),
    )
}

/// A few names of the lowest layer are gone in the top one.
fn whiteouts(lower: &Path, top: &Path) -> Result<()> {
    fs::create_dir_all(top)?;
    for name in ["bug", "info", "lintian", "menu", "pixmaps"] {
        if lower.join(name).symlink_metadata().is_err() {
            continue;
        }
        whiteout(&top.join(name))?;
    }
    Ok(())
}

fn whiteout(at: &Path) -> Result<()> {
    let (kind, mode) = (
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::empty(),
    );
    Ok(rustix::fs::mknodat(rustix::fs::CWD, at, kind, mode, 0)?)
}

/// Everything to the ids of the ordinary user's namespace.
fn give_away(path: &Path) -> Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    let (uid, gid) = (
        std::os::unix::fs::MetadataExt::uid(&metadata),
        std::os::unix::fs::MetadataExt::gid(&metadata),
    );
    std::os::unix::fs::lchown(path, Some(uid + FIRST_ID), Some(gid + FIRST_ID))?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            give_away(&entry?.path())?;
        }
    }
    Ok(())
}
