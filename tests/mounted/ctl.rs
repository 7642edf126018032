//! `unionfs ctl`: what a mount says of itself, to whom, and whether it is so.

use std::ffi::OsStr;
use std::fs;
use std::process::Command;

use crate::process::{Outcome, copy_program, finish, run, unionfs};
use crate::support::{Mount, Stack};
use crate::user::{DeviceMode, Place, USER};

fn ask(m: &Mount, words: &[&str]) -> Outcome {
    let mut args = vec![OsStr::new("ctl"), m.path().as_os_str()];
    args.extend(words.iter().map(OsStr::new));
    run(&args)
}

pub fn told(m: &Mount, words: &[&str]) -> String {
    let outcome = ask(m, words);
    assert!(outcome.status.success(), "{words:?}: {}", outcome.stderr);
    assert_eq!(outcome.stderr, "");
    outcome.stdout
}

/// With what differs each time left out.
fn plain(m: &Mount, text: &str) -> String {
    let dir = m.layers.scratch().display().to_string();
    let text = text
        .replace(unionfs(), "unionfs")
        .replace(&dir, "DIR")
        .replace(&format!("process {}", m.pid()), "process PID");
    let lines = text.lines().map(|line| match line.split_once(", for ") {
        Some((start, _)) if start.starts_with("unionfs ") => format!("{start}\n"),
        _ => format!("{line}\n"),
    });
    lines.collect()
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn status_says_what_the_mount_is_made_of() {
    let mut m = Stack::new()
        .lower(["a=1"])
        .lower(["b=2"])
        .mount_with("open=cached,volatile,threads=3");
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        plain(&m, &told(&m, &["status"])),
        format!(
            "unionfs {version}, process PID of user 0
layers, the top one first:
  upper  DIR/upper  (takes changes, whiteouts as aufs has them)
  lower  DIR/lower1  (read only)
  lower  DIR/lower2  (read only)
data: open=cached (asked for)
in effect: attr_timeout=without end, entry_timeout=without end, metacopy=false, \
negative_timeout=without end, plinks=true, rename_dir=copy, threads=3, volatile=true, xattrs=true
instead of something better: nothing
command: unionfs -o lowerdir=DIR/lower1:DIR/lower2,upperdir=DIR/upper,open=cached,volatile,threads=3 \
DIR/mnt
"
        )
    );
    let status = json(&told(&m, &["status", "--json"]));
    assert_eq!(status["layers"].as_array().unwrap().len(), 3);
    assert_eq!(status["layers"][0]["writes"], "aufs");
    assert_eq!(status["pid"], m.pid());
    m.unmount();
    let words = ["ctl", m.path().to_str().unwrap(), "status"];
    let outcome = run(&words);
    assert_eq!(outcome.status.code(), Some(1));
    assert!(
        outcome
            .stderr
            .ends_with(": no mount of unionfs, or one served by an older version\n")
    );
}

/// An answer that is longer than an ioctl can pass.
#[test]
fn an_answer_may_be_long() {
    let mut stack = Stack::new();
    for n in 0..150 {
        stack = stack.lower([format!("f{n}=1")]);
    }
    let m = stack.mount();
    let text = told(&m, &["status", "--json"]);
    assert!(text.len() > 40_000);
    let status = json(&text);
    assert_eq!(status["layers"].as_array().unwrap().len(), 151);
    for (n, lower) in m.layers.lowers.iter().enumerate() {
        assert_eq!(status["layers"][n + 1]["path"], lower.to_str().unwrap());
    }
}

#[test]
fn fallbacks_are_told_with_their_reason() {
    // A plain lower, and a way of data that what else is asked for rules out.
    let m = Stack::new()
        .branches(&["rw", "ro", "ro+wh"])
        .lower(["a=1"])
        .lower(["b=2"])
        .mount_with("open=passthrough,direct_io,supervise");
    let status = told(&m, &["status"]);
    for line in [
        "lower1  (read only, its whiteouts do not count)\n",
        "lower2  (read only)\n",
        ", supervised\n",
        "  data: open=cached,direct_io (direct_io is asked for)\n",
    ] {
        assert!(status.contains(line), "{line} is not in:\n{status}");
    }
}

#[test]
fn stats_count_what_is_done() {
    let m = Stack::new()
        .lower(["d/a=12345", "d/b=2"])
        .mount_with("open=cached");
    let figures = || json(&told(&m, &["stats", "--json"]));
    let before = figures();
    assert_eq!(before["latencies"]["measured"], "no");
    fs::OpenOptions::new()
        .append(true)
        .open(m.p("d/a"))
        .unwrap();
    fs::write(m.p("new"), "x").unwrap();
    let after = figures();
    let more = |place: &str| {
        let at = |told: &serde_json::Value| told.pointer(place).unwrap().as_u64().unwrap();
        at(&after) - at(&before)
    };
    // The directory and the file.
    assert_eq!((more("/copy_ups/count"), more("/copy_ups/bytes")), (2, 5));
    assert_eq!(more("/requests/create"), 1);
    assert_eq!(more("/inodes"), 3);
    assert_eq!(after["latencies"]["of"], json("{}"), "nothing is measured");
    let text = told(&m, &["stats"]);
    assert!(text.contains("\ncopy-ups       2, 5 bytes\n"), "{text}");
    assert!(text.contains("\ncreate                     1\n"), "{text}");
}

/// Prometheus's own rules: each name is told of once before its lines, buckets add up.
#[test]
fn stats_as_prometheus_reads_them() {
    let m = Stack::new().lower(["a=1"]).mount();
    assert_eq!(told(&m, &["measure", "on"]), "times measured yes\n");
    fs::write(m.p("new"), "x").unwrap();
    let text = told(&m, &["stats", "--prometheus"]);
    let mut kinds = std::collections::BTreeMap::new();
    for line in text.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(kinds.insert(name, kind).is_none(), "{name} twice");
        } else if !line.starts_with("# HELP ") {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let name = name.split('{').next().unwrap();
            let of_histogram = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end))
                .filter(|name| kinds.get(name) == Some(&"histogram"));
            assert!(of_histogram.is_some() || kinds.contains_key(name), "{line}");
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
    assert_eq!(kinds["unionfs_request_seconds"], "histogram");
    for line in [
        "unionfs_requests_total{op=\"create\"} 1\n",
        "unionfs_request_seconds_bucket{op=\"create\",le=\"+Inf\"} 1\n",
        "unionfs_request_seconds_count{op=\"create\"} 1\n",
        "unionfs_times_measured 1\n",
    ] {
        assert!(text.contains(line), "{line} is not in:\n{text}");
    }
    assert_eq!(told(&m, &["measure", "off"]), "times measured no\n");
    fs::write(m.p("newer"), "x").unwrap();
    let times = json(&told(&m, &["stats", "--json"]))["latencies"].clone();
    assert_eq!(
        (&times["measured"], &times["of"]["create"]["count"]),
        (&json("\"no\""), &json("1"))
    );
}

#[test]
fn trace_has_what_took_long() {
    let m = Stack::new().lower(["d/a=1"]).mount();
    let empty = told(&m, &["trace"]);
    assert_eq!(
        empty,
        "times measured no; requests of 10.0ms or longer are kept\n"
    );
    told(&m, &["measure", "on"]);
    told(&m, &["trace", "--slower", "0"]);
    fs::create_dir(m.p("d/sub")).unwrap();
    let recent = json(&told(&m, &["trace", "--json"]));
    let all = recent["recent"].as_array().unwrap();
    let mkdir = all.iter().find(|one| one["request"] == "mkdir").unwrap();
    // Of what is made, the directory that it is made in.
    assert_eq!(
        (&mkdir["path"], &mkdir["uid"]),
        (&json("\"/d\""), &json("0"))
    );
    let thread = rustix::thread::gettid().as_raw_nonzero().get();
    assert_eq!(mkdir["thread"], thread);
    assert!(told(&m, &["trace"]).contains("  mkdir        /d  (thread "));
    // What counts as long now has not come yet.
    assert_eq!(told(&m, &["trace", "--slower=3600000"]).lines().count(), 1);
}

/// `top` shows what was done while it looked, and leaves measuring as it was.
#[test]
fn top_shows_what_goes_on() {
    let m = Stack::new().lower(["a=1"]).mount();
    let top = std::thread::scope(|scope| {
        let top = scope.spawn(|| told(&m, &["top", "--every=1", "--count=1"]));
        while !top.is_finished() {
            let _ = fs::metadata(m.p("not there"));
            fs::write(m.p("new"), "x").unwrap();
            fs::remove_file(m.p("new")).unwrap();
        }
        top.join().unwrap()
    });
    assert!(
        top.contains("request           per second      half      99 %\n"),
        "{top}"
    );
    let create = top
        .lines()
        .find(|line| line.starts_with("create "))
        .unwrap();
    assert!(create.contains('<'), "a time: {create}");
    assert!(!top.contains('\x1b'), "no terminal");
    let times = json(&told(&m, &["stats", "--json"]))["latencies"].clone();
    assert_eq!(times["measured"], "while somebody looks");
}

/// Another user may not ask, whatever he asks; nor may root of a container.
#[test]
fn others_may_not_ask() {
    let m = Stack::new().lower(["a=1"]).mount();
    let program = m.layers.scratch().join("unionfs");
    copy_program(unionfs(), &program);
    let id = |kind: &str| format!("--{kind}={USER}");
    let user = ["setpriv", &id("reuid"), &id("regid"), "--clear-groups"].map(str::to_owned);
    let container = ["unshare", "-m", "capsh", "--drop=cap_sys_admin", "--"].map(str::to_owned);
    for (who, shell) in [(&user[..], vec!["sh", "-c"]), (&container[..], vec!["-c"])] {
        for words in ["status", "stats", "trace", "measure on"] {
            let mut command = Command::new("timeout");
            command.arg("20").args(who).args(&shell);
            let (program, mnt) = (program.display(), m.path().display());
            command.arg(format!("{program} ctl {mnt} {words}"));
            let outcome = finish(&mut command);
            assert_eq!(outcome.status.code(), Some(1), "{who:?} {words}");
            let says =
                "only root and the user of the mount's daemon may ask, and nobody in a container";
            assert!(outcome.stderr.contains(says), "{who:?}: {}", outcome.stderr);
        }
    }
    assert!(told(&m, &["trace"]).starts_with("times measured no;"));
}

/// The user of a rootless mount may ask, through fusermount3 as in a namespace of his own.
#[test]
fn the_mounting_user_may_ask() {
    let _device = DeviceMode::set(0o666);
    let place = Place::new();
    const ASK: &str = r#"
$unionfs -o "$options" "$mnt"
$unionfs ctl "$mnt" status
$unionfs ctl "$mnt" stats > /dev/null
$unionfs ctl "$mnt" measure on
ls "$mnt" > /dev/null
$unionfs ctl "$mnt" stats --prometheus | grep -q 'unionfs_times_measured 1'
$unionfs ctl "$mnt" trace --slower 1 > /dev/null
"#;
    for (wrapper, end) in [
        (&[][..], "$unionfs umount \"$mnt\""),
        (&["unshare", "-Urm"][..], "umount \"$mnt\""),
    ] {
        let outcome = place.script(wrapper, &format!("{ASK}{end}"));
        let said = format!("{}{}", outcome.stdout, outcome.stderr);
        assert!(outcome.status.success(), "{wrapper:?}: {said}");
        let way = "data: open=none (not root of the machine)\n";
        assert!(
            said.contains(way) || crate::process::way().is_some(),
            "{said}"
        );
        if wrapper.is_empty() {
            let why = "  (a private clone of that mount is not permitted)\n";
            assert!(said.contains(&why[2..]), "{said}");
        }
        assert!(said.contains("not possible on the upper: "), "{said}");
    }
    place.check();
}
