//! Options that name layers, with what they mean.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use proptest::prelude::*;
use proptest::sample::select;
use unionfs::options::{Lower, Options, quote_path};

use crate::draw::*;

/// Options that name layers.
pub(crate) fn layers(name: &'static str) -> Option<Case> {
    let below = || proptest::collection::vec(read_branch(), 1..4);
    let case = match name {
        "lowerdir" => proptest::collection::vec(path(), 1..5)
            .prop_map(|paths| {
                let value = join(paths.iter().map(|path| quote_path(path)));
                (
                    option("lowerdir", value),
                    read_only(paths.into_iter().map(Lower::from).collect()),
                )
            })
            .boxed(),
        "lowerdir+" => setting(name, path().prop_map(quoted), |o, path| {
            o.lowers.push(path.into());
        }),
        "upperdir" => setting(name, path().prop_map(quoted), |o, path| {
            (o.upper, o.read_only) = (Some(path), false);
        }),
        "workdir" => setting(name, path().prop_map(quoted), |o, path| o.work = Some(path)),
        "chroot" => setting(name, path().prop_map(quoted), |o, root| {
            o.lowers[0].path = root.join("l");
        }),
        "br" | "dirs" => (write_branch(), below(), select(vec!["=", ":"]))
            .prop_map(move |(upper, below, sign)| {
                let mut text = OsString::from(format!("{name}{sign}"));
                let expected = union_of(&upper, &below);
                text.push(written(&[&[upper], &below[..]].concat()));
                (text, expected)
            })
            .boxed(),
        "add" | "ins" | "append" | "prepend" | "del" | "mod" => {
            (write_branch(), below(), read_branch(), any::<bool>())
                .prop_map(move |(upper, below, one, colon)| {
                    changed(name, &upper, &below, &one, colon)
                })
                .boxed()
        }
        _ => return None,
    };
    Some(case)
}

/// A list of branches, changed by a second option.
fn changed(
    name: &str, upper: &Branch, below: &[Branch], one: &Branch, colon: bool,
) -> (OsString, Options) {
    let all = |branches: &[Branch]| [std::slice::from_ref(upper), branches].concat();
    let with = |at: usize| {
        let mut all = below.to_vec();
        all.insert(at, one.clone());
        all
    };
    let one_text = written(std::slice::from_ref(one));
    // The list that is there, the value of the option, the list that there will be.
    let (given, value, below) = match name {
        "append" => (all(below), one_text, with(below.len())),
        "add" | "ins" => (all(below), join(["1".into(), one_text]), with(0)),
        // The upper is put over the lowers.
        "prepend" => (
            below.to_vec(),
            written(std::slice::from_ref(upper)),
            below.to_vec(),
        ),
        _ => {
            // A branch goes by its directory, so no other may have the same.
            let others: Vec<_> = below.iter().filter(|b| b.0 != one.0).cloned().collect();
            let upper_is_it = upper.0 == one.0;
            let mut before = all(&others);
            before.push((one.0.clone(), "ro", false));
            if upper_is_it {
                before.remove(0);
                let lowers = [others, vec![one.clone()]].concat();
                let text = [b"br=", written(&lowers).as_bytes()].concat();
                return (OsString::from_vec(text), read_only(self::lowers(&lowers)));
            }
            match name {
                "del" => (before, quote_path(&one.0), others),
                _ => (before, one_text, [others, vec![one.clone()]].concat()),
            }
        }
    };
    let mut text = option("br", written(&given));
    text.push(format!(",{name}{}", if colon { ":" } else { "=" }));
    text.push(value);
    (text, union_of(upper, &below))
}
