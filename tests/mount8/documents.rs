//! What the documents say to write works as it stands there.

use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount};

use crate::machine::Machine;

fn document(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(root.join(name)).unwrap()
}

/// The code blocks of a document that are marked with `language`.
fn blocks(name: &str, language: &str) -> Vec<String> {
    let text = document(name);
    let begin = format!("\n```{language}\n");
    let parts = text.split(&begin).skip(1);
    let blocks: Vec<String> = parts
        .map(|part| part.split_once("```").unwrap().0.to_owned())
        .collect();
    assert!(!blocks.is_empty(), "{name} has no block of {language}");
    blocks
}

/// A directory of this machine that is empty for the test.
fn empty(place: &str) {
    fs::create_dir_all(place).unwrap();
    let none = None::<&str>;
    mount(Some("test"), place, Some("tmpfs"), MsFlags::empty(), none).unwrap();
}

/// Each line is mounted by mount(8), shows what it names, and takes changes.
fn fstab_lines_of(name: &str) {
    for line in blocks(name, "fstab").join("").lines() {
        let machine = Machine::new();
        empty("/srv");
        for dir in ["base", "addons", "changes", "work", "merged"] {
            fs::create_dir(Path::new("/srv").join(dir)).unwrap();
        }
        fs::write("/srv/base/both", "base\n").unwrap();
        fs::write("/srv/base/low", "base\n").unwrap();
        fs::write("/srv/addons/both", "addons\n").unwrap();
        machine.fstab(&format!("{line}\n"));
        machine.sh("mount /srv/merged").good();
        let shown = machine.sh("findmnt -no FSTYPE /srv/merged");
        assert_eq!(shown.good().stdout, "fuse.unionfs\n", "{line}");
        let top = if line.contains("/srv/addons") {
            "addons\n"
        } else {
            "base\n"
        };
        assert_eq!(
            fs::read_to_string("/srv/merged/both").unwrap(),
            top,
            "{line}"
        );
        fs::write("/srv/merged/low", "changed\n").unwrap();
        assert_eq!(
            fs::read_to_string("/srv/merged/low").unwrap(),
            "changed\n",
            "{line}"
        );
        machine.sh("umount /srv/merged").good();
        assert_eq!(
            fs::read_to_string("/srv/changes/low").unwrap(),
            "changed\n",
            "{line}"
        );
        assert_eq!(
            fs::read_to_string("/srv/base/low").unwrap(),
            "base\n",
            "{line}"
        );
    }
}

#[test]
fn fstab_lines_of_the_readme() {
    fstab_lines_of("README.md");
}

#[test]
fn fstab_lines_for_those_who_come_from_others() {
    fstab_lines_of("docs/MIGRATING.md");
}

/// A container runs with the storage.conf of a document, on our program.
fn container_with(name: &str) {
    for text in blocks(name, "toml") {
        let machine = Machine::new();
        for place in ["/var/lib/containers", "/dev/shm"] {
            empty(place);
        }
        // crun wants one hierarchy; containers get no cgroup of their own.
        let cgroups = Some("cgroup2");
        mount(
            cgroups,
            "/sys/fs/cgroup",
            cgroups,
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        fs::create_dir_all("/etc/containers").unwrap();
        fs::write("/etc/containers/storage.conf", text).unwrap();
        // What the machine of a test may not allow has nothing to do with storage.
        let engine = "[containers]\ncgroups = \"disabled\"\nnetns = \"none\"\ndefault_ulimits = []\n\
                      [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n\
                      lock_type = \"file\"\nruntime = \"crun\"\n";
        fs::write("/etc/containers/containers.conf", engine).unwrap();
        let source = "#include <stdio.h>\n\
                      int main(void) { FILE *f = fopen(\"/written\", \"w\"); \
                      return f && fputs(\"new\", f) >= 0 && !fclose(f) && puts(\"it runs\") >= 0 ? 0 : 1; }\n";
        fs::write(machine.path("hello.c"), source).unwrap();
        let outcome = machine.sh(
            "set -e; mkdir image; cc -static -o image/hello hello.c; tar -C image -c . | podman import -q - recipe >&2\n\
             limits=\"--ulimit nofile=$(ulimit -Hn):$(ulimit -Hn) --ulimit nproc=20000:20000\"\n\
             podman run $limits --name one recipe /hello\n\
             podman diff one; podman mount one > where; findmnt -no FSTYPE $(cat where)\n\
             podman umount one > /dev/null; podman rm one > /dev/null",
        );
        assert_eq!(
            outcome.code,
            Some(0),
            "{}{}",
            outcome.stdout,
            outcome.stderr
        );
        let lines: Vec<&str> = outcome.stdout.lines().collect();
        assert_eq!(lines.first(), Some(&"it runs"), "{}", outcome.stdout);
        assert!(lines.contains(&"A /written"), "{}", outcome.stdout);
        assert_eq!(lines.last(), Some(&"fuse.unionfs"), "{}", outcome.stdout);
        machine
            .sh("umount /var/lib/containers/storage/overlay 2> /dev/null")
            .code
            .unwrap();
    }
}

#[test]
fn storage_conf_of_the_readme() {
    container_with("README.md");
}

#[test]
fn storage_conf_for_those_who_come_from_others() {
    container_with("docs/MIGRATING.md");
}

/// The session in the readme is what the script prints now.
#[test]
fn the_transcript_is_fresh() {
    let machine = Machine::new();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/transcript.sh");
    let now = machine.sh(&script.display().to_string());
    let written = blocks("README.md", "console");
    assert_eq!(
        now.good().stdout,
        written[0],
        "left: docs/transcript.sh, right: README.md"
    );
}
