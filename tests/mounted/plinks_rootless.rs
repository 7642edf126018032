//! Linked files and inode numbers in the mounts of an ordinary user, with and without a place for
//! attributes.

use crate::process::Outcome;
use crate::user::{DeviceMode, Place};

/// Layers with linked files of every kind that a user can make, in `$1`.
const LAYERS: &str = r#"
layers() {
    mkdir -p "$1/low/d" "$1/up"
    cd "$1"
    echo old > low/a; ln low/a low/b; ln low/a low/d/c
    ln -s t low/s; ln low/s low/d/s2
    mkfifo low/p; ln low/p low/d/q
    ln -s alone low/l; mkfifo low/f; echo 1 > low/r; mkdir low/e
}
up() { $unionfs -o "lowerdir=$PWD/low,upperdir=$PWD/up$more" "$mnt"; }
numbers() { (cd "$mnt"; stat -c '%n %i %h' a b d/c s d/s2 p d/q l f r e); }
"#;

/// Changes to all of them; numbers and link counts stay, over two mounts and a flush.
const WORK: &str = r#"
layers "$base"
up
numbers > ../before
echo new >> "$mnt/b"
touch -h -d 2001-02-03 "$mnt/s" "$mnt/p" "$mnt/l" "$mnt/f" "$mnt/r" "$mnt/e"
for round in 1 2 3; do
    numbers > ../after; diff ../before ../after
    test "$(cat "$mnt/a" "$mnt/d/c" | tr '\n' ' ')" = "old new old new "
    test "$(stat -c %Y "$mnt/d/s2" "$mnt/d/q" | uniq | wc -l)" = 1
    $end "$mnt"; up
done
mv "$mnt/s" "$mnt/d/moved"; rm "$mnt/p" "$mnt/l"
$end "$mnt"; up
test "$(stat -c %h "$mnt/d/moved")" = 2
test "$(stat -c %h "$mnt/d/q")" = 1
$unionfs plink flush "$mnt"
test "$(cat "$mnt/d/c" | tr '\n' ' ')" = "old new "
test "$(stat -c %i "$mnt/d/moved")" = "$(stat -c %i "$mnt/d/s2")"
$end "$mnt"
test "$(stat -c %i up/a up/b up/d/c | uniq | wc -l)" = 1
ls -A up/.wh..wh.plnk || true
"#;

fn check(place: &Place, outcome: &Outcome) {
    let said = format!("{}{}", outcome.stdout, outcome.stderr);
    if !outcome.status.success() {
        eprintln!("{said}");
    }
    place.check();
    assert!(outcome.status.success(), "{said}");
}

fn script(setup: &str) -> String {
    format!("{LAYERS}\n{setup}\n{WORK}")
}

#[test]
fn in_a_user_namespace() {
    let _device = DeviceMode::set(0o666);
    let place = Place::new();
    let text = script("more=; end=umount; base=$PWD/own");
    check(&place, &place.script(&["unshare", "-Urm"], &text));
}

#[test]
fn through_fusermount3() {
    let _device = DeviceMode::set(0o666);
    let place = Place::new();
    let text = script("more=,whiteout=aufs; end=\"$unionfs umount\"; base=$PWD/own");
    check(&place, &place.script(&[], &text));
}

/// An upper that holds no attributes at all: ramfs.
#[test]
fn without_any_attributes() {
    let place = Place::new();
    let text = script(
        "more=; end=umount; base=$PWD/ram/layers\n\
         mkdir ram; mount -t ramfs ram ram\n\
         # The directory alone cannot keep its number there.\n\
         numbers() { (cd \"$mnt\"; stat -c '%n %i %h' a b d/c s d/s2 p d/q l f r); }",
    );
    check(&place, &place.private(&[], &text));
}
