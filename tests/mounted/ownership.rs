//! What the tests about owners share: the same commands on a union and on a plain directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{Outcome, finish};

/// Shell functions that every script may use: `as UID COMMANDS` runs as another user, `show PATH...`
/// prints what stat(2) says (asked for all, as a look at the mode alone may come from a cache), `try COMMAND` prints how it ended, without the names in its words.
pub const PRELUDE: &str = r#"
umask 022
as() { id=$1; shift; setpriv --reuid "$id" --regid "$id" --clear-groups -- sh -euc "umask 022; $*"; }
show() { for path; do stat "$path" >/dev/null; stat -c '%n %u:%g %a %F %t:%T' "$path"; done; }
tree() { find . -mindepth 1 | LC_ALL=C sort | while read -r path; do show "$path"; done; show .; }
try() { if message=$("$@" 2>&1); then echo "$1: ok"; else echo "$1: ${message##*: }"; fi; }
"#;

/// Runs `text` with `dir` as working directory; it must succeed. Returns what it printed.
#[track_caller]
pub fn sh(dir: &Path, text: &str) -> String {
    let outcome = sh_outcome(dir, text);
    let Outcome {
        status,
        stdout,
        stderr,
    } = outcome;
    assert!(status.success(), "{}:\n{stdout}{stderr}", dir.display());
    stdout
}

pub fn sh_outcome(dir: &Path, text: &str) -> Outcome {
    let script = format!("{PRELUDE}\n{text}");
    let mut command = Command::new("timeout");
    command.args(["-k5", "25", "bash", "-euc"]);
    finish(command.arg(script).current_dir(dir))
}

/// A plain directory beside the layers, in which the mount's root is what it is to users.
pub fn plain(scratch: &Path, name: &str) -> PathBuf {
    let path = scratch.join(name);
    fs::create_dir(&path).unwrap();
    path
}

/// What two places show, side by side in the message when they differ.
#[track_caller]
pub fn assert_same(plain: &str, union: &str) {
    let differ = |(a, b): &(&str, &str)| a != b;
    let lines: Vec<_> = plain.lines().zip(union.lines()).filter(differ).collect();
    assert!(
        plain == union,
        "plain, union: {lines:#?}\n--- plain\n{plain}--- union\n{union}"
    );
}
