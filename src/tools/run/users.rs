//! Who runs the command: root, or an ordinary user who is root of a user namespace.

use std::fs;
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{User, getegid, geteuid, getpid};

use crate::options::Options;
use crate::sys::daemonize::{self, Side};
use crate::sys::mount::open_fuse_device;
use crate::sys::namespace::{self, Own};
use crate::sys::{Errno, cred};

use super::{Result, ToolError, failed};

/// Ids that a user may give away, from /etc/subuid and /etc/subgid.
type Range = (u32, u32);

/// The user, and the ids that he has in his namespace.
pub(super) enum Users {
    /// One who may mount.
    Privileged,
    /// An ordinary one, with ranges of further users and groups if he has both.
    Ordinary(Option<(Range, Range)>),
}

impl Users {
    pub fn of_caller() -> Result<Self> {
        if geteuid().is_root() && cred::may_mount_somewhere() {
            return Ok(Self::Privileged);
        }
        let name = User::from_uid(geteuid()).ok().flatten();
        let name = name.map_or_else(String::new, |user| user.name);
        let range = |file| range_in(&fs::read_to_string(file).unwrap_or_default(), &name);
        let ranges = range("/etc/subuid").zip(range("/etc/subgid"));
        Ok(Self::Ordinary(ranges))
    }

    pub fn is_privileged(&self) -> bool {
        matches!(self, Self::Privileged)
    }

    /// The most frequent reason for failing.
    pub fn check_device(&self) -> Result<()> {
        let hint = match open_fuse_device().map(drop) {
            Ok(()) => return Ok(()),
            Err(Errno::NOENT | Errno::NODEV | Errno::NXIO) => {
                "is missing: modprobe fuse, or give the container --device /dev/fuse"
            }
            Err(Errno::ACCESS | Errno::PERM) => {
                "may not be opened by this user: as root, chmod 0666 /dev/fuse"
            }
            Err(e) => return Err(failed("/dev/fuse", e)),
        };
        Err(ToolError::new(format_args!("/dev/fuse {hint}")))
    }

    /// Enters the namespaces, with a user namespace where that is needed.
    pub fn enter(&self, own: Own) -> Result<()> {
        let Self::Ordinary(ranges) = self else {
            return namespace::leave(own).map_err(|e| failed("a mount namespace", e));
        };
        let own = Own { users: true, ..own };
        let fail = |e: io::Error| {
            ToolError::new(format_args!(
                "a user namespace: {e}; see kernel.unprivileged_userns_clone, \
                 user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns"
            ))
        };
        if let Some(ranges) = ranges
            && enter_with(own, *ranges).map_err(fail)?
        {
            return Ok(());
        }
        let (uid, gid) = (geteuid(), getegid());
        namespace::leave(own).map_err(fail)?;
        // Without this an ordinary user may not write gid_map.
        fs::write("/proc/self/setgroups", "deny").map_err(fail)?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1")).map_err(fail)?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1")).map_err(fail)
    }

    /// What shows as whose.
    pub fn set(&self, options: &mut Options) {
        if let Self::Ordinary(None) = self {
            // There is one id only, and what has none could not be changed by anybody.
            options.ownership.squash_uid = Some(0);
            options.ownership.squash_gid = Some(0);
        }
    }
}

/// The first range of a user in a text of lines `NAME:FIRST:COUNT`.
fn range_in(text: &str, name: &str) -> Option<Range> {
    let uid = geteuid().to_string();
    text.lines().find_map(|line| {
        let mut words = line.split(':');
        let owner = words.next()?;
        if owner.is_empty() || owner != name && owner != uid {
            return None;
        }
        let (first, count) = (
            words.next()?.parse().ok()?,
            words.next()?.trim().parse().ok()?,
        );
        (count > 0).then_some((first, count))
    })
}

/// Enters a user namespace whose map newuidmap(1) writes, which only works from outside. False, and
/// nothing done, where that program is not to be had.
fn enter_with(own: Own, (uids, gids): (Range, Range)) -> io::Result<bool> {
    let there = |program| {
        let mut command = Command::new(program);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.status().is_ok()
    };
    if !there("newuidmap") || !there("newgidmap") {
        return Ok(false);
    }
    let (uid, gid, process) = (geteuid(), getegid(), getpid());
    let (mut wait, mut go) = io::pipe()?;
    match daemonize::fork()? {
        Side::Child => {
            drop(go);
            let mut byte = [0];
            if !matches!(wait.read(&mut byte), Ok(1)) {
                std::process::exit(1);
            }
            let map = |program: &str, id: u32, (first, count): Range| {
                let words = [process.as_raw() as u32, 0, id, 1, 1, first, count];
                let mut command = Command::new(program);
                command.args(words.map(|word| word.to_string()));
                command.status().is_ok_and(|status| status.success())
            };
            let done = map("newuidmap", uid.as_raw(), uids) && map("newgidmap", gid.as_raw(), gids);
            std::process::exit(i32::from(!done));
        }
        Side::Parent(child) => {
            drop(wait);
            let left = namespace::leave(own);
            if left.is_ok() {
                go.write_all(b"x")?;
            }
            drop(go);
            let ended = waitpid(child, None)?;
            left?;
            match ended {
                WaitStatus::Exited(_, 0) => Ok(true),
                _ => Err(io::Error::other(
                    "newuidmap or newgidmap refused the ranges of /etc/subuid and /etc/subgid",
                )),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_range_counts() {
        let text = "other:1:2\nme:100000:65536\nme:5:6\n";
        assert_eq!(range_in(text, "me"), Some((100_000, 65_536)));
        assert_eq!(range_in(text, "nobody else"), None);
        assert_eq!(range_in("me:x:3\nme:4:0\n", "me"), None);
    }
}
