//! `unionfs umount`: as root or in a user namespace by umount2, else through fusermount3.

use std::ffi::OsString;
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

/// Where the helper may be when PATH, which a service may lack, does not lead to it.
const HELPERS: [&str; 3] = ["fusermount3", "/usr/bin/fusermount3", "/bin/fusermount3"];

/// The setuid helper of libfuse, for ordinary users.
fn fusermount(mountpoint: &Path) -> Result<(), String> {
    // The variable that the mounting side (fuser) obeys too.
    let chosen = std::env::var_os("FUSERMOUNT_PATH").map(|helper| vec![helper]);
    for helper in chosen.unwrap_or_else(|| HELPERS.map(OsString::from).to_vec()) {
        match Command::new(&helper)
            .arg("-u")
            .arg("--")
            .arg(mountpoint)
            .output()
        {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let line = said.lines().find(|line| !line.trim().is_empty());
                let status = || format!("{}: {}", helper.display(), output.status);
                return Err(line.map_or_else(status, |line| line.trim().to_owned()));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{}: {error}", helper.display())),
        }
    }
    Err(format!(
        "{}, and fusermount3 is not installed",
        Errno::EPERM.desc()
    ))
}
