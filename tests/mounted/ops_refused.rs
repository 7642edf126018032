//! What cannot be mounted is refused with one line before anything is mounted, and what looks
//! odd but works is mounted: over a layer or over their parent.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use crate::fails;
use crate::process::{finish, run};
use crate::support::{Layers, Stack};

fn stack() -> Layers {
    let layers = Stack::new()
        .upper(["u"])
        .lower(["a/b/c"])
        .lower(["x"])
        .build();
    fs::create_dir(layers.scratch().join("work")).unwrap();
    layers
}

/// `lowerdir=..,upperdir=..,workdir=..` from paths; empty ones are left out.
fn options(lowers: &[&Path], upper: &Path, work: &Path) -> OsString {
    let mut text = b"lowerdir=".to_vec();
    text.extend(
        lowers
            .iter()
            .map(|lower| lower.as_os_str().as_bytes())
            .collect::<Vec<_>>()
            .join(&b':'),
    );
    for (key, dir) in [(",upperdir=", upper), (",workdir=", work)] {
        if !dir.as_os_str().is_empty() {
            text.extend(
                key.bytes()
                    .chain(dir.as_os_str().as_bytes().iter().copied()),
            );
        }
    }
    OsString::from_vec(text)
}

#[test]
fn missing_layers() {
    let l = stack();
    let none = l.scratch().join("none");
    let (upper, lower, empty) = (l.upper_path(), &l.lowers[0], Path::new(""));
    for (options, what) in [
        (options(&[&none], upper, empty), "none"),
        (options(&[lower, &none], empty, empty), "none"),
        (options(&[lower], &none, empty), "none"),
        (options(&[lower], upper, &none), "none"),
    ] {
        let message = l.refused(&options);
        assert!(
            message.contains(what),
            "the message does not name it: {message}"
        );
    }
}

#[test]
fn files_where_directories_are_expected() {
    let l = stack();
    let file = l.scratch().join("plain-file");
    fs::write(&file, "").unwrap();
    let (upper, lower, empty) = (l.upper_path(), &l.lowers[0], Path::new(""));
    for options in [
        options(&[&file], upper, empty),
        options(&[lower], &file, empty),
        options(&[lower], upper, &file),
    ] {
        let message = l.refused(&options);
        assert!(
            message.contains("plain-file"),
            "the message does not name it: {message}"
        );
    }
    let mut l = stack();
    l.mnt = l.scratch().join("plain-file");
    fs::write(&l.mnt, "").unwrap();
    l.refused(&l.options(""));
    fs::remove_file(&l.mnt).unwrap();
    l.refused(&l.options(""));
}

#[test]
fn overlapping_layers() {
    let l = stack();
    let (upper, empty) = (l.upper_path(), Path::new(""));
    let (one, two) = (&l.lowers[0], &l.lowers[1]);
    let inside = one.join("a/b");
    fs::create_dir(upper.join("d")).unwrap();
    let in_upper = upper.join("d");
    let link = l.scratch().join("link");
    std::os::unix::fs::symlink(one, &link).unwrap();
    for options in [
        options(&[one], &inside, empty),
        options(&[one, one], upper, empty),
        options(&[one, &inside], upper, empty),
        options(&[one], one, empty),
        options(&[&in_upper], upper, empty),
        options(&[&link], one, empty),
        options(&[one], &link.join("a"), empty),
        options(&[l.scratch()], upper, empty),
        options(&[one, two], upper, &in_upper),
        options(&[one, two], upper, upper),
        options(&[one, two], upper, &inside),
    ] {
        l.refused(&options);
    }
    assert_eq!(fs::read_dir(&in_upper).unwrap().count(), 0);
}

/// Another union takes the names of our marks for its own, so nothing could be deleted; the message
/// has to say so, as it is what someone sees who nests containers.
#[test]
fn upper_in_another_union() {
    let outer = Stack::new().lower(["f"]).mount();
    let l = stack();
    for (dir, workdir) in [("u1", ""), ("u2", "w2")] {
        fs::create_dir(outer.path().join(dir)).unwrap();
        let mut work = std::path::PathBuf::new();
        if !workdir.is_empty() {
            work = outer.path().join(workdir);
            fs::create_dir(&work).unwrap();
        }
        let upper = outer.path().join(dir);
        let message = l.refused(&options(&[&l.lowers[0]], &upper, &work));
        assert!(message.contains("another union"), "{message}");
        assert_eq!(fs::read_dir(&upper).unwrap().count(), 0);
    }
    // Where nothing at all may be made, it is that.
    let upper = outer.path().join("u1");
    let immutable = |on: bool| {
        let flag = if on { "+i" } else { "-i" };
        let mut command = std::process::Command::new("chattr");
        let done = finish(command.arg(flag).arg(l.upper_path()));
        assert!(done.status.success(), "{}", done.stderr);
    };
    immutable(true);
    let message = l.refused(&options(&[&upper], l.upper_path(), Path::new("")));
    immutable(false);
    assert!(!message.contains("union?"), "{message}");
}

/// The same through a bind mount: another path to the same directory.
#[test]
fn overlapping_through_a_bind_mount() {
    let l = stack();
    let bound = l.scratch().join("bound");
    fs::create_dir(&bound).unwrap();
    rustix::mount::mount_bind(l.upper_path(), &bound).unwrap();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        l.refused(&options(&[&bound], l.upper_path(), Path::new("")));
    }));
    rustix::mount::unmount(&bound, rustix::mount::UnmountFlags::DETACH).unwrap();
    outcome.unwrap();
}

#[test]
fn workdir_on_another_filesystem() {
    let l = stack();
    let other = l.scratch().join("other");
    fs::create_dir(&other).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", &other, "tmpfs", flags, None::<&std::ffi::CStr>).unwrap();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        l.refused(&options(&[&l.lowers[0]], l.upper_path(), &other));
    }));
    rustix::mount::unmount(&other, rustix::mount::UnmountFlags::DETACH).unwrap();
    outcome.unwrap();
}

#[test]
fn bad_options() {
    let l = stack();
    let good = l.options("");
    let with = |more: &str| {
        let mut text = good.clone();
        text.push(more);
        text
    };
    let mut without_lower = OsString::from("upperdir=");
    without_lower.push(l.upper_path());
    for options in [
        without_lower,
        OsString::from("lowerdir="),
        OsString::from("nonsense"),
        with(",whiteout=sideways"),
    ] {
        l.refused(&options);
    }
}

#[test]
fn usage() {
    let outcome = run(&["--version"]);
    assert!(outcome.status.success() && outcome.stdout.starts_with("unionfs "));
    let outcome = run(&["--help"]);
    assert!(
        outcome.status.success() && outcome.stdout.contains("lowerdir"),
        "{}",
        outcome.stdout
    );
    let outcome = run(&[] as &[&str]);
    assert!(!outcome.status.success() && !outcome.stderr.is_empty());
}

#[test]
fn mounted_over_a_lower() {
    let mut l = stack();
    l.mnt = l.lowers[0].clone();
    let m = l.mount();
    m.assert_ls("", &["a", "u", "x"]);
    m.write("new", "1").unwrap();
    m.write("a/b/c", "2").unwrap();
    m.unlink("x").unwrap();
    m.assert_ls("", &["a", "new", "u"]);
    m.assert_upper(["a/", "a/b/", "a/b/c", "new", "u", "wh(x)"]);
}

#[test]
fn mounted_over_the_upper() {
    let mut l = stack();
    l.mnt = l.upper_path().to_owned();
    let mut m = l.mount();
    m.assert_ls("", &["a", "u", "x"]);
    m.write("new", "1").unwrap();
    m.write("a/b/c", "2").unwrap();
    m.unlink("x").unwrap();
    m.assert_ls("", &["a", "new", "u"]);
    m.unmount();
    m.assert_upper(["a/", "a/b/", "a/b/c", "new", "u", "wh(x)"]);
}

#[test]
fn mounted_over_their_parent() {
    let mut l = stack();
    fs::remove_dir(l.scratch().join("mnt")).unwrap();
    l.mnt = l.scratch().to_owned();
    let mut m = l.mount();
    m.assert_ls("", &["a", "u", "x"]);
    m.write("new", "1").unwrap();
    m.write("a/b/c", "2").unwrap();
    m.unlink("x").unwrap();
    m.assert_ls("", &["a", "new", "u"]);
    m.unmount();
    m.assert_upper(["a/", "a/b/", "a/b/c", "new", "u", "wh(x)"]);
}

/// Paths are bytes; a colon and a backslash in them are escaped.
#[test]
fn escaped_and_odd_paths() {
    let l = stack();
    let odd = l
        .scratch()
        .join(OsString::from_vec(b"a:b\\c \xff\n=d".to_vec()));
    fs::create_dir(&odd).unwrap();
    fs::write(odd.join("f"), "odd").unwrap();
    let mut text = b"lowerdir=".to_vec();
    for byte in odd.as_os_str().as_bytes() {
        if matches!(byte, b':' | b'\\') {
            text.push(b'\\');
        }
        text.push(*byte);
    }
    text.extend(
        b",upperdir="
            .iter()
            .chain(l.upper_path().as_os_str().as_bytes()),
    );
    let options = OsString::from_vec(text);
    let outcome = run(&["-o".as_ref(), options.as_os_str(), l.mnt.as_os_str()]);
    assert!(outcome.status.success(), "{}", outcome.stderr);
    let read = fs::read(l.mnt.join("f"));
    // A process just forked by another test may hold a copy of a descriptor for a moment.
    let unmount = || {
        let outcome = run(&["umount".as_ref(), l.mnt.as_os_str()]);
        (!outcome.stderr.contains("busy")).then_some(outcome)
    };
    let patience = std::time::Duration::from_secs(10);
    let unmounted = crate::process::wait_for(patience, unmount).expect("busy");
    assert_eq!(read.unwrap(), b"odd");
    assert!(unmounted.status.success(), "{}", unmounted.stderr);
    let gone = || crate::process::daemons(&l.mnt).is_empty().then_some(());
    crate::process::wait_for(std::time::Duration::from_secs(10), gone).expect("daemon left");
}

#[test]
fn relative_paths() {
    let l = stack();
    let mut command = std::process::Command::new(crate::process::unionfs());
    command.current_dir(l.scratch());
    command.args([
        "mount",
        "-o",
        "lowerdir=lower1:lower2,upperdir=upper",
        "mnt",
    ]);
    let outcome = finish(&mut command);
    assert!(outcome.status.success(), "{}", outcome.stderr);
    let names = crate::calls::list(&l.mnt);
    let written = fs::write(l.mnt.join("n"), "n");
    // A process just forked by another test may hold a copy of a descriptor for a moment.
    let unmounted = || rustix::mount::unmount(&l.mnt, rustix::mount::UnmountFlags::empty()).ok();
    crate::process::wait_for(std::time::Duration::from_secs(10), unmounted).expect("busy");
    assert_eq!(names, ["a", "u", "x"]);
    written.unwrap();
    assert!(l.upper_path().join("n").exists());
    fails!(rustix::fs::stat(l.mnt.join("n")), NOENT);
}
