//! `unionfs apply`: what replaces what, and what is left of what was there.

use std::fs;
use std::process::Command;

use tar::{Builder, EntryType, Header};

use crate::process::{Outcome, finish, unionfs};
use crate::support::{Place, assert_same, tree};

/// An entry: type, mode, owner, name, target.
type Item<'a> = (EntryType, u32, u64, &'a [u8], &'a str);

fn archive(place: &Place, items: &[Item<'_>]) {
    let file = fs::File::create(place.path("t.tar")).unwrap();
    let mut builder = Builder::new(file);
    for (kind, mode, owner, path, target) in items {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_uid(*owner);
        header.set_gid(*owner);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        let data: &[u8] = if *kind == EntryType::Regular {
            b"data"
        } else {
            b""
        };
        header.set_size(data.len() as u64);
        let fields = header.as_gnu_mut().unwrap();
        fields.name[..path.len()].copy_from_slice(path);
        fields.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }
    builder.finish().unwrap();
}

fn as_user(place: &Place, text: &str) -> Outcome {
    place.shell(&format!("cp {} program; chmod 755 program", unionfs()));
    let mut command = Command::new("timeout");
    command
        .args([
            "20",
            "setpriv",
            "--reuid=1",
            "--regid=1",
            "--clear-groups",
            "sh",
            "-euc",
            text,
        ])
        .current_dir(place.path("."));
    finish(&mut command)
}

/// Attributes that were taken away are gone, and a default ACL of a directory changes nothing of what is
/// unpacked in it.
#[test]
fn attributes_of_the_archive_alone() {
    let place = Place::new("");
    place.shell(
        "setfacl -m u:7:rwx,d:g:8:rw l1/d; setfattr -n user.old -v x l1/d; setfattr -n user.old -v x l1/mod
         setfacl -m d:g:9:rw l1/keep",
    );
    let copy = place.plain_copy("copy");
    place.mount();
    place.shell(
        "cd m; setfacl -b d; setfattr -x user.old d; setfattr -x user.old mod; (umask 027; echo n > d/n)
         setfacl -k keep; echo n > keep/n; setfacl -m d:g:9:rw keep; chmod 640 keep/n; mkdir keep/in; setfacl -b keep/in",
    );
    let seen = tree(&place.path("m"));
    place.unmount();
    let lowers = place.lowers().into_string().unwrap();
    place.good(&["diff", "-o", &lowers, "--tar", "t.tar", "u"]);
    place.good(&["apply", "t.tar", "copy"]);
    assert_same(&seen, &tree(&copy));
}

/// Layers one after the other make one layer.
#[test]
fn a_layer_onto_a_layer() {
    use EntryType::{Char, Directory, Regular};
    let place = Place::new("");
    place.shell(
        "mkdir -p in/d in/e in/was; : > in/foo; : > in/d/old; : > in/.wh.back; : > in/.wh.dir; : > in/e/x
         mknod in/dev c 0 0; echo lower > l1/dir",
    );
    archive(
        &place,
        &[
            (Regular, 0o644, 0, b".wh.foo", ""),
            (Directory, 0o755, 0, b"d", ""),
            (Regular, 0o644, 0, b"d/.wh..wh..opq", ""),
            (Regular, 0o644, 0, b"d/new", ""),
            (Regular, 0o644, 0, b"back", ""),
            (Directory, 0o755, 0, b"dir", ""),
            (Directory, 0o755, 0, b"dev", ""),
            (Regular, 0o644, 0, b"was", ""),
            (Directory, 0o755, 0, b"e", ""),
            (Regular, 0o644, 0, b".wh.e", ""),
            (Char, 0o644, 0, b"null", ""),
        ],
    );
    place.good(&["apply", "--layer", "t.tar", "in"]);
    assert_eq!(
        place.shell("cd in; find . -mindepth 1 | sort | tr '\\n' ' '"),
        "./.wh.foo ./back ./d ./d/.wh..wh..opq ./d/new ./dev ./dev/.wh..wh..opq ./dir ./dir/.wh..wh..opq \
         ./e ./e/.wh..wh..opq ./null ./was "
    );
}

/// What fails half way leaves the old object whole, and nothing of the new one.
#[test]
fn what_is_cut_off_replaces_nothing() {
    let place = Place::new("");
    place.shell(
        "mkdir in src; head -c 3000000 /dev/zero | tr '\\0' n > src/f; tar -C src -cf whole.tar f",
    );
    place.shell("head -c 1000000 whole.tar > cut.tar");
    for options in [&["apply"][..], &["apply", "--layer"]] {
        place.shell("rm -rf in; mkdir -p in; echo old > in/f");
        place.refused(&[options, &["cut.tar", "in"]].concat());
        assert_eq!(place.shell("ls -A in; cat in/f"), "f\nold\n");
        // A directory in the way goes when the file is there.
        place.shell("rm in/f; mkdir -p in/f/d; echo x > in/f/d/x");
        place.refused(&[options, &["cut.tar", "in"]].concat());
        assert_eq!(place.shell("ls -A in; cat in/f/d/x"), "f\nx\n");
        place.good(&[options, &["whole.tar", "in"]].concat());
        assert_eq!(place.shell("ls -A in; stat -c %s in/f"), "f\n3000000\n");
    }
}

/// What only root may give is left out, and told; a program gets no rights of another one's.
#[test]
fn what_an_ordinary_user_may_not_give() {
    use EntryType::{Block, Char, Directory, Regular};
    let place = Place::new("");
    archive(
        &place,
        &[
            (Directory, 0o755, 0, b"d", ""),
            (Regular, 0o6755, 0, b"d/program", ""),
            (Regular, 0o4755, 1, b"own", ""),
            (Char, 0o644, 1, b"null", ""),
            (Block, 0o644, 1, b"disk", ""),
        ],
    );
    place.shell("mkdir in; chown 1:1 in");
    let outcome = as_user(&place, "./program apply t.tar in");
    assert!(outcome.status.success(), "{}", outcome.stderr);
    assert_eq!(
        outcome.stderr,
        "unionfs: in: left out, as only root may give them: 2 owners, 2 devices\n"
    );
    assert_eq!(
        place.shell("cd in; stat -c '%n %a' d/program own; ls | tr '\\n' ' '"),
        "d/program 755\nown 4755\nd own "
    );
}

/// Archives of engines that used aufs hold its metadata, to which files may be linked.
#[test]
fn archives_of_engines_that_used_aufs() {
    use EntryType::{Directory, Link, Regular};
    let place = Place::new("");
    archive(
        &place,
        &[
            (Regular, 0o444, 0, b".wh..wh.aufs", ""),
            (Directory, 0o700, 0, b".wh..wh.orph", ""),
            (Directory, 0o700, 0, b".wh..wh.plnk", ""),
            (Regular, 0o640, 0, b".wh..wh.plnk/5.7", ""),
            (Link, 0o640, 0, b"d/a", ".wh..wh.plnk/5.7"),
            (Link, 0o640, 0, b"b", "/.wh..wh.plnk/5.7"),
            (Link, 0o444, 0, b".wh.gone", ".wh..wh.aufs"),
        ],
    );
    place.shell("mkdir in; : > in/gone");
    place.good(&["apply", "t.tar", "in"]);
    assert_eq!(
        place.shell("cd in; ls -A; stat -c '%n %a %h %s' b d/a"),
        "b\nd\nb 640 2 4\nd/a 640 2 4\n"
    );
}

/// A PAX record, with its length.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = [key.as_bytes(), b"=", value, b"\n"].concat();
    let mut length = rest.len() + 2;
    while format!("{length} ").len() + rest.len() != length {
        length += 1;
    }
    [format!("{length} ").as_bytes(), &rest].concat()
}

/// An archive of a PAX header and a regular file of two blocks.
fn with_records(place: &Place, kind: EntryType, records: &[u8], size: u64) {
    let file = fs::File::create(place.path("t.tar")).unwrap();
    let mut builder = Builder::new(file);
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(records.len() as u64);
    header.set_cksum();
    builder.append(&header, records).unwrap();
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    header.set_path("f").unwrap();
    header.set_cksum();
    builder.append(&header, &[b'5'; 1024][..]).unwrap();
    builder.finish().unwrap();
}

/// Sizes, paths and maps that no file has are an error, and take no memory.
#[test]
fn what_no_file_can_have() {
    let place = Place::new("");
    place.shell("mkdir in");
    let x = EntryType::XHeader;
    let refused = |records: &[u8], why: &str| {
        with_records(&place, x, records, 1024);
        let text = "ulimit -v 2000000; timeout 20 $unionfs apply t.tar in 2>&1 && echo taken || :";
        let told = place.shell(&format!("sh -c '{text}'"));
        assert!(told.contains(why), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
        place.shell("rm -rf in; mkdir in");
    };
    refused(
        &record("path", &b"a/".repeat(100_000)),
        "File name too long",
    );
    refused(&record("size", b"18446744073709551615"), "out of range");
    refused(&record("size", b"9223372036854775808"), "out of range");
    let sparse = |size: &[u8]| {
        [
            record("GNU.sparse.major", b"1"),
            record("GNU.sparse.minor", b"0"),
            record("GNU.sparse.realsize", size),
        ]
        .concat()
    };
    refused(&sparse(b"18446744073709551615"), "out of range");
    // Two blocks of 5: a count of parts without end.
    refused(&sparse(b"100"), "malformed map");
    refused(&record("GNU.sparse.size", b"100"), "--sparse-version=1.0");
}

/// Records for all entries, and times before 1970 in GNU tar's form.
#[test]
fn headers_that_others_write() {
    let place = Place::new("");
    place.shell("mkdir in");
    let records = [record("mtime", b"981158400"), record("comment", b"x")].concat();
    with_records(&place, EntryType::XGlobalHeader, &records, 1024);
    place.good(&["apply", "t.tar", "in"]);
    assert_eq!(place.shell("stat -c %Y in/f"), "981158400\n");
    place.shell("mkdir src; touch -d '1960-01-01' src/old; tar --format=gnu -C src -cf old.tar old 2> /dev/null");
    place.good(&["apply", "old.tar", "in"]);
    assert_eq!(
        place.shell("stat -c %Y in/old; stat -c %Y src/old | uniq"),
        "-315619200\n-315619200\n"
    );
}
