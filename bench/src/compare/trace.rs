//! Requests that the kernel sends to a FUSE daemon, counted by the kernel's tracepoint.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::Result;

/// How often each kind of request was sent. FORGET does not pass the tracepoint.
pub(crate) type Counts = BTreeMap<String, u64>;

/// A buffer of the kernel's of our own, so that nobody else's tracing is touched.
pub(crate) struct Tracer {
    instance: PathBuf,
}

/// With the process's id.
const PREFIX: &str = "unionfs-bench-";
/// Room for about half a million requests on each processor.
const BUFFER_KIB: &str = "20000";

impl Tracer {
    /// Mounts tracefs at `at`, in the mount namespace of this process.
    pub(crate) fn new(at: &Path) -> Result<Self> {
        fs::create_dir_all(at)?;
        super::command(
            Command::new("mount")
                .args(["-t", "tracefs", "tracefs"])
                .arg(at),
        )?;
        let instances = at.join("instances");
        sweep(&instances);
        let instance = instances.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&instance)?;
        let tracer = Self { instance };
        tracer.write("buffer_size_kb", BUFFER_KIB)?;
        tracer.write("options/overwrite", "0")?;
        Ok(tracer)
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.instance.join(file);
        fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()).into())
    }

    /// Watches the connection with this number (the minor number of its st_dev).
    pub(crate) fn watch(&self, connection: u32) -> Result<()> {
        let event = "events/fuse/fuse_request_send";
        self.write(
            &format!("{event}/filter"),
            &format!("connection == {connection}"),
        )?;
        self.write(&format!("{event}/enable"), "1")
    }

    /// Forgets what was counted so far.
    pub(crate) fn clear(&self) -> Result<()> {
        self.write("trace", "")
    }

    /// What was sent since [`clear`](Self::clear); stops watching.
    pub(crate) fn stop(&self) -> Result<Counts> {
        // RELEASE is sent without anybody waiting for it.
        std::thread::sleep(Duration::from_millis(50));
        self.write("events/fuse/fuse_request_send/enable", "0")?;
        let text = fs::read_to_string(self.instance.join("trace"))?;
        self.clear()?;
        Ok(count(&text))
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // tracefs has ordinary directory operations for instances.
        let _ = fs::remove_dir(&self.instance);
    }
}

/// Removes the instances of processes that were killed.
fn sweep(instances: &Path) {
    for entry in fs::read_dir(instances).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|n| n.strip_prefix(PREFIX));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Should it stay, it does no harm but to memory.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Counts the requests in the text of a trace: `... opcode 1 (FUSE_LOOKUP) len 48`.
fn count(text: &str) -> Counts {
    let mut counts = Counts::new();
    for line in text.lines() {
        let Some((_, rest)) = line.split_once(" opcode ") else {
            continue;
        };
        let name = rest
            .split_once("(FUSE_")
            .and_then(|(_, name)| name.split_once(')'))
            .map(|(name, _)| name);
        let number = || format!("opcode {}", rest.split(' ').next().unwrap_or_default());
        *counts
            .entry(name.map_or_else(number, str::to_owned))
            .or_default() += 1;
    }
    counts
}

/// The counts in one line, the most frequent first.
pub(crate) fn line(counts: &Counts) -> String {
    let mut sorted: Vec<_> = counts.iter().collect();
    sorted.sort_by_key(|(name, n)| (std::cmp::Reverse(**n), name.as_str()));
    let words: Vec<String> = sorted
        .iter()
        .map(|(name, n)| format!("{name} {n}"))
        .collect();
    match words.is_empty() {
        true => "none".to_owned(),
        false => words.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_name() {
        let text = "# tracer: nop\n\
            a-1 [000] ..... 1.0: fuse_request_send: connection 53 req 2 opcode 1 (FUSE_LOOKUP) len 48\n\
            a-1 [000] ..... 1.0: fuse_request_send: connection 53 req 4 opcode 1 (FUSE_LOOKUP) len 48\n\
            a-1 [000] ..... 1.0: fuse_request_send: connection 53 req 6 opcode 3 (FUSE_GETATTR) len 56\n\
            a-1 [000] ..... 1.0: fuse_request_send: connection 53 req 8 opcode 99 (99) len 56\n";
        let counts = count(text);
        assert_eq!(counts.get("LOOKUP"), Some(&2));
        assert_eq!(counts.get("GETATTR"), Some(&1));
        assert_eq!(counts.get("opcode 99"), Some(&1));
        assert_eq!(line(&counts), "LOOKUP 2, GETATTR 1, opcode 99 1");
        assert_eq!(line(&Counts::new()), "none");
    }
}
