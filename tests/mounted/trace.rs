//! The system calls that the daemon makes for each request, by strace.

use std::collections::HashMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::process::wait_for;
use crate::support::Mount;

/// Requests by their numbers in the protocol.
pub const LOOKUP: u32 = 1;
pub const GETATTR: u32 = 3;
pub const SETATTR: u32 = 4;
pub const MKDIR: u32 = 9;
pub const UNLINK: u32 = 10;
pub const RMDIR: u32 = 11;
pub const RENAME: u32 = 12;
pub const OPEN: u32 = 14;
pub const READ: u32 = 15;
pub const WRITE: u32 = 16;
pub const FSYNC: u32 = 20;
pub const GETXATTR: u32 = 22;
pub const CREATE: u32 = 35;

/// Calls that belong to no request: the answer itself, waiting for locks, memory.
const OTHERS: [&str; 9] = [
    "writev",
    "futex",
    "brk",
    "mmap",
    "munmap",
    "mprotect",
    "madvise",
    "mremap",
    "sched_yield",
];
/// Names that are looked up to say that a part of the work begins.
const MARK: &str = "begin-";

/// What the daemon does from now on.
pub struct Trace<'a> {
    mount: &'a Mount,
    strace: Child,
    log: std::path::PathBuf,
}

impl<'a> Trace<'a> {
    /// Of a mount with a single thread.
    pub fn start(mount: &'a Mount) -> Self {
        let log = mount.layers.scratch().join("trace");
        let pid = mount.pid();
        let strace = Command::new("strace")
            .args(["-f", "-xx", "-s", "320", "-p", &pid.to_string(), "-o"])
            .arg(&log)
            .stderr(Stdio::null())
            .spawn()
            .expect("strace is installed");
        let traced = || {
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status"));
            let by_strace = format!("TracerPid:\t{}\n", strace.id());
            let mut all = tasks.flatten().map(|task| status(task).unwrap_or_default());
            all.all(|status| status.contains(&by_strace)).then_some(())
        };
        wait_for(Duration::from_secs(10), traced).expect("strace does not attach to the daemon");
        Self { mount, strace, log }
    }

    /// A part of the work begins.
    pub fn begin(&self, part: &str) {
        let name = format!("{MARK}{part}");
        assert!(fs::symlink_metadata(self.mount.p(name)).is_err());
    }

    /// Ends it; the requests of each part, with the calls for each.
    pub fn end(mut self) -> HashMap<String, Vec<(u32, Vec<String>)>> {
        self.begin("end");
        rustix::process::kill_process(Pid::from_child(&self.strace), Signal::TERM).unwrap();
        self.strace.wait().unwrap();
        let mut parts: HashMap<String, Vec<(u32, Vec<String>)>> = HashMap::new();
        let mut part = String::new();
        let mut unfinished: HashMap<String, String> = HashMap::new();
        for line in fs::read_to_string(&self.log).unwrap().lines() {
            let (thread, text) = line.split_once(' ').expect("a thread and a call");
            let text = text.trim_start();
            if let Some(begun) = text.strip_suffix(" <unfinished ...>") {
                unfinished.insert(thread.to_owned(), begun.to_owned());
                continue;
            }
            let text = match text
                .strip_prefix("<... ")
                .and_then(|t| t.split_once(" resumed>"))
            {
                Some((_, rest)) => unfinished.remove(thread).unwrap_or_default() + rest,
                None => text.to_owned(),
            };
            if let Some((opcode, name)) = request(&text) {
                match name.strip_prefix(MARK).filter(|_| opcode == LOOKUP) {
                    Some(name) => name.clone_into(&mut part),
                    None => {
                        let requests = parts.entry(part.clone()).or_default();
                        requests.push((opcode, Vec::new()));
                        continue;
                    }
                }
                // What the mark itself costs is no one's.
                parts.entry(part.clone()).or_default().push((0, Vec::new()));
                continue;
            }
            let call = text.split('(').next().unwrap_or_default();
            let is_call = text.contains('(') && !text.starts_with("read(");
            if is_call
                && !OTHERS.contains(&call)
                && let Some((_, calls)) = parts.get_mut(&part).and_then(|r| r.last_mut())
            {
                // As an older strace shows it.
                let is_new = call == "syscall_0x1c4";
                calls.push(if is_new { "fchmodat2" } else { call }.to_owned());
            }
        }
        parts
    }
}

/// The opcode of a request that a call has read, and the name in it.
fn request(text: &str) -> Option<(u32, String)> {
    let (_, rest) = text.strip_prefix("read(")?.split_once('"')?;
    let hex = rest.split('"').next()?;
    let byte = |text: &str| u8::from_str_radix(text, 16).ok();
    let bytes: Vec<u8> = hex.split("\\x").skip(1).filter_map(byte).collect();
    let len = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?);
    // A request says itself how long it is.
    if bytes.len() < 40 || !text.ends_with(&format!(" = {len}")) {
        return None;
    }
    let opcode = u32::from_le_bytes(bytes[4..8].try_into().ok()?);
    let name = bytes[40..].split(|&b| b == 0).next().unwrap_or_default();
    Some((opcode, String::from_utf8_lossy(name).into_owned()))
}
