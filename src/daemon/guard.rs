//! `auto_unmount`: a process that takes the mount away when the daemon dies without doing so.
//!
//! It waits for the end of a pipe whose other end only the daemon holds, so no way to die escapes
//! it. It is made before the mount: it must not hold the connection, or the kernel would not see
//! the daemon die.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process;

use nix::fcntl::OFlag;
use nix::sys::wait::waitpid;
use nix::unistd::{self, Pid};

use super::{Failure, apart};
use crate::sys::daemonize::{self, Side};
use crate::sys::{fusermount, mount};

/// The daemon's end of the pipe, held for as long as it lives. When it is dropped the guarding
/// process ends first.
pub(super) struct Guard {
    pipe: Option<File>,
    pid: Pid,
}

/// Starts the process that guards `mountpoint`. No thread may have been made yet.
pub(super) fn start(mountpoint: &Path) -> Result<Guard, Failure> {
    let fail = |error: io::Error| Failure::new(format_args!("option auto_unmount: {error}"));
    let (reader, writer) = unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| fail(errno.into()))?;
    match daemonize::fork().map_err(fail)? {
        Side::Parent(pid) => Ok(Guard {
            pipe: Some(File::from(writer)),
            pid,
        }),
        Side::Child => {
            drop(writer);
            daemonize::close_others(&[reader.as_fd()]);
            // Nobody is left to be told what fails.
            let done = detach().and_then(|()| watch(File::from(reader), mountpoint));
            process::exit(i32::from(done.is_err()));
        }
    }
}

impl Guard {
    /// From now on the mount with that device number is the one to be taken away.
    pub(super) fn arm(&mut self, (major, minor): (u32, u32)) -> io::Result<()> {
        let device = [major.to_ne_bytes(), minor.to_ne_bytes()].concat();
        self.pipe
            .as_mut()
            .map_or(Ok(()), |pipe| pipe.write_all(&device))
    }
}

impl Guard {
    /// The mount is gone, or taken away, by the daemon's own doing: nothing is left to be done. What
    /// stands there from now on may have the same device number, as the kernel gives them out again.
    pub(super) fn disarm(&mut self) {
        if let Some(pipe) = &mut self.pipe {
            // A guard that is gone does nothing either.
            let _ = pipe.write_all(&[0]);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.pipe.take());
        // It asks nothing of any mount, so it does not take long.
        let _ = waitpid(self.pid, None);
    }
}

/// Lets go of the caller's terminal, stdio and directory.
fn detach() -> io::Result<()> {
    unistd::setsid()?;
    unistd::chdir("/")?;
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    unistd::dup2_stdin(&null)?;
    unistd::dup2_stdout(&null)?;
    unistd::dup2_stderr(&null)?;
    Ok(())
}

fn watch(mut daemon: File, mountpoint: &Path) -> io::Result<()> {
    let mut device = [[0; 4]; 2];
    for part in &mut device {
        // The end before anything was mounted is an error here, and nobody minds.
        daemon.read_exact(part)?;
    }
    let device = device.map(u32::from_ne_bytes);
    let mut rest = Vec::new();
    daemon.read_to_end(&mut rest)?;
    if !rest.is_empty() {
        return Ok(());
    }
    // A mount that the daemon had lost before it died is none of ours, nor is what is there now.
    if apart::device(mountpoint)? != (device[0], device[1]) {
        return Ok(());
    }
    match mount::unmount(mountpoint.as_os_str().as_bytes(), true) {
        Err(crate::sys::Errno::PERM) => {
            fusermount::unmount(mountpoint, true).map_err(io::Error::other)
        }
        done => Ok(done?),
    }
}
