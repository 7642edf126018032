//! Start, service and end of a mount.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::unix::ffi::OsStringExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use unionfs::options::quote_path;

use super::support::{Fixture, eventually, program, run, signal, wait};

fn gone(fixture: &Fixture) {
    eventually("the mount is gone", || !fixture.is_mounted());
    eventually("the daemon is gone", || fixture.daemons().is_empty());
    assert!(fixture.path("m/bare").exists());
    // Nothing of ours stays in the layers either.
    assert_eq!(fs::read_dir(fixture.path("w")).unwrap().count(), 0);
}

#[test]
fn in_the_background_it_answers_when_the_caller_goes_on() {
    let fixture = Fixture::new();
    fixture.mount(",fsname=some:name");
    assert_eq!(
        fs::read_to_string(fixture.path("m/top")).unwrap(),
        "from l1\n"
    );
    assert_eq!(
        fs::read_to_string(fixture.path("m/bottom")).unwrap(),
        "from l2\n"
    );
    let line = fixture.mount_line().unwrap();
    assert_eq!(line[..2], ["fuse.unionfs", "some:name"]);
    let daemons = fixture.daemons();
    let [pid] = daemons[..] else {
        panic!("not one daemon: {daemons:?}")
    };
    let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).unwrap();
    for name in ["fd/0", "fd/1", "fd/2"] {
        assert_eq!(link(name).to_str(), Some("/dev/null"), "{name}");
    }
    assert_eq!(link("cwd").to_str(), Some("/"));
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    let words: Vec<&str> = files.split_whitespace().collect();
    assert_eq!(
        words[3], words[4],
        "the soft limit is not the hard one: {files}"
    );
    run(program().arg("umount").arg(fixture.path("m"))).good();
    gone(&fixture);
}

#[test]
fn relative_paths_are_those_of_the_caller() {
    let fixture = Fixture::new();
    let mut command = program();
    command.args([
        "-o",
        "lowerdir=l1:l2,upperdir=u,workdir=w,log_file=log,frob",
        "m",
    ]);
    let told = run(command.current_dir(fixture.path("")));
    assert_eq!(told.code, Some(0));
    assert_eq!(
        told.stderr,
        "unionfs: option frob is not known and has no effect\n"
    );
    fs::write(fixture.path("m/new"), "new\n").unwrap();
    assert_eq!(fs::read_to_string(fixture.path("u/new")).unwrap(), "new\n");
    run(program()
        .args(["umount", "m"])
        .current_dir(fixture.path("")))
    .good();
    eventually("the mount is gone", || !fixture.is_mounted());
    eventually("the unknown word is in the log", || {
        let log = fs::read_to_string(fixture.path("log")).unwrap();
        log.matches("option frob is not known").count() == 1
    });
}

#[test]
fn signals_unmount_and_the_exit_code_is_0() {
    for name in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let fixture = Fixture::new();
        let mut child = fixture.foreground("");
        fs::write(fixture.path("m/new"), "new\n").unwrap();
        signal(child.id(), name);
        assert_eq!(wait(&mut child).code(), Some(0), "{name}");
        gone(&fixture);
        assert_eq!(fs::read_to_string(fixture.path("u/new")).unwrap(), "new\n");
    }
}

#[test]
fn every_umount_ends_the_daemon() {
    let umounts: [&[&str]; 4] = [
        &["umount"],
        &["umount", "-l"],
        &["fusermount3", "-u"],
        &["fusermount3", "-u", "-z"],
    ];
    for words in umounts {
        let fixture = Fixture::new();
        let mut child = fixture.foreground("");
        // The daemon's own first look at the mount may keep it busy for a moment.
        eventually("unmounted", || {
            let mut command = Command::new(words[0]);
            let done = run(command.args(&words[1..]).arg(fixture.path("m")));
            assert!(
                done.stderr.is_empty() || done.stderr.contains("busy"),
                "{}",
                done.stderr
            );
            done.code == Some(0)
        });
        assert_eq!(wait(&mut child).code(), Some(0), "{words:?}");
        gone(&fixture);
    }
}

#[test]
fn after_a_lazy_umount_open_files_are_served_until_closed() {
    let fixture = Fixture::new();
    let mut child = fixture.foreground("");
    let mut file = File::open(fixture.path("m/top")).unwrap();
    run(Command::new("umount").arg("-l").arg(fixture.path("m"))).good();
    assert!(!fixture.is_mounted());
    std::thread::sleep(Duration::from_millis(300));
    assert!(
        child.try_wait().unwrap().is_none(),
        "it ended while a file was open"
    );
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "from l1\n");
    drop(file);
    assert_eq!(wait(&mut child).code(), Some(0));
    gone(&fixture);
}

#[test]
fn a_signal_serves_open_files_a_while_longer() {
    let fixture = Fixture::new();
    let mut child = fixture.foreground("");
    let mut file = File::open(fixture.path("m/bottom")).unwrap();
    let start = Instant::now();
    signal(child.id(), Signal::SIGTERM);
    eventually("the mount is gone", || !fixture.is_mounted());
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "from l2\n");
    assert_eq!(wait(&mut child).code(), Some(0));
    let took = start.elapsed();
    assert!(
        took > Duration::from_secs(3) && took < Duration::from_secs(15),
        "{took:?}"
    );
    file.rewind().unwrap();
    gone(&fixture);
}

#[test]
fn a_second_signal_ends_at_once() {
    let fixture = Fixture::new();
    let mut child = fixture.foreground("");
    let file = File::open(fixture.path("m/top")).unwrap();
    signal(child.id(), Signal::SIGTERM);
    eventually("the mount is gone", || !fixture.is_mounted());
    let start = Instant::now();
    signal(child.id(), Signal::SIGTERM);
    assert_eq!(wait(&mut child).code(), Some(128 + 15));
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
    drop(file);
    gone(&fixture);
}

#[test]
fn a_later_mount_at_the_same_place_is_not_touched() {
    let fixture = Fixture::new();
    let mut first = fixture.foreground("");
    let file = File::open(fixture.path("m/top")).unwrap();
    run(Command::new("umount").arg("-l").arg(fixture.path("m"))).good();
    fixture.mount(",ro,fsname=second");
    signal(first.id(), Signal::SIGTERM);
    drop(file);
    assert_eq!(wait(&mut first).code(), Some(0));
    assert_eq!(fixture.mount_line().unwrap()[1], "second");
    run(program().arg("umount").arg(fixture.path("m"))).good();
    gone(&fixture);
}

#[test]
fn without_an_upper_it_is_read_only() {
    let fixture = Fixture::new();
    let options = format!("lowerdir={}", fixture.path("l1").display());
    run(program()
        .arg("-o")
        .arg(options)
        .arg("label")
        .arg(fixture.path("m")))
    .good();
    let line = fixture.mount_line().unwrap();
    assert_eq!(line[..2], ["fuse.unionfs", "label"]);
    assert!(line[2].split(',').any(|word| word == "ro"), "{line:?}");
    let error = fs::write(fixture.path("m/new"), "").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
    run(program().arg("umount").arg(fixture.path("m"))).good();
    gone(&fixture);
}

#[test]
fn names_with_any_bytes() {
    let fixture = Fixture::new();
    let odd = std::ffi::OsString::from_vec(b"a:b,c\\d\"e\xff \n".to_vec());
    let lower = fixture.path("").join(&odd);
    fs::create_dir(&lower).unwrap();
    fs::write(lower.join(&odd), "odd\n").unwrap();
    let mut options = std::ffi::OsString::from("lowerdir=");
    options.push(quote_path(&lower));
    options.push(":");
    options.push(quote_path(&fixture.path("l2")));
    run(program().arg("-o").arg(options).arg(fixture.path("m"))).good();
    assert_eq!(
        fs::read_to_string(fixture.path("m").join(&odd)).unwrap(),
        "odd\n"
    );
    assert_eq!(
        fs::read_to_string(fixture.path("m/bottom")).unwrap(),
        "from l2\n"
    );
    run(program().arg("umount").arg(fixture.path("m"))).good();
    gone(&fixture);
}

#[test]
fn a_busy_mount_stays() {
    let fixture = Fixture::new();
    fixture.mount("");
    let file = File::open(fixture.path("m/top")).unwrap();
    let place = fixture.path("m");
    let outcome = run(program().arg("umount").arg(&place));
    assert!(outcome.complaint().ends_with("busy"), "{}", outcome.stderr);
    assert!(fixture.is_mounted());
    drop(file);
    // A process just forked by another test may hold a copy for a moment.
    eventually("unmounted", || {
        run(program().arg("umount").arg(&place)).code == Some(0)
    });
    gone(&fixture);
}
