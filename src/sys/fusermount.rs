//! Mounting and unmounting through fusermount3, libfuse's setuid helper for ordinary users.
//!
//! fuser speaks this protocol too, but ties the mount to its session, which at its end unmounts
//! whatever is mounted at the path by then: possibly a new mount at the same place.

use std::ffi::{OsStr, OsString};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

/// Where the helper may be when PATH, which a service may lack, does not lead to it.
const HELPERS: [&str; 3] = ["fusermount3", "/usr/bin/fusermount3", "/bin/fusermount3"];

/// Mounts with the options `options` (one comma-separated text); the descriptor is the connection.
///
/// # Errors
/// The helper's own words, or that it is not installed.
pub(crate) fn mount(mountpoint: &Path, options: &OsStr) -> Result<OwnedFd, String> {
    let (ours, theirs) = UnixStream::pair().map_err(|e| e.to_string())?;
    // The helper must inherit its end; a duplicate is not closed at exec.
    let inherited = rustix::io::dup(&theirs).map_err(|e| e.to_string())?;
    drop(theirs);
    run(|helper| {
        Command::new(helper)
            .env("_FUSE_COMMFD", inherited.as_raw_fd().to_string())
            .arg("-o")
            .arg(options)
            .arg("--")
            .arg(mountpoint)
            .output()
    })?;
    // With no end of it open elsewhere, a helper that sent nothing is seen as such.
    drop(inherited);
    receive(&ours).ok_or_else(|| "fusermount3 sent no connection".to_owned())
}

/// The descriptor that the helper sent.
fn receive(socket: &UnixStream) -> Option<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut data = [IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(socket, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    })
}

/// Unmounts.
///
/// # Errors
/// The helper's own words, or that it is not installed.
pub(crate) fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), String> {
    let options: &[&str] = if lazy {
        &["-u", "-z", "--"]
    } else {
        &["-u", "--"]
    };
    run(|helper| Command::new(helper).args(options).arg(mountpoint).output())
}

/// Calls the first helper that is there.
fn run(call: impl Fn(&OsStr) -> io::Result<Output>) -> Result<(), String> {
    let chosen = std::env::var_os("FUSERMOUNT_PATH").map(|helper| vec![helper]);
    for helper in chosen.unwrap_or_else(|| HELPERS.map(OsString::from).to_vec()) {
        match call(&helper) {
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
    Err("operation not permitted, and fusermount3 is not installed".to_owned())
}
