//! What is quoted for `-o` is read back as it was: every option of the table that has a value, and
//! the word before the mountpoint. Any other text is options or an error of one line.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // It is a test.

mod draw;
mod layers;
mod settings;

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use proptest::prelude::*;
use proptest::sample::select;
use unionfs::options::ownership::IdMap;
use unionfs::options::table::{self, Status, Takes};
use unionfs::options::{Lower, Options, parse, parse_with_source, quote_path};

use draw::*;
use layers::layers;
use settings::{choices, numbers, texts};

/// Runs `case` on values that depend on `name`.
fn check(case: &Case, runs: u32) {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: runs,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(case, |(text, expected)| {
        let options = parse(std::slice::from_ref(&text));
        prop_assert_eq!(options, Ok(expected), "{}", text.display());
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn every_value_is_read_back() {
    // Maps show what they are only by what they do: see below.
    let apart = ["uidmapping", "gidmapping"];
    let mut without = Vec::new();
    for row in
        table::rows().filter(|row| row.status == Status::Supported && row.takes != Takes::Nothing)
    {
        for name in row.names.iter().filter(|name| !apart.contains(name)) {
            match layers(name)
                .or_else(|| choices(name))
                .or_else(|| numbers(name))
                .or_else(|| texts(name))
            {
                Some(case) => check(&case, 128),
                None => without.push(*name),
            }
        }
    }
    assert_eq!(without, [""; 0], "options without a case here");
}

/// Ranges that do not overlap, on either side: where each begins on disk, where as shown, and how
/// many ids it has.
fn ranges() -> impl Strategy<Value = Vec<(u32, u32, u32)>> {
    let range = (0u32..900, 0u32..900, 1u32..100);
    proptest::collection::vec(range, 0..5).prop_map(|ranges| {
        let apart = |(at, (disk, shown, count)): (usize, (u32, u32, u32))| {
            let at = u32::try_from(at).unwrap();
            (at * 1000 + disk, (9 - at) * 1_000_000 + shown, count)
        };
        ranges.into_iter().enumerate().map(apart).collect()
    })
}

fn check_map(map: &IdMap, ranges: &[(u32, u32, u32)]) {
    assert_eq!(map.is_identity(), ranges.is_empty());
    for &(disk, shown, count) in ranges {
        for id in [0, count / 2, count - 1] {
            assert_eq!(map.shown(disk + id), Some(shown + id));
            assert_eq!(map.on_disk(shown + id), Some(disk + id));
        }
    }
    if !ranges.is_empty() {
        let outside = 5_000_000;
        assert_eq!((map.shown(outside), map.on_disk(10_000_000)), (None, None));
    }
}

proptest! {
    #[test]
    fn maps_are_read_back(uids in ranges(), gids in ranges(), sign in select(vec![":", ",", "\\,"]), first in any::<bool>()) {
        let list = |ranges: &[(u32, u32, u32)]| {
            let triples = ranges.iter().map(|(disk, shown, count)| format!("{disk}:{shown}:{count}"));
            let start = if first { ":" } else { "" };
            format!("{start}{}", triples.collect::<Vec<_>>().join(sign))
        };
        let text = format!("lowerdir=/l,uidmapping={},gidmapping={}", list(&uids), list(&gids));
        let options = parse(&[text.into()]).unwrap();
        check_map(&options.ownership.uids, &uids);
        check_map(&options.ownership.gids, &gids);
    }

    #[test]
    fn any_branches_are_layers_or_one_line(
        branches in proptest::collection::vec(prop_oneof![read_branch(), write_branch(), odd_branch()], 1..4),
    ) {
        match parse(&[option("br", written(&branches))]) {
            Ok(options) => for warning in options.warnings {
                prop_assert!(!warning.chars().any(char::is_control), "{warning:?}");
            },
            Err(error) => {
                let error = error.to_string();
                prop_assert!(!error.chars().any(char::is_control), "{error:?}");
            }
        }
    }
}

/// A branch with an attribute that nobody knows.
fn odd_branch() -> impl Strategy<Value = Branch> {
    path().prop_map(|path| (path, "rw+frob", false))
}

/// A directory that nobody takes for a mere name.
fn rooted() -> impl Strategy<Value = PathBuf> {
    path().prop_map(|path| {
        let text = [b"/", path.as_os_str().as_bytes(), b"."].concat();
        OsString::from_vec(text).into()
    })
}

proptest! {
    #[test]
    fn a_source_of_lowers_is_read_back(paths in proptest::collection::vec(rooted(), 1..5), upper in path()) {
        let source = join(paths.iter().map(|path| quote_path(path)));
        let texts = [option("upperdir", quote_path(&upper)), ",,".into()];
        let expected = Options {
            lowers: paths.into_iter().map(Lower::from).collect(),
            upper: Some(upper),
            source: Some(source.clone()),
            ..Options::default()
        };
        prop_assert_eq!(parse_with_source(Some(&source), &texts), Ok(expected));
    }

    #[test]
    fn a_source_of_branches_is_read_back(
        upper in rooted(),
        below in proptest::collection::vec((rooted(), select(vec!["=RO", "=ro", "=rr", ""])), 0..4),
    ) {
        // Its whiteouts count, whatever the permission: unionfs-fuse knows no other way.
        let mut source = quote_path(&upper);
        source.push("=RW");
        for (path, perm) in &below {
            source.push(":");
            source.push(quote_path(path));
            source.push(perm);
        }
        let expected = Options {
            lowers: below.into_iter().map(|(path, _)| path.into()).collect(),
            upper: Some(upper),
            source: Some(source.clone()),
            ..Options::default()
        };
        prop_assert_eq!(parse_with_source(Some(&source), &["cow".into()]), Ok(expected));
    }

    #[test]
    fn any_text_is_options_or_one_line(source in bytes(), texts in proptest::collection::vec(any_text(), 0..4)) {
        match parse_with_source(Some(&source), &texts) {
            Ok(options) => prop_assert!(
                options.remount || options.upper.is_some() || !options.lowers.is_empty()
            ),
            Err(error) => {
                let error = error.to_string();
                prop_assert!(error.starts_with("option ") && !error.chars().any(char::is_control), "{error:?}");
            }
        }
    }
}

/// Options of the table with values that may be wrong, and what is none at all.
fn any_text() -> impl Strategy<Value = OsString> {
    let names: Vec<&str> = table::rows().flat_map(|row| row.names).copied().collect();
    let sign = select(vec!["", "=", ":", "=\"", "=1:", "=/a=rw:"]);
    (select(names), sign, bytes()).prop_map(|(name, sign, value)| {
        let mut text = OsString::from(format!("lowerdir=/l,{name}{sign}"));
        text.push(value);
        text
    })
}
