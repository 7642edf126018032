//! Each test gets a view of its own of `tests/fixture`, all at the same time. None of them copies the
//! fixture, and none can harm it.
//!
//! They need what mounting needs: root, or fusermount3, or `unshare -Urm cargo test`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use unionfs::{Builder, Fault, Operation, Union};

/// What tidying the fixture changes.
const TIDY: [&str; 4] = [
    "M letter.txt",
    "D notes/draft.txt.bak",
    "M notes/old/plan.txt",
    "D todo~",
];

/// A union on a temporary directory. The union is dropped first.
struct View {
    union: Union,
    _temp: tempfile::TempDir,
}

impl View {
    fn new() -> Self {
        Self::with(|builder| builder)
    }

    /// A view with something special.
    fn with(special: impl FnOnce(Builder) -> Builder) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let (upper, mnt) = (temp.path().join("upper"), temp.path().join("mnt"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&mnt).unwrap();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixture");
        let builder = Union::builder().lower(fixture).upper(upper);
        let union = special(builder).mount(mnt).unwrap();
        Self { union, _temp: temp }
    }

    /// Runs the program on it.
    fn tidy(&self) -> Output {
        let program = env!("CARGO_BIN_EXE_tidy-up");
        let mut command = Command::new(program);
        command.arg(self.union.path()).output().unwrap()
    }

    fn changes(&self) -> Vec<String> {
        let changes = self.union.upper_changes().unwrap();
        changes.map(|change| change.to_string()).collect()
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.union.join(name)).unwrap()
    }
}

#[test]
fn it_changes_what_it_should_and_nothing_else() {
    let view = View::new();
    assert!(view.tidy().status.success());
    assert_eq!(view.changes(), TIDY);
    assert_eq!(view.text("letter.txt"), "Dear reader,\n\nhello.\n");
    assert_eq!(view.text("notes/old/plan.txt"), "no line end");
}

#[test]
fn a_tidy_tree_stays_as_it_is() {
    let mut view = View::new();
    assert!(view.tidy().status.success());
    let tidy = view.union.snapshot().unwrap();
    // The tidy tree is the one that is not to be changed now.
    let temp = tempfile::tempdir().unwrap();
    let (upper, mnt) = (temp.path().join("upper"), temp.path().join("mnt"));
    fs::create_dir(&upper).unwrap();
    fs::create_dir(&mnt).unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixture");
    let again = Union::builder().lower(&tidy).lower(fixture).upper(upper);
    let again = again.mount(mnt).unwrap();
    let program = env!("CARGO_BIN_EXE_tidy-up");
    let status = Command::new(program).arg(again.path()).status().unwrap();
    assert!(status.success());
    assert_eq!(again.upper_changes().unwrap().count(), 0);
    // And the first view can go back to what it was.
    view.union.reset().unwrap();
    assert_eq!(view.changes(), [""; 0]);
}

#[test]
fn permissions_are_kept() {
    use std::os::unix::fs::PermissionsExt;
    let view = View::new();
    let letter = view.union.join("letter.txt");
    fs::set_permissions(&letter, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(view.tidy().status.success());
    let mode = fs::metadata(letter).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o640);
}

/// Whichever write finds the disk full, no file is lost or cut, and nothing is left lying about.
#[test]
fn a_full_disk_costs_nothing() {
    for n in 1..=2 {
        let full = Fault::fail(Operation::Write, libc::ENOSPC).nth(n);
        let view = View::with(|builder| builder.fault(full));
        let before = (view.text("letter.txt"), view.text("notes/old/plan.txt"));
        let output = view.tidy();
        assert!(!output.status.success());
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains("No space left"), "{told}");
        let after = (view.text("letter.txt"), view.text("notes/old/plan.txt"));
        assert!(after.0 == before.0 || after.0 == "Dear reader,\n\nhello.\n");
        assert!(after.1 == before.1 || after.1 == "no line end");
        let changes = view.changes();
        assert!(
            changes.iter().all(|change| TIDY.contains(&change.as_str())),
            "{changes:?}"
        );
    }
}

/// On a slow disk two of them get in each other's way; the tree is tidy all the same.
#[test]
fn two_at_a_time() {
    let slow = Fault::delay(Operation::Rename, Duration::from_millis(20));
    let view = View::with(|builder| builder.fault(slow));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| view.tidy());
        }
    });
    // One of them may have failed, as the other one had removed a file already.
    assert!(view.tidy().status.success());
    assert_eq!(view.changes(), TIDY);
}
