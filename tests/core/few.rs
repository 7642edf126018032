//! With few descriptors everything works as with many, only slower. The limit is the process's, so
//! each test runs itself again in a process of its own.

use std::fs;
use std::process::Command;

use unionfs::mount::open_union;
use unionfs::options::Options;
use unionfs::union::{Caller, OpenMode, ROOT, SetAttr};

use crate::harness::{case, run_cases, run_core};
use crate::model::Dialects;
use crate::plain::{keep_capabilities, prepare_thread};

/// Hardly more than the library sets aside for what it does not cache.
const LIMIT: &str = "--nofile=270:270";
const CHILD: &str = "UNIONFS_TEST_FEW_DESCRIPTORS";
const BY_ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 0,
};

/// True in the process with few descriptors; otherwise runs `test` in one.
fn is_limited(test: &str) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let status = Command::new("prlimit")
        .arg(LIMIT)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, "1")
        .status()
        .expect("prlimit of util-linux is needed");
    assert!(status.success(), "{test} with few descriptors");
    false
}

#[test]
fn random_operations_with_few_descriptors() {
    if is_limited("few::random_operations_with_few_descriptors") {
        prepare_thread();
        keep_capabilities();
        run_cases(
            "tests/core/core.proptest-regressions",
            &case(Dialects::All, 60),
            20,
            run_core,
        );
    }
}

#[test]
fn many_unlinked_files_stay_usable_with_few_descriptors() {
    if !is_limited("few::many_unlinked_files_stay_usable_with_few_descriptors") {
        return;
    }
    prepare_thread();
    let base = tempfile::tempdir().unwrap();
    let (lower, upper) = (base.path().join("lower"), base.path().join("upper"));
    fs::create_dir(&lower).unwrap();
    fs::create_dir(&upper).unwrap();
    for n in 0..100 {
        fs::write(lower.join(format!("low{n}")), "lower").unwrap();
        fs::write(upper.join(format!("up{n}")), "upper").unwrap();
    }
    let options = Options {
        lowers: vec![lower.into()],
        upper: Some(upper.clone()),
        ..Options::default()
    };
    let union = open_union(&options).unwrap();
    let write = OpenMode {
        append: false,
        write: true,
        truncate: false,
    };
    let mut kept = Vec::new();
    for n in 0..100 {
        // Copied up before it is unlinked, only after it, or never in a lower.
        for (name, before) in [("low", n % 2 == 0), ("up", true)] {
            let name = format!("{name}{n}");
            let id = union.lookup(ROOT, name.as_bytes()).unwrap().unwrap().id;
            if before {
                union.open(id, write, BY_ROOT).unwrap();
            }
            union.unlink(ROOT, name.as_bytes()).unwrap();
            kept.push(id);
        }
    }
    for (at, id) in kept.iter().enumerate() {
        assert_eq!(union.write(*id, 5, b" more", None).unwrap(), 5);
        let set = SetAttr {
            mode: Some(0o640),
            size: Some(10),
            ..SetAttr::default()
        };
        let stat = union.setattr(*id, &set, BY_ROOT).unwrap().stat;
        assert_eq!(
            (stat.nlink, stat.mode & 0o7777, stat.size),
            (0, 0o640, 10),
            "{at}"
        );
        let mut buf = [0; 20];
        let n = union.read(*id, 0, &mut buf).unwrap();
        let expected = if at % 2 == 0 {
            b"lower more"
        } else {
            b"upper more"
        };
        assert_eq!(&buf[..n], expected, "{at}");
        union.fsync(*id, 0, false).unwrap();
    }
    for id in kept {
        union.forget(id, 1);
    }
    assert_eq!(union.inode_count(), 1);
    drop(union);
    let left = fs::read_dir(upper.join(".wh..wh.orph")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "leftovers of temporaries");
}
