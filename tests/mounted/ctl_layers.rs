//! `unionfs ctl layers`: layers come and go while the mount is in use. What shows afterwards is what a new
//! mount of the same layers shows, whatever the kernel knew before.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::{finish, run, wait_for};
use crate::spec;
use crate::support::{Mount, Stack};

pub fn ctl(m: &Mount, words: &[&str]) -> crate::process::Outcome {
    let mut args = vec![OsStr::new("ctl"), m.path().as_os_str()];
    args.extend(words.iter().map(OsStr::new));
    run(&args)
}

pub fn change(m: &Mount, words: &[&str]) -> String {
    let words = [&["layers"], words].concat();
    let outcome = ctl(m, &words);
    assert!(outcome.status.success(), "{words:?}: {}", outcome.stderr);
    outcome.stdout
}

fn refused(m: &Mount, words: &[&str]) -> String {
    let words = [&["layers"], words].concat();
    let outcome = ctl(m, &words);
    assert_eq!(outcome.status.code(), Some(1), "{words:?}");
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    outcome.stderr
}

/// A directory beside the layers, to become one.
pub fn layer(m: &Mount, name: &str, items: &[&str]) -> PathBuf {
    let path = m.layers.scratch().join(name);
    fs::create_dir(&path).unwrap();
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    spec::build(&path, &items, false);
    path
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Every path below a directory, with what it is.
pub fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut tree = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            let stat = fs::symlink_metadata(&path).unwrap();
            // A name is listed with the number that stat shows.
            assert_eq!(
                std::os::unix::fs::DirEntryExt::ino(&entry),
                stat.ino(),
                "{}",
                path.display()
            );
            let mut what = format!("{:o} {}", stat.mode(), stat.nlink());
            if stat.is_file() {
                what += &fs::read(&path).unwrap().escape_ascii().to_string();
            } else if stat.is_symlink() {
                what += text(&fs::read_link(&path).unwrap());
            } else {
                pending.push(path.clone());
            }
            let short = path.strip_prefix(root).unwrap().to_owned();
            tree.insert(short, what);
        }
    }
    tree
}

/// Names that may come, so that the kernel knows that they are not there.
const MISSING: [&str; 7] = ["new", "d/new", "d/sub/new", "both", "e", "e/x", "deep/er/x"];

fn ask_for_all(m: &Mount) {
    for name in MISSING {
        let _ = fs::symlink_metadata(m.p(name));
    }
    tree(m.path());
}

/// What the mount shows is what a new one of these layers shows, the upper's first.
pub fn is_as_anew(m: &Mount, lowers: &[&Path]) {
    let fresh = m.layers.scratch().join("fresh");
    fs::create_dir_all(&fresh).unwrap();
    let lowers: Vec<&str> = lowers.iter().map(|path| text(path)).collect();
    let upper = text(m.layers.upper_path());
    let options = format!("ro,lowerdir={},upperdir={upper}", lowers.join(":"));
    let outcome = run(&["-o", &options, text(&fresh)]);
    assert!(outcome.status.success(), "{}", outcome.stderr);
    let anew = tree(&fresh);
    let stat = |root: &Path, name: &str| {
        let stat = fs::symlink_metadata(root.join(name));
        stat.map(|stat| stat.mode()).map_err(|e| e.kind())
    };
    let missing = MISSING.map(|name| stat(&fresh, name));
    // Another test's child may have a descriptor of ours until it executes its program.
    let unmounted = || {
        run(&["umount", text(&fresh)])
            .status
            .success()
            .then_some(())
    };
    wait_for(Duration::from_secs(10), unmounted).expect("it cannot be unmounted");
    // By name first: what the kernel knows of names is not mended by listing them.
    assert_eq!(MISSING.map(|name| stat(m.path(), name)), missing);
    for (path, what) in &anew {
        let stat = fs::symlink_metadata(m.p(path));
        let stat = stat.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(
            what.starts_with(&format!("{:o} {}", stat.mode(), stat.nlink())),
            "{path:?}"
        );
    }
    assert_eq!(tree(m.path()), anew);
}

fn shown(m: &Mount) -> Vec<String> {
    let text = change(m, &[]);
    let lines = text.lines().skip(1);
    lines
        .map(|line| {
            line.split_whitespace()
                .nth(1)
                .unwrap()
                .rsplit('/')
                .next()
                .unwrap()
                .to_owned()
        })
        .collect()
}

#[test]
fn what_shows_is_what_a_new_mount_shows() {
    let mut m = Stack::new()
        .lower([
            "a=1",
            "d/x=one",
            "d/sub/y=1",
            "both=file",
            "deep/er/z=1",
            "s->a",
            "hid=1",
        ])
        .lower(["a=low", "b=2", "d/x=two", "d/w=2", "e/v=2"])
        .mount();
    let (one, two) = (m.layers.lowers[0].clone(), m.layers.lowers[1].clone());
    fs::write(m.p("d/own"), "of the upper").unwrap();
    fs::remove_file(m.p("hid")).unwrap();
    ask_for_all(&m);
    let three = layer(
        &m,
        "three",
        &[
            "new=3",
            "d/new=3",
            "both/in=3",
            "d/sub/new=3",
            "hid=3",
            ".wh.b",
            "deep/er/x=3",
            "s->b",
        ],
    );
    // On top: a file becomes a directory, a name is hidden, others come.
    change(&m, &["add", text(&three)]);
    assert_eq!(shown(&m), ["upper", "three", "lower1", "lower2"]);
    is_as_anew(&m, &[&three, &one, &two]);
    ask_for_all(&m);
    // From the middle; then another in its place, which is opaque in a directory.
    change(&m, &["remove", text(&one)]);
    is_as_anew(&m, &[&three, &two]);
    ask_for_all(&m);
    let four = layer(
        &m,
        "four",
        &["d/sub/deeper/u=4", "d/.wh..wh..opq", "e=file"],
    );
    change(&m, &["replace", text(&three), text(&four)]);
    is_as_anew(&m, &[&four, &two]);
    ask_for_all(&m);
    // At the bottom, the first one comes back.
    change(&m, &["add", text(&one), "--below", text(&two)]);
    is_as_anew(&m, &[&four, &two, &one]);
    ask_for_all(&m);
    change(&m, &["remove", text(&four)]);
    is_as_anew(&m, &[&two, &one]);
    // It is for this mount only: the next one has the layers of its command line.
    fs::write(m.p("d/w"), "changed").unwrap();
    m.remount();
    assert_eq!(shown(&m), ["upper", "lower1", "lower2"]);
    is_as_anew(&m, &[&one, &two]);
}

/// Directories that lowers have parts of are moved and changed between changes of the layers.
#[test]
fn changes_of_the_tree_go_on() {
    let m = Stack::new()
        .lower(["d/x=1", "d/sub/y=1", "l=one", "k=1"])
        .lower(["d/w=2", "far/f=2"])
        .mount();
    let (one, two) = (m.layers.lowers[0].clone(), m.layers.lowers[1].clone());
    let three = layer(
        &m,
        "three",
        &["d/x=3", "d/z=3", "far/g=3", "moved/h=3", "moved/sub/i=3"],
    );
    ask_for_all(&m);
    fs::rename(m.p("d"), m.p("moved")).unwrap();
    change(&m, &["add", text(&three)]);
    is_as_anew(&m, &[&three, &one, &two]);
    fs::rename(m.p("far"), m.p("near")).unwrap();
    fs::write(m.p("near/g"), "changed").unwrap();
    // What is below a name that the upper hides stays hidden.
    assert!(fs::symlink_metadata(m.p("d/z")).is_err());
    change(&m, &["remove", text(&three)]);
    is_as_anew(&m, &[&one, &two]);
    assert_eq!(fs::read(m.p("near/g")).unwrap(), b"changed");
    change(&m, &["remove", text(&two)]);
    is_as_anew(&m, &[&one]);
    assert_eq!(fs::read(m.p("moved/w")).unwrap(), b"2");
    fs::create_dir(m.p("near/made")).unwrap();
    fs::remove_dir_all(m.p("moved")).unwrap();
    is_as_anew(&m, &[&one]);
}

/// Files that are open, mapped or a working directory go on when their layer goes.
#[test]
fn what_is_in_use_goes_on() {
    for way in ["open=auto", "open=cached", "open=none"] {
        let m = Stack::new()
            .lower([
                "f=lower file",
                "d/g=in a directory",
                "gone=unlinked",
                "w=written",
            ])
            .lower(["keep=1"])
            .mount_with(way);
        let one = m.layers.lowers[0].clone();
        let open = |name: &str| fs::File::open(m.p(name)).unwrap();
        let (mut file, inner, dir, gone) = (open("f"), open("d/g"), open("d"), open("gone"));
        fs::remove_file(m.p("gone")).unwrap();
        let mut map = Command::new("python3");
        map.args(["-c", MAPPED])
            .arg(m.p("f"))
            .stdin(std::process::Stdio::piped());
        map.stdout(std::process::Stdio::piped());
        let mut map = map.spawn().unwrap();
        let mut said = [0; 2];
        map.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        change(&m, &["remove", text(&one)]);
        let mut all = String::new();
        file.read_to_string(&mut all).unwrap();
        assert_eq!(all, "lower file", "{way}");
        let nlink = inner.metadata().unwrap().nlink();
        assert_eq!(
            (nlink, dir.metadata().unwrap().is_dir()),
            (0, true),
            "{way}"
        );
        let mut few = [0; 4];
        inner.read_exact_at(&mut few, 5).unwrap();
        assert_eq!(&few, b"dire", "{way}");
        gone.read_exact_at(&mut few, 0).unwrap();
        assert_eq!(&few, b"unli", "{way}");
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&dir));
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "{way}");
        assert!(fs::symlink_metadata(format!("{path}/g")).is_err(), "{way}");
        assert!(fs::File::create(format!("{path}/n")).is_err(), "{way}");
        assert!(fs::symlink_metadata(m.p("f")).is_err(), "{way}");
        map.stdin.take().unwrap().write_all(b"\n").unwrap();
        let mut rest = String::new();
        map.stdout
            .take()
            .unwrap()
            .read_to_string(&mut rest)
            .unwrap();
        assert!(map.wait().unwrap().success());
        assert_eq!(rest, "lower file", "{way}");
        // Once nobody uses it, the layer is let go of, and its place may have other objects.
        file.rewind().unwrap();
        drop((file, inner, dir, gone));
        fs::write(m.p("f"), "new").unwrap();
        change(&m, &["add", text(&one)]);
        assert_eq!(fs::read(m.p("f")).unwrap(), b"new", "{way}");
        assert_eq!(fs::read(m.p("d/g")).unwrap(), b"in a directory", "{way}");
        assert!(fs::symlink_metadata(m.p("gone")).is_err(), "{way}");
    }
}

/// Maps a file, says so, and reads it from the mapping when told to.
const MAPPED: &str = "
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
m = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
os.close(fd)
sys.stdout.write('ok'); sys.stdout.flush()
sys.stdin.readline()
sys.stdout.write(m[:].decode())
";

/// A file that was open for writing when its layer went takes what is written, and nobody else sees it.
#[test]
fn what_is_written_to_a_file_that_left_is_in_it() {
    let m = Stack::new()
        .lower(["f=lower", "two=l"])
        .lower(["keep=1"])
        .mount_with("open=none,writeback=0");
    let one = m.layers.lowers[0].clone();
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(m.p("f"))
        .unwrap();
    change(&m, &["remove", text(&one)]);
    file.write_all_at(b"LOW", 0).unwrap();
    let mut all = [0; 5];
    file.read_exact_at(&mut all, 0).unwrap();
    assert_eq!(&all, b"LOWer");
    assert!(fs::symlink_metadata(m.p("f")).is_err());
    drop(file);
    change(&m, &["add", text(&one)]);
    assert_eq!(fs::read(m.p("f")).unwrap(), b"lower");
}

/// A mount on a name that stays the same is not taken away; nor is a layer's filesystem held once it went.
#[test]
fn mounts_on_what_stays_stay() {
    let m = Stack::new()
        .lower(["d/x=1", "e/y=1"])
        .lower(["keep=1"])
        .mount();
    let image = layer(&m, "image", &[]);
    let on = |text: &str| {
        let mut command = Command::new("timeout");
        let outcome = finish(
            command
                .args(["20", "sh", "-euc", text])
                .current_dir(m.path()),
        );
        assert!(outcome.status.success(), "{text}: {}", outcome.stderr);
        outcome.stdout
    };
    let scratch = text(m.layers.scratch()).to_owned();
    on(&format!(
        "mount -t tmpfs t {scratch}/image; mkdir {scratch}/image/d; echo 3 > {scratch}/image/d/z"
    ));
    on("mount -t tmpfs t d; echo on > d/top");
    change(&m, &["add", text(&image)]);
    let still = on("cat d/top; umount d; cat d/z; cat d/x");
    change(&m, &["remove", text(&image)]);
    on(&format!("umount {scratch}/image"));
    assert_eq!(still, "on\n3\n1");
    assert!(fs::symlink_metadata(m.p("d/z")).is_err());
}

#[test]
fn what_cannot_be_is_refused_and_nothing_changes() {
    let m = Stack::new().lower(["a=1"]).lower(["b=2"]).mount();
    let (one, two) = (m.layers.lowers[0].clone(), m.layers.lowers[1].clone());
    let inside = layer(&m, "outer", &["inner/x=1"]).join("inner");
    for (words, says) in [
        (
            vec!["remove", "/nowhere"],
            "/nowhere: no lower layer of this mount",
        ),
        (
            vec!["remove", text(m.layers.upper_path())],
            "upper: no lower layer of this mount",
        ),
        (
            vec!["add", "/nowhere"],
            "layer=/nowhere: No such file or directory",
        ),
        (vec!["add", text(&one)], "overlaps layer="),
        (vec!["add", text(m.layers.upper_path())], "overlaps layer="),
        (
            vec!["add", text(&inside), "--below", "/nowhere"],
            "/nowhere: no lower layer of this mount",
        ),
        (vec!["replace", text(&one), text(&two)], "overlaps layer="),
    ] {
        let error = refused(&m, &words);
        assert!(error.contains(says), "{words:?}: {error}");
    }
    change(&m, &["add", text(&inside)]);
    let outer = m.layers.scratch().join("outer");
    assert!(refused(&m, &["add", text(&outer)]).contains("overlaps"));
    change(&m, &["remove", text(&inside)]);
    change(&m, &["remove", text(&one)]);
    let error = refused(&m, &["remove", text(&two)]);
    assert!(
        error.ends_with(": the last lower layer cannot be removed\n"),
        "{error}"
    );
    is_as_anew(&m, &[&two]);
}

#[test]
fn a_mount_that_could_not_keep_the_change_refuses_it() {
    for (options, why) in [
        ("supervise", "the mount is supervised"),
        ("metacopy=on", "with metacopy=on"),
        ("udba=reval", "with udba="),
    ] {
        let m = Stack::new()
            .lower(["a=1"])
            .lower(["b=2"])
            .mount_with(options);
        let error = refused(&m, &["remove", text(&m.layers.lowers[0])]);
        assert!(error.contains(why), "{error}");
        assert_eq!(fs::read(m.p("a")).unwrap(), b"1");
    }
}
