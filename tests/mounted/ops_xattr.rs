//! Extended attributes, file capabilities and POSIX ACLs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{Mode, OFlags, XattrFlags};

use crate::calls::{Caller, xattr_names};
use crate::dialects;
use crate::fails;
use crate::process::finish;
use crate::spec::Dialect;
use crate::support::Stack;

fn get(path: &Path, name: &str) -> Option<Vec<u8>> {
    xattr::get(path, name).unwrap()
}

dialects! {
    fn user_and_trusted(dialect) {
        let mut m = Stack::of(dialect)
            .upper(["u | x:user.a=1 x:trusted.b=2", "du/ | x:user.a=1 x:trusted.b=2"])
            .lower(["l | x:user.a=1 x:trusted.b=2", "dl/ | x:user.a=1 x:trusted.b=2"])
            .mount();
        let names = ["u", "l", "du", "dl"];
        for name in names {
            let path = m.p(name);
            assert_eq!(xattr_names(&path), ["trusted.b", "user.a"], "{name}");
            assert_eq!(get(&path, "user.a").unwrap(), b"1");
            assert_eq!(get(&path, "user.none"), None);
            let set = |key: &str, flags| rustix::fs::setxattr(&path, key, b"v", flags);
            fails!(set("user.a", XattrFlags::CREATE), EXIST);
            fails!(set("user.none", XattrFlags::REPLACE), NODATA);
            fails!(rustix::fs::removexattr(&path, "user.none"), NODATA);
            fails!(rustix::fs::getxattr(&path, "user.none", &mut [0; 9]), NODATA);
            set("user.empty", XattrFlags::CREATE).unwrap();
            rustix::fs::setxattr(&path, "user.empty", b"", XattrFlags::REPLACE).unwrap();
            rustix::fs::setxattr(&path, "user.big", &[7; 2000], XattrFlags::empty()).unwrap();
            fails!(rustix::fs::getxattr(&path, "user.big", &mut [0; 10]), RANGE);
            fails!(rustix::fs::listxattr(&path, &mut [0; 10]), RANGE);
            rustix::fs::removexattr(&path, "user.a").unwrap();
            xattr::set(&path, "trusted.b", b"changed").unwrap();
        }
        for _ in 0..2 {
            for name in names {
                let path = m.p(name);
                let shown = xattr_names(&path);
                assert_eq!(shown, ["trusted.b", "user.big", "user.empty"], "{name}");
                assert_eq!(get(&path, "trusted.b").unwrap(), b"changed");
                assert_eq!(get(&path, "user.empty").unwrap(), b"");
                assert_eq!(get(&path, "user.big").unwrap(), [7; 2000]);
            }
            m.remount();
        }
        Caller::user(1000).call(|| assert_eq!(xattr_names(&m.p("l")), ["user.big", "user.empty"]));
    }

    /// Symlinks and devices hold trusted attributes, not user ones.
    fn of_symlinks(dialect) {
        let mut m = Stack::of(dialect).lower(["s->f", "f"]).mount();
        let path = m.p("s");
        rustix::fs::lsetxattr(&path, "trusted.k", b"v", XattrFlags::empty()).unwrap();
        fails!(rustix::fs::lsetxattr(&path, "user.k", b"v", XattrFlags::empty()), PERM);
        m.remount();
        let mut value = [0; 8];
        assert_eq!(rustix::fs::lgetxattr(&path, "trusted.k", &mut value), Ok(1));
        assert_eq!(fs::read_link(&path).unwrap().as_os_str(), "f");
        assert!(!m.up("f").exists());
    }

    fn of_an_open_file(dialect) {
        let m = Stack::of(dialect).lower(["f"]).mount();
        let fd = m.open("f", OFlags::RDONLY).unwrap();
        rustix::fs::fsetxattr(&fd, "user.k", b"v", XattrFlags::empty()).unwrap();
        assert_eq!(get(&m.p("f"), "user.k").unwrap(), b"v");
        rustix::fs::fremovexattr(&fd, "user.k").unwrap();
        assert_eq!(get(&m.p("f"), "user.k"), None);
    }

    /// The union's own records and overlay marks are neither shown nor to be had by name.
    fn private_records_are_hidden(dialect) {
        let mut m = Stack::of(dialect)
            .lower(["f | x:trusted.overlay.origin=o x:user.overlay.origin=o", "d/x"])
            .mount();
        m.chmod("f", 0o600).unwrap();
        m.chmod("d", 0o700).unwrap();
        m.link("f", "h").unwrap();
        m.rename("f", "g").unwrap();
        for _ in 0..2 {
            for name in ["g", "h", "d", "d/x", ""] {
                assert_eq!(xattr_names(&m.p(name)), [""; 0], "{name}");
            }
            for key in ["trusted.overlay.origin", "user.overlay.origin"] {
                assert_eq!(xattr::get(m.p("g"), key).ok().flatten(), None);
            }
            m.remount();
        }
    }
}

fn tool(program: &str, args: &[&str], path: &Path) -> String {
    let outcome = finish(Command::new(program).args(args).arg(path));
    assert!(
        outcome.status.success(),
        "{program} {args:?}: {}",
        outcome.stderr
    );
    outcome.stdout
}

/// cap_net_raw+ep in the form the kernel stores.
const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

#[test]
fn file_capabilities() {
    let key = "security.capability";
    let layers = Stack::new()
        .lower(["keep", "write", "chown", "truncate"])
        .build();
    for name in ["keep", "write", "chown", "truncate"] {
        let path = layers.lowers[0].join(name);
        xattr::set(&path, key, &CAPABILITY).unwrap();
        fs::write(layers.upper_path().join(format!("u{name}")), "x").unwrap();
        xattr::set(
            layers.upper_path().join(format!("u{name}")),
            key,
            &CAPABILITY,
        )
        .unwrap();
    }
    let mut m = layers.mount();
    for side in ["", "u"] {
        let at = |name: &str| format!("{side}{name}");
        assert_eq!(get(&m.p(at("keep")), key).unwrap(), CAPABILITY);
        m.chmod(&at("keep"), 0o755).unwrap();
        let fd = m.open(&at("write"), OFlags::WRONLY).unwrap();
        rustix::io::write(&fd, b"y").unwrap();
        m.chown(&at("chown"), 1, 1).unwrap();
        rustix::fs::ftruncate(m.open(&at("truncate"), OFlags::WRONLY).unwrap(), 0).unwrap();
        drop(fd);
    }
    for _ in 0..2 {
        for side in ["", "u"] {
            let at = |name: &str| m.p(format!("{side}{name}"));
            assert_eq!(
                get(&at("keep"), key).as_deref(),
                Some(&CAPABILITY[..]),
                "kept: {side}"
            );
            for name in ["write", "chown", "truncate"] {
                assert_eq!(get(&at(name), key), None, "{side}{name}");
            }
        }
        m.remount();
    }
}

#[test]
fn access_acl_is_enforced_and_copied_up() {
    let layers = Stack::new()
        .lower(["l=text | mode=0600", "w=text | mode=0600"])
        .build();
    for name in ["l", "w"] {
        let path = layers.lowers[0].join(name);
        tool("setfacl", &["-m", "u:1000:rw,g:60:r"], &path);
    }
    let mut m = layers.mount();
    let acl = |path: &Path| tool("getfacl", &["-cnp"], path);
    let before = acl(&m.p("l"));
    assert!(
        before.contains("user:1000:rw-") && before.contains("group:60:r--"),
        "{before}"
    );
    Caller::user(1000).call(|| {
        m.assert_file("l", "text");
        m.write("w", "by acl").unwrap();
    });
    Caller::user(1001).call(|| fails!(m.read("l"), ACCESS));
    Caller::user(1001).groups(&[60]).call(|| {
        m.assert_file("l", "text");
        fails!(m.open("l", OFlags::WRONLY), ACCESS);
    });
    rustix::fs::chownat(
        rustix::fs::CWD,
        m.p("l"),
        None,
        Some(rustix::fs::Gid::from_raw(9)),
        rustix::fs::AtFlags::empty(),
    )
    .unwrap();
    for _ in 0..2 {
        assert_eq!(acl(&m.p("l")), before);
        assert_eq!(acl(&m.up("l")), before);
        m.assert_file("w", "by acl");
        m.remount();
    }
    // chmod sets the mask, setfacl sets the mode.
    m.chmod("l", 0o640).unwrap();
    Caller::user(1000).call(|| fails!(m.open("l", OFlags::WRONLY), ACCESS));
    tool("setfacl", &["-m", "m::rw,o::x"], &m.p("l"));
    assert_eq!(m.mode("l"), 0o661);
    tool("setfacl", &["-b"], &m.p("l"));
    m.remount();
    assert!(!acl(&m.p("l")).contains("1000"));
}

/// Everything made below default ACLs is compared with a plain directory.
#[test]
fn default_acl_is_inherited_in_place_of_the_umask() {
    let layers = Stack::new().upper(["u/"]).lower(["l/"]).build();
    let plain = layers.scratch().join("plain");
    fs::create_dir(&plain).unwrap();
    let acl = [
        "-m",
        "u::rwx,g::r-x,o::---,d:u::rwx,d:u:1000:rwx,d:g::r-x,d:m::rwx,d:o::---",
    ];
    for path in [
        &plain,
        &layers.upper_path().join("u"),
        &layers.lowers[0].join("l"),
    ] {
        tool("setfacl", &acl, path);
    }
    let mut m = layers.mount();
    let make = |dir: &Path| {
        Caller::root().umask(0o077).call(|| {
            let mode = |bits| Mode::from_raw_mode(bits);
            let at = |name: &str| dir.join(name);
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
            rustix::fs::mkdir(at("d"), mode(0o777)).unwrap();
            rustix::fs::mkdir(at("d/e"), mode(0o755)).unwrap();
            crate::process::open_file(at("f"), flags, mode(0o666)).unwrap();
            crate::process::open_file(at("d/x"), flags, mode(0o775)).unwrap();
            rustix::fs::mkfifoat(rustix::fs::CWD, at("p"), mode(0o644)).unwrap();
        });
    };
    let shown = |dir: &Path| -> Vec<(u32, String)> {
        let describe = |name: &&str| {
            let path = dir.join(name);
            let text = tool("getfacl", &["-cnp"], &path);
            (fs::symlink_metadata(&path).unwrap().mode(), text)
        };
        ["", "d", "d/e", "f", "d/x", "p"]
            .iter()
            .map(describe)
            .collect()
    };
    make(&plain);
    let expected = shown(&plain);
    for dir in ["u", "l"] {
        make(&m.p(dir));
        assert_eq!(shown(&m.p(dir)), expected, "{dir}");
    }
    m.remount();
    for dir in ["u", "l"] {
        assert_eq!(shown(&m.p(dir)), expected, "{dir} after a remount");
    }
}
