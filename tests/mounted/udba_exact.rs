//! What `udba=notify` makes the kernel ask for: no more than what changed. And many changes at once.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::process::{CACHES, wait_for};
use crate::requests::Counter;
use crate::snapshot;
use crate::support::{Mount, Stack};
use crate::udba::{SOON, others, shows_soon};

const WAYS: [&str; 3] = ["open=passthrough", "open=none", "open=cached"];

fn stack() -> Stack {
    Stack::new()
        .upper(["d/own=1"])
        .lower(["d/f=one", "d/g=two", "e/h=three", "e/sub/i=4"])
        .lower(["d/below=five"])
}

/// Asks for everything, and for a name that is not there.
fn ask(m: &Mount) {
    snapshot::take(m.path());
    for name in ["d/none", "d/new", "e/none", "none"] {
        crate::fails!(m.stat(name), NOENT);
    }
}

#[test]
fn only_what_changed_is_asked_for_again() {
    for way in WAYS {
        let mut m = stack().mount_with(&format!("udba=notify,{way}"));
        let lower = m.layers.lowers[0].clone();
        ask(&m);
        ask(&m);
        // What was read has another access time.
        for name in ["d/f", "d/g", "d/own", "d/below", "e/h", "e/sub/i"] {
            m.stat(name).unwrap();
        }
        let counter = Counter::new(&m);
        let still = |names: &[&str]| {
            counter.of(|| {
                for name in names {
                    let _ = m.stat(name);
                }
            })
        };
        let soon = |name: &str, is_so: &dyn Fn() -> bool, change: &dyn Fn()| {
            counter.of(|| {
                change();
                wait_for(SOON, || is_so().then_some(())).unwrap_or_else(|| panic!("{way}: {name}"));
            })
        };
        let size = |name: &str| m.stat(name).map_or(0, |stat| stat.st_size);
        // In the way without opens, another node takes the place of the one whose size the kernel keeps.
        let one = match way {
            "open=none" => "Lookup Getattr",
            _ => "Getattr",
        };
        let asked = soon("append", &|| size("d/f") == 7, &|| {
            others(&lower.join("d"), "echo mor >> $D/f");
        });
        assert_eq!(asked, one, "{way}: append");
        let quiet = still(&["d", "d/g", "d/own", "d/below", "d/none", "e", "e/sub/i"]);
        assert_eq!(quiet, "", "{way}: the rest after an append");
        let asked = soon("create", &|| m.stat("d/new").is_ok(), &|| {
            others(&lower.join("d"), ": > $D/new");
        });
        assert_eq!(
            asked, "Lookup Getattr",
            "{way}: create, and the directory's attributes"
        );
        assert_eq!(
            still(&["d/g", "d/own", "d/below", "d/none", "e/h", "e/none"]),
            "",
            "{way}"
        );
        let asked = soon("delete", &|| m.stat("d/g").is_err(), &|| {
            others(&lower.join("d"), "rm $D/g");
        });
        assert_eq!(asked, "Lookup Getattr", "{way}: delete");
        assert_eq!(still(&["d/own", "d/below", "d/none", "e/h"]), "", "{way}");
        let mode = |name: &str| m.stat(name).map_or(0, |stat| stat.st_mode & 0o777);
        let asked = soon("chmod", &|| mode("e/sub") == 0o700, &|| {
            others(&lower.join("e"), "chmod 700 $D/sub");
        });
        assert_eq!(asked, "Getattr", "{way}: chmod");
        assert_eq!(still(&["d/own", "e", "e/sub", "e/sub/i"]), "", "{way}");
        drop(counter);
        m.lowers_were_changed();
    }
}

/// More than the kernel's clock of files takes for a step.
const TICK: Duration = Duration::from_millis(20);

/// Writes a file, its times in another step of that clock than what was done before: whether the kernel
/// has new times to send (it keeps them in `open=none`) must not be chance.
fn write(m: &Mount, name: &str, text: &str) {
    let mut file = fs::File::create(m.p(name)).unwrap();
    sleep(TICK);
    file.write_all(text.as_bytes()).unwrap();
}

/// What is done through the mount sends the same requests with and without watches.
#[test]
fn own_changes_are_nobody_elses() {
    let work = |options: &str| {
        let m = stack().mount_with(options);
        ask(&m);
        ask(&m);
        let counter = Counter::new(&m);
        let mut asked = vec![counter.of(|| {
            write(&m, "d/new", "new");
            write(&m, "d/f", "changed");
            fs::set_permissions(m.p("d/g"), fs::Permissions::from_mode(0o600)).unwrap();
            fs::create_dir(m.p("e/made")).unwrap();
            write(&m, "e/made/in", "1");
            fs::rename(m.p("e/made"), m.p("e/moved")).unwrap();
            fs::remove_file(m.p("e/h")).unwrap();
            fs::hard_link(m.p("d/own"), m.p("d/link")).unwrap();
            let mut file = fs::OpenOptions::new()
                .append(true)
                .open(m.p("d/own"))
                .unwrap();
            sleep(TICK);
            file.write_all(b"more").unwrap();
        })];
        // Events would have come by then.
        sleep(Duration::from_millis(300));
        for _ in 0..2 {
            asked.push(counter.of(|| {
                for name in [
                    "d",
                    "d/new",
                    "d/g",
                    "d/own",
                    "d/link",
                    "e",
                    "e/moved",
                    "e/moved/in",
                ] {
                    m.stat(name).unwrap();
                }
                for name in ["d/none", "e/made", "e/h"] {
                    crate::fails!(m.stat(name), NOENT);
                }
                let names = fs::read_dir(m.p("d")).unwrap().count();
                assert_eq!(names, 6);
                assert_eq!(fs::read_to_string(m.p("d/f")).unwrap(), "changed");
            }));
        }
        asked
    };
    for way in WAYS {
        let without = work(way);
        assert_eq!(work(&format!("udba=notify,{way}")), without, "{way}");
    }
}

#[test]
fn a_thousand_changes_at_once() {
    let mut m = stack().mount_with("udba=notify");
    let lower = m.layers.lowers[0].clone();
    ask(&m);
    let dir = lower.join("d");
    // By this process, not one for each: those take longer than their limit on a machine with other work.
    let append = |n: u32| {
        let mut options = fs::OpenOptions::new();
        let mut file = options.append(true).open(dir.join(format!("m{n}")));
        file.as_mut().unwrap().write_all(b"x\n").unwrap();
    };
    (0..1000).for_each(|n| fs::write(dir.join(format!("n{n}")), format!("{n}\n")).unwrap());
    shows_soon(&m, "a thousand are made");
    (0..1000).for_each(|n| {
        fs::rename(dir.join(format!("n{n}")), dir.join(format!("m{n}"))).unwrap();
    });
    shows_soon(&m, "a thousand are renamed");
    (0..1000).for_each(append);
    shows_soon(&m, "a thousand are written");
    (0..1000)
        .step_by(2)
        .for_each(|n| fs::remove_file(dir.join(format!("m{n}"))).unwrap());
    shows_soon(&m, "five hundred are removed");
    m.lowers_were_changed();
}

/// More changes than the queue holds: everything is asked for again, names that were not there too.
#[test]
fn a_queue_that_overflows() {
    let queue = fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events").unwrap();
    let more = queue.trim().parse::<u32>().unwrap() + 1000;
    let mut m = stack().mount_with("udba=notify");
    let lower = m.layers.lowers[0].clone();
    ask(&m);
    let _cached = CACHES.read();
    let daemon = Pid::from_raw(m.pid()).unwrap();
    kill_process(daemon, Signal::STOP).unwrap();
    others(
        &lower.join("d"),
        &format!("cd $D; seq -f x%g 1 {more} | xargs touch; seq -f x%g 1 {more} | xargs rm"),
    );
    let lost = "echo more >> $D/d/f; : > $D/d/new; rm $D/e/h; mv $D/e/sub $D/e/other; mkdir $D/e/sub; : > $D/e/sub/j";
    others(&lower, lost);
    kill_process(daemon, Signal::CONT).unwrap();
    shows_soon(&m, "an overflow");
    assert!(m.stat("d/new").is_ok());
    m.lowers_were_changed();
}
