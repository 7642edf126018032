//! `unionfs apply`: archives of others, and what none of them may do.

use std::fs;
use std::process::Command;

use tar::{Builder, EntryType, Header};

use crate::process::{finish, unionfs};
use crate::support::Place;

/// An archive of entries: type, name, target.
fn archive(place: &Place, entries: &[(EntryType, &str, &str)]) {
    let file = fs::File::create(place.path("evil.tar")).unwrap();
    let mut builder = Builder::new(file);
    for (kind, path, target) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_device_major(0).unwrap();
        header.set_device_minor(0).unwrap();
        let data: &[u8] = match kind {
            EntryType::Regular => b"data",
            _ => b"",
        };
        header.set_size(data.len() as u64);
        let fields = header.as_gnu_mut().unwrap();
        fields.name[..path.len()].copy_from_slice(path.as_bytes());
        fields.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }
    builder.finish().unwrap();
}

#[test]
fn nothing_leads_out() {
    use EntryType::{Link, Regular, Symlink};
    let place = Place::new("");
    place.shell("mkdir in out; echo safe > out/f");
    let out = place.path("out");
    let out = out.to_str().unwrap();
    let absolute = format!("{out}/f");
    for entries in [
        &[(Regular, "../out/f", "")][..],
        &[(Regular, "a/../../out/f", "")],
        &[(Symlink, "s", out), (Regular, "s/f", "")],
        &[(Symlink, "s", "../out"), (Regular, "s/g/h", "")],
        &[(Link, "h", "../out/f"), (Regular, "h", "")],
        &[(Link, "h", &absolute)],
        &[(Symlink, "s", out), (Link, "h", "s/f")],
        &[(Symlink, "s", out), (Regular, "s/.wh.f", "")],
        &[(Symlink, "s", out), (Regular, "s/.wh..wh..opq", "")],
        &[
            (Symlink, "s", out),
            (EntryType::Directory, "s/", ""),
            (Link, "x", "s/f"),
        ],
    ] {
        archive(&place, entries);
        place.refused(&["apply", "evil.tar", "in"]);
        assert_eq!(
            place.shell("cat out/f; ls out; rm -rf in; mkdir in"),
            "safe\nf\n"
        );
    }
    // A symlink is replaced, not followed; a path from the root is taken from the directory.
    archive(
        &place,
        &[
            (Symlink, "s", &absolute),
            (Regular, "s", ""),
            (Regular, "/abs/f", ""),
            (Symlink, "t", out),
            (Regular, ".wh.t", ""),
        ],
    );
    place.good(&["apply", "evil.tar", "in"]);
    assert_eq!(
        place.shell("cat out/f in/s in/abs/f; ls out in"),
        "safe\ndatadatain:\nabs\ns\nt\n\nout:\nf\n"
    );
}

#[test]
fn whiteouts_are_about_what_was_there_before() {
    use EntryType::{Char, Directory, Regular};
    let place = Place::new("");
    place.shell("mkdir -p in/d/old in/e in/k; echo x > in/d/f; echo x > in/g; echo x > in/k/f");
    archive(
        &place,
        &[
            (Regular, "d/new/x", ""),
            (Regular, "d/.wh..wh..opq", ""),
            (Directory, "e", ""),
            (Regular, "e/y", ""),
            (Regular, ".wh.e", ""),
            (Regular, ".wh.g", ""),
            (Regular, ".wh.missing", ""),
            (Char, "k", ""),
        ],
    );
    place.good(&["apply", "evil.tar", "in"]);
    assert_eq!(
        place.shell("cd in; find . -mindepth 1 | sort"),
        "./d\n./d/new\n./d/new/x\n./e\n./e/y\n"
    );
}

#[test]
fn archives_of_tar_are_read() {
    let place = Place::new("");
    place.mount();
    place.shell(crate::support::CHANGES);
    let seen = crate::support::tree(&place.path("m"));
    let options = "--xattrs --xattrs-include='*' --acls --numeric-owner";
    for format in ["gnu", "posix"] {
        let extra = match format {
            "gnu" => "-S --format=gnu --no-xattrs --no-acls".to_owned(),
            _ => options.to_owned(),
        };
        place.shell(&format!(
            "tar -C m {extra} --format={format} -cf t.tar . && mkdir {format}"
        ));
        place.good(&["apply", "t.tar", format]);
        let found = crate::support::tree(&place.path(format));
        assert_eq!(
            found.keys().collect::<Vec<_>>(),
            seen.keys().collect::<Vec<_>>()
        );
        if format == "posix" {
            // GNU tar writes ACLs in a form of its own.
            let without = |tree: &crate::support::Tree| {
                let mut tree = tree.clone();
                tree.retain(|path, _| path.to_str() != Some("keep"));
                tree
            };
            crate::support::assert_same(&without(&seen), &without(&found));
        }
    }
    place.unmount();
}

#[test]
fn what_is_no_archive_is_told() {
    let place = Place::new("");
    place.shell("mkdir in; head -c 4096 /dev/urandom > noise; : > empty; tar -C l1 -czf gz .");
    place.shell("tar -C l1 -cf whole.tar .; head -c 3000 whole.tar > cut");
    for (file, why) in [
        ("noise", "damaged, or none"),
        ("empty", "cut off, or none"),
        ("gz", "gzip"),
        ("cut", "cut off"),
        ("nowhere", "No such file"),
    ] {
        let told = place.refused(&["apply", file, "in"]);
        assert!(told.contains(why), "{told}");
    }
    assert!(
        place
            .refused(&["apply", "whole.tar", "l1/f"])
            .contains("Not a directory")
    );
    place.shell("$unionfs apply - in < whole.tar; diff -r --no-dereference l1 in");
}

/// As an ordinary user: what is his comes through, owners and devices are an administrator's.
#[test]
fn by_an_ordinary_user() {
    let place = Place::new("");
    place.shell("mkdir up mine; echo a > up/a; ln up/a up/b; mkdir up/d; echo 1 > up/d/.wh.x");
    place.shell("chmod 750 up/d; setfattr -n user.k -v v up/a; chown -R 1:1 up mine");
    place.shell(&format!("cp {} program; chmod 755 program", unionfs()));
    let text = "./program diff up && ./program diff --tar - up | ./program apply - mine";
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
    let outcome = finish(&mut command);
    assert_eq!(outcome.stderr, "");
    assert_eq!(outcome.stdout, "A\ta\nA\tb\nA\td\nD\td/x\n");
    assert_eq!(
        place.shell("cd mine; stat -c '%n %a %h %u' a b d; getfattr --only-values -n user.k b"),
        "a 644 2 1\nb 644 2 1\nd 750 2 1\nv"
    );
}
