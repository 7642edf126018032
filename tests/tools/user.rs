//! All that an ordinary user does with a mount of his own, and with its upper afterwards.

use crate::run::Place;

const WORK: &str = r#"set -e
mkdir tmp/x; cd tmp/x; mkdir l u w m copy
echo one > l/f; ln l/f l/g; echo gone > l/gone; echo k > l/keep; cp -a l/. copy
unshare -Urm sh -euc '
    $unionfs -o lowerdir=l,upperdir=u,workdir=w m
    echo more >> m/f; rm m/gone; mkdir m/new; echo n > m/new/n
    $unionfs diff m; $unionfs diff --json m > json; $unionfs diff --tar layer.tar m
    $unionfs plink list m | cut -f 2
    $unionfs ctl m status | grep -c "takes changes"
    umount m'
grep -c '"path":"gone"' json || cat json
$unionfs diff -o lowerdir=l u
$unionfs plink list u | cut -f 2
$unionfs plink flush -o lowerdir=l,workdir=w u; $unionfs plink list u
$unionfs check u
$unionfs apply layer.tar copy 2> told; cut -d: -f 1-3 told
$unionfs commit u l; ls -A u
diff -r l copy && cat l/f && find l | sort; stat -c %h l/f
rm -r ../x
"#;

const SEEN: &str = "\
M\tf
M\tg
D\tgone
A\tnew
A\tnew/n
f
g
1
1
M\tf
M\tg
D\tgone
A\tnew
A\tnew/n
f
unionfs: copy: left out, as only root may give them
one
more
l
l/f
l/g
l/keep
l/new
l/new/n
2
";

#[test]
fn a_mount_of_his_own_and_its_upper() {
    let place = Place::new();
    let outcome = place.user("", WORK);
    assert!(outcome.status.success(), "{}", outcome.stderr);
    assert_eq!(outcome.stderr, "");
    assert_eq!(outcome.stdout, SEEN);
}
