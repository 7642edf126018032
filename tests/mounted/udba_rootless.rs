//! `udba=notify` of an ordinary user: fanotify with limits, inotify, and what cannot be watched.

use crate::user::{DeviceMode, Place};

/// Others' changes of each kind in the lower and in the upper; each must show within ten seconds.
const CHANGES: &str = r#"
$unionfs -o "$options,udba=notify,log_file=$TMPDIR/log,log=debug" "$mnt"
soon() { i=0; until eval "$1"; do i=$((i+1)); test $i -lt 100 || { echo "does not show: $1"; exit 9; }; sleep .1; done; }
lower=${options#lowerdir=}; lower=${lower%%,*}; upper=${lower%/*}/upper
for layer in $lower $upper; do
    own=${layer##*/}
    mkdir -p "$layer/c/sub"; echo first > "$layer/c/f-$own"; echo x > "$layer/c/sub/x-$own"
done
sleep 1.2
for layer in $lower $upper; do
    own=${layer##*/}
    soon "test \"\$(cat $mnt/c/f-$own)\" = first"
    for absent in new renamed sub2; do test ! -e "$mnt/c/$absent-$own"; done
    ls -lR "$mnt" >/dev/null
    echo more >> "$layer/c/f-$own";        soon "grep -q more $mnt/c/f-$own"
    : > "$layer/c/f-$own";                 soon "test ! -s $mnt/c/f-$own"
    chmod 640 "$layer/c/f-$own";           soon "test \$(stat -c %a $mnt/c/f-$own) = 640"
    setfattr -n user.a -v b "$layer/c/f-$own"; soon "getfattr -n user.a $mnt/c/f-$own >/dev/null 2>&1"
    echo new > "$layer/c/new-$own";        soon "test -s $mnt/c/new-$own"
    soon "ls $mnt/c | grep -qx new-$own"
    mv "$layer/c/new-$own" "$layer/c/renamed-$own"; soon "test -e $mnt/c/renamed-$own && test ! -e $mnt/c/new-$own"
    rm "$layer/c/renamed-$own";            soon "test ! -e $mnt/c/renamed-$own"
    mv "$layer/c/sub" "$layer/c/sub2-$own"; soon "test -e $mnt/c/sub2-$own/x-$own && test ! -e $mnt/c/sub/x-$own"
done
touch "$upper/c/.wh.f-lower1";             soon "test ! -e $mnt/c/f-lower1"
rm "$upper/c/.wh.f-lower1";                soon "test -e $mnt/c/f-lower1"
touch "$upper/c/.wh..wh..opq";             soon "test ! -e $mnt/c/f-lower1 && test -e $mnt/c/f-upper"
soon "! ls $mnt/c | grep -q lower1"
rm "$upper/c/.wh..wh..opq";                soon "test -e $mnt/c/f-lower1"
i=0; while [ $i -lt 1000 ]; do : > "$lower/c/n$i"; i=$((i+1)); done
soon "test \$(ls $mnt/c | grep -c '^n') = 1000"
echo through > "$mnt/c/through"; grep -q through "$mnt/c/through"
"#;

const END: &str = r#"
umount "$mnt" 2>/dev/null || fusermount3 -u "$mnt"
grep -c "udba=notify" "$TMPDIR/log" || true
grep "udba=notify" "$TMPDIR/log" || true
"#;

fn run(wrapper: &[&str], before: &str) -> String {
    let _device = DeviceMode::set(0o666);
    let place = Place::new();
    let outcome = place.script(wrapper, &format!("{before}\n{CHANGES}\n{END}"));
    let output = format!("{}{}", outcome.stdout, outcome.stderr);
    assert!(outcome.status.success(), "{output}");
    outcome.stdout
}

#[test]
fn an_ordinary_user_hears_of_changes() {
    assert_eq!(run(&[], ""), "0\n");
}

#[test]
fn in_a_user_namespace_too() {
    assert_eq!(run(&["unshare", "-Urm"], ""), "0\n");
}

/// Without fanotify lowers are watched by inotify, and the upper is asked again.
#[test]
fn by_inotify() {
    let said = run(
        &["unshare", "-Urm"],
        "echo 0 > /proc/sys/user/max_fanotify_groups",
    );
    assert!(said.contains("by inotify"), "{said}");
}

/// One line in the log, and the directories beyond the limit are asked again after a second.
#[test]
fn the_limit_of_watches() {
    let said = run(
        &["unshare", "-Urm"],
        "echo 2 > /proc/sys/user/max_fanotify_marks",
    );
    assert!(
        said.starts_with("1\n") && said.contains("the limit of watches is reached"),
        "{said}"
    );
}

#[test]
fn the_limit_of_inotify() {
    let limits =
        "echo 0 > /proc/sys/user/max_fanotify_groups; echo 1 > /proc/sys/user/max_inotify_watches";
    let said = run(&["unshare", "-Urm"], limits);
    assert!(said.contains("by inotify"), "{said}");
}

/// Where nothing can be watched at all.
#[test]
fn nothing_to_watch_with() {
    let limits = "echo 0 > /proc/sys/user/max_fanotify_groups; echo 0 > /proc/sys/user/max_inotify_instances";
    let said = run(&["unshare", "-Urm"], limits);
    assert!(said.contains("nothing can be watched"), "{said}");
}
