//! Questions about a caller that the kernel does not answer in the request.

use super::types::Caller;

/// Lines of /proc/PID/status that precede the groups are few; a task has 65536 groups at most.
const STATUS_MAX: u64 = 1 << 20;

impl Caller {
    /// True when the caller is in `group`, by its supplementary groups too.
    ///
    /// They are read from /proc, which only rare operations need; when they cannot be read (the
    /// caller is in another pid namespace), the answer is no, the safe one.
    pub(crate) fn in_group(self, group: u32) -> bool {
        if self.gid == group {
            return true;
        }
        if self.pid == 0 {
            return false;
        }
        let Ok(file) = std::fs::File::open(format!("/proc/{}/status", self.pid)) else {
            return false;
        };
        let mut text = String::new();
        let mut limited = std::io::Read::take(file, STATUS_MAX);
        if std::io::Read::read_to_string(&mut limited, &mut text).is_err() {
            return false;
        }
        text.lines()
            .find_map(|line| line.strip_prefix("Groups:"))
            .is_some_and(|groups| groups.split_whitespace().any(|g| g.parse() == Ok(group)))
    }
}
