//! Values, and how they are written.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::select;
use unionfs::options::{Lower, Options, quote, quote_path};

/// A text for `-o`, and what it means.
pub(crate) type Case = BoxedStrategy<(OsString, Options)>;

/// Bytes that the grammar cares about come often.
pub(crate) fn bytes() -> impl Strategy<Value = OsString> {
    let byte = prop_oneof![3 => select(br#"\:,"=+ a/"#.to_vec()), 1 => 1u8..];
    proptest::collection::vec(byte, 1..12).prop_map(OsString::from_vec)
}

pub(crate) fn path() -> impl Strategy<Value = PathBuf> {
    bytes().prop_map(PathBuf::from)
}

pub(crate) fn text() -> impl Strategy<Value = String> {
    proptest::collection::vec(
        prop_oneof![select(vec!['\\', ':', ',', '"', '=', ' ']), any::<char>()],
        1..9,
    )
    .prop_map(|chars| chars.into_iter().filter(|&c| c != '\0').collect::<String>())
    .prop_filter("no value", |text| !text.is_empty())
}

/// A branch: its directory, its permission as written, and whether its whiteouts count.
pub(crate) type Branch = (PathBuf, &'static str, bool);

pub(crate) fn read_branch() -> impl Strategy<Value = Branch> {
    let perms = [
        ("ro", false),
        ("rr", false),
        ("ro+wh", true),
        ("rr+wh", true),
        ("RO", true),
        ("ro+icex+wh", true),
    ];
    (path(), select(perms.to_vec())).prop_map(|(path, (perm, wh))| (path, perm, wh))
}

pub(crate) fn write_branch() -> impl Strategy<Value = Branch> {
    (path(), select(vec!["rw", "RW", "rw+moo"])).prop_map(|(path, perm)| (path, perm, true))
}

pub(crate) fn join(parts: impl IntoIterator<Item = OsString>) -> OsString {
    let parts: Vec<Vec<u8>> = parts.into_iter().map(OsString::into_vec).collect();
    OsString::from_vec(parts.join(&b':'))
}

pub(crate) fn written(branches: &[Branch]) -> OsString {
    join(branches.iter().map(|(path, perm, _)| {
        let mut part = quote_path(path);
        part.push("=");
        part.push(perm);
        part
    }))
}

pub(crate) fn lowers(branches: &[Branch]) -> Vec<Lower> {
    let lower = |(path, _, whiteouts): &Branch| Lower {
        path: path.clone(),
        whiteouts: *whiteouts,
    };
    branches.iter().map(lower).collect()
}

/// A union of the branches; the first one takes changes.
pub(crate) fn union_of(upper: &Branch, below: &[Branch]) -> Options {
    Options {
        upper: Some(upper.0.clone()),
        lowers: lowers(below),
        ..Options::default()
    }
}

pub(crate) fn read_only(lowers: Vec<Lower>) -> Options {
    Options {
        lowers,
        read_only: true,
        ..Options::default()
    }
}

pub(crate) fn option(name: &str, value: impl AsRef<OsStr>) -> OsString {
    let mut text = OsString::from(name);
    text.push("=");
    text.push(value);
    text
}

/// The option beside a lower, where it changes what `change` changes.
pub(crate) fn setting<T: std::fmt::Debug + 'static>(
    name: &'static str, values: impl Strategy<Value = (OsString, T)> + 'static,
    change: fn(&mut Options, T),
) -> Case {
    values
        .prop_map(move |(value, meaning)| {
            let mut expected = read_only(vec!["/l".into()]);
            change(&mut expected, meaning);
            (option(&format!("lowerdir=/l,{name}"), value), expected)
        })
        .boxed()
}

pub(crate) fn quoted<T: AsRef<OsStr>>(value: T) -> (OsString, T) {
    (quote(value.as_ref()), value)
}

pub(crate) fn number<T: std::fmt::Display>(number: T) -> (OsString, T) {
    (number.to_string().into(), number)
}

pub(crate) fn words<T: Copy + std::fmt::Debug + 'static>(
    words: &[(&'static str, T)],
) -> impl Strategy<Value = (OsString, T)> + use<T> {
    select(words.to_vec()).prop_map(|(word, meaning)| (word.into(), meaning))
}

pub(crate) fn seconds() -> impl Strategy<Value = (OsString, Option<Duration>)> {
    let millis = (0u64..1_000_000).prop_map(|millis| {
        let text = format!("{}.{:03}", millis / 1000, millis % 1000);
        (text.into(), Some(Duration::from_millis(millis)))
    });
    prop_oneof![millis, Just(("1000000000".into(), None))]
}

pub(crate) fn octal() -> impl Strategy<Value = (OsString, Option<u32>)> {
    (0u32..=0o777).prop_map(|mask| (format!("{mask:03o}").into(), Some(mask)))
}
