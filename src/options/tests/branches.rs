//! Branches, sources and the option table.

use std::collections::HashSet;

use crate::options::table::{self, Peer, Status, Takes};
use crate::options::*;

fn mounted(source: &str, text: &str) -> Result<Options, OptionError> {
    parse_with_source(Some(OsStr::new(source)), &[text.into()])
}

fn layers(options: &Options) -> (Option<&str>, Vec<(&str, bool)>) {
    let path = |path: &PathBuf| path.to_str().unwrap().to_owned().leak() as &str;
    let lowers = options.lowers.iter().map(|l| (path(&l.path), l.whiteouts));
    (options.upper.as_ref().map(path), lowers.collect())
}

#[track_caller]
fn check(source: &str, text: &str, upper: Option<&str>, lowers: &[(&str, bool)]) -> Options {
    let options = mounted(source, text).unwrap();
    assert_eq!(
        layers(&options),
        (upper, lowers.to_vec()),
        "{source} {text}"
    );
    options
}

#[test]
fn aufs_branches() {
    for text in [
        "br:/u=rw:/l1=ro+wh:/l2=ro+wh",
        "br=/u=rw:/l1=ro+wh:/l2=rr+wh",
        "dirs=/u=rw:/l1=ro+wh:/l2=ro+wh",
        "dirs:/u:/l1:/l2",
        "br:/u=RW:/l1=RO:/l2",
        "br:/u=rw,append:/l1=ro+wh:/l2",
        "br:/l2=ro+wh,prepend=/u=rw:/l1=rr+wh",
        "br:/u=rw:/l2=ro+wh,add:1:/l1=ro+wh",
        "br:/u=rw:/l1=ro:/x:/l2,del:/x,mod:/l1=ro+wh,del:/not",
    ] {
        let options = check("none", text, Some("/u"), &[("/l1", true), ("/l2", true)]);
        assert_eq!(options.source(), "none");
        assert!(
            options.warnings.is_empty(),
            "{text}: {:?}",
            options.warnings
        );
    }
    let plain = [("/l1", false), ("/l2", false)];
    check("none", "br:/u=rw:/l1=ro:/l2=rr", Some("/u"), &plain);
    check(
        "none",
        "br:/l1=ro+wh:/l2=ro+wh",
        None,
        &[("/l1", true), ("/l2", true)],
    );
    assert!(check("none", "br:/u=rw+nolwh:/l", Some("/u"), &[("/l", true)]).separate_whiteouts);
    // A `=` that does not begin a permission is part of the name.
    check(
        "none",
        r"br:/u=x=rw:/l=y:/a\:b=ro+wh",
        Some("/u=x"),
        &[("/l=y", true), ("/a:b", true)],
    );
    check("none", "br:/u=rw", Some("/u"), &[]);
}

#[test]
fn unionfs_fuse_branches() {
    let two = [("/l1", true), ("/l2", true)];
    check("/u=RW:/l1=RO:/l2=RO", "cow,allow_other", Some("/u"), &two);
    check("/u=rw:/l1=ro:/l2", "cow", Some("/u"), &two);
    check("/l1=RO:/l2=RO", "", None, &two);
    check("label", "cow,dirs=/u=rw,/l1=ro,/l2=ro", Some("/u"), &two);
    check("label", "dirs=/l1:/l2,cow", None, &two);
    let won = check("/x=RW:/y=RO", "dirs=/u=RW:/l1=RO:/l2=RO", Some("/u"), &two);
    assert_eq!(won.source(), "/x=RW:/y=RO");
}

#[test]
fn a_source_is_layers_when_no_option_is() {
    let two = [("/l1", true), ("/l2", true)];
    let options = check("/l1:/l2", "upperdir=/u,workdir=/w", Some("/u"), &two);
    assert_eq!(options.source(), "/l1:/l2");
    check("/x:/y", "lowerdir=/l1:/l2", None, &two);
    check("/x:/y", "lowerdir=/l1,lowerdir+=/l2", None, &two);
    check("l1:l2", "", None, &[("l1", true), ("l2", true)]);
    assert_eq!(check("/l1:/l2", "fsname=name", None, &two).source(), "name");
    for label in ["none", "overlay", ""] {
        assert_eq!(
            mounted(label, "upperdir=/u"),
            Err(OptionError::NoLower),
            "{label}"
        );
    }
}

#[test]
fn owners_that_are_made_up_run_nothing() {
    for text in ["squash_to_root", "squash_to_uid=0", "uid=0", "gid=5"] {
        let nosuid = |text: &str| mounted("/l:/m", text).unwrap().kernel_flags.nosuid;
        assert!(nosuid(text), "{text}");
        assert!(!nosuid(&format!("suid,{text}")) && !nosuid(&format!("{text},suid")));
    }
    assert!(
        !mounted("/l:/m", "uidmapping=0:1000:1")
            .unwrap()
            .kernel_flags
            .nosuid
    );
}

#[test]
fn what_cannot_be() {
    let error = |text| mounted("none", text).unwrap_err().to_string();
    assert_eq!(
        error("br:/l=ro:/u=rw"),
        "option br: the writable branch /u is not the first"
    );
    assert_eq!(
        error("br:/u=rw:/l,upperdir=/v"),
        "option br: contradicts upperdir"
    );
    assert_eq!(
        error("br:/u=rw:/l,br:/u"),
        "option br: the branches are given twice, and not the same"
    );
    assert_eq!(
        error("br:/u=rw::/l"),
        "option br: part 2 of the list is empty (\\: writes a colon)"
    );
    assert_eq!(
        error("br:/u=rw,allow_other,allow_root"),
        "option allow_root: contradicts allow_other"
    );
    assert_eq!(
        error("br:/u=rw,mod:/x=ro"),
        "option mod: there is no such branch"
    );
    let place = "needs the number of a place, and branches to put there";
    for text in ["br:/u=rw,add:2:/x", "br:/u=rw,add:1", "br:/u=rw,add:x:/l"] {
        assert_eq!(error(text), format!("option br: {place}"), "{text}");
    }
    let two = mounted("none", "br:/u=rw:/v=rw:/l=ro+frob").unwrap();
    assert_eq!(
        layers(&two),
        (Some("/u"), vec![("/v", true), ("/l", false)])
    );
    assert_eq!(two.warnings.len(), 2, "{:?}", two.warnings);
}

#[test]
fn every_row_of_the_table_is_what_it_says() {
    let mut names = HashSet::new();
    for row in table::rows() {
        assert!(
            !row.names.is_empty() && !row.peers.is_empty() && row.text.len() > 8,
            "{row:?}"
        );
        assert!(
            row.names.iter().all(|name| names.insert(*name)),
            "twice: {row:?}"
        );
        let named = |name: &str| row.example.contains(name.trim_end_matches('*'));
        assert!(row.names.iter().any(|name| named(name)), "{row:?}");
        let result = parse(&[row.example.into()]);
        match row.status {
            Status::Refused => assert!(
                matches!(result, Err(OptionError::Refused { .. })),
                "{row:?}: {result:?}"
            ),
            _ => {
                let options = result.unwrap_or_else(|error| panic!("{row:?}: {error}"));
                assert!(
                    options.ignored.is_empty() && options.warnings.is_empty(),
                    "{row:?}"
                );
            }
        }
        for name in row.names.iter().filter(|name| !name.ends_with('*')) {
            let bare = parse(&[format!("lowerdir=/l,{name}").into()]);
            let missing = matches!(bare, Err(OptionError::NeedsValue { .. }));
            let needs = row.status == Status::Supported && matches!(row.takes, Takes::Value(_));
            assert_eq!(missing, needs, "{name}: {bare:?}");
        }
    }
    for peer in Peer::ALL {
        assert!(table::count(peer)[0] > 0, "{}", peer.name());
    }
}
