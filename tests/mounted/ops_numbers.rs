//! Inode numbers and link counts, as the programs that rely on them see them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::dialects;
use crate::plinks::append;
use crate::process::{CACHES, finish};
use crate::spec::Dialect;
use crate::support::{Mount, Stack};

/// Every path's number; the listings must have the same.
fn numbers(m: &Mount) -> BTreeMap<PathBuf, u64> {
    let mut all = BTreeMap::new();
    let mut pending = vec![m.path().to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let meta = fs::symlink_metadata(entry.path()).unwrap();
            assert_eq!(entry.ino(), meta.ino(), "{}", entry.path().display());
            assert_ne!(meta.ino(), 0);
            if meta.is_dir() {
                pending.push(entry.path());
            }
            let path = entry.path().strip_prefix(m.path()).unwrap().to_owned();
            all.insert(path, meta.ino());
        }
    }
    all
}

const LOWER: [&str; 8] = [
    "d/a=1",
    "d/a~d/b",
    "d/a~e/c",
    "e/f=2",
    "s->t",
    "fifo(p)",
    "e/g/h=3",
    "chr(n,1,3)",
];

fn change_all(m: &Mount) {
    for name in ["d/a", "e/f", "e/g/h", "p", "n"] {
        m.chmod(name, 0o600).unwrap();
    }
    m.chown("s", 1, 1).unwrap();
    m.chmod("e/g", 0o700).unwrap();
}

dialects! {
    fn unchanged_by_copy_up_rename_and_remount(dialect) {
        for options in ["", "noplink", "xino=on", "xino=off"] {
            let mut m = Stack::of(dialect).lower(LOWER).lower(["e/z=9", "y"]).mount_with(options);
            let mut before = numbers(&m);
            m.remount();
            assert_eq!(numbers(&m), before, "{options}");
            change_all(&m);
            if options == "noplink" {
                // The name that was changed is another file now.
                before.insert("d/a".into(), m.stat("d/a").unwrap().st_ino);
            }
            for _ in 0..2 {
                assert_eq!(numbers(&m), before, "{options}");
                m.remount();
            }
            m.rename("e/f", "d/f").unwrap();
            m.rename("s", "e/g/s").unwrap();
            for (from, to) in [("e/f", "d/f"), ("s", "e/g/s")] {
                let number = before.remove(Path::new(from)).unwrap();
                before.insert(to.into(), number);
            }
            for _ in 0..2 {
                assert_eq!(numbers(&m), before, "{options}");
                m.remount();
            }
        }
    }
}

#[test]
fn layers_on_several_filesystems() {
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let layers = Stack::new().lower(LOWER).build();
    let other = elsewhere.path().join("lower");
    fs::create_dir(&other).unwrap();
    for n in 0..50 {
        fs::create_dir_all(other.join("more")).unwrap();
        fs::write(other.join(format!("more/{n}")), "x").unwrap();
    }
    fs::hard_link(other.join("more/0"), other.join("linked")).unwrap();
    let more = format!("lowerdir+={}", other.display());
    let mut m = layers.mount_with(&more);
    let before = numbers(&m);
    let distinct: std::collections::BTreeSet<u64> = before.values().copied().collect();
    // Three names of one file, and two of another.
    assert_eq!(distinct.len() + 3, before.len());
    change_all(&m);
    append(&m, "linked", "y");
    m.chmod("more", 0o700).unwrap();
    for _ in 0..2 {
        assert_eq!(numbers(&m), before);
        m.assert_file("more/0", "xy");
        m.remount();
    }
}

/// Readdir gives the number of stat where fuser would give the node's: with several nodes for one
/// file, and with numbers that are cut.
#[test]
fn listings_agree_where_nodes_have_other_ids() {
    for options in ["noplink", "ino32_t", "noplink,ino32_t"] {
        let items: Vec<String> = (0..300)
            .map(|n| {
                if n == 0 {
                    "f0=x".to_owned()
                } else {
                    format!("f0~f{n}")
                }
            })
            .collect();
        let mut m = Stack::new().lower(items).lower(LOWER).mount_with(options);
        for _ in 0..3 {
            let all = numbers(&m);
            if options.contains("ino32_t") {
                assert!(all.values().all(|&n| n <= u64::from(u32::MAX)));
            }
            m.assert_file("d/a", "1");
            m.assert_file("f7", "x");
            // The kernel gives back what it was not given; nothing may be lost by that.
            let _dropped = CACHES.write();
            fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        }
        append(&m, "f7", "y");
        numbers(&m);
        m.remount();
        m.assert_file("f7", "xy");
    }
}

#[test]
fn xino_on_needs_file_handles() {
    let layers = Stack::new().lower(["a"]).build();
    let options = format!("lowerdir={}:/proc/fs,xino=on", layers.lowers[0].display());
    let said = layers.refused(options.as_ref());
    assert!(
        said.contains("/proc/fs") && said.contains("handles"),
        "{said}"
    );
}

fn shell(m: &Mount, text: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-euc", text]).env("mnt", m.path());
    command.env("scratch", m.layers.scratch());
    command.current_dir(m.path());
    let outcome = finish(&mut command);
    assert!(
        outcome.status.success(),
        "{text}: {}{}",
        outcome.stdout,
        outcome.stderr
    );
    outcome.stdout
}

/// Each program's idea of what is one file, on the union as on a plain directory.
#[test]
fn find_tar_rsync_and_du_agree() {
    let items = [
        "d/a=1", "d/a~d/b", "d/a~c", "p=2", "p~d/q", "l=3", "s->x", "s~t",
    ];
    let mut m = Stack::new().lower(items).lower(["d/z=0", "z/"]).mount();
    let big = "x".repeat(100_000);
    m.write("d/a", &big).unwrap();
    m.unlink("p").unwrap();
    m.link("l", "d/l2").unwrap();
    for _ in 0..2 {
        let number = m.stat("c").unwrap().st_ino;
        let found = shell(&m, &format!("find . -inum {number} | sort"));
        assert_eq!(found, "./c\n./d/a\n./d/b\n");
        assert_eq!(shell(&m, "find . -type f -links 3 | wc -l").trim(), "3");
        assert_eq!(shell(&m, "find . -type f -samefile l | wc -l").trim(), "2");
        // One copy of the large file, not three.
        let size: u64 = shell(&m, "du -s --apparent-size -B1 --exclude=z . | cut -f1")
            .trim()
            .parse()
            .unwrap();
        assert!((100_000..200_000).contains(&size), "{size}");
        let archived = shell(&m, "tar c . | tar tv | grep -c 'link to'");
        // Two of three names, one of l's two, one of the symlink's two.
        assert_eq!(archived.trim(), "4");
        let copied = shell(
            &m,
            "rm -rf \"$scratch/copy\"; rsync -aH . \"$scratch/copy/\"\n\
             cd \"$scratch/copy\"; find . -links +1 ! -type d | sort | xargs ls -i1 | \
             awk '{n[$1]++} END {for (i in n) print n[i]}' | sort | xargs; rm -rf \"$scratch/copy\"",
        );
        assert_eq!(copied.trim(), "2 2 3");
        assert_eq!(
            shell(&m, "rsync -aHn --itemize-changes ./ ./ | wc -l").trim(),
            "0"
        );
        m.remount();
    }
}

/// A clean index stays clean when the files are copied up and over a remount: git compares numbers.
#[test]
fn the_index_of_git_stays_clean() {
    let layers = Stack::new().lower(["x"]).build();
    let lower = &layers.lowers[0];
    let git = "git -c user.name=a -c user.email=a@b -c safe.directory='*'";
    let made = Command::new("sh")
        .args([
            "-euc",
            &format!(
                "mkdir repo; cd repo; git init -q; for n in $(seq 40); do echo $n > f$n; done\n\
             ln f1 linked; {git} add .; {git} commit -qm start"
            ),
        ])
        .current_dir(lower)
        .status();
    assert!(made.unwrap().success());
    let mut m = layers.mount();
    let refresh = format!("cd repo; {git} update-index --refresh -q; {git} diff-files --name-only");
    let raw = format!("cd repo; {git} -c core.checkStat=default diff-files --name-only");
    assert_eq!(shell(&m, &refresh), "");
    for _ in 0..2 {
        m.remount();
        // Without a look at the contents.
        assert_eq!(shell(&m, &raw), "");
    }
    append(&m, "repo/f1", "more\n");
    for _ in 0..2 {
        assert_eq!(shell(&m, &raw), "f1\nlinked\n");
        m.remount();
    }
}

dialects! {
    fn directories_count_their_subdirectories(dialect) {
        let mut m = Stack::of(dialect)
            .upper(["d/u/", "d/wh(gone)", "o/x/", "opq(o)"])
            .lower(["d/l1/", "d/gone/", "d/file", "e/", "o/y/", "o/z/"])
            .lower(["d/l2/", "d/l1/in/", "d/file/hidden/", "e/f/", "only/a/", "only/b/"])
            .mount();
        let links = |m: &Mount, name: &str| m.stat(name).unwrap().st_nlink;
        let check = |m: &Mount, expected: &[(&str, u64)]| {
            for (name, count) in expected {
                assert_eq!(links(m, name), *count, "{name}");
            }
        };
        let start = [("", 6), ("d", 5), ("d/l1", 3), ("e", 3), ("o", 3), ("only", 4), ("d/u", 2)];
        for _ in 0..2 {
            check(&m, &start);
            m.remount();
        }
        m.mkdir("d/new").unwrap();
        m.mkdir("only/c").unwrap();
        m.rmdir("d/u").unwrap();
        m.rmdir("d/l1/in").unwrap();
        m.rename("d/new", "e/new").unwrap();
        m.mkdir("e/victim").unwrap();
        m.rename("e/new", "e/victim").unwrap();
        m.write("d/text", "no directory").unwrap();
        let now = [("", 6), ("d", 4), ("d/l1", 2), ("e", 4), ("only", 5), ("e/victim", 2)];
        for _ in 0..2 {
            check(&m, &now);
            assert_eq!(shell(&m, "find . -type d | wc -l").trim(), "13");
            m.remount();
        }
        let fd = m.open("e/victim", rustix::fs::OFlags::RDONLY).unwrap();
        m.rmdir("e/victim").unwrap();
        assert_eq!(rustix::fs::fstat(&fd).unwrap().st_nlink, 0);
        drop(fd);
        m.unmount();
        m.mount_again_with("static_nlink");
        check(&m, &[("", 1), ("d", 1), ("only", 1)]);
    }
}
