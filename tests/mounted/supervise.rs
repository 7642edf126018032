//! `supervise`: the process that serves a mount is killed or replaced, and nobody notices.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, OFlags, RenameFlags};
use rustix::process::{Pid, Signal, kill_process};

use crate::calls::contents;
use crate::crash::{Op, Random, differences, shown};
use crate::dialects;
use crate::fails;
use crate::process::{daemons, run, wait_for};
use crate::spec::{self, Dialect};
use crate::support::Stack;
use crate::ways_user::good;

pub const STEP: Duration = Duration::from_secs(15);

/// The parent of a process.
fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// The process that keeps a mount.
pub fn keeper(mnt: &Path) -> i32 {
    let all = daemons(mnt);
    let mut own = all.iter().filter(|pid| {
        let parent = parent(**pid);
        parent.is_some_and(|parent| !all.contains(&parent))
    });
    *own.next().expect("somebody keeps it")
}

/// The process that serves a mount, once there is one.
pub fn server(mnt: &Path, keeper: i32) -> i32 {
    let child = || {
        daemons(mnt)
            .into_iter()
            .find(|pid| parent(*pid) == Some(keeper))
    };
    wait_for(STEP, child).expect("somebody serves it")
}

/// Kills the server of a mount; returns when another process is there.
pub fn kill_server(mnt: &Path) {
    let keeper = keeper(mnt);
    let pid = server(mnt, keeper);
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    let other = || Some(server(mnt, keeper)).filter(|now| *now != pid);
    wait_for(STEP, other).expect("another server begins");
}

/// Has it killed again and again while `work` is done, about so long after each start. Returns what
/// the work gives and the number of kills.
pub fn while_killed<T>(
    mnt: &Path, pause: Duration, work: impl FnOnce() -> T, mut replace: impl FnMut(u64) + Send,
) -> (T, u64) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut random = Random(7);
            let mut kills = 0;
            while !over.load(Ordering::Acquire) {
                let half = u64::try_from(pause.as_micros()).unwrap() / 2;
                thread::sleep(Duration::from_micros(half + random.below(2 * half)));
                replace(kills);
                kills += 1;
            }
            kills
        });
        let given = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        over.store(true, Ordering::Release);
        let kills = killer.join().unwrap();
        assert!(daemons(mnt).len() >= 2);
        match given {
            Ok(given) => (given, kills),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn number(fd: &OwnedFd) -> (u64, u64) {
    let stat = rustix::fs::fstat(fd).unwrap();
    (stat.st_ino, stat.st_nlink)
}

dialects! {
    fn what_is_open_stays_open(dialect) {
        let m = Stack::of(dialect)
            .upper(["up=upper", "gone_up=gone1", "linked=two", "d/u=1"])
            .lower(["low=lower", "gone_low=gone2", "d/l=2", "empty/", "x/y/z=deep"])
            .mount_with("supervise");
        rustix::fs::link(m.p("linked"), m.p("d/link")).unwrap();
        let open = |name: &str| m.open(name, OFlags::RDWR).unwrap();
        let names = ["up", "gone_up", "linked", "d/link"];
        let writable: Vec<OwnedFd> = names.iter().map(|name| open(name)).collect();
        let names = ["low", "gone_low", "x/y/z"];
        let readable = names.map(|name| m.open(name, OFlags::RDONLY).unwrap());
        let dir = m.open("empty", OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
        let made = m.open("made", OFlags::RDWR | OFlags::CREATE).unwrap();
        m.rename("x/y", "d/moved").unwrap();
        for name in ["gone_up", "gone_low", "d/link", "made"] {
            m.unlink(name).unwrap();
        }
        m.rmdir("empty").unwrap();
        let all = || -> Vec<(u64, u64)> {
            let all = writable.iter().chain(&readable).chain([&dir, &made]);
            all.map(number).collect()
        };
        let before = all();
        for round in 0..4 {
            kill_server(m.path());
            assert_eq!(all(), before, "after {round} kills: (st_ino, st_nlink)");
            let expected = ["upper", "gone1", "two", "two"];
            for (fd, text) in writable.iter().zip(expected) {
                let text = format!("{round}{}", &text[1..]);
                rustix::io::pwrite(fd, &text.as_bytes()[..1], 0).unwrap();
                assert_eq!(contents(fd), text.as_bytes());
            }
            for (fd, text) in readable.iter().zip(["lower", "gone2", "deep"]) {
                assert_eq!(contents(fd), text.as_bytes());
            }
            rustix::io::pwrite(&made, b"new", 0).unwrap();
            assert_eq!(contents(&made), b"new");
            m.assert_ls("", &["d", "linked", "low", "up", "x"]);
            m.assert_ls("d", &["l", "moved", "u"]);
            m.assert_file("d/moved/z", "deep");
            fails!(m.stat("gone_up"), NOENT);
            fails!(crate::process::open_file_at(&dir, "a", OFlags::CREATE | OFlags::RDWR, 0o600.into()), NOENT);
        }
        m.assert_file("linked", "3wo");
    }

    fn a_listing_goes_on(dialect) {
        let files = |n: usize| (0..600).map(move |k| format!("d/{}{k}=", "n".repeat(30 + n)));
        let m = Stack::of(dialect).lower(files(0)).lower(files(1)).mount_with("supervise");
        let dir = m.open("d", OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
        let mut seen = BTreeSet::new();
        let mut buffer = Vec::with_capacity(2048);
        let mut entries = rustix::fs::RawDir::new(&dir, buffer.spare_capacity_mut());
        let mut count = 0;
        while let Some(entry) = entries.next() {
            let entry = entry.unwrap();
            assert!(seen.insert(entry.file_name().to_owned()), "{:?} twice", entry.file_name());
            count += 1;
            if count % 300 == 7 {
                kill_server(m.path());
            }
        }
        assert_eq!(count, 1202);
    }

    fn random_work_is_done_once(dialect) {
        for (options, seed) in [
            ("supervise,volatile,rename_dir=copy", 1),
            ("supervise,volatile,rename_dir=redirect,metacopy=on", 2),
        ] {
            random_work(dialect, options, seed);
        }
    }
}

/// How long: `UNIONFS_STRESS_SECONDS`, or a little.
pub fn duration() -> Duration {
    let seconds = std::env::var("UNIONFS_STRESS_SECONDS");
    Duration::from_secs(seconds.map_or(4, |n| n.parse().expect("a number")))
}

/// Random operations give what they give on a plain directory, though their server is killed
/// meanwhile.
fn random_work(dialect: Dialect, options: &str, seed: u64) {
    let lower = [
        "a/s/u/f0=1",
        "a/t/f1=2",
        "c/f1=3 | mode=0640 x:user.k=v",
        "b/f0=b",
        "c/t/",
    ];
    let lower = lower.map(str::to_owned);
    let stack = Stack::of(dialect).lower(lower.clone()).limit(300);
    let m = stack.mount_with(options);
    let plain = m.layers.scratch().join("plain");
    fs::create_dir(&plain).unwrap();
    fs::set_permissions(&plain, fs::metadata(m.path()).unwrap().permissions()).unwrap();
    spec::build(&plain, &lower, false);
    let mut random = Random(seed);
    let work = || {
        let end = Instant::now() + duration() / 2;
        while Instant::now() < end {
            let op = Op::random(&mut random);
            let (got, wanted) = (op.apply(m.path()), op.apply(&plain));
            assert_eq!(got, wanted, "left: union, right: plain, of {op:?}");
        }
    };
    while_killed(m.path(), Duration::from_millis(300), work, |_| {
        kill_server(m.path());
    });
    let left = differences(&shown(m.path()), &shown(&plain));
    assert!(left.is_empty(), "{options}: {left:#?}");
    let mut m = m;
    m.remount();
    let left = differences(&shown(m.path()), &shown(&plain));
    assert!(left.is_empty(), "{options}, mounted again: {left:#?}");
}

/// Two names change places again and again: an exchange that is done twice is one that is not done.
#[test]
fn an_exchange_is_done_once() {
    let m = Stack::new()
        .upper(["a/one=1", "b/two=2"])
        .lower(["c=3"])
        .mount_with("supervise,volatile");
    let work = || {
        let end = Instant::now() + duration() / 2;
        let mut swapped = false;
        while Instant::now() < end {
            let (a, b) = (m.p("a/one"), m.p("b/two"));
            rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).unwrap();
            swapped = !swapped;
            m.assert_file("a/one", if swapped { "2" } else { "1" });
        }
    };
    while_killed(m.path(), Duration::from_millis(150), work, |_| {
        kill_server(m.path());
    });
}

/// All names of a file that was copied up are known to the next server, not only the first.
#[test]
fn further_names_of_a_copy() {
    for way in ["passthrough", "none", "cached"] {
        let mut m = Stack::new()
            .lower(["f=1"])
            .mount_with(&format!("supervise,open={way}"));
        m.write("f", "2").unwrap();
        m.link("f", "g").unwrap();
        m.link("g", "h").unwrap();
        let number = m.stat("f").unwrap().st_ino;
        // The kernel asks for none of them again.
        let known = m.remembered(&["f", "g", "h"]);
        kill_server(m.path());
        m.unlink("f").unwrap();
        kill_server(m.path());
        m.link("g", "k").unwrap();
        m.rename("h", "i").unwrap();
        kill_server(m.path());
        m.unlink("g").unwrap();
        m.link("i", "l").unwrap();
        drop(known);
        for round in 0..2 {
            for name in ["i", "k", "l"] {
                let stat = m.stat(name).unwrap();
                assert_eq!((stat.st_ino, stat.st_nlink), (number, 3), "{way} {name}");
                m.assert_file(name, "2");
            }
            if round == 0 {
                m.remount();
            }
        }
    }
}

/// Several threads write, each its own file: what was answered is there.
#[test]
fn what_was_written_is_there() {
    let m = Stack::new().lower(["f0=x", "f1=y"]).mount_with("supervise");
    let write = |name: String| {
        let path = m.p(&name);
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .read(true)
            .open(path)
            .unwrap();
        let end = Instant::now() + duration() / 2;
        let mut blocks = 0;
        while Instant::now() < end {
            let block = [u8::try_from(blocks % 251).unwrap(); 5000];
            file.write_all_at(&block, blocks * 5000).unwrap();
            if blocks % 20 == 0 {
                file.sync_all().unwrap();
            }
            blocks += 1;
        }
        assert_eq!(file.metadata().unwrap().size(), blocks * 5000);
        let mut block = [0; 5000];
        for n in 0..blocks {
            file.read_exact_at(&mut block, n * 5000).unwrap();
            assert!(
                block.iter().all(|byte| u64::from(*byte) == n % 251),
                "block {n}"
            );
        }
    };
    let work = || {
        thread::scope(|scope| {
            for n in 0..4 {
                let write = &write;
                scope.spawn(move || write(format!("f{n}")));
            }
        });
    };
    while_killed(m.path(), Duration::from_millis(300), work, |_| {
        kill_server(m.path());
    });
}

/// The layers are found again though the mount covers the way to them.
#[test]
fn layers_below_the_mountpoint() {
    let layers = Stack::new().lower(["f=1"]).build();
    let inner = layers.mnt.join("inner");
    fs::create_dir_all(inner.join("l")).unwrap();
    fs::create_dir(inner.join("u")).unwrap();
    fs::write(inner.join("l/low"), "low").unwrap();
    let (l, u) = (inner.join("l"), inner.join("u"));
    let options = format!(
        "lowerdir={},upperdir={},supervise",
        l.display(),
        u.display()
    );
    good(&run(&[
        "-o".as_ref(),
        options.as_ref(),
        layers.mnt.as_os_str(),
    ]));
    for n in 0..3 {
        kill_server(&layers.mnt);
        assert_eq!(fs::read_to_string(layers.mnt.join("low")).unwrap(), "low");
        fs::write(layers.mnt.join(format!("new{n}")), "new").unwrap();
    }
    good(&run(&["umount".as_ref(), layers.mnt.as_os_str()]));
    let gone = || daemons(&layers.mnt).is_empty().then_some(());
    wait_for(STEP, gone).expect("both processes end");
    assert_eq!(
        fs::read_dir(&u)
            .unwrap()
            .flatten()
            .filter(|e| { e.file_name().as_encoded_bytes().starts_with(b"new") })
            .count(),
        3
    );
}

/// Mounted by a user through fusermount3.
#[test]
fn a_users_mount() {
    let _device = crate::user::DeviceMode::set(0o666);
    let place = crate::user::Place::new();
    good(&place.script(&[], "$unionfs -o \"$options,supervise\" \"$mnt\""));
    let mnt = &place.layers.mnt;
    for _ in 0..3 {
        kill_server(mnt);
        good(&place.script(&[], "date > \"$mnt\"/new && ls \"$mnt\" && rm \"$mnt\"/new"));
    }
    good(&place.script(&[], "$unionfs umount \"$mnt\""));
    let gone = || daemons(mnt).is_empty().then_some(());
    wait_for(STEP, gone).expect("both processes end");
    place.check();
}
