//! The comparison runs on small trees, as root and as an ordinary user, and writes what it found. Needs root.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // It is a test.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Of each kind one: hot, fresh, data, changes, programs.
const WORKLOADS: &str = "stat,stat-missing,find-fresh,write-4k,create-4,untar,rm-lower,latency";
const BENCH: &str = env!("CARGO_BIN_EXE_bench");

/// The program that is measured is another package's, so nobody else has built it for this test; as the tests of the
/// whole workspace need it, so that there it is built already.
fn build() {
    let status = Command::new(env!("CARGO"))
        .args([
            "test",
            "--quiet",
            "--workspace",
            "--no-run",
            "--test",
            "cli",
        ])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status()
        .unwrap();
    assert!(status.success());
}

fn compare(out: &Path, more: &[&str]) -> String {
    let output = Command::new("timeout")
        .args(["-k", "5", "100", BENCH, "--small", "--rounds", "1"])
        .args(["--peers", "overlayfs,unionfs", "--workloads", WORKLOADS])
        .arg("--out")
        .arg(out)
        .args(more)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(!text.contains("Not measured"), "{text}{errors}");
    text
}

#[test]
fn as_root_and_as_an_ordinary_user() {
    build();
    let out = tempfile::tempdir().unwrap();
    compare(out.path(), &[]);
    compare(out.path(), &["--rootless", "--no-counts"]);

    let document = fs::read_to_string(out.path().join("PERFORMANCE.md")).unwrap();
    assert!(document.contains("## Root\n") && document.contains("## An ordinary user"));
    for title in ["stat, hot", "untar of a Debian root", "rm -rf, lower tree"] {
        let rows: Vec<_> = document
            .lines()
            .filter(|l| l.starts_with(&format!("| {title} | ")))
            .collect();
        assert!(rows.len() >= 4, "{document}");
    }
    // What has to be asked is asked; what the kernel may know is not.
    let requests = |title: &str| {
        let start = format!("| {title} | unionfs | ");
        document
            .lines()
            .find_map(|l| l.strip_prefix(&start))
            .unwrap_or_default()
            .to_owned()
    };
    assert!(
        requests("create 4 KiB files, 4 threads").contains("CREATE 200"),
        "{document}"
    );
    assert!(requests("stat, hot").starts_with("0: none"), "{document}");
    for picture in ["performance.svg", "performance-rootless.svg"] {
        let svg = fs::read_to_string(out.path().join(picture)).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("untar"));
    }
    // All was mounted in a namespace that is gone.
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains("/bench."), "{mounts}");
}
