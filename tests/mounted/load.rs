//! 64 processes of mixed work on one mount, each of which knows what must come of its own; and what a daemon
//! that is stopped, or an upper that is full, does to its callers.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process};

use crate::acknowledged::content;
use crate::crash::{Op, Random, differences, shown};
use crate::disk_log::Logged;
use crate::process::wait_for;
use crate::support::{Mount, Stack};

const PROCESSES: u64 = 64;
/// What the daemon may have of data, and in memory at any time, in MiB.
const CEILING: u64 = 512;
/// Set in the processes that work: number, place on the mount, plain directory, seconds.
const CHILD: &str = "UNIONFS_LOAD_CHILD";

fn seconds() -> u64 {
    std::env::var("UNIONFS_LOAD_SECONDS").map_or(40, |n| n.parse().expect("a number"))
}

/// Does the same on the mount and on a plain directory until the time is over; answers and results are
/// the same.
fn work(task: &str) {
    let words: Vec<&str> = task.split(' ').collect();
    let [number, at, plain, seconds] = words[..] else {
        panic!("{task}");
    };
    let (at, plain) = (Path::new(at), Path::new(plain));
    let mut random = Random(number.parse().unwrap());
    let end = Instant::now() + Duration::from_secs(seconds.parse().unwrap());
    let mut steps = 0;
    while Instant::now() < end {
        for _ in 0..200 {
            let op = Op::random(&mut random);
            assert_eq!(op.apply(at), op.apply(plain), "step {steps}, {op:?}");
            steps += 1;
        }
        let data = content(steps, 60_000);
        for root in [at, plain] {
            let _ = fs::remove_dir_all(root.join("large"));
            let _ = fs::remove_file(root.join("large"));
            fs::write(root.join("large"), &data).unwrap();
        }
        let wrong = differences(&shown(at), &shown(plain));
        assert!(wrong.is_empty(), "step {steps}: {wrong:#?}");
    }
    eprintln!("steps: {steps}");
}

fn highest_memory(m: &Mount) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", m.pid())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib >> 10
}

#[test]
fn sixty_four_processes() {
    if let Ok(task) = std::env::var(CHILD) {
        return work(&task);
    }
    let mut items = Vec::new();
    for n in 0..PROCESSES {
        for name in ["a/s/f0", "a/t/f1", "b/f0", "b/s/u", "c/f1"] {
            items.push(format!("w{n}/{name}={n}{name}"));
        }
        items.push(format!("w{n}/b/f0~w{n}/c/t"));
    }
    let mut m = Stack::new()
        .lower(items.clone())
        .limit(seconds() + 200)
        .mount_with("volatile");
    let limit = Rlimit {
        current: Some(CEILING << 20),
        maximum: Some(CEILING << 20),
    };
    rustix::process::prlimit(Pid::from_raw(m.pid()), Resource::Data, limit).unwrap();
    let plain = m.layers.scratch().join("plain");
    fs::create_dir(&plain).unwrap();
    crate::spec::build(&plain, &items, false);
    let spawn = |n: u64| {
        let (at, plain) = (m.p(format!("w{n}")), plain.join(format!("w{n}")));
        let task = format!("{n} {} {} {}", at.display(), plain.display(), seconds());
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "load::sixty_four_processes", "--nocapture"])
            .env(CHILD, task)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let children: Vec<_> = (0..PROCESSES).map(spawn).collect();
    let mut steps = 0_u64;
    for child in children {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}{error}");
        let told = error
            .split("steps: ")
            .nth(1)
            .and_then(|t| t.split_whitespace().next());
        steps += told.unwrap().parse::<u64>().unwrap();
    }
    let memory = highest_memory(&m);
    eprintln!(
        "{steps} operations in {} s by {PROCESSES} processes, {memory} MiB",
        seconds()
    );
    assert!(memory < CEILING, "{memory} MiB");
    m.remount();
    let wrong = differences(&shown(m.path()), &shown(&plain));
    assert!(wrong.is_empty(), "after a remount: {wrong:#?}");
}

/// Callers of a daemon that is stopped wait, and can be killed; the others get their answers when it goes on.
#[test]
fn a_stopped_daemon() {
    let m = Stack::new().lower(["f=lower", "d/g=lower"]).mount();
    // Callers that change names of one directory wait for each other in the kernel, and that cannot be killed.
    m.assert_file("d/g", "lower");
    let pid = Pid::from_raw(m.pid()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let stopped = || {
        let mut tasks = fs::read_dir(format!("/proc/{}/task", m.pid()))
            .unwrap()
            .flatten();
        let stat =
            |task: fs::DirEntry| fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        tasks.all(|task| stat(task).contains(") T ")).then_some(())
    };
    assert!(
        wait_for(Duration::from_secs(10), stopped).is_some(),
        "it goes on"
    );
    let shell = |text: String| Command::new("sh").args(["-c", &text]).spawn().unwrap();
    let mut killed = shell(format!("exec cat {}/f", m.path().display()));
    let mut waiting = shell(format!("echo new >{}/d/g", m.path().display()));
    std::thread::sleep(Duration::from_millis(300));
    assert!(killed.try_wait().unwrap().is_none() && waiting.try_wait().unwrap().is_none());
    killed.kill().unwrap();
    let gone = || killed.try_wait().unwrap();
    assert!(
        wait_for(Duration::from_secs(10), gone).is_some(),
        "it cannot be killed"
    );
    kill_process(pid, Signal::CONT).unwrap();
    assert!(waiting.wait().unwrap().success());
    m.assert_file("d/g", "new\n");
    m.assert_file("f", "lower");
}

/// What does not fit is told to who writes it; all else is as before, and goes on when there is space again.
#[test]
fn a_full_upper() {
    let disk = Logged::new("ext4", 16 << 20, &["-b", "4096"], "defaults");
    for way in ["passthrough", "cached", "none"] {
        let big = format!("big={}", "x".repeat(300_000));
        let mut m = Stack::new()
            .upper_at(&disk.at)
            .lower(["f=lower", &big, "d/x=x"])
            .mount_with(&format!("open={way}"));
        let fill = disk.at.join("fill");
        let last = fill_up(&fill);
        let append = |text: &str| {
            let file = fs::File::options().append(true).open(m.p("big"))?;
            std::io::Write::write_all(&mut &file, text.as_bytes())?;
            file.sync_all()
        };
        let error = append("more").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{way}");
        let shown = || (fs::read(m.p("big")).unwrap().len() == 300_000).then_some(());
        assert!(
            wait_for(Duration::from_secs(10), shown).is_some(),
            "{way}: what is not stored is shown"
        );
        assert!(!m.up("big").exists(), "{way}: half a copy");
        m.assert_ls("", &["big", "d", "f"]);
        drop(last);
        fs::remove_file(&fill).unwrap();
        // What was freed is free when the journal says so.
        wait_for(Duration::from_secs(20), || append("more").ok()).expect("there is room again");
        assert_eq!(fs::read(m.p("big")).unwrap().len(), 300_004, "{way}");
        m.remount();
        assert_eq!(fs::read(m.p("big")).unwrap().len(), 300_004, "{way}");
        drop(m);
        fs::remove_dir_all(disk.at.join("upper")).unwrap();
    }
}

/// A file is shown as it is stored when nobody has it open any more; till then all see the same, and what is
/// written then is stored.
#[test]
fn what_a_full_upper_did_not_take_is_not_shown() {
    let disk = Logged::new("ext4", 16 << 20, &["-b", "4096"], "defaults");
    let m = Stack::new()
        .upper_at(&disk.at)
        .lower(["l"])
        .mount_with("open=none");
    let names = ["closed", "cut", "grown"];
    for name in names {
        m.write(name, "").unwrap();
    }
    let fill = disk.at.join("fill");
    drop(fill_up(&fill));
    let [closed, cut, grown] = names.map(|name| {
        let file = fs::File::options().write(true).open(m.p(name)).unwrap();
        std::io::Write::write_all(&mut &file, &content(1, 100_000)).unwrap();
        let error = file.sync_all().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{name}");
        file
    });
    let is_stored = |name: &str| {
        let same = || (fs::read(m.p(name)).unwrap() == fs::read(m.up(name)).unwrap()).then_some(());
        assert!(
            wait_for(Duration::from_secs(10), same).is_some(),
            "{name}: shows what is not stored"
        );
    };
    drop(closed);
    is_stored("closed");
    fs::remove_file(&fill).unwrap();
    cut.set_len(5).unwrap();
    assert_eq!(m.stat("cut").unwrap().st_size, 5);
    grown.write_all_at(b"end", 200_000).unwrap();
    grown.sync_all().unwrap();
    for _ in 0..2 {
        assert_eq!(m.stat("grown").unwrap().st_size, 200_003);
        is_stored("grown");
        is_stored("cut");
        // What waits for its end looks again meanwhile.
        std::thread::sleep(Duration::from_millis(100));
    }
    drop((cut, grown));
}

/// The upper's filesystem is made read-only, and writable again, under the mount. It is not busy for long
/// with what nobody has open any more.
#[test]
fn an_upper_that_is_made_read_only() {
    for way in ["cached", "none", "passthrough"] {
        let disk = Logged::new("ext4", 16 << 20, &["-b", "4096"], "defaults");
        let m = Stack::new()
            .upper_at(&disk.at)
            .lower(["f=lower", "g=lower", "h=lower"])
            .mount_with(&format!("open={way}"));
        let remount = |how: &str| {
            let options = format!("remount,{how}");
            let tried = || {
                let mut mount = Command::new("mount");
                let mount = mount.args(["-o", &options]).arg(&disk.at);
                mount.output().unwrap().status.success().then_some(())
            };
            let done = wait_for(Duration::from_secs(30), tried);
            assert!(done.is_some(), "{way}: {how}");
        };
        // Copied up, and made.
        m.write("h", "written").unwrap();
        m.write("new", "written").unwrap();
        m.assert_file("f", "lower");
        remount("ro");
        for result in [
            m.write("g", "no"),
            m.unlink("f"),
            m.mkdir("d"),
            m.chmod("g", 0o600),
        ] {
            assert_eq!(result, Err(rustix::io::Errno::ROFS), "{way}");
        }
        m.assert_file("g", "lower");
        m.assert_file("h", "written");
        m.assert_ls("", &["f", "g", "h", "new"]);
        remount("rw");
        m.write("g", "again").unwrap();
        m.write("h", "again").unwrap();
        m.unlink("f").unwrap();
        m.assert_file("g", "again");
        m.assert_file("h", "again");
        m.assert_ls("", &["g", "h", "new"]);
        assert_eq!(m.mode("g"), 0o644);
    }
}

/// What is open goes on after the daemon has closed its own file: also without a name, and with a mode that
/// allows nothing.
#[test]
fn files_that_are_open_for_long_are_written() {
    for way in ["cached", "none", "passthrough"] {
        let m = Stack::new()
            .upper(["d/"])
            .lower(["f=lower", "g=lower"])
            .mount_with(&format!("open={way}"));
        let file = |name: &str| {
            let mut options = fs::File::options();
            let file = options.read(true).write(true).create(true).truncate(false);
            let file = file.open(m.p(name)).unwrap();
            file.write_all_at(b"first", 0).unwrap();
            file.sync_all().unwrap();
            file
        };
        let files = ["f", "g", "new"].map(file);
        m.unlink("g").unwrap();
        m.chmod("new", 0).unwrap();
        let real = ["f", "new"].map(|name| {
            let stat = fs::metadata(m.up(name)).unwrap();
            (stat.dev(), stat.ino())
        });
        let writes = |fd: &Path| {
            let is_it = fs::metadata(fd).is_ok_and(|stat| real.contains(&(stat.dev(), stat.ino())));
            let info = fd.to_str().unwrap().replace("/fd/", "/fdinfo/");
            let info = fs::read_to_string(info).unwrap_or_default();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = flags.map_or(0, |f| i32::from_str_radix(f.trim(), 8).unwrap());
            is_it && flags & libc::O_ACCMODE != 0
        };
        let closed = || {
            let mut fds = fs::read_dir(format!("/proc/{}/fd", m.pid())).unwrap();
            let any = fds.any(|fd| writes(&fd.unwrap().path()));
            (!any).then_some(())
        };
        assert!(closed().is_none(), "{way}: the daemon has no file open");
        assert!(
            wait_for(Duration::from_secs(30), closed).is_some(),
            "{way}: a file stays open for writing"
        );
        for file in &files {
            file.write_all_at(b"second", 2).unwrap();
            file.sync_all().unwrap();
            let mut data = [0; 8];
            file.read_exact_at(&mut data, 0).unwrap();
            assert_eq!(&data, b"fisecond", "{way}");
        }
        assert_eq!(fs::read(m.up("f")).unwrap(), b"fisecond");
    }
}

/// Fills the filesystem with a file; returns the file, which no byte can be appended to.
fn fill_up(fill: &Path) -> fs::File {
    let full = fs::write(fill, vec![1; 32 << 20]).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    let last = fs::File::options().append(true).open(fill).unwrap();
    // What is not written out yet counts for more than it takes in the end.
    let mut fits = true;
    while fits {
        fits = std::io::Write::write_all(&mut &last, &[1; 4096]).is_ok();
        while std::io::Write::write_all(&mut &last, &[1; 4096]).is_ok() {}
        rustix::fs::syncfs(&last).unwrap();
    }
    last
}
