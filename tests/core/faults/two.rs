//! A change that meets a fault, and another change after it: what the first could not write down is not lost by
//! the second. Found by fuzzing.

use std::fs;

use rustix::io::Errno;
use unionfs::faults::{self, Fault};
use unionfs::options::{Options, WhiteoutForm};

use super::{FORMS, MEMORY, prepare};
use crate::ops::{Action, Do, Object, ROOT, Side};
use crate::union_side::UnionSide;

fn path(name: &str) -> Vec<Vec<u8>> {
    vec![name.as_bytes().to_vec()]
}

fn unlink(name: &str) -> Do {
    Do::Unlink { path: path(name) }
}

fn chmod(name: &str) -> Do {
    Do::On {
        object: Object::Path(path(name)),
        action: Action::Chmod { mode: 0o600 },
    }
}

/// Two files of a lower with two names each. The first loses one, which meets the fault; then the second is
/// changed. Returns whether the fault was met.
fn two_changes(form: WhiteoutForm, point: u32, copied: bool, second: &Do) -> bool {
    let place = tempfile::tempdir_in(MEMORY).unwrap();
    let [lower, upper] = ["l", "u"].map(|name| place.path().join(name));
    for dir in [&lower, &upper] {
        fs::create_dir(dir).unwrap();
    }
    for name in ["a", "b"] {
        fs::write(lower.join(name), name).unwrap();
        fs::hard_link(lower.join(name), lower.join(format!("{name}2"))).unwrap();
    }
    let mut union = UnionSide::new(Options {
        lowers: vec![lower.into()],
        upper: Some(upper),
        whiteout: form,
        ..Options::default()
    });
    if copied {
        union.run(ROOT, &chmod("a2")).unwrap();
    }
    faults::watch(Some((point, Fault::Fail(Errno::IO))));
    let result = union.run(ROOT, &unlink("a"));
    let is_met = faults::unwatch().len() > point as usize / 2;
    union.run(ROOT, second).unwrap();
    for _ in 0..2 {
        let tree = union.scan(1000);
        let links = |name: &str| tree.get(&path(name)).map(|seen| seen.nlink);
        let text = format!("{form:?}, point {point}, {result:?}, {second:?}");
        assert_eq!(
            links("a2"),
            Some(if result.is_ok() { 1 } else { 2 }),
            "{text}"
        );
        let is_there = matches!(second, Do::On { .. });
        assert_eq!(links("b2"), Some(if is_there { 2 } else { 1 }), "{text}");
        union.kept.clear();
        union.forget();
        union.union = None;
        union.reopen();
    }
    is_met
}

#[test]
fn the_number_of_names_is_not_lost_by_the_next_change() {
    prepare();
    for form in FORMS {
        for copied in [false, true] {
            for second in [unlink("b"), chmod("b")] {
                let points = (0..).step_by(2);
                let met = points.take_while(|point| two_changes(form, *point, copied, &second));
                assert!(met.count() > 3);
            }
        }
    }
}
