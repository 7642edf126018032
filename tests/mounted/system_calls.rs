//! How many system calls a request costs: exactly those that cannot be avoided.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};

use crate::process::CACHES;
use crate::spec::Dialect;
use crate::support::{Mount, Stack};
use crate::trace::{
    CREATE, FSYNC, GETATTR, GETXATTR, LOOKUP, MKDIR, OPEN, READ, RENAME, RMDIR, SETATTR, Trace,
    UNLINK, WRITE,
};

/// Files of the lower directory; the first ones are looked up until it is worth reading it whole.
const FILES: usize = 60;
const LATER: usize = 30;

const WHOLE_PAGE: usize = 4096;

/// A stack of so many lowers, the lowest of which has the files.
fn stack(lowers: usize) -> Mount {
    let files = (0..FILES).map(|n| format!("d/f{n}"));
    let mut stack = Stack::of(Dialect::Aufs).upper(["new/"]);
    for _ in 1..lowers {
        stack = stack.lower(["d/"]);
    }
    let m = stack.lower(files).build();
    let page = vec![b'x'; WHOLE_PAGE];
    for n in 0..FILES {
        fs::write(m.lowers[lowers - 1].join(format!("d/f{n}")), &page).unwrap();
    }
    // The other ways of data have other calls for opens and data (`passthrough`, `budgets`).
    m.mount_with("threads=1,open=cached")
}

fn work(m: &Mount, trace: &Trace<'_>) {
    let stat = |range: std::ops::Range<usize>| {
        for n in range {
            m.stat(&format!("d/f{n}")).unwrap();
        }
    };
    stat(0..LATER);
    // The first object of a thread settles what the thread may do, once.
    fs::create_dir(m.p("made")).unwrap();
    fs::write(m.p("made/first"), "").unwrap();
    trace.begin("look up");
    stat(LATER..FILES);
    trace.begin("miss");
    for n in 0..10 {
        assert!(m.stat(&format!("d/none{n}")).is_err());
    }
    trace.begin("open");
    let lower = fs::File::open(m.p("d/f1")).unwrap();
    trace.begin("read");
    lower.read_exact_at(&mut vec![0; WHOLE_PAGE], 0).unwrap();
    drop(lower);
    trace.begin("open again");
    drop(fs::File::open(m.p("d/f1")).unwrap());
    trace.begin("create");
    let mut file = fs::File::create_new(m.p("made/a")).unwrap();
    trace.begin("write");
    file.write_all(b"text").unwrap();
    trace.begin("chmod");
    file.set_permissions(fs::Permissions::from_mode(0o600))
        .unwrap();
    drop(file);
    trace.begin("mkdir");
    fs::create_dir(m.p("made/s")).unwrap();
    trace.begin("rename");
    m.rename("made/a", "made/b").unwrap();
    m.rename("made/b", "made/first").unwrap();
    trace.begin("rmdir");
    m.rmdir("made/s").unwrap();
    trace.begin("unlink");
    m.unlink("made/first").unwrap();
    trace.begin("unlink lower");
    // The first one copies the directory up and makes the file that whiteouts are links to.
    m.unlink("d/f2").unwrap();
    trace.begin("unlink lower again");
    m.unlink("d/f3").unwrap();
    m.unlink("d/f4").unwrap();
}

#[test]
fn requests_cost_what_they_must_however_many_layers_there_are() {
    for lowers in [1, 5, 100] {
        let m = stack(lowers);
        let trace = Trace::start(&m);
        work(&m, &trace);
        let parts = trace.end();
        let expect = |part: &str, opcode: u32, least: usize, calls: &[&str]| {
            let all = parts.get(part).map_or(&[][..], Vec::as_slice);
            let requests = all.iter().filter(|(code, _)| *code == opcode);
            let requests: Vec<_> = requests.map(|(_, calls)| calls).collect();
            assert!(requests.len() >= least, "{part}, {lowers} lowers: {all:?}");
            for made in requests {
                assert_eq!(made, calls, "{part}, opcode {opcode}, {lowers} lowers");
            }
        };
        expect("look up", LOOKUP, FILES - LATER, &["newfstatat"]);
        expect("miss", LOOKUP, 10, &[]);
        expect("open", OPEN, 1, &["openat2", "fstat", "flistxattr"]);
        expect("open again", OPEN, 1, &[]);
        expect("read", READ, 1, &["pread64"]);
        expect("create", LOOKUP, 1, &[]);
        expect("create", CREATE, 1, &["openat2", "fstat"]);
        expect("write", GETXATTR, 0, &[]);
        expect("write", WRITE, 1, &["pwrite64"]);
        expect("chmod", SETATTR, 1, &["fchmodat2", "newfstatat"]);
        expect("mkdir", MKDIR, 1, &["mkdirat", "newfstatat"]);
        expect("rename", GETATTR, 1, &["newfstatat"]);
        // The target that is replaced is held for those who have it open.
        let rename = &parts["rename"];
        let renames = rename.iter().filter(|(code, _)| *code == RENAME);
        let renames: Vec<_> = renames.map(|(_, calls)| calls.join(" ")).collect();
        let over = "newfstatat newfstatat openat2 renameat";
        assert_eq!(renames, ["newfstatat renameat", over], "{lowers} lowers");
        expect("rmdir", RMDIR, 1, &["newfstatat", "openat2", "unlinkat"]);
        expect("unlink", UNLINK, 1, &["newfstatat", "openat2", "unlinkat"]);
        expect("unlink lower again", UNLINK, 2, &["newfstatat", "linkat"]);
    }
}

/// The kernel leaves `dirsync` to filesystems, and `sync`, which is more.
#[test]
fn names_are_flushed_before_the_answer_if_that_is_asked_for() {
    for (option, wanted) in [
        ("dirsync", true),
        ("sync", true),
        ("dirsync,volatile", false),
        ("async", false),
    ] {
        let m = Stack::new()
            .upper(["d/", "e/"])
            .lower(["d/lower", "d/lower2"])
            .mount_with(&format!("threads=1,{option}"));
        for name in ["d", "e", "d/lower", "d/lower2"] {
            m.stat(name).unwrap();
        }
        let trace = Trace::start(&m);
        // The call that the daemon was in is not seen whole.
        assert!(m.stat("none").is_err());
        let steps: [(&str, usize, &dyn Fn()); 10] = [
            ("mkdir", 1, &|| m.mkdir("d/new").unwrap()),
            ("mknod", 1, &|| {
                m.mknod("d/p", rustix::fs::FileType::Fifo, 0o600, 0)
                    .unwrap();
            }),
            ("symlink", 1, &|| m.symlink("x", "d/s").unwrap()),
            ("create", 1, &|| drop(fs::File::create(m.p("d/f")).unwrap())),
            ("link", 1, &|| m.link("d/f", "d/g").unwrap()),
            ("rename", 2, &|| m.rename("d/g", "e/g").unwrap()),
            ("exchange", 2, &|| {
                let (from, to) = (m.p("d/p"), m.p("e/g"));
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, flags)
                    .unwrap();
            }),
            ("rename lower", 2, &|| {
                m.rename("d/lower", "e/lower").unwrap();
            }),
            ("unlink lower", 1, &|| m.unlink("d/lower2").unwrap()),
            ("rmdir", 1, &|| m.rmdir("d/new").unwrap()),
        ];
        for (part, _, step) in &steps {
            trace.begin(part);
            step();
        }
        let parts = trace.end();
        for (part, least, _) in &steps {
            let calls = parts[*part].iter().flat_map(|(_, calls)| calls);
            let flushes = calls.filter(|call| *call == "fsync").count();
            // A copy-up has flushes of its own.
            let is_right = match wanted {
                true => flushes >= *least,
                false => flushes == 0 || *part == "rename lower",
            };
            assert!(is_right, "{option}, {part}: {flushes} flushes");
        }
    }
}

/// A filesystem flushes no name, and no record, for fdatasync of a file; a user whose file was there
/// before it was copied up, or had its data, has not asked for these.
#[test]
fn the_first_flush_of_a_copy_is_a_whole_one() {
    let large = format!("large={}", "x".repeat(100_000));
    let m = Stack::new()
        .lower(["f=data", &large])
        .mount_with("threads=1,open=cached,metacopy=on");
    m.chmod("large", 0o600).unwrap();
    let trace = Trace::start(&m);
    let open = |name: &str| {
        let mut options = fs::File::options();
        options.read(true).write(true).open(m.p(name)).unwrap()
    };
    let file = open("f");
    for part in ["first", "second"] {
        file.write_all_at(b"D", 0).unwrap();
        trace.begin(part);
        file.sync_data().unwrap();
    }
    trace.begin("else");
    let large = fs::File::open(m.p("large")).unwrap();
    large.sync_all().unwrap();
    open("large").write_all_at(b"D", 0).unwrap();
    trace.begin("data came");
    large.sync_data().unwrap();
    trace.begin("again");
    large.sync_data().unwrap();
    let parts = trace.end();
    for (part, wanted) in [
        ("first", "fsync"),
        ("second", "fdatasync"),
        ("data came", "fsync"),
        ("again", "fdatasync"),
    ] {
        let requests = &parts[part];
        assert!(requests.iter().any(|(code, _)| *code == FSYNC), "{part}");
        // Another thread than the one that reads requests flushes: meanwhile others may have come, such as the
        // RELEASE of a descriptor that was held by somebody's fork.
        let calls: Vec<_> = requests.iter().flat_map(|(_, calls)| calls).collect();
        let made = calls.iter().any(|call| *call == wanted);
        let other = ["fsync", "fdatasync"]
            .iter()
            .any(|call| *call != wanted && calls.iter().any(|c| c == call));
        assert!(made && !other, "{part}: {calls:?}");
    }
}

/// A table of descriptors that has to grow stops all threads of the daemon for 10 to 20 ms in the kernel.
#[test]
fn the_table_of_descriptors_has_room_from_the_start() {
    for way in ["passthrough", "none", "cached"] {
        let m = Stack::new()
            .lower(["d/"])
            .mount_with(&format!("open={way}"));
        let of_daemon = |file: &str| format!("/proc/{}/{file}", m.pid());
        let room = || {
            let status = fs::read_to_string(of_daemon("status")).unwrap();
            let size = status.lines().find_map(|line| line.strip_prefix("FDSize:"));
            size.unwrap().trim().parse::<usize>().unwrap()
        };
        let open = || fs::read_dir(of_daemon("fd")).unwrap().count();
        let before = room();
        let _cached = CACHES.read();
        // More than the table of any new process has room for: it keeps them open.
        for n in 0..600 {
            fs::write(m.p(format!("f{n}")), "kept open").unwrap();
        }
        assert!(open() > 300, "{way}: {}", open());
        assert_eq!(room(), before, "{way}");
    }
}
