//! `unionfs diff`: what goes into an archive and what does not, and what it costs.

use std::fs;

use crate::process::finish;
use crate::support::{Place, assert_same, tree};

/// A name that is the lowers' on disk, of a file that was changed under another one, comes with its
/// directories: who unpacks the layer would make others.
#[test]
fn linked_names_come_with_their_directories() {
    let place = Place::new("");
    place.shell(
        "chmod 710 l1/d; chown 5:6 l1/d; setfattr -n user.k -v v l1/d; touch -d 2001-02-03 l1/d",
    );
    place.mount();
    place.shell("echo more >> m/f");
    let seen = tree(&place.path("m"));
    place.unmount();
    let lowers = place.lowers().into_string().unwrap();
    place.good(&["diff", "-o", &lowers, "--tar", "t.tar", "u"]);
    assert_eq!(
        place.shell("tar -tvf t.tar | grep ' d/$' | cut -c1-18"),
        "drwx--x--- 5/6    \n"
    );
    place.shell("mkdir kept");
    place.good(&["apply", "--layer", "t.tar", "kept"]);
    place.shell("rm -rf u w; mv kept u; mkdir w");
    place.mount();
    let again = tree(&place.path("m"));
    place.unmount();
    assert_same(&seen, &again);
}

/// Archives have no sockets; what one stands over must not show again.
#[test]
fn sockets() {
    let place = Place::new("");
    place.shell(
        "cd u; python3 -c 'import socket; [socket.socket(socket.AF_UNIX).bind(n) for n in (\"mod\", \"new\")]'
         ln new new2",
    );
    let lowers = place.lowers().into_string().unwrap();
    let outcome = place.run(&["diff", "-o", &lowers, "--tar", "t.tar", "u"]);
    assert_eq!(
        outcome.stderr,
        "unionfs: mod: a socket, left out\nunionfs: new: a socket, left out\n\
         unionfs: new2: a socket, left out\n"
    );
    assert_eq!(place.shell("tar -tf t.tar"), ".wh.mod\n");
    place.plain_copy("copy");
    place.good(&["apply", "t.tar", "copy"]);
    assert!(!place.path("copy/mod").exists());
}

/// A second name of a file has its attributes too; labels of this machine stay here.
#[test]
fn attributes_in_archives() {
    let place = Place::new("");
    place.shell(
        "cd u; : > a; ln a b; setcap cap_net_raw+ep a; setfattr -n security.selinux -v system_u:object_r:x:s0 a || :
         setfattr -n security.other -v 1 a",
    );
    place.good(&["diff", "--tar", "t.tar", "u"]);
    assert_eq!(
        place.shell("grep -ac 'SCHILY.xattr.security.capability' t.tar"),
        "2\n"
    );
    assert_eq!(
        place.shell("grep -acE 'security.(selinux|other)' t.tar || :"),
        "0\n"
    );
}

/// An archive takes its name when it is whole.
#[test]
fn archives_that_fail_leave_the_old_one() {
    let place = Place::new("");
    place.shell(&format!("echo old > t; mknod l1/{} c 0 0", "n".repeat(253)));
    for form in ["--tar", "--oci"] {
        place.refused(&["diff", form, "t", "l1"]);
        assert_eq!(place.shell("cat t; ls | grep '^t'"), "old\nt\n");
    }
    place.shell("ln -s t link");
    place.good(&["diff", "--tar", "link", "l2"]);
    assert_eq!(place.shell("readlink link; tar -tf t | head -1"), "t\nd/\n");
}

#[test]
fn places_that_are_none() {
    let place = Place::new(",noplink");
    place.mount();
    place.shell("echo more >> m/f; printf x > \"m/a$(printf '\\nb\\\\\\177')\"");
    let below = place.refused(&["diff", "m/d"]);
    let list = place.good(&["diff", "m"]);
    place.unmount();
    assert!(below.contains("give its mountpoint"), "{below}");
    // One line for each, and the names of a file that part are told as the mount shows them.
    assert_eq!(list, "A\ta\\012b\\134\\177\nM\tf\n");
}

/// Who may not ask is told who may.
#[test]
fn other_users_may_not_ask() {
    let place = Place::new(",allow_other");
    place.mount();
    place.shell(&format!(
        "cp {} program; chmod 755 program",
        crate::process::unionfs()
    ));
    let mut command = std::process::Command::new("setpriv");
    command
        .args([
            "--reuid=1",
            "--regid=1",
            "--clear-groups",
            "./program",
            "diff",
            "m",
        ])
        .current_dir(place.path("."));
    let outcome = finish(&mut command);
    place.unmount();
    assert!(
        outcome
            .stderr
            .contains("only root and the user of its daemon"),
        "{}",
        outcome.stderr
    );
}

/// Time goes with the upper: no lower is walked through.
#[test]
fn a_large_lower_is_not_read() {
    let place = Place::new("");
    place.shell("cd l2; for d in $(seq 20); do mkdir $d; (cd $d; seq 1000 | xargs touch); done");
    place.mount();
    place.shell("echo x >> m/mod; rm m/15/500; echo y > m/7/new; mkdir m/8/d");
    place.unmount();
    let lowers = place.lowers().into_string().unwrap();
    for form in ["--json", "--tar t.tar"] {
        let text = place.shell(&format!(
            "strace -f -o calls $unionfs diff -o {lowers} {form} u > /dev/null; wc -l < calls; \
             grep -c getdents calls || :"
        ));
        let numbers: Vec<u64> = text.lines().map(|line| line.parse().unwrap()).collect();
        assert!(numbers[0] < 2000, "{form}: {} system calls", numbers[0]);
        assert!(numbers[1] < 30, "{form}: {} calls of getdents", numbers[1]);
    }
    assert_eq!(
        place.good(&["diff", "-o", &lowers, "u"]),
        "D\t15/500\nA\t7/new\nA\t8/d\nM\tmod\n"
    );
    fs::remove_dir_all(place.path("l2")).unwrap();
}

/// The kernel keeps what was written until it is told to write it back, where it may.
#[test]
fn a_running_mount_tells_what_the_kernel_still_keeps() {
    for way in [",open=none", ",open=cached", ",open=passthrough"] {
        let place = Place::new(way);
        let text = "for i in $(seq 20); do exec 3>> m/new$i 4>> m/d/a; echo more >&3; echo more >&4; \
                    PROGRAM diff --tar - m | tar -xO new$i d/a > out; \
                    cat m/d/a m/new$i | cmp - out; done";
        let program = crate::process::unionfs();
        let text = text.replace("PROGRAM", program);
        place.shell(
            "mkdir -p l1/d; cd l1; for i in $(seq 20); do head -c 90000 /dev/zero > new$i; done",
        );
        place.mount();
        assert_eq!(place.shell(&text), "", "{way}");
        place.unmount();
    }
}
