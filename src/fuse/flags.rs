//! How a mount shows and what it allows, for mount(2), for fusermount3 and for the session.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use fuser::{Config, SessionACL};

use crate::options::{Allow, KernelFlags, Options};
use crate::sys;
use crate::sys::mount::{FuseMount, MountFlags as Flags};

/// Reader threads at most: they share the processors with those who ask; slow operations have
/// threads of their own.
const MAX_THREADS: usize = 4;

/// How many threads read requests.
pub(super) fn threads(options: &Options) -> usize {
    options.threads.unwrap_or_else(|| {
        let cpus = std::thread::available_parallelism().map_or(2, usize::from);
        cpus.clamp(2, MAX_THREADS)
    })
}

/// How the mount shows and what it allows.
#[derive(Clone, Debug)]
pub(crate) struct MountFlags {
    /// First field in /proc/mounts.
    source: OsString,
    /// The second half of the filesystem type.
    subtype: OsString,
    /// Who may use it.
    acl: SessionACL,
    /// No writes.
    read_only: bool,
    /// The flags of the mount itself.
    kernel: KernelFlags,
    /// Reader threads.
    threads: usize,
    /// Further options for the kernel's FUSE and its security modules, each with a leading comma.
    extra: OsString,
}

/// The flags of mount(2) that `kernel` stands for.
pub(crate) fn kernel_flags(kernel: KernelFlags, read_only: bool) -> Flags {
    let flags = [
        (read_only, Flags::RDONLY),
        (kernel.nosuid, Flags::NOSUID),
        (kernel.nodev, Flags::NODEV),
        (kernel.noexec, Flags::NOEXEC),
        (kernel.nosymfollow, Flags::NOSYMFOLLOW),
        (kernel.noatime, Flags::NOATIME),
        (kernel.nodiratime, Flags::NODIRATIME),
        (kernel.relatime, Flags::RELATIME),
        (kernel.strictatime, Flags::STRICTATIME),
        (kernel.lazytime, Flags::LAZYTIME),
        (kernel.dirsync, Flags::DIRSYNC),
        (kernel.sync, Flags::SYNCHRONOUS),
    ];
    let wanted = flags.into_iter().filter(|(on, _)| *on);
    wanted.map(|(_, flag)| flag).collect()
}

impl MountFlags {
    /// What `options` ask for.
    pub fn new(options: &Options, read_only: bool) -> Self {
        let acl = match options.allow {
            // Root serves all users, as any filesystem does; for others the kernel's rules hold.
            Allow::Default if sys::cred::is_root() => SessionACL::All,
            Allow::Default | Allow::Owner => SessionACL::Owner,
            Allow::Other => SessionACL::All,
            Allow::Root => SessionACL::RootAndOwner,
        };
        let mut extra = OsString::new();
        if let Some(bytes) = options.max_read {
            extra.push(format!(",max_read={bytes}"));
        }
        // Without SELinux nobody would take the labels out of the options again.
        if Path::new("/sys/fs/selinux/enforce").exists() {
            for label in &options.labels {
                extra.push(",");
                extra.push(label);
            }
        }
        Self {
            source: OsStr::from_bytes(&shown_source(options.source().as_bytes())).to_owned(),
            subtype: options.subtype().to_owned(),
            acl,
            read_only,
            kernel: options.kernel_flags,
            threads: threads(options),
            extra,
        }
    }

    /// The kernel only knows the owner and everybody; the session tells root from the others.
    fn allow_other(&self) -> bool {
        self.acl != SessionACL::Owner
    }

    /// For mount(2).
    pub fn direct<'a>(&'a self, mountpoint: &'a Path) -> FuseMount<'a> {
        FuseMount {
            source: self.source.as_bytes(),
            target: mountpoint.as_os_str().as_bytes(),
            subtype: self.subtype.as_bytes(),
            flags: kernel_flags(self.kernel, self.read_only),
            allow_other: self.allow_other(),
            extra: self.extra.as_bytes(),
        }
    }

    /// For fusermount3, which adds what an ordinary user must have (nosuid, nodev). It takes only
    /// the flags that it knows.
    pub fn for_helper(&self) -> OsString {
        if self.kernel.nosymfollow {
            tracing::warn!("option nosymfollow: only root can set it, fusermount3 does not");
        }
        let mut options = OsString::from("default_permissions,subtype=");
        options.push(&self.subtype);
        options.push(",fsname=");
        for &byte in self.source.as_bytes() {
            if byte == b',' || byte == b'\\' {
                options.push("\\");
            }
            options.push(OsStr::from_bytes(&[byte]));
        }
        let flags = [
            (self.allow_other(), ",allow_other"),
            (self.read_only, ",ro"),
            (self.kernel.nosuid, ",nosuid"),
            (self.kernel.nodev, ",nodev"),
            (self.kernel.noexec, ",noexec"),
            (self.kernel.noatime, ",noatime"),
            (self.kernel.dirsync, ",dirsync"),
            (self.kernel.sync, ",sync"),
        ];
        for (_, option) in flags.into_iter().filter(|(on, _)| *on) {
            options.push(option);
        }
        options.push(&self.extra);
        options
    }

    /// For the session.
    pub fn config(&self) -> Config {
        let mut config = Config::default();
        // Who may come in the kernel knows, but not that of others it may be root alone. The session
        // must not look on its own: what the kernel writes back late, it sends in the name of root.
        config.acl = match self.acl {
            SessionACL::RootAndOwner => SessionACL::RootAndOwner,
            _ => SessionACL::All,
        };
        config.n_threads = Some(self.threads);
        config
    }
}

/// What mount(2) takes as the source, without its NUL byte.
const MAX_SOURCE: usize = 4095;

/// The source as the kernel can show it. A list of layers that is too long is cut after a layer, and
/// three dots say so.
fn shown_source(source: &[u8]) -> Cow<'_, [u8]> {
    const DOTS: &[u8] = b"...";
    if source.len() <= MAX_SOURCE {
        return Cow::Borrowed(source);
    }
    let room = &source[..MAX_SOURCE - DOTS.len()];
    let end = room.iter().rposition(|&b| b == b':').map(|at| at + 1);
    // Without a colon at least no character is cut in two.
    let end = end.unwrap_or_else(|| {
        let is_start = |&at: &usize| source[at] & 0xC0 != 0x80;
        (0..=room.len()).rev().find(is_start).unwrap_or(room.len())
    });
    Cow::Owned([&source[..end], DOTS].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_source_is_cut_between_layers() {
        let fits = vec![b'x'; MAX_SOURCE];
        assert_eq!(*shown_source(&fits), fits);
        let layers = "/some/layer:".repeat(500);
        let shown = shown_source(layers.as_bytes());
        assert!(shown.ends_with(b"/some/layer:...") && shown.len() <= MAX_SOURCE);
        assert!(shown.len() > MAX_SOURCE - 20);
        let plain = format!("x{}", "\u{20ac}".repeat(2000));
        let shown = shown_source(plain.as_bytes());
        assert!(std::str::from_utf8(&shown).is_ok() && shown.len() > MAX_SOURCE - 5);
        assert!(shown.len() <= MAX_SOURCE);
        let odd = vec![0x80; 5000];
        assert_eq!(shown_source(&odd).len(), MAX_SOURCE);
    }
}
