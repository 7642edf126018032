//! An object that is known by several node ids: while it is referred to by any of them it is one
//! object, and then it is gone.

use std::fs;
use std::os::unix::fs::MetadataExt;

use unionfs::mount::open_union;
use unionfs::options::Options;
use unionfs::union::{Caller, Keep, OpenMode, ROOT, SetAttr, Union};

use crate::plain::{keep_capabilities, prepare_thread};

const BY_ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 0,
};
const WRITE: OpenMode = OpenMode {
    append: false,
    write: true,
    truncate: false,
};

fn union_of(items: &[&str]) -> (tempfile::TempDir, Union) {
    prepare_thread();
    keep_capabilities();
    let base = tempfile::tempdir().unwrap();
    let (lower, upper) = (base.path().join("lower"), base.path().join("upper"));
    fs::create_dir(&lower).unwrap();
    fs::create_dir(&upper).unwrap();
    for name in items {
        fs::write(lower.join(name), name).unwrap();
    }
    let options = Options {
        lowers: vec![lower.into()],
        upper: Some(upper),
        ..Options::default()
    };
    (base, open_union(&options).unwrap())
}

fn known(union: &Union, name: &str) -> Option<u64> {
    let entry = union.lookup(ROOT, name.as_bytes()).unwrap();
    entry.map(|entry| entry.id)
}

#[test]
fn references_balance_whichever_node_goes_first() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let (base, union) = union_of(&["f"]);
        let first = known(&union, "f").unwrap();
        let attr = union.getattr(first).unwrap();
        assert_eq!(attr.keep, Keep::Long);
        let lower = fs::metadata(base.path().join("lower/f")).unwrap();
        union.open(first, WRITE, BY_ROOT).unwrap();
        union.switch_node(first).unwrap();
        // Once is enough, for those who still know the first only.
        union.switch_node(first).unwrap();
        let second = known(&union, "f").unwrap();
        assert_ne!(first, second);
        union.switch_node(second).unwrap();
        let third = known(&union, "f").unwrap();
        assert_eq!(union.node_ids(second).unwrap()[..], [first, second, third]);
        let ids = [first, second, third];
        for id in ids {
            let now = union.getattr(id).unwrap();
            assert_eq!((now.ino, now.keep), (attr.ino, Keep::Not));
            assert_ne!(now.stat.ino, lower.ino());
        }
        union.write(second, 0, b"X", None).unwrap();
        let set = SetAttr {
            mode: Some(0o600),
            ..SetAttr::default()
        };
        union.setattr(first, &set, BY_ROOT).unwrap();
        assert_eq!(union.getattr(third).unwrap().stat.mode & 0o777, 0o600);
        for which in order {
            union.forget(ids[which], 1);
        }
        assert_eq!(union.inode_count(), 1);
        for id in ids {
            assert!(union.getattr(id).is_err());
        }
        let again = union.lookup(ROOT, b"f").unwrap().unwrap();
        assert_eq!(again.attr.ino, attr.ino);
        assert_eq!(again.attr.keep, Keep::Long);
        assert!(!ids[1..].contains(&again.id));
        union.forget(again.id, 1);
        assert_eq!(union.inode_count(), 1);
    }
}

/// The object goes on by its former nodes when its name is taken over by another one.
#[test]
fn a_name_that_goes_to_another_object() {
    let (_base, union) = union_of(&["f"]);
    let first = known(&union, "f").unwrap();
    union.open(first, WRITE, BY_ROOT).unwrap();
    union.switch_node(first).unwrap();
    let second = known(&union, "f").unwrap();
    union.unlink(ROOT, b"f").unwrap();
    assert_eq!(known(&union, "f"), None);
    let made = union.create(ROOT, b"f", 0o644, true, BY_ROOT, 0).unwrap();
    assert!(![first, second].contains(&made.id));
    for id in [first, second] {
        assert_eq!(union.getattr(id).unwrap().stat.nlink, 0);
    }
    union.write(second, 0, b"old", None).unwrap();
    assert_eq!(union.getattr(made.id).unwrap().stat.size, 0);
    union.forget(first, 1);
    union.forget(second, 1);
    union.forget(made.id, 1);
    assert_eq!(union.inode_count(), 1);
}

/// Attributes are not kept while a mapping may change them, and for a short time only afterwards.
#[test]
fn attributes_of_files_that_may_be_mapped() {
    let (_base, union) = union_of(&["f"]);
    let id = known(&union, "f").unwrap();
    let keep = || union.getattr(id).unwrap().keep;
    union.mapper_opened(id).unwrap();
    union.mapper_opened(id).unwrap();
    union.mapper_closed(id);
    assert_eq!(keep(), Keep::Not);
    union.mapper_closed(id);
    assert_eq!(keep(), Keep::Short);
    union.set_ids_may_go(id);
    assert_eq!(keep(), Keep::Not);
    union.forget(id, 1);
    let id = known(&union, "f").unwrap();
    assert_eq!(union.getattr(id).unwrap().keep, Keep::Long);
    union.forget(id, 1);
}
