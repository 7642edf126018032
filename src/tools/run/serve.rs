//! A process that serves one union of the view.

use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, setsid};

use crate::mount::{self, Target};
use crate::options::Options;
use crate::sys;
use crate::sys::daemonize::{self, Side};
use crate::sys::namespace;

use super::{Result, ToolError, at, failed};

/// What it says when the union is mounted.
const READY: u8 = b'\n';

/// A union that is served.
pub(super) struct Server {
    process: Pid,
    target: PathBuf,
    ended: bool,
}

impl Server {
    /// Mounts the union; returns when it is there.
    pub fn start(options: &Options, target: &Path) -> Result<Self> {
        let (mut ours, theirs) = std::io::pipe().map_err(|e| failed("a pipe", e))?;
        match daemonize::fork().map_err(|e| failed("a process", e))? {
            Side::Child => {
                drop(ours);
                std::process::exit(serve(options, target, theirs));
            }
            Side::Parent(process) => {
                drop(theirs);
                let server = Self {
                    process,
                    target: target.to_owned(),
                    ended: false,
                };
                let mut said = Vec::new();
                let mut byte = [0];
                while matches!(ours.read(&mut byte), Ok(1)) {
                    if byte[0] == READY {
                        return Ok(server);
                    }
                    said.push(byte[0]);
                }
                Err(ToolError::new(match said.as_slice() {
                    [] => "the daemon ended before the mount answered".into(),
                    said => String::from_utf8_lossy(said),
                }))
            }
        }
    }

    /// Unmounts it; when this returns all is in the upper, and the daemon is gone.
    pub fn end(mut self) -> Result<()> {
        let path = self.target.as_os_str().as_bytes();
        sys::mount::unmount(path, false).map_err(|e| at(&self.target, e))?;
        self.ended = true;
        waitpid(self.process, None).map_err(|e| failed("the daemon", e))?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.ended {
            let _ = sys::mount::unmount(self.target.as_os_str().as_bytes(), true);
            let _ = kill(self.process, Signal::SIGKILL);
            let _ = waitpid(self.process, None);
        }
    }
}

/// The process of the daemon.
fn serve(options: &Options, target: &Path, mut tell: std::io::PipeWriter) -> i32 {
    // Keys of the terminal are not for it.
    let _ = setsid();
    let mounted = namespace::end_with_parent()
        .map_err(|e| e.to_string())
        .and_then(|()| {
            mount::prepare(options, Target::Directory(target.to_owned())).map_err(|e| e.to_string())
        })
        .and_then(|prepared| prepared.mount().map_err(|e| e.to_string()));
    match mounted {
        Ok(mounted) => {
            let told = tell.write_all(&[READY]);
            drop(tell);
            i32::from(told.is_err() || mounted.run().is_err())
        }
        Err(reason) => {
            // Who waits sees the end of the pipe in any case.
            let _ = tell.write_all(reason.as_bytes());
            1
        }
    }
}
