//! `unionfs umount`: as root or in a user namespace by umount2, else through fusermount3.

use std::io;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::Failure;

/// Takes away what is mounted at `mountpoint`.
///
/// # Errors
/// When it is busy, is no mountpoint, or belongs to somebody else.
pub fn umount(mountpoint: &Path) -> Result<(), Failure> {
    let fail = |reason: &dyn std::fmt::Display| {
        Failure::new(format_args!("umount {}: {reason}", mountpoint.display()))
    };
    match umount2(mountpoint, MntFlags::empty()) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => fusermount(mountpoint).map_err(|reason| fail(&reason)),
        Err(Errno::EINVAL) => Err(fail(&"not a mountpoint")),
        Err(errno) => Err(fail(&errno.desc())),
    }
}

/// The setuid helper of libfuse, for ordinary users.
fn fusermount(mountpoint: &Path) -> Result<(), String> {
    let output = Command::new("fusermount3")
        .arg("-u")
        .arg("--")
        .arg(mountpoint)
        .output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            match said.lines().find(|line| !line.trim().is_empty()) {
                Some(line) => Err(line.trim().to_owned()),
                None => Err(format!("fusermount3: {}", output.status)),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(format!(
            "{}, and fusermount3 is not installed",
            Errno::EPERM.desc()
        )),
        Err(error) => Err(format!("fusermount3: {error}")),
    }
}
