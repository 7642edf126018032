mod branches;

use std::os::unix::ffi::{OsStrExt, OsStringExt};

use proptest::prelude::*;

use super::*;

fn parsed(texts: &[&str]) -> Result<Options, OptionError> {
    parse(&texts.iter().map(OsString::from).collect::<Vec<_>>())
}

fn good(text: &str) -> Options {
    parsed(&[text]).unwrap()
}

fn lowers<P: Into<PathBuf>>(paths: impl IntoIterator<Item = P>) -> Vec<Lower> {
    paths.into_iter().map(Lower::from).collect()
}

fn bad(text: &str) -> String {
    parsed(&[text]).unwrap_err().to_string()
}

#[test]
fn a_full_line() {
    let options = good(
        "lowerdir=/l1:/l2,upperdir=/u,workdir=/w,whiteout=overlay,threads=8,fsname=src,\
         allow_other,nosuid,nodev,noexec,noatime,dirsync,sync,log=debug,log_file=/log,volatile",
    );
    assert_eq!(
        options,
        Options {
            ownership: ownership::Ownership::default(),
            lowers: vec!["/l1".into(), "/l2".into()],
            upper: Some("/u".into()),
            work: Some("/w".into()),
            whiteout: WhiteoutForm::Overlay,
            read_only: false,
            volatile: true,
            threads: Some(8),
            source: Some("src".into()),
            allow: Allow::Other,
            kernel_flags: KernelFlags {
                nosuid: true,
                nodev: true,
                noexec: true,
                noatime: true,
                dirsync: true,
                sync: true,
                ..KernelFlags::default()
            },
            log: Some("debug".to_owned()),
            log_file: Some("/log".into()),
            ..Options::default()
        }
    );
    assert_eq!(options.source(), "src");
}

#[test]
fn no_upper_means_read_only() {
    let options = good("lowerdir=/l,rw");
    assert!(options.read_only);
    assert_eq!(options.source(), DEFAULT_SOURCE);
    assert_eq!(options.whiteout, WhiteoutForm::Aufs);
    assert!(!good("lowerdir=/l,upperdir=/u").read_only);
    assert!(good("lowerdir=/l,upperdir=/u,ro").read_only);
}

#[test]
fn the_later_one_counts() {
    let options = parsed(&[
        "lowerdir=/a:/b,upperdir=/u,ro,nosuid,fsync=0,noallow_other,threads=1",
        "rw,suid,fsync=1,allow_other,upperdir=/u,threads=2",
    ])
    .unwrap();
    assert_eq!(options.lowers, lowers(["/a", "/b"]));
    assert_eq!(options.threads, Some(2));
    assert_eq!(options.allow, Allow::Other);
    assert!(!options.read_only && !options.volatile && !options.kernel_flags.nosuid);
}

#[test]
fn escapes_and_quotes() {
    let options = good(r#",,lowerdir=/a\:b:/c\,d:/e\\:/f\g,upperdir="/u,v\"w",,"#);
    assert_eq!(options.lowers, lowers(["/a:b", "/c,d", r"/e\", r"/f\g"]));
    assert_eq!(options.upper, Some(r#"/u,v"w"#.into()));
    let options = good(r#"lowerdir="/a,b:/c",log="unionfs=debug,fuser=info",upperdir=/u"#);
    assert_eq!(options.lowers, lowers(["/a,b", "/c"]));
    assert_eq!(options.log.as_deref(), Some("unionfs=debug,fuser=info"));
    assert_eq!(options.upper, Some("/u".into()));
    // A quote that does not begin the value is an ordinary byte.
    assert_eq!(good(r#"lowerdir=/a"b,ro"#).lowers, lowers([r#"/a"b"#]));
    // So is a backslash that ends the text.
    assert_eq!(good(r"lowerdir=/a\").lowers, lowers([r"/a\"]));
    // Only the first = parts name and value.
    assert_eq!(good("lowerdir=/a=b").lowers, lowers(["/a=b"]));
}

#[test]
fn paths_are_bytes() {
    let raw = OsString::from_vec(b"lowerdir=/\xff\xfe:/\xc3(".to_vec());
    let options = parse(&[raw]).unwrap();
    let expected: [&[u8]; 2] = [b"/\xff\xfe", b"/\xc3("];
    for (lower, expected) in options.lowers.iter().zip(expected) {
        assert_eq!(lower.path.as_os_str().as_bytes(), expected);
    }
    assert_eq!(options.lowers.len(), 2);
}

#[test]
fn words_of_others_are_quiet_and_unknown_ones_are_kept() {
    let options = good(
        "defaults,rw,xino=off,redirect_dir=on,index=off,metacopy=off,userxattr,_netdev,nofail,\
         x-systemd.automount,X-mount.mkdir=0755,comment=systemd,user,uhelper=x,lowerdir=/l,\
         default_permissions,subtype=foo",
    );
    assert!(options.ignored.is_empty(), "{:?}", options.ignored);
    let options = good(r#"frob,lowerdir=/l,frobs=none,=x,fruit="a,b",xlowerdir=/y"#);
    assert_eq!(
        options.ignored,
        ["frob", "frobs=none", "=x", r#"fruit="a,b""#, "xlowerdir=/y"]
    );
}

#[test]
fn a_missing_layer_is_told() {
    let missing = "option lowerdir: missing, at least one lower directory is needed \
                   (or SOURCE, br=, dirs=)";
    assert_eq!(bad(""), missing);
    assert_eq!(bad("upperdir=/u"), missing);
    assert_eq!(parse(&[]).unwrap_err().to_string(), missing);
}

#[test]
fn values_that_cannot_be() {
    for (text, expected) in BAD_VALUES {
        assert_eq!(bad(&format!("lowerdir=/l,{text}")), *expected);
    }
}

const BAD_VALUES: &[(&str, &str)] = &[
    ("ro=1", "option ro: takes no value, and got '1'"),
    (
        "whiteout=fancy",
        "option whiteout: 'fancy' is not aufs or overlay",
    ),
    (
        "threads=0",
        "option threads: '0' is not a number from 1 to 64",
    ),
    (
        "threads=65",
        "option threads: '65' is not a number from 1 to 64",
    ),
    (
        "threads=many",
        "option threads: 'many' is not a number from 1 to 64",
    ),
    (
        "fsync=2",
        "option fsync: '2' is not 0, 1, auto, strict or volatile",
    ),
    ("upperdir=", "option upperdir: needs a value, DIR"),
    ("workdir", "option workdir: needs a value, DIR"),
    (
        "log",
        "option log: needs a value, error|warn|info|debug|trace",
    ),
    ("lowerdir=", "option lowerdir: needs a value, DIR[:DIR...]"),
    (
        "lowerdir=/a::/b",
        "option lowerdir: part 2 of the list is empty (\\: writes a colon)",
    ),
    (
        "upperdir=\"/u",
        "option upperdir: the double quote is never closed",
    ),
    (
        "upperdir=\"/u\"v,ro",
        "option upperdir: text after the closing double quote",
    ),
    (
        "lowerdir=/m",
        "option lowerdir: given twice, as '/l' and as '/m'",
    ),
    (
        "upperdir=/u,upperdir=/v",
        "option upperdir: given twice, as '/u' and as '/v'",
    ),
    ("br:/u=rw", "option br: contradicts lowerdir"),
    (
        "attr_timeout=-1",
        "option attr_timeout: '-1' is not a number of seconds, 0 or more",
    ),
    (
        "timeout=nan",
        "option timeout: 'nan' is not a number of seconds, 0 or more",
    ),
    (
        "umask=0800",
        "option umask: '0800' is not octal permission bits, at most 0777",
    ),
    (
        "max_read=1",
        "option max_read: '1' is not a number of bytes from 4096 to 1048576",
    ),
    (
        "threads=+1",
        "option threads: '+1' is not a number from 1 to 64",
    ),
    (
        "datadir+=/d",
        "option datadir+: refused: layers that hold data only are not supported",
    ),
];

#[test]
fn errors_stay_on_one_line() {
    let error = bad("lowerdir=/l,threads=a\nb");
    assert_eq!(
        error,
        "option threads: 'a\\nb' is not a number from 1 to 64"
    );
    let raw = OsString::from_vec(b"lowerdir=/l,log=\xff\n".to_vec());
    assert_eq!(
        parse(&[raw]).unwrap_err().to_string(),
        "option log: '\\xff\\n' is not UTF-8"
    );
}

#[test]
fn relative_paths_get_a_base() {
    let mut options = good("lowerdir=l1:/l2,upperdir=u,workdir=../w,log_file=log");
    assert!(options.has_relative_paths());
    options.make_absolute(Path::new("/base"));
    assert_eq!(options.lowers, lowers(["/base/l1", "/l2"]));
    assert_eq!(options.upper, Some("/base/u".into()));
    assert_eq!(options.work, Some("/base/../w".into()));
    assert_eq!(options.log_file, Some("/base/log".into()));
    assert!(!options.has_relative_paths());
}

fn any_path() -> impl Strategy<Value = PathBuf> {
    // Bytes that the grammar cares about come often.
    let byte = prop_oneof![3 => proptest::sample::select(br#"\:,"= a/"#.to_vec()), 1 => 1u8..];
    proptest::collection::vec(byte, 1..12).prop_map(|bytes| OsString::from_vec(bytes).into())
}

proptest! {
    #[test]
    fn what_is_quoted_parses_back(
        paths in proptest::collection::vec(any_path(), 1..5),
        upper in any_path(),
        work in any_path(),
        source in any_path(),
    ) {
        let mut text = OsString::from("lowerdir=");
        for (index, lower) in paths.iter().enumerate() {
            if index > 0 {
                text.push(":");
            }
            text.push(quote_path(lower));
        }
        for (name, path) in [(",upperdir=", &upper), (",workdir=", &work), (",fsname=", &source)] {
            text.push(name);
            text.push(quote_path(path));
        }
        text.push(",nodev");
        let options = parse(&[text]).unwrap();
        prop_assert_eq!(options.lowers, lowers(paths));
        prop_assert_eq!(options.upper, Some(upper));
        prop_assert_eq!(options.work, Some(work));
        prop_assert_eq!(options.source, Some(source.into_os_string()));
        prop_assert!(options.kernel_flags.nodev);
        prop_assert!(options.ignored.is_empty());
    }

    #[test]
    fn any_bytes_are_an_answer_or_one_line(bytes in proptest::collection::vec(1u8.., 0..60)) {
        let mut text = b"lowerdir=/l,".to_vec();
        text.extend(bytes);
        match parse(&[OsString::from_vec(text)]) {
            Ok(options) => prop_assert!(!options.lowers.is_empty() || options.remount),
            Err(error) => prop_assert!(!error.to_string().contains('\n')),
        }
    }
}
