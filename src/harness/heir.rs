//! Who takes the mount away when this process is killed.
//!
//! A shell reads from a pipe. The other end is held by a thread with a table of descriptors of its own, so
//! that it is closed when that thread ends, whatever becomes of the others: one that waits for an answer of
//! a mount which nobody serves any more cannot be killed, and would keep all open that it shares. The
//! shell then ends the connection, by which that thread gets its answer, and unmounts.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::sys;

/// The mount point is `$1`, the minor number of its device `$2`. A line says that all is done.
const SCRIPT: &str = r#"
trap '' HUP INT QUIT TERM
read -r done && exit 0
found=
while read -r id parent device rest; do
    case "$device $rest" in "0:$2 "*" - fuse"*) found=1 ;; esac
done < /proc/self/mountinfo
[ -n "$found" ] || exit 0
echo 1 > "/sys/fs/fuse/connections/$2/abort"
umount -f -l -- "$1" || umount -l -- "$1" || fusermount3 -u -z -- "$1"
"#;
/// How long it may take to end.
const END: Duration = Duration::from_secs(1);

/// The shell, until this is dropped, when nothing is mounted any more.
#[derive(Debug)]
pub(super) struct Heir {
    /// Dropped to say so.
    holds: Option<Sender<()>>,
    thread: JoinHandle<()>,
}

impl Heir {
    /// Starts one for a mount; `None` where that cannot be: then a mount whose process was killed is left.
    pub fn start(mountpoint: &Path, number: u32) -> Option<Self> {
        let mountpoint = mountpoint.to_owned();
        let (holds, held) = mpsc::channel();
        let (sender, started) = mpsc::channel();
        let thread = thread::Builder::new().name("unionfs-heir".to_owned());
        // No descriptor may come into this thread or out of it, nor may it log, as loggers have some.
        let work = move || {
            let heir = sys::fd::own_table().ok().and_then(|()| {
                let mut command = Command::new("/bin/sh");
                command.args(["-c", SCRIPT, "unionfs"]);
                command.arg(mountpoint).arg(number.to_string());
                command.stdin(Stdio::piped());
                command.stdout(Stdio::null()).stderr(Stdio::null());
                // Signals of the terminal are for the test.
                command.process_group(0).current_dir("/").spawn().ok()
            });
            // Whoever starts it waits for it.
            let _ = sender.send(heir.is_some());
            if let Some(heir) = heir {
                // The end of the channel is all that ever comes.
                let _: Result<(), _> = held.recv();
                dismiss(heir);
            }
        };
        let thread = thread.spawn(work).ok()?;
        let is_there = started.recv().unwrap_or(false);
        is_there.then_some(Self {
            holds: Some(holds),
            thread,
        })
    }
}

fn dismiss(mut heir: Child) {
    if let Some(pipe) = &mut heir.stdin {
        // One that is gone does nothing either.
        let _ = pipe.write_all(b"\n");
    }
    let _ = heir.wait();
}

impl Drop for Heir {
    fn drop(&mut self) {
        self.holds = None;
        let start = Instant::now();
        while !self.thread.is_finished() && start.elapsed() < END {
            thread::sleep(Duration::from_micros(200));
        }
    }
}
