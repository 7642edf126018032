//! Layers that are changed behind the mount. What is seen then is not defined, but nobody gets rights by
//! it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rustix::fs::{Mode, OFlags};

use crate::calls::{Caller, contents};
use crate::fails;
use crate::support::Stack;

/// The kernel asks for a file to be made where it knows of none, and checks nothing of what it gets.
#[test]
fn a_file_that_came_meanwhile_is_not_opened_unchecked() {
    for way in ["open=cached", "open=none", "open=passthrough"] {
        let m = Stack::new()
            .upper(["d/ | mode=0777"])
            .lower(["l"])
            .mount_with(way);
        let names = ["d/read", "d/emptied", "d/opened", "d/made"];
        for name in names {
            fails!(m.stat(name), NOENT);
        }
        for name in &names[..3] {
            fs::write(m.up(name), "secret").unwrap();
            fs::set_permissions(m.up(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        let make = |name: &str, more| {
            let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | more;
            crate::process::open_file(m.p(name), flags, Mode::from_raw_mode(0o644))
        };
        let user = Caller::user(1000);
        user.call(|| {
            fails!(make("d/read", OFlags::empty()), ACCESS);
            fails!(make("d/emptied", OFlags::TRUNC), ACCESS);
            fails!(make("d/opened", OFlags::EXCL), EXIST);
            make("d/made", OFlags::empty()).unwrap();
        });
        assert_eq!(m.stat("d/made").unwrap().st_uid, 1000, "{way}");
        for name in &names[..3] {
            assert_eq!(fs::read_to_string(m.up(name)).unwrap(), "secret", "{way}");
        }
        // Who may have it gets it at once.
        fails!(m.stat("d/late"), NOENT);
        fs::write(m.up("d/late"), "secret").unwrap();
        let late = make("d/late", OFlags::empty()).unwrap();
        assert_eq!(contents(&late), b"secret", "{way}");
    }
}
