//! What is known of the process that asks.

use std::fs;
use std::path::PathBuf;

/// Bit of `CAP_SYS_ADMIN` in /proc/PID/status.
const SYS_ADMIN: u64 = 1 << 21;

/// True for a process that sees this system as we do, or may see it so: one of our user namespace that
/// is in our mount namespace or may change mounts. A container's root is not, though it has our user
/// id where the container has no user namespace of its own. False when it cannot be told.
pub(crate) fn is_outside_containers(pid: u32) -> bool {
    let namespace = |of: &str, kind: &str| fs::read_link(format!("/proc/{of}/ns/{kind}")).ok();
    let same = |kind: &str| {
        let ours: Option<PathBuf> = namespace("self", kind);
        ours.is_some() && ours == namespace(&pid.to_string(), kind)
    };
    pid != 0 && same("user") && (same("mnt") || may_mount(pid))
}

fn may_mount(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caps = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let caps = caps.and_then(|caps| u64::from_str_radix(caps.trim(), 16).ok());
    caps.is_some_and(|caps| caps & SYS_ADMIN != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_where_it_is_itself() {
        assert!(is_outside_containers(std::process::id()));
        assert!(!is_outside_containers(0));
    }
}
