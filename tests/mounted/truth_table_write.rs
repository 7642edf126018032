//! Conformance rows about names and creation: 18-26, 50 (see docs/FORMAT.md).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FileType, OFlags};

use crate::calls::xattr_names;
use crate::dialects;
use crate::fails;
use crate::spec::Dialect;
use crate::support::{Mount, Stack};

/// How the upper of this dialect shows a whiteout of a name too long for `.wh.`.
fn long_whiteout(m: &Mount, name: &str) -> String {
    let verb = if m.layers.dialect.writes_overlay() {
        "wh"
    } else {
        "chr"
    };
    format!("{verb}({name})")
}

dialects! {
    fn row_18_reserved_names(dialect) {
        let m = Stack::of(dialect).lower(["g", "d/"]).mount();
        for x in [".wh.x", ".wh.g", "d/.wh.x", ".wh..wh.aufs", ".wh..wh..opq", ".wh."] {
            fails!(m.creat(x, 0o644), PERM);
            fails!(m.mkdir(x), PERM);
            fails!(m.symlink("g", x), PERM);
            fails!(m.mknod(x, FileType::Fifo, 0o644, 0), PERM);
            fails!(m.mknod(x, FileType::RegularFile, 0o644, 0), PERM);
            fails!(m.link("g", x), PERM);
            fails!(m.rename("g", x), PERM);
            if !x.starts_with("d/") {
                fails!(m.rename("d", x), PERM);
            }
            fails!(m.stat(x), NOENT);
            fails!(m.open(x, OFlags::RDONLY), NOENT);
            fails!(m.unlink(x), NOENT);
            fails!(m.rmdir(x), NOENT);
            fails!(m.rename(x, "g"), NOENT);
        }
        m.assert_ls("", &["d", "g"]);
        m.assert_upper([""; 0]);
    }

    /// Names up to 255 bytes work, whatever the dialect needs for its marks.
    fn row_19_longest_name(dialect) {
        let m = Stack::of(dialect).lower([""; 0]).mount();
        let longest = "n".repeat(255);
        m.write(&longest, "n").unwrap();
        fails!(m.creat(&"n".repeat(256), 0o644), NAMETOOLONG);
        assert_eq!(rustix::fs::statfs(m.path()).unwrap().f_namelen, 255);
        m.assert_ls("", &[&longest]);
        m.assert_file(&longest, "n");
        m.assert_upper([&longest]);
    }

    fn row_20_long_names_of_a_lower(dialect) {
        let names: Vec<String> = (250..=255).map(|length| "n".repeat(length)).collect();
        let mut m = Stack::of(dialect).lower(&names).mount();
        assert_eq!(m.ls(""), names);
        for name in &names {
            m.assert_file(name, name);
            rustix::fs::chmod(m.p(name), rustix::fs::Mode::RWXU).unwrap();
        }
        m.assert_upper(&names);
        for name in &names {
            m.unlink(name).unwrap();
            fails!(m.stat(name), NOENT);
        }
        let expected: Vec<String> = names
            .iter()
            .map(|name| if name.len() > 251 { long_whiteout(&m, name) } else { format!("wh({name})") })
            .collect();
        m.assert_upper(&expected);
        m.remount();
        m.assert_ls("", &[]);
        // Over its own whiteout of the long form a name can be made again.
        m.write(&names[5], "again").unwrap();
        m.mkdir(&names[3]).unwrap();
        m.remount();
        m.assert_file(&names[5], "again");
        assert_eq!(m.ls(&names[3]), [""; 0]);
        m.unlink(&names[5]).unwrap();
        m.rmdir(&names[3]).unwrap();
        m.assert_upper(&expected);
    }

    fn row_21_create_over_the_uppers_whiteout(dialect) {
        let m = Stack::of(dialect).upper(["wh(f)"]).lower(["f=1"]).mount();
        m.write("f", "n").unwrap();
        m.assert_file("f", "n");
        m.assert_upper(["f"]);
    }

    fn row_22_create_over_a_lowers_whiteout(dialect) {
        let m = Stack::of(dialect).lower(["wh(f)"]).lower(["f"]).mount();
        m.write("f", "n").unwrap();
        m.assert_file("f", "n");
        m.assert_upper(["f"]);
    }

    fn row_23_mkdir_over_the_uppers_whiteout(dialect) {
        let m = Stack::of(dialect).upper(["wh(d)"]).lower(["d/x"]).mount();
        m.mkdir("d").unwrap();
        m.assert_ls("d", &[]);
        fails!(m.stat("d/x"), NOENT);
        m.assert_upper(["d/", "opq(d)"]);
    }

    fn row_24_mkdir_over_a_lowers_whiteout(dialect) {
        let mut m = Stack::of(dialect).lower(["wh(d)"]).lower(["d/x"]).mount();
        m.mkdir("d").unwrap();
        m.assert_ls("d", &[]);
        m.assert_upper(["d/"]);
        m.remount();
        m.assert_ls("d", &[]);
    }

    /// Only the default: there is no `diropq=` option.
    fn row_25_mkdir(dialect) {
        let m = Stack::of(dialect).lower([""; 0]).mount();
        m.mkdir("d").unwrap();
        m.assert_ls("d", &[]);
        m.assert_upper(["d/"]);
    }

    fn row_26_create_in_a_lower_directory(dialect) {
        let m = Stack::of(dialect)
            .lower(["d/g", "d/ | mode=0750 uid=7 gid=9 mtime=1000.5"])
            .mount();
        let root = m.stat("").unwrap();
        m.write("d/f", "f").unwrap();
        m.assert_ls("d", &["f", "g"]);
        m.assert_upper(["d/", "d/f"]);
        let d = fs::metadata(m.up("d")).unwrap();
        assert_eq!((d.mode() & 0o7777, d.uid(), d.gid()), (0o750, 7, 9));
        // d changed, what holds d did not.
        let after = m.stat("").unwrap();
        assert_eq!((root.st_mtime, root.st_mtime_nsec), (after.st_mtime, after.st_mtime_nsec));
        assert!(d.mtime() > 1000);
    }

    fn row_50_chmod_copies_up_everything_else(dialect) {
        let m = Stack::of(dialect)
            .upper(["./ | mtime=5000.7"])
            .lower(["f=data | mode=0644 uid=7 gid=8 mtime=1000.123456789 x:user.k=v \
                     x:trusted.t=w x:trusted.overlay.origin=o x:user.overlay.origin=o"])
            .mount();
        m.chmod("f", 0o600).unwrap();
        let check = |path: &Path| {
            let f = fs::metadata(path).unwrap();
            assert_eq!((f.mode() & 0o7777, f.uid(), f.gid()), (0o600, 7, 8));
            assert_eq!((f.mtime(), f.mtime_nsec()), (1000, 123_456_789));
            assert_eq!(fs::read(path).unwrap(), b"data");
            let mut names = xattr_names(path);
            names.retain(|name| !name.starts_with("trusted.unionfs."));
            assert_eq!(names, ["trusted.t", "user.k"]);
            assert_eq!(xattr::get(path, "user.k").unwrap().as_deref(), Some(&b"v"[..]));
        };
        check(&m.p("f"));
        check(&m.up("f"));
        assert!(!xattr_names(&m.p("f")).iter().any(|name| name.contains("unionfs")));
        m.assert_upper(["f"]);
        let parent = fs::metadata(m.layers.upper_path()).unwrap();
        assert_eq!((parent.mtime(), parent.mtime_nsec()), (5000, 7));
    }
}
