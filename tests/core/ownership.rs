//! Owners and modes kept in records, and ids mapped, without the kernel in between.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use proptest::prelude::*;
use rustix::io::Errno;
use unionfs::mount::open_union;
use unionfs::options::ownership::Records;
use unionfs::options::{Options, parse};
use unionfs::union::{Caller, Make, ROOT, SetAttr, Union};

use crate::harness::{Case, case, run_cases, run_core_with};
use crate::model::{Dialects, Dir, Node};
use crate::plain::{keep_capabilities, prepare_thread};

/// Without what an upper with records does not show: ACLs, and with `user.` records the real
/// files' own security attributes.
fn strip(dir: &mut Dir, attrs: &[&str]) {
    let keep = |attr: &&str| !attrs.iter().any(|start| attr.starts_with(start));
    dir.meta.xattrs.retain(|attr, _| keep(attr));
    for node in dir.slots.values_mut().filter_map(|slot| slot.real.as_mut()) {
        node.meta_mut().xattrs.retain(|attr, _| keep(attr));
        if let Node::Dir(dir) = node {
            strip(dir, attrs);
        }
    }
}

fn stripped(mut case: Case, attrs: &'static [&'static str]) -> Case {
    strip(&mut case.upper, attrs);
    for (lower, _) in &mut case.lowers {
        strip(lower, attrs);
    }
    case
}

#[test]
fn random_operations_with_records() {
    prepare_thread();
    keep_capabilities();
    let file = "tests/core/ownership.proptest-regressions";
    for (records, attrs) in [
        (Records::Security, &["system."][..]),
        // A symlink has no place for a security attribute under a `user.` name.
        (Records::User, &["system.", "security."]),
    ] {
        let cases = case(Dialects::All, 40).prop_map(|case| stripped(case, attrs));
        run_cases(file, &cases.boxed(), 60, |case| {
            run_core_with(case, records);
        });
    }
}

const NOBODY: Caller = Caller {
    uid: 1000,
    gid: 1000,
    pid: 0,
};

fn union(base: &Path, options: &str) -> Union {
    let at = |name| base.join(name).display().to_string();
    let text = format!(
        "lowerdir={},upperdir={},{options}",
        at("lower"),
        at("upper")
    );
    let options: Options = parse(&[text.into()]).unwrap();
    open_union(&options).unwrap()
}

fn layers() -> tempfile::TempDir {
    prepare_thread();
    let base = tempfile::tempdir().unwrap();
    for layer in ["lower", "upper"] {
        fs::create_dir(base.path().join(layer)).unwrap();
    }
    base
}

#[test]
fn ids_go_to_disk_and_back() {
    let base = layers();
    let union = union(base.path(), "uidmapping=0:1000:10,gidmapping=5:1000:10");
    let file = Make::Node {
        mode: 0o100_644,
        rdev: 0,
    };
    let made = union.make(ROOT, b"f", file, NOBODY, 0).unwrap();
    assert_eq!((made.attr.stat.uid, made.attr.stat.gid), (1000, 1000));
    let real = fs::metadata(base.path().join("upper/f")).unwrap();
    assert_eq!((real.uid(), real.gid()), (0, 5));
    let far = Caller { uid: 7, ..NOBODY };
    let refused = union.make(ROOT, b"g", file, far, 0);
    assert_eq!(refused.unwrap_err(), Errno::OVERFLOW);
    let give = |uid, gid| SetAttr {
        uid,
        gid,
        ..SetAttr::default()
    };
    let set = |set| {
        union
            .setattr(made.id, &set, far)
            .map(|a| (a.stat.uid, a.stat.gid))
    };
    assert_eq!(set(give(Some(1), None)), Err(Errno::OVERFLOW));
    assert_eq!(set(give(None, Some(1010))), Err(Errno::OVERFLOW));
    assert_eq!(set(give(Some(1009), Some(1001))), Ok((1009, 1001)));
    let real = fs::metadata(base.path().join("upper/f")).unwrap();
    assert_eq!((real.uid(), real.gid()), (9, 6));
    union.forget(made.id, 1);
}

#[test]
fn a_write_ends_set_ids_and_capabilities_of_a_record() {
    let base = layers();
    let union = union(base.path(), "xattr_permissions=2");
    let made = union.create(ROOT, b"f", 0o755, true, NOBODY, 0).unwrap();
    let id = made.id;
    let arm = || {
        let set = SetAttr {
            mode: Some(0o6755),
            ..SetAttr::default()
        };
        union.setattr(id, &set, NOBODY).unwrap();
        union
            .setxattr(id, b"security.capability", b"caps", 0, NOBODY)
            .unwrap();
    };
    let check = |what: &str, expected: u32| {
        let mode = union.getattr(id).unwrap().stat.mode & 0o7777;
        assert_eq!(mode, expected, "{what}: {mode:o}");
        let caps = union.getxattr(id, b"security.capability");
        assert_eq!(caps, Err(Errno::NODATA), "{what}");
        assert!(union.listxattr(id, NOBODY).unwrap().is_empty(), "{what}");
    };
    arm();
    union.write(id, 0, b"x", Some(NOBODY)).unwrap();
    check("write", 0o755);
    arm();
    union.write(id, 0, b"x", None).unwrap();
    check("write with CAP_FSETID", 0o6755);
    arm();
    union.fallocate(id, 0, 0, 10, NOBODY).unwrap();
    check("fallocate", 0o755);
    arm();
    let size = SetAttr {
        size: Some(1),
        ..SetAttr::default()
    };
    union.setattr(id, &size, NOBODY).unwrap();
    check("truncate", 0o755);
    arm();
    let owner = SetAttr {
        uid: Some(1000),
        ..SetAttr::default()
    };
    union.setattr(id, &owner, NOBODY).unwrap();
    check("chown", 0o755);
    union.forget(id, 1);
}
