//! What cannot be done is told in one line, with exit code 1, and nothing is left mounted.

use std::fs;

use super::support::{Fixture, program, run};

#[test]
fn help_and_version() {
    let version = run(program().arg("--version"));
    assert_eq!(
        version.good().stdout,
        format!("unionfs {}\n", env!("CARGO_PKG_VERSION"))
    );
    let help = run(program().arg("--help"));
    for word in [
        "Usage:",
        "lowerdir=",
        "upperdir=",
        "whiteout=aufs|overlay",
        "umount",
        "demo",
    ] {
        assert!(
            help.good().stdout.contains(word),
            "{word} is not in {}",
            help.stdout
        );
    }
}

#[test]
fn bad_command_lines() {
    let cases: [(&[&str], &str); 6] = [
        (&[], "a mountpoint is needed; see unionfs --help"),
        (
            &["-o", "lowerdir=/"],
            "a mountpoint is needed; see unionfs --help",
        ),
        (
            &["/m"],
            "option lowerdir: missing, at least one lower directory is needed (or SOURCE, br=, dirs=)",
        ),
        (
            &["-o", "lowerdir=/,whiteout=x", "/m"],
            "option whiteout: 'x' is not aufs or overlay",
        ),
        (
            &["--frob", "/m"],
            "unexpected argument '--frob'; see unionfs --help",
        ),
        (&["umount"], "a mountpoint is needed; see unionfs --help"),
    ];
    for (words, expected) in cases {
        assert_eq!(run(program().args(words)).complaint(), expected);
    }
}

/// What is wrong, the options, the mountpoint, and words the line must have.
type Case = (&'static str, String, &'static str, &'static [&'static str]);

#[allow(clippy::too_many_lines)] // a table
fn cases(fixture: &Fixture) -> [Case; 12] {
    let root = fixture.path("").display().to_string();
    let root = root.trim_end_matches('/');
    let good = fixture.options("").into_string().unwrap();
    [
        (
            "a lower is missing",
            format!("lowerdir={root}/none"),
            "m",
            &["/none"],
        ),
        (
            "a name with a line break",
            format!("lowerdir={root}/no\nne"),
            "m",
            &["/no\\nne"],
        ),
        (
            "a lower is a file",
            format!("lowerdir={root}/file"),
            "m",
            &["/file"],
        ),
        (
            "the upper is missing",
            format!("lowerdir={root}/l1,upperdir={root}/none"),
            "m",
            &["/none"],
        ),
        (
            "the upper is a file",
            format!("lowerdir={root}/l1,upperdir={root}/file"),
            "m",
            &["/file"],
        ),
        (
            "the upper is inside a lower",
            format!("lowerdir={root}/l1,upperdir={root}/l1/inside"),
            "m",
            &["/l1/inside"],
        ),
        (
            "the workdir is missing",
            format!("{good},workdir={root}/none"),
            "m",
            &["/none"],
        ),
        (
            "the workdir is on another filesystem",
            format!("{good},workdir=/proc"),
            "m",
            &["workdir", "/proc"],
        ),
        (
            "the mountpoint is missing",
            good.clone(),
            "none",
            &["/none"],
        ),
        ("the mountpoint is a file", good.clone(), "file", &["/file"]),
        (
            "the log filter is bad",
            format!("{good},log=unionfs=loud"),
            "m",
            &["log", "loud"],
        ),
        (
            "the log file is nowhere",
            format!("{good},log_file=/nope/log"),
            "m",
            &["/nope/log"],
        ),
    ]
}

#[test]
fn what_cannot_be_mounted() {
    let fixture = Fixture::new();
    fs::write(fixture.path("file"), "").unwrap();
    fs::create_dir(fixture.path("l1/inside")).unwrap();
    for (what, options, mountpoint, words) in cases(&fixture) {
        for foreground in [false, true] {
            let mut command = program();
            if foreground {
                command.arg("-f");
            }
            let outcome = run(command
                .arg("-o")
                .arg(&options)
                .arg(fixture.path(mountpoint)));
            let line = outcome.complaint();
            for word in words {
                assert!(line.contains(word), "{what}: {word} is not in: {line}");
            }
            assert!(!fixture.is_mounted(), "{what}: it is mounted");
            assert!(fixture.daemons().is_empty(), "{what}: a process stays");
        }
    }
}

#[test]
fn umount_of_what_is_no_mount() {
    let fixture = Fixture::new();
    let place = fixture.path("m");
    let line = run(program().arg("umount").arg(&place));
    assert_eq!(
        line.complaint(),
        format!("umount {}: not a mountpoint", place.display())
    );
    let place = fixture.path("none");
    let line = run(program().arg("umount").arg(&place));
    assert_eq!(
        line.complaint(),
        format!("umount {}: No such file or directory", place.display())
    );
}
