//! Inside bubblewrap, which flatpak and others use.

use crate::user::{Place, WORK, check_work};
use crate::ways_user::refused;

/// bwrap with the whole system in it, and no more.
const BWRAP: &str = "$user bwrap --bind / / --dev /dev --dev-bind /dev/fuse /dev/fuse";

/// It sets no_new_privs, and gives no right to mount by itself.
#[test]
fn bubblewrap_does_not_allow_it_by_itself() {
    let mount = "$unionfs -o \"$options\" \"$mnt\"";
    for more in ["", "--unshare-user --uid 1000 --cap-add ALL"] {
        let command = format!("{BWRAP} {more} {mount}");
        refused(&Place::new(), &[], &command, &["mounting on /", "ermitted"]);
    }
}

#[test]
fn bubblewrap_allows_it_to_its_root() {
    let place = Place::new();
    let text = format!(
        "cat > work <<'E'\nend=umount\n{WORK}\nE\n\
         {BWRAP} --unshare-user --uid 0 --gid 0 --cap-add CAP_SYS_ADMIN sh -eu work; rm work"
    );
    let outcome = place.private(&[], &text);
    check_work(&place, &outcome);
}
