//! What this process takes.

use rustix::process::{Resource, getrlimit};

/// Descriptors that are open; `None` without /proc.
pub(crate) fn open_descriptors() -> Option<u64> {
    let entries = std::fs::read_dir("/proc/self/fd").ok()?;
    // The one by which this is read is no more afterwards.
    Some((entries.count() as u64).saturating_sub(1))
}

/// How many may be; `None` where there is no limit.
pub(crate) fn descriptor_limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Memory in use, in bytes; `None` without /proc.
pub(crate) fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes << 10)
}

/// A device number as `MAJOR:MINOR`.
pub(crate) fn device_name(dev: u64) -> String {
    format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev))
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_opened_counts() {
        let files: Vec<_> = (0..50).map(|_| std::fs::File::open("/").unwrap()).collect();
        // Other tests have files open too.
        assert!(super::open_descriptors().unwrap() >= files.len() as u64);
        assert!(super::resident_bytes().unwrap() > 0);
    }
}
