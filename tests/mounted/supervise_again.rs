//! Requests whose server is killed after it did what they ask for and before it says so; and what else
//! the next server could take for something that it is not.

use std::fs;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::fs::{CWD, OFlags, RenameFlags};
use rustix::process::{Pid, Signal, kill_process};

use crate::calls::contents;
use crate::process::{daemons, device_of, finish, run, wait_for};
use crate::supervise::{STEP, keeper, kill_server, server};
use crate::support::{Layers, Mount, Stack};
use crate::ways_user::good;

/// Before a server gives an answer.
const ANSWER: &str = "writev:delay_enter=60000000";
/// When it has just written to a file.
const WRITTEN: &str = "pwrite64:delay_exit=60000000";

/// The server, whose threads are held up at a point: what comes before it is done.
struct Dumb(Child);

impl Dumb {
    fn make(m: &Mount, point: &str) -> Self {
        let pid = server(m.path(), keeper(m.path())).to_string();
        let mut command = Command::new("strace");
        let call = point.split_once(':').unwrap().0;
        command.args(["-qq", "-f", "-e", &format!("trace={call}"), "-e"]);
        command.args([&format!("inject={point}"), "-p", &pid]);
        let child = command.stderr(Stdio::null()).spawn().unwrap();
        let traced = || {
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
            let all = tasks.map(|task| fs::read_to_string(task.path().join("status")).unwrap());
            let mut traced = all.map(|status| !status.contains("TracerPid:\t0"));
            traced.all(|one| one).then_some(())
        };
        wait_for(STEP, traced).expect("strace looks at it");
        Self(child)
    }
}

impl Drop for Dumb {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Does `work`, whose server is killed once `done` says that it was done, and before it is answered.
pub fn done_unanswered<T: Send>(
    m: &Mount, point: &str, work: impl FnOnce() -> T + Send, done: impl Fn() -> bool,
) -> T {
    let dumb = Dumb::make(m, point);
    thread::scope(|scope| {
        let work = scope.spawn(work);
        let is_done = wait_for(STEP, || done().then_some(())).is_some();
        // As long as what follows the change on disk takes.
        thread::sleep(Duration::from_millis(100));
        let answered = work.is_finished();
        let pid = server(m.path(), keeper(m.path()));
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        // Its parent does not hear of its end before strace does.
        drop(dumb);
        let given = work.join().unwrap();
        assert!(
            is_done && !answered,
            "done: {is_done}, answered: {answered}"
        );
        given
    })
}

#[test]
fn an_exchange_that_is_noted_and_not_answered() {
    let m = Stack::new()
        .upper(["a/one=1", "b/two=2"])
        .lower(["f=1"])
        .mount_with("supervise");
    // Known: the names of known nodes are noted at their new places.
    let known = ["a/one", "b/two"].map(|name| m.open(name, OFlags::RDONLY).unwrap());
    for (one, two) in [("2", "1"), ("1", "2")] {
        // Nothing else is to be asked for first.
        for name in ["a", "b", "a/one", "b/two"] {
            m.stat(name).unwrap();
        }
        let exchange = || {
            let (a, b) = (m.p("a/one"), m.p("b/two"));
            rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)
        };
        let on_disk = || fs::read_to_string(m.up("a/one")).is_ok_and(|text| text == one);
        done_unanswered(&m, ANSWER, exchange, on_disk).unwrap();
        // The kernel shows what it was told, and has the data in its cache.
        let there = ["a/one", "b/two"].map(|name| fs::read_to_string(m.up(name)).unwrap());
        assert_eq!(there, [one, two]);
        m.assert_file("a/one", one);
        m.assert_file("b/two", two);
    }
    assert_eq!(known.each_ref().map(contents), [b"1", b"2"]);
}

/// pwrite(2) on a descriptor of an append-only file appends wherever the offset is.
#[test]
fn what_was_appended_stands_once() {
    for way in ["cached", "cached,direct_io", "none,writeback=0"] {
        let m = Stack::new()
            .upper(["log=one\n"])
            .lower(["f=1"])
            .mount_with(&format!("supervise,open={way}"));
        let chattr = |how: &str| {
            good(&finish(Command::new("chattr").arg(how).arg(m.up("log"))));
        };
        chattr("+a");
        let append = || {
            let mut file = fs::OpenOptions::new().append(true).open(m.p("log"))?;
            file.write_all(b"two\n")
        };
        // The open is answered, so it must come before.
        let mut file = fs::OpenOptions::new()
            .append(true)
            .open(m.p("log"))
            .unwrap();
        let on_disk = || fs::read_to_string(m.up("log")).unwrap().contains("two");
        done_unanswered(&m, WRITTEN, || file.write_all(b"two\n"), on_disk).unwrap();
        let there = fs::read_to_string(m.up("log")).unwrap();
        append().unwrap();
        let more = fs::read_to_string(m.p("log")).unwrap();
        chattr("-a");
        assert_eq!(there, "one\ntwo\n", "{way}");
        assert_eq!(more, "one\ntwo\ntwo\n", "{way}");
    }
}

/// Whoever asks the mount to end while its next server learns what there is does not ask in vain.
#[test]
fn a_signal_during_a_take_over() {
    const FILES: usize = 20_000;
    for insists in [false, true] {
        let layers = Stack::new().lower(["f=1", "d/"]).limit(120).build();
        for n in 0..FILES {
            fs::write(layers.lowers[0].join(format!("d/{n}")), "").unwrap();
        }
        let options = layers.options("supervise");
        good(&run(&[
            "-o".as_ref(),
            options.as_ref(),
            layers.mnt.as_os_str(),
        ]));
        let known: Vec<_> = fs::read_dir(layers.mnt.join("d")).unwrap().collect();
        for entry in known.iter().flatten() {
            entry.metadata().unwrap();
        }
        let keeper = keeper(&layers.mnt);
        let before = server(&layers.mnt, keeper);
        let signal = |pid: i32, signal| {
            let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
        };
        signal(before, Signal::KILL);
        let next = || Some(server(&layers.mnt, keeper)).filter(|now| *now != before);
        wait_for(STEP, next).expect("another one");
        signal(keeper, Signal::TERM);
        if insists {
            thread::sleep(Duration::from_millis(5));
            signal(keeper, Signal::TERM);
        }
        let gone = || daemons(&layers.mnt).is_empty().then_some(());
        let ended = wait_for(STEP, gone);
        if ended.is_none() {
            signal(keeper, Signal::KILL);
            daemons(&layers.mnt)
                .iter()
                .for_each(|pid| signal(*pid, Signal::KILL));
            let _ = rustix::mount::unmount(&layers.mnt, rustix::mount::UnmountFlags::DETACH);
        }
        assert!(ended.is_some(), "it goes on; asked twice: {insists}");
        assert_eq!(device_of(&layers.mnt), None);
    }
}

/// A user's files that are open and whose mode forbids to open them again, as git's objects are.
#[test]
fn a_user_goes_on_writing() {
    let _device = crate::user::DeviceMode::set(0o666);
    let place = crate::user::Place::new();
    good(&place.script(&[], "$unionfs -o \"$options,supervise\" \"$mnt\""));
    let mnt = &place.layers.mnt;
    let at = |name: &str| place.layers.scratch().join(name);
    let work = "umask 333; exec 3>\"$mnt/made\"; umask 022; exec 4>\"$mnt/changed\"; chmod 0 \"$mnt/changed\"; > ready
        for n in 1 2 3; do
            while [ ! -e go$n ]; do sleep 0.02; done
            echo $n >&3; echo $n >&4; > done$n
        done
        exec 3>&- 4>&-";
    thread::scope(|scope| {
        let work = scope.spawn(|| place.script(&[], work));
        let there = |name: &str| {
            let ends = || (work.is_finished() || at(name).exists()).then_some(());
            wait_for(STEP, ends).expect("it goes on");
        };
        there("ready");
        for n in 1..=3 {
            kill_server(mnt);
            fs::write(at(&format!("go{n}")), "").unwrap();
            there(&format!("done{n}"));
        }
        good(&work.join().unwrap());
    });
    for name in ["made", "changed"] {
        let text = fs::read_to_string(place.layers.upper_path().join(name)).unwrap();
        assert_eq!(text, "1\n2\n3\n", "{name}");
    }
    good(&place.script(&[], "$unionfs umount \"$mnt\""));
    place.check();
}

/// Objects of a layer that is several devices, as btrfs subvolumes are, keep their numbers.
#[test]
fn devices_below_a_layer_keep_their_order() {
    let layers = Stack::new().lower(["f=1"]).build();
    let (image, disk) = (
        layers.scratch().join("image"),
        layers.scratch().join("disk"),
    );
    fs::create_dir(&disk).unwrap();
    fs::File::create(&image)
        .unwrap()
        .set_len(160 << 20)
        .unwrap();
    // It looks at every mount, and somebody's may have lost its daemon at this moment.
    let make = || {
        finish(Command::new("mkfs.btrfs").arg("-q").arg(&image))
            .status
            .success()
    };
    wait_for(STEP, || make().then_some(())).expect("btrfs");
    good(&finish(
        Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(&disk),
    ));
    let outcome = std::panic::catch_unwind(|| keep_their_order(&layers, &disk));
    let _ = finish(Command::new("umount").arg("-l").arg(&layers.mnt));
    let gone = || daemons(&layers.mnt).is_empty().then_some(());
    wait_for(STEP, gone);
    let unmounted = || {
        finish(Command::new("umount").arg(&disk))
            .status
            .success()
            .then_some(())
    };
    wait_for(STEP, unmounted).expect("the disk is free");
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

const VOLUMES: usize = 6;

fn keep_their_order(layers: &Layers, disk: &Path) {
    for n in 0..VOLUMES {
        let volume = disk.join(format!("v{n}"));
        let make = ["subvolume", "create"];
        good(&finish(Command::new("btrfs").args(make).arg(&volume)));
        fs::write(volume.join("file"), n.to_string()).unwrap();
    }
    let options = format!("lowerdir={},supervise,direct_io", disk.display());
    good(&run(&[
        "-o".as_ref(),
        options.as_ref(),
        layers.mnt.as_os_str(),
    ]));
    // Not in the order of their names.
    let open: Vec<fs::File> = (0..VOLUMES)
        .map(|n| fs::File::open(layers.mnt.join(format!("v{}/file", n * 5 % 6))).unwrap())
        .collect();
    let numbers = || -> Vec<u64> { open.iter().map(|f| f.metadata().unwrap().ino()).collect() };
    let before = numbers();
    for _ in 0..4 {
        kill_server(&layers.mnt);
        let now: Vec<_> = open
            .iter()
            .map(|f| f.metadata().map(|m| m.ino()).ok())
            .collect();
        let wanted: Vec<_> = before.iter().copied().map(Some).collect();
        assert_eq!(now, wanted);
        let read = |mut file: &fs::File| {
            file.rewind().ok()?;
            let mut text = String::new();
            file.read_to_string(&mut text).ok()?;
            Some(text)
        };
        let texts: Vec<_> = open.iter().map(read).collect();
        let wanted: Vec<Option<String>> = (0..VOLUMES)
            .map(|n| Some((n * 5 % 6).to_string()))
            .collect();
        assert_eq!(texts, wanted);
    }
}
