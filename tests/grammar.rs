//! What is quoted for `-o` is read back as it was: every option of the table that has a value, and
//! the word before the mountpoint. Any other text is options or an error of one line.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::select;
use unionfs::options::ownership::{IdMap, Records};
use unionfs::options::table::{self, Status, Takes};
use unionfs::options::{Lower, Options, WhiteoutForm, parse, parse_with_source, quote, quote_path};

/// A text for `-o`, and what it means.
type Case = BoxedStrategy<(OsString, Options)>;

/// Bytes that the grammar cares about come often.
fn bytes() -> impl Strategy<Value = OsString> {
    let byte = prop_oneof![3 => select(br#"\:,"=+ a/"#.to_vec()), 1 => 1u8..];
    proptest::collection::vec(byte, 1..12).prop_map(OsString::from_vec)
}

fn path() -> impl Strategy<Value = PathBuf> {
    bytes().prop_map(PathBuf::from)
}

fn text() -> impl Strategy<Value = String> {
    proptest::collection::vec(
        prop_oneof![select(vec!['\\', ':', ',', '"', '=', ' ']), any::<char>()],
        1..9,
    )
    .prop_map(|chars| chars.into_iter().filter(|&c| c != '\0').collect::<String>())
    .prop_filter("no value", |text| !text.is_empty())
}

/// A branch: its directory, its permission as written, and whether its whiteouts count.
type Branch = (PathBuf, &'static str, bool);

fn read_branch() -> impl Strategy<Value = Branch> {
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

fn write_branch() -> impl Strategy<Value = Branch> {
    (path(), select(vec!["rw", "RW", "rw+moo"])).prop_map(|(path, perm)| (path, perm, true))
}

fn join(parts: impl IntoIterator<Item = OsString>) -> OsString {
    let parts: Vec<Vec<u8>> = parts.into_iter().map(OsString::into_vec).collect();
    OsString::from_vec(parts.join(&b':'))
}

fn written(branches: &[Branch]) -> OsString {
    join(branches.iter().map(|(path, perm, _)| {
        let mut part = quote_path(path);
        part.push("=");
        part.push(perm);
        part
    }))
}

fn lowers(branches: &[Branch]) -> Vec<Lower> {
    let lower = |(path, _, whiteouts): &Branch| Lower {
        path: path.clone(),
        whiteouts: *whiteouts,
    };
    branches.iter().map(lower).collect()
}

/// A union of the branches; the first one takes changes.
fn union_of(upper: &Branch, below: &[Branch]) -> Options {
    Options {
        upper: Some(upper.0.clone()),
        lowers: lowers(below),
        ..Options::default()
    }
}

fn read_only(lowers: Vec<Lower>) -> Options {
    Options {
        lowers,
        read_only: true,
        ..Options::default()
    }
}

fn option(name: &str, value: impl AsRef<OsStr>) -> OsString {
    let mut text = OsString::from(name);
    text.push("=");
    text.push(value);
    text
}

/// The option beside a lower, where it changes what `change` changes.
fn setting<T: std::fmt::Debug + 'static>(
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

fn quoted<T: AsRef<OsStr>>(value: T) -> (OsString, T) {
    (quote(value.as_ref()), value)
}

fn number<T: std::fmt::Display>(number: T) -> (OsString, T) {
    (number.to_string().into(), number)
}

fn words<T: Copy + std::fmt::Debug + 'static>(
    words: &[(&'static str, T)],
) -> impl Strategy<Value = (OsString, T)> + use<T> {
    select(words.to_vec()).prop_map(|(word, meaning)| (word.into(), meaning))
}

fn seconds() -> impl Strategy<Value = (OsString, Option<Duration>)> {
    let millis = (0u64..1_000_000).prop_map(|millis| {
        let text = format!("{}.{:03}", millis / 1000, millis % 1000);
        (text.into(), Some(Duration::from_millis(millis)))
    });
    prop_oneof![millis, Just(("1000000000".into(), None))]
}

fn octal() -> impl Strategy<Value = (OsString, Option<u32>)> {
    (0u32..=0o777).prop_map(|mask| (format!("{mask:03o}").into(), Some(mask)))
}

/// Options that name layers.
fn layers(name: &'static str) -> Option<Case> {
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
            o.lowers.push(path.into())
        }),
        "upperdir" => setting(name, path().prop_map(quoted), |o, path| {
            (o.upper, o.read_only) = (Some(path), false);
        }),
        "workdir" => setting(name, path().prop_map(quoted), |o, path| o.work = Some(path)),
        "chroot" => setting(name, path().prop_map(quoted), |o, root| {
            o.lowers[0].path = root.join("l")
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

/// An SELinux label, in quotes for its comma.
fn label() -> impl Strategy<Value = (OsString, String)> {
    "[a-z_]{1,9}(:[a-z_]{1,9}){2}(:s[0-9]:c[0-9]{1,3},c[0-9]{1,3})?"
        .prop_map(|label| (format!("\"{label}\"").into(), label))
}

/// As the kernel is given it.
fn shown(name: &str, label: &str) -> OsString {
    format!("{name}=\"{label}\"").into()
}

/// All other options.
fn settings(name: &'static str) -> Option<Case> {
    let forms = [
        ("aufs", WhiteoutForm::Aufs),
        ("overlay", WhiteoutForm::Overlay),
    ];
    let syncs = [
        ("0", true),
        ("1", false),
        ("volatile", true),
        ("auto", false),
        ("strict", false),
    ];
    let opaque = [
        ("a", true),
        ("always", true),
        ("w", false),
        ("whiteouted", false),
    ];
    let records = [
        ("0", Records::Inode),
        ("1", Records::Security),
        ("2", Records::User),
    ];
    let ids = || (0..u32::MAX).prop_map(number);
    let sizes = || (4096u32..=1 << 20).prop_map(number);
    let case = match name {
        "whiteout" => setting(name, words(&forms), |o, form| o.whiteout = form),
        "diropq" => setting(name, words(&opaque), |o, always| o.always_opaque = always),
        "fsync" | "sync" => setting(name, words(&syncs), |o, volatile| o.volatile = volatile),
        "threads" => setting(name, (1usize..=64).prop_map(number), |o, n| {
            o.threads = Some(n)
        }),
        "max_threads" => setting(name, (1usize..).prop_map(number), |o, n| {
            o.threads = Some(n.min(64))
        }),
        "fsname" => setting(name, bytes().prop_map(quoted), |o, source| {
            o.source = Some(source)
        }),
        "log" => setting(name, text().prop_map(quoted), |o, log| o.log = Some(log)),
        "log_file" | "debug_file" => setting(name, path().prop_map(quoted), |o, file| {
            o.log_file = Some(file)
        }),
        "timeout" => setting(name, seconds(), |o, time| {
            (o.cache.attr, o.cache.entry, o.cache.negative) = (time, time, time);
        }),
        "attr_timeout" => setting(name, seconds(), |o, time| o.cache.attr = time),
        "entry_timeout" => setting(name, seconds(), |o, time| o.cache.entry = time),
        "negative_timeout" => setting(name, seconds(), |o, time| o.cache.negative = time),
        "max_read" => setting(name, sizes(), |o, n| o.max_read = Some(n)),
        "max_write" => setting(name, sizes(), |o, n| o.max_write = Some(n)),
        "umask" => setting(name, octal(), |o, mask| {
            (o.shown.file_mask, o.shown.dir_mask) = (mask, mask);
        }),
        "fmask" => setting(name, octal(), |o, mask| o.shown.file_mask = mask),
        "dmask" => setting(name, octal(), |o, mask| o.shown.dir_mask = mask),
        "uid" => setting(name, ids(), |o, id| o.shown.uid = Some(id)),
        "gid" => setting(name, ids(), |o, id| o.shown.gid = Some(id)),
        "squash_to_uid" => setting(name, ids(), |o, id| o.ownership.squash_uid = Some(id)),
        "squash_to_gid" => setting(name, ids(), |o, id| o.ownership.squash_gid = Some(id)),
        "xattr_permissions" => setting(name, words(&records), |o, kept| o.ownership.records = kept),
        "noxattrs" => setting(name, words(&[("0", false), ("1", true)]), |o, no| {
            o.no_xattrs = no
        }),
        "verity" => setting(name, words(&[("off", ())]), |_, ()| {}),
        // With a value it is aufs's, and without effect.
        "debug" => setting(name, any::<u8>().prop_map(number), |_, _| {}),
        "subtype" => setting(name, "[a-zA-Z0-9._+-]{1,64}".prop_map(quoted), |o, word| {
            o.subtype = Some(word.into());
        }),
        "context" => setting(name, label(), |o, text| {
            o.labels = vec![shown("context", &text)]
        }),
        "fscontext" => setting(name, label(), |o, text| {
            o.labels = vec![shown("fscontext", &text)]
        }),
        "defcontext" => setting(name, label(), |o, text| {
            o.labels = vec![shown("defcontext", &text)]
        }),
        "rootcontext" => setting(name, label(), |o, text| {
            o.labels = vec![shown("rootcontext", &text)]
        }),
        "droplvl" => setting(name, (-9i8..=9).prop_map(number), |o, level| {
            o.kernel_flags.noatime = level >= 1
        }),
        "create" | "create_policy" | "cpup" | "copyup" | "copyup_policy" => {
            setting(name, bytes().prop_map(quoted), |_, _| {})
        }
        _ => return None,
    };
    Some(case)
}

/// Runs `case` on values that depend on `name`.
fn check(case: Case, runs: u32) {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: runs,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&case, |(text, expected)| {
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
            match layers(name).or_else(|| settings(name)) {
                Some(case) => check(case, 128),
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
