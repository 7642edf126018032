//! What was measured on.

use std::fs;
use std::process::Command;

use super::peers::{self, Peer};

/// Facts about this machine, a word and its value each.
pub(crate) fn notes(peers: &[Peer]) -> Vec<(String, String)> {
    let uname = Command::new("uname").arg("-srm").output();
    let kernel = uname.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = field(&meminfo, "MemTotal").and_then(|kib| {
        let number = kib.split(' ').next()?;
        number.parse::<u64>().ok()
    });
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut notes = vec![
        ("kernel".to_owned(), kernel.unwrap_or_default()),
        (
            "processor".to_owned(),
            format!(
                "{}, {cores} cores",
                field(&cpuinfo, "model name").unwrap_or_default()
            ),
        ),
        (
            "memory".to_owned(),
            format!("{} GiB", memory.unwrap_or_default() / (1 << 20)),
        ),
        (
            "load before".to_owned(),
            load.split(' ').next().unwrap_or_default().to_owned(),
        ),
        (
            "filesystem".to_owned(),
            "ext4 on loop images in memory, noatime; a new one for each upper".to_owned(),
        ),
    ];
    notes.extend(halt_poll().map(|text| ("idle processors".to_owned(), text)));
    for peer in peers {
        notes.push((peer.name.clone(), peers::version(&peer.kind)));
    }
    notes
}

/// In a virtual machine: how long an idle processor looks for work before it halts. What wakes a halted one leaves
/// the machine, which costs several times what a request does.
fn halt_poll() -> Option<String> {
    let text = fs::read_to_string("/sys/module/haltpoll/parameters/guest_halt_poll_ns").ok()?;
    let micros = text.trim().parse::<u64>().ok()? / 1000;
    Some(format!(
        "look for work for at most {micros} us before they halt (guest_halt_poll_ns; the kernel's default is 200 us)"
    ))
}

/// How often somebody had the kernel drop its caches, since it started.
pub(crate) fn caches_dropped() -> u64 {
    dropped(&fs::read_to_string("/proc/vmstat").unwrap_or_default())
}

fn dropped(vmstat: &str) -> u64 {
    let count = |line: &str| {
        let (name, count) = line.split_once(' ')?;
        let is_it = ["drop_pagecache", "drop_slab"].contains(&name);
        count.parse::<u64>().ok().filter(|_| is_it)
    };
    vmstat.lines().filter_map(count).sum()
}

/// The value of the first line `name : value`.
fn field(text: &str, name: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(word, _)| word.trim() == name)
        .map(|(_, value)| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_caches_are_counted() {
        let text = "nr_free_pages 5\ndrop_pagecache 3\ndrop_slab 4\noom_kill 0\n";
        assert_eq!(dropped(text), 7);
        assert_eq!(dropped(""), 0);
    }

    #[test]
    fn fields() {
        let text = "processor\t: 0\nmodel name\t: A CPU\nmodel name\t: B\nMemTotal:       24 kB\n";
        assert_eq!(field(text, "model name").as_deref(), Some("A CPU"));
        assert_eq!(field(text, "MemTotal").as_deref(), Some("24 kB"));
        assert_eq!(field(text, "nothing"), None);
    }
}
