//! `unionfs check`: what it finds, what it mends, and that the mount shows the same then.

use std::os::unix::fs::MetadataExt;

use crate::process::{finish, unionfs};
use crate::support::{CHANGES, Place, assert_same, tree};

/// What crashes and other programs leave, made by hand in the upper.
const MESS: &str = r"
cd u
mkdir -p .wh..wh.orph/.wh..wh.0000000a/deep .wh..wh.plnk
echo lost > .wh..wh.orph/.wh..wh.0000000b
mkdir sub; mkdir sub/.wh..wh.q.0001; : > sub/.wh..wh.q.0001/.wh.z
: > .wh.; : > .wh..
echo real > beside; : > .wh.beside
mkdir d; echo n > d/n; : > .wh.d
mkdir later; : > .wh.later
: > .wh.hides-nothing; mknod nothing c 0 0
mkdir -p opq/in; : > opq/.wh..wh..opq; setfattr -n trusted.overlay.opaque -v y opq/in
mkdir whole; : > whole/.wh..wh..opq; : > whole/.wh.v
echo foreign > foreign; ln foreign .wh..wh.plnk/100.7; echo only > .wh..wh.plnk/101.8
ln -s '1 77 2 5 ff 3' .wh..wh.plnk/500.0
setfattr -n trusted.overlay.origin -v 0x00 foreign
setfattr -n trusted.unionfs.ino -v 0x01020304050607080102030405060708 foreign
mkdir .wh.wrong
touch -d 2002-02-02 sub opq whole d .
";

const FOUND: &str = "\
.wh.\ta whiteout of no name
.wh..\ta whiteout of no name
.wh..wh.orph/.wh..wh.0000000a\tleft by a crash
.wh..wh.orph/.wh..wh.0000000b\tleft by a crash
.wh..wh.plnk/100.7\ta pseudo-link of another program
.wh..wh.plnk/101.8\tthe only name of what a pseudo-link of another program held
.wh..wh.plnk/500.0\ta record of a pseudo-link that is gone
.wh.beside\ta whiteout beside what it hides
.wh.d\ta whiteout beside what it hides
.wh.hides-nothing\ta whiteout of what is not there
.wh.later\ta whiteout beside what it hides
.wh.wrong\tof the wrong type
foreign\ta record of overlayfs: trusted.overlay.origin
foreign\ta record of the object that this one was copied from
nothing\ta whiteout of what is not there
opq\topaque, but nothing is below
opq/in\topaque, but nothing is below
sub/.wh..wh.q.0001\tleft by a crash
whole/.wh.v\ta whiteout of what is not there
";

fn seen(place: &Place) -> crate::support::Tree {
    let mut options = place.lowers().into_string().unwrap();
    options.push_str(&format!(",upperdir={},ro", place.path("u").display()));
    place.good(&["-o", &options, "m"]);
    let seen = tree(&place.path("m"));
    place.unmount();
    seen
}

#[test]
fn what_is_mended_shows_the_same() {
    let place = Place::new("");
    place.shell(MESS);
    let lowers = place.lowers().into_string().unwrap();
    let before = seen(&place);
    let words = ["check", "-o", &lowers, "u"];
    let looked = place.run(&words);
    assert_eq!(looked.stdout, FOUND);
    assert_eq!(
        looked.stderr,
        "unionfs: u: 19 found; see unionfs check --repair\n"
    );
    assert_eq!(looked.status.code(), Some(1));
    assert_same(&before, &seen(&place));
    let mended = place.run(&["check", "--repair", "-o", &lowers, "u"]);
    let stays = [".wh.wrong\t", ".wh..wh.plnk/101.8\t"];
    let expected: Vec<String> = FOUND
        .lines()
        .map(
            |line| match stays.iter().any(|path| line.starts_with(path)) {
                true => line.to_owned(),
                false => format!("{line} (mended)"),
            },
        )
        .collect();
    assert_eq!(mended.stdout.lines().collect::<Vec<_>>(), expected);
    assert_eq!(
        mended.stderr,
        "unionfs: u: 2 left, which may be data, or are for root to mend; look at each, and rename or \
         remove it\n"
    );
    // An entry of another program counted as a link of its file, and no more does.
    let mut before = before;
    let foreign = before.get_mut(std::path::Path::new("foreign")).unwrap();
    *foreign = foreign.replace(" 2 as ", " 1 as ");
    let mut after = seen(&place);
    let foreign = after.get_mut(std::path::Path::new("foreign")).unwrap();
    *foreign = foreign.replace(" 2 as ", " 1 as ");
    assert_same(&before, &after);
    let again = place.run(&words);
    assert_eq!(again.stdout.lines().count(), 2, "{}", again.stdout);
    place.shell("rmdir u/.wh.wrong; rm u/.wh..wh.plnk/101.8");
    assert_eq!(place.good(&words), "");
    // Times of directories are those of their users.
    assert_eq!(
        place.shell("stat -c %y u/sub u/opq u/whole u/d | cut -c1-10 | uniq"),
        "2002-02-02\n"
    );
}

/// Without the lowers nothing is said about what they have.
#[test]
fn an_upper_alone() {
    let place = Place::new("");
    place.shell("cd u; : > .wh.x; mkdir -p d/e; : > d/.wh..wh..opq; : > d/e/.wh..wh..opq; mkdir y; : > .wh.y");
    let found = place.run(&["check", "u"]);
    assert_eq!(
        found.stdout,
        ".wh.y\ta whiteout beside what it hides\nd/e\topaque, but nothing is below\n"
    );
    let outcome = place.good(&["check", "--repair", "--json", "u"]);
    let items: serde_json::Value = serde_json::from_str(&outcome).unwrap();
    assert_eq!(
        items.to_string(),
        r#"[{"mended":true,"path":".wh.y","problem":"a whiteout beside what it hides"},{"mended":true,"path":"d/e","problem":"opaque, but nothing is below"}]"#
    );
    assert_eq!(
        place.shell("cd u; find . | sort | tr '\\n' ' '"),
        ". ./.wh.x ./d ./d/.wh..wh..opq ./d/e ./y ./y/.wh..wh..opq "
    );
    assert_eq!(place.good(&["check", "--json", "u"]), "[]\n");
}

/// What we write ourselves is well, in either form; but for pseudo-links it is all needed.
#[test]
fn nothing_is_wrong_with_what_a_mount_writes() {
    for more in [
        "",
        ",whiteout=overlay",
        ",whiteout=overlay,rename_dir=redirect,metacopy=on",
    ] {
        let (place, _) = Place::changed(more);
        let lowers = place.lowers().into_string().unwrap();
        assert_eq!(place.good(&["check", "-o", &lowers, "u"]), "", "{more}");
        assert_eq!(place.good(&["check", "u"]), "", "{more}");
    }
}

#[test]
fn a_mount_is_left_alone() {
    let place = Place::new("");
    place.mount();
    place.shell(CHANGES);
    let before = std::fs::metadata(place.path("u")).unwrap().ctime_nsec();
    let told = place.refused(&["check", "--repair", "u"]);
    assert!(told.contains("in use by a mount"), "{told}");
    let told = place.refused(&["check", "--repair", "m"]);
    assert!(told.contains("a mounted union"), "{told}");
    assert_eq!(
        std::fs::metadata(place.path("u")).unwrap().ctime_nsec(),
        before
    );
    place.unmount();
    place.shell(
        "rm -rf u w; mkdir u w; mount -t overlay -o lowerdir=$PWD/l1,upperdir=$PWD/u,workdir=$PWD/w none m",
    );
    let mut command = std::process::Command::new(unionfs());
    let refused = finish(
        command
            .args(["check", "--repair", "u"])
            .current_dir(place.path(".")),
    );
    place.shell("umount m");
    assert!(
        refused.stderr.contains("in use by a mount"),
        "{}",
        refused.stderr
    );
}

/// As an ordinary user, on what is his.
#[test]
fn by_an_ordinary_user() {
    let place = Place::new("");
    place.shell("mkdir mine; : > mine/.wh.; mkdir mine/d; : > mine/.wh.d; chown -R 1:1 mine");
    place.shell(&format!("cp {} program; chmod 755 program", unionfs()));
    let user = "setpriv --reuid=1 --regid=1 --clear-groups ./program";
    assert_eq!(
        place.shell(&format!("{user} check --repair mine; ls -A mine mine/d")),
        ".wh.\ta whiteout of no name (mended)\n.wh.d\ta whiteout beside what it hides (mended)\n\
         mine:\nd\n\nmine/d:\n.wh..wh..opq\n"
    );
}

/// Neither entries that are each other's only company nor what belongs to another upper are removed.
#[test]
fn data_that_may_be_the_last_stay() {
    let place = Place::new("");
    place.shell(
        "cd u; mkdir -p .wh..wh.plnk in/.wh..wh.plnk in/.wh..wh.orph
         echo x > .wh..wh.plnk/100.8; ln .wh..wh.plnk/100.8 .wh..wh.plnk/102.8
         echo y > in/.wh..wh.plnk/7.8; echo z > in/.wh..wh.orph/z",
    );
    let _ = place.run(&["check", "--repair", "u"]);
    assert_eq!(
        place.shell("cat u/.wh..wh.plnk/*.8 u/in/.wh..wh.*/*"),
        "x\nz\ny\n"
    );
}
