//! `unionfs run`: the machine stays as it is, the command notices nothing, and changes go where they are
//! wanted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::process::{Outcome, finish, unionfs};

/// A directory for what runs leave, and a program that every user can reach.
pub struct Place(TempDir);

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("unionfs-test-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let place = Self(dir);
        place.sh("chmod 755 .; mkdir tmp data; chmod 1777 tmp; echo old > data/f; mkdir data/d; echo x > data/d/x");
        // Not by this process, whose forks would hold it open for writing while it is to be run.
        let copied = Command::new("cp")
            .arg(unionfs())
            .arg(place.path("unionfs"))
            .status();
        assert!(copied.unwrap().success());
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A script, with the program as `$unionfs`. Mounts of other tests are not held by it.
    fn run(&self, text: &str) -> Outcome {
        let mut command = Command::new("timeout");
        command.args(["-k5", "60", "unshare", "-m", "sh", "-uc"]);
        command.arg(format!("umount -a -l -t fuse.unionfs 2> /dev/null\n{text}"));
        command
            .current_dir(self.0.path())
            .env("unionfs", self.path("unionfs"))
            .env("TMPDIR", self.path("tmp"))
            .env_remove("RUST_LOG");
        finish(&mut command)
    }

    fn sh(&self, text: &str) -> String {
        let outcome = self.run(&format!("set -e; {text}"));
        assert!(
            outcome.status.success(),
            "{}{}",
            outcome.stdout,
            outcome.stderr
        );
        outcome.stdout
    }

    /// The same as an ordinary user, to whom /dev/fuse is open meanwhile.
    pub fn user(&self, prefix: &str, text: &str) -> Outcome {
        fs::write(self.path("text"), text).unwrap();
        self.run(&format!(
            "exec 9> /tmp/unionfs-dev-fuse.lock; flock 9; mode=$(stat -c %a /dev/fuse); chmod 666 /dev/fuse
             unshare -m sh -uc '{prefix}
                 exec setpriv --reuid=1 --regid=1 --clear-groups sh -uc \"$(cat text)\"' 9>&-
             status=$?; chmod $mode /dev/fuse; exit $status"
        ))
    }

    fn is_clean(&self) {
        let left: Vec<_> = fs::read_dir(self.path("tmp")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let tmp = self.path("tmp");
        assert!(!mounts.contains(tmp.to_str().unwrap()), "{mounts}");
    }
}

/// What every case does to the files of a test.
const CHANGES: &str = "cd data; echo new > f; rm -r d; mkdir n; echo y > n/y";

/// The changes as they are shown, below the directory of the test.
fn shown(place: &Place) -> String {
    let mut lines = vec!["  /".to_owned()];
    let mut depth = 1;
    for name in place.0.path().components().skip(1) {
        let name = name.as_os_str().to_str().unwrap();
        lines.push(format!("  {:1$}{name}/", "", depth * 2));
        depth += 1;
    }
    let changes = [
        (' ', 0, "data/"),
        ('D', 1, "d"),
        ('M', 1, "f"),
        ('A', 1, "n/"),
        ('A', 2, "y"),
    ];
    for (letter, more, name) in changes {
        lines.push(format!("{letter} {:1$}{name}", "", (depth + more) * 2));
    }
    lines.push("2 added, 1 changed, 1 deleted".to_owned());
    lines.join("\n") + "\n"
}

fn is_old(place: &Place) {
    assert_eq!(
        place.sh("find data | sort; cat data/f"),
        "data\ndata/d\ndata/d/x\ndata/f\nold\n"
    );
}

#[test]
fn changes_are_shown_and_go() {
    let place = Place::new();
    let outcome = place.run(&format!(
        "$unionfs run -- sh -ec '{CHANGES}; cat f; pwd; exit 7'"
    ));
    assert_eq!(outcome.status.code(), Some(7), "{}", outcome.stderr);
    let data = place.path("data");
    assert_eq!(outcome.stdout, format!("new\n{}\n", data.display()));
    assert_eq!(outcome.stderr, shown(&place) + "unionfs: discarded\n");
    is_old(&place);
    place.is_clean();
}

#[test]
fn an_ordinary_user_changes_what_is_not_his() {
    let place = Place::new();
    let none = "for f in subuid subgid; do mount --bind /dev/null /etc/$f; done";
    let ranges = "mkdir own; for f in subuid subgid; do echo daemon:100000:65536 > own/$f; mount --bind own/$f /etc/$f; done";
    for prefix in [none, ranges] {
        let text = format!("$unionfs run -- sh -ec \"{CHANGES}; id -u; touch /etc/unionfs-test\"");
        let outcome = place.user(prefix, &text);
        assert!(outcome.status.success(), "{}", outcome.stderr);
        assert_eq!(outcome.stdout, "0\n");
        assert!(
            outcome.stderr.contains("unionfs-test"),
            "{}",
            outcome.stderr
        );
        assert!(!Path::new("/etc/unionfs-test").exists());
        is_old(&place);
        place.is_clean();
    }
}

#[test]
fn an_ordinary_user_keeps_and_commits_his_own() {
    let place = Place::new();
    place.sh("chown -R 1:1 data");
    let outcome = place.user(
        ":",
        &format!("$unionfs run --commit -- sh -ec \"{CHANGES}\""),
    );
    assert!(outcome.status.success(), "{}", outcome.stderr);
    assert_eq!(
        place.sh("cat data/f; stat -c %u data/f data/n; ls data"),
        "new\n1\n1\nf\nn\n"
    );
    place.is_clean();
}

#[test]
fn without_the_device_it_says_what_to_do() {
    let place = Place::new();
    let outcome = place.run(
        "exec 9> /tmp/unionfs-dev-fuse.lock; flock 9; mode=$(stat -c %a /dev/fuse); chmod 600 /dev/fuse
         setpriv --reuid=1 --regid=1 --clear-groups $unionfs run -- true 9>&-; status=$?
         chmod $mode /dev/fuse; exit $status",
    );
    assert_eq!(outcome.status.code(), Some(1));
    let expected =
        "unionfs: /dev/fuse may not be opened by this user: as root, chmod 0666 /dev/fuse\n";
    assert_eq!(outcome.stderr, expected);
    place.is_clean();
}

#[test]
fn kept_then_committed() {
    let place = Place::new();
    let told = place.run(&format!("$unionfs run --upper kept -- sh -ec '{CHANGES}'"));
    let upper = place.path("kept/@");
    let end = format!("unionfs: kept in {} (over /)\n", upper.display());
    assert_eq!(told.stderr, shown(&place) + &end);
    is_old(&place);
    // What was kept shows again, and is told as JSON.
    let told = place.run("$unionfs run --upper kept --json -- cat data/f");
    let json = told.stdout.strip_prefix("new\n").unwrap();
    assert!(
        json.contains("\"end\":\"kept\"") && json.contains("data/n/y"),
        "{json}"
    );
    let told = place.run("$unionfs run --upper kept --commit -- rm data/n/y");
    assert!(
        told.stderr.ends_with("unionfs: committed\n"),
        "{}",
        told.stderr
    );
    assert_eq!(
        place.sh("cat data/f; find data | sort; ls -A kept"),
        "new\ndata\ndata/f\ndata/n\n"
    );
    place.is_clean();
}

/// Other directories as the root; the machine's own is one of them, for its programs.
#[test]
fn a_root_of_directories() {
    let place = Place::new();
    place.sh("mkdir -p top/etc; echo top > top/etc/unionfs-top");
    let run = "$unionfs run --commit --lower top --lower / -- sh -ec";
    let text = "cat /etc/unionfs-top; echo more >> /etc/unionfs-top; test -e /proc/self -a -c /dev/null -a -d /sys/class";
    let told = place.run(&format!("{run} '{text}'"));
    assert!(told.status.success(), "{}", told.stderr);
    assert_eq!(told.stdout, "top\n");
    assert_eq!(
        place.sh("cat top/etc/unionfs-top; find top | sort"),
        "top\nmore\ntop\ntop/etc\ntop/etc/unionfs-top\n"
    );
    assert!(!Path::new("/etc/unionfs-top").exists());
    place.is_clean();
}

#[test]
fn the_network_is_off_unless_asked_for() {
    let place = Place::new();
    let own = place.sh("readlink /proc/self/ns/net");
    let inside = place.sh(
        "$unionfs run -- sh -c 'readlink /proc/self/ns/net; grep : /proc/net/dev | cut -d: -f1'",
    );
    assert!(
        inside.ends_with("lo\n") && !inside.contains(own.trim()),
        "{inside}"
    );
    let inside = place.sh("$unionfs run --net -- readlink /proc/self/ns/net");
    assert_eq!(inside, own);
}

#[test]
fn signals_and_ends_are_handed_on() {
    let place = Place::new();
    for (command, status) in [
        ("$unionfs run -- no-such-program", 127),
        ("$unionfs run -- /etc/passwd", 126),
        ("$unionfs run -- sh -c 'kill -9 $$'", 137),
        // Whoever is left over ends with the command.
        ("$unionfs run -- sh -c 'sleep 1000 & exit 3'", 3),
    ] {
        assert_eq!(place.run(command).status.code(), Some(status), "{command}");
    }
    let told = place.run(
        "$unionfs run --upper kept -- sh -c 'trap \"echo got; exit 5\" TERM; touch /opt/ready; while :; do sleep 0.1; done' &
         while ! test -e kept/@/opt/ready; do sleep 0.05; done; kill $!; wait $!; echo $?",
    );
    assert_eq!(told.stdout, "got\n5\n", "{}", told.stderr);
    place.is_clean();
}

/// Killed without a word, it leaves no process and no mount; changes stay where they are.
#[test]
fn killed() {
    let place = Place::new();
    let told = place.run(
        "$unionfs run --upper kept -- sh -c 'touch /opt/ready; exec sleep 987' &
         while ! test -e kept/@/opt/ready; do sleep 0.05; done; kill -9 $!; wait $! 2> /dev/null
         n=0; while pgrep -f '^sleep 987'; do n=$((n+1)); test $n -lt 100 || exit 1; sleep 0.05; done
         n=0; while ! $unionfs run --upper kept --discard -- true 2> told; do n=$((n+1)); test $n -lt 100 || exit 1; sleep 0.05; done",
    );
    assert!(told.status.success(), "{}{}", told.stdout, told.stderr);
    assert!(
        fs::read_to_string(place.path("told"))
            .unwrap()
            .contains("ready")
    );
    assert!(!Path::new("/opt/ready").exists());
}

/// A package goes, with all that belongs to it; on the machine it is still there.
#[test]
fn a_package_removed_from_this_machine() {
    let place = Place::new();
    let facts = "md5sum /var/lib/dpkg/status; find /var/lib/dpkg /usr/share/doc /etc /usr/bin -xdev -printf '%p %s %T@ %C@ %m\\n' | sort | md5sum";
    let before = place.sh(facts);
    let told = place.run(
        "$unionfs run -- sh -ec 'apt-get remove -y bindfs > /dev/null 2>&1; ! dpkg -s bindfs 2> /dev/null | grep -q ^Status:.*installed$; ! test -e /usr/bin/bindfs'",
    );
    assert!(told.status.success(), "{}{}", told.stdout, told.stderr);
    assert!(
        told.stderr.contains("\nD       bindfs\n"),
        "{}",
        told.stderr
    );
    assert_eq!(place.sh(facts), before);
    place.is_clean();
}

/// On a terminal the user is asked.
#[test]
fn a_terminal_is_asked() {
    for (answer, ending, after) in [
        ("d", "unionfs: discarded", "old"),
        ("k", "unionfs: kept in ", "old"),
        ("what\\nc", "unionfs: committed", "new"),
    ] {
        let place = Place::new();
        let text = format!(
            "printf '{answer}\\n' | script -qec \"$unionfs run -- sh -c 'echo new > data/f'\" /dev/null"
        );
        let outcome = place.run(&text);
        assert_eq!(outcome.status.code(), Some(0), "{}", outcome.stdout);
        let asked = "[k]eep, [d]iscard (default) or [c]ommit?";
        assert!(outcome.stdout.contains(asked), "{}", outcome.stdout);
        assert!(outcome.stdout.contains(ending), "{}", outcome.stdout);
        assert_eq!(place.sh("cat data/f").trim(), after);
    }
}

/// An interrupt from the terminal is for the command, and before there is one it is for us.
#[test]
fn an_interrupt_from_the_terminal() {
    let place = Place::new();
    let command = "trap 'echo caught; exit 3' INT\necho ready\nsleep 30 & wait\n";
    fs::write(place.path("command"), command).unwrap();
    // Not in the background, where shells have interrupts ignored, nor below a shell that stays: which one
    // script(1) starts is up to SHELL, and dash would end by the interrupt before the command does.
    let text = "(until grep -q ready out; do sleep .1; done; printf '\\003') |
         script -qefc \"exec $unionfs run --discard -- sh command\" /dev/null > out
         echo $?; grep -c caught out";
    let outcome = place.run(text);
    assert_eq!(outcome.stdout, "3\n1\n", "{}", outcome.stderr);
}
