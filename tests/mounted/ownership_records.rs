//! `xattr_permissions=`: owners and modes in attributes, as a plain directory has them in inodes.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::calls::{Caller, xattr_names};
use crate::fails;
use crate::ownership::{assert_same, plain, sh};
use crate::process::finish;
use crate::spec::Dialect;
use crate::support::{Mount, Stack};

const CONTAINERS: &str = "user.containers.override_stat";
const FUSE_OVERLAYFS: &str = "user.fuseoverlayfs.override_stat";
const SECURITY: &str = "security.fuseoverlayfs.override_stat";

/// What a lower holds, without ACLs: there are none with records.
const BEFORE: &str = "
    mkdir -m 2775 d; mkdir -m 1777 tmp; echo lower > d/f; echo 2 > d/run; ln -s f d/s; mkfifo -m 640 d/p
    mknod d/c c 1 3; mknod d/b b 7 9; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"d/k\")'
    echo h > h1; echo secret > secret; chmod 400 secret
    chown 5:6 d d/f; chown -h 7:8 d/s d/p d/c; chown 9:9 d/run; chmod 6755 d/run; chown 10:11 secret
    setcap cap_net_raw+ep d/f; mkdir gone; echo > gone/x; chown 3:4 .; chmod 755 .
";

const WORK: &str = r#"
    tree; getcap d/f
    as 5 'echo more >> d/f; mkdir d/mine; echo x > d/mine/f; mkfifo d/mine/p; ln -s f d/mine/l'; getcap d/f
    as 1000 'umask 077; echo > tmp/private; mkdir tmp/dir; umask 0; mkdir tmp/all; echo > tmp/all/open'
    try as 1001 'cat tmp/private'; try as 1001 'rm tmp/private'; try as 1001 'echo > tmp/dir/x'; as 1001 'echo x > tmp/all/open'
    try as 1001 'chmod 777 tmp/all/open'; as 1000 'chmod 0 tmp/all/open; chmod 444 tmp/private'; try as 1000 'cat tmp/all/open'
    mknod tmp/null c 1 3; mknod -m 660 tmp/disk b 7 200; chown 12:13 tmp/null; chmod 622 tmp/null; mknod -m 600 tmp/reg p
    python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("tmp/sock")'; chown 14 tmp/sock
    as 9 'echo >> d/run'; show d/run; chmod 6755 d/run; chown 9:9 d/run; show d/run
    chmod 4711 tmp/all/open; chown 1002:1003 tmp/all/open; chmod 2755 tmp/all/open; as 1002 'truncate -s 0 tmp/all/open'; show tmp/all/open
    setcap cap_chown+ep tmp/all/open; getcap tmp/all/open; chown 1002 tmp/all/open; getcap tmp/all/open
    setcap cap_chown+ep tmp/all/open; echo > tmp/all/open; getcap tmp/all/open
    chmod 700 secret; chown 0 h1; ln h1 h3; mv h3 d/h3; chmod 640 d/h3; mv secret d/; mv d/c tmp/; chown 1:2 tmp/c d/b d/k d/p
    chown -h 15:16 d/s d/mine/l; mkdir d/mine/deep; chmod 1700 d/mine; rm -r gone; mkdir gone; mv gone went; : > gone
    setfattr -n user.containers.other -v 1 tmp/all/open; getfattr -d -m user tmp/all/open
    chown 20:21 .; chmod 3775 .; mkdir last
    tree; cat d/f d/secret; cp -a d copy; ls -R copy | wc -l
"#;

fn compare(dialect: Dialect, options: &str) -> Mount {
    let layers = Stack::of(dialect).lower([""; 0]).build();
    let reference = plain(layers.scratch(), "plain");
    sh(&reference, BEFORE);
    sh(&layers.lowers[0], BEFORE);
    chown(layers.upper_path(), Some(3), Some(4)).unwrap();
    let expected = sh(&reference, WORK);
    let mut m = layers.mount_with(options);
    assert_same(&expected, &sh(m.path(), WORK));
    m.remount();
    assert_same(&sh(&reference, "tree"), &sh(m.path(), "tree"));
    m
}

/// No real file of the upper is a set-id program, a device, or open to more users than it shows.
fn assert_harmless(m: &Mount, attr: &str) {
    let outcome = finish(
        Command::new("find")
            .arg(m.layers.upper_path())
            .args(["-printf", "%P\\n"]),
    );
    let mut seen = 0;
    for name in outcome.stdout.lines().filter(|n| !n.contains(".wh.")) {
        let path = m.up(name);
        let real = fs::symlink_metadata(&path).unwrap();
        if real.is_symlink() || (real.file_type().is_char_device() && real.rdev() == 0) {
            continue;
        }
        assert!(real.is_file() || real.is_dir(), "{name}");
        if !name.is_empty() {
            assert_eq!(real.uid(), 0, "{name}");
            assert_eq!(real.mode() & 0o7022, 0, "{name}: {:o}", real.mode());
            let shown = fs::symlink_metadata(m.p(name)).unwrap();
            assert_eq!(real.mode() & 0o055 & !shown.mode(), 0, "{name}");
        }
        assert!(
            xattr::get(&path, attr).unwrap().is_some(),
            "{name} has no record"
        );
        seen += 1;
    }
    assert!(seen > 20);
}

#[test]
fn as_a_plain_directory_aufs() {
    let m = compare(Dialect::Aufs, "xattr_permissions=2");
    assert_harmless(&m, CONTAINERS);
    let value = |name: &str| {
        String::from_utf8(xattr::get(m.up(name), CONTAINERS).unwrap().unwrap()).unwrap()
    };
    assert_eq!(value("tmp/null"), "12:13:622:char-1-3");
    assert_eq!(value("tmp/disk"), "0:0:660:block-7-200");
    assert_eq!(value("tmp/reg"), "0:0:600:pipe");
    assert_eq!(value("tmp/sock"), "14:0:755:socket");
    assert_eq!(value("d/secret"), "10:11:700");
}

#[test]
fn as_a_plain_directory_overlay() {
    assert_harmless(
        &compare(Dialect::Overlay, "xattr_permissions=2"),
        CONTAINERS,
    );
}

#[test]
fn as_a_plain_directory_in_security_attributes() {
    assert_harmless(&compare(Dialect::Mixed, "xattr_permissions=1"), SECURITY);
}

#[test]
fn records_hold_ids_on_disk() {
    let map = "uidmapping=0:1000:5000,gidmapping=0:1000:5000";
    let m = Stack::new()
        .lower(["f | uid=3 gid=4"])
        .mount_with(&format!("xattr_permissions=2,{map}"));
    let text = "chmod 777 .; as 1005 'echo > new'; chown 1007:1008 f; show new f; try chown 1 f";
    let expected = "new 1005:1005 644 regular file 0:0\nf 1007:1008 644 regular file 0:0\n\
        chown: Value too large for defined data type\n";
    assert_eq!(sh(m.path(), text), expected);
    assert_eq!(
        xattr::get(m.up("new"), CONTAINERS).unwrap().unwrap(),
        b"5:5:644"
    );
    assert_eq!(
        xattr::get(m.up("f"), CONTAINERS).unwrap().unwrap(),
        b"7:8:644"
    );
}

/// Records of every writer, in lowers too; copied up, they say the same.
#[test]
fn records_of_others_in_lowers() {
    let layers = Stack::new().lower([""; 0]).lower([""; 0]).build();
    sh(&layers.lowers[0], "
        set_() { setfattr -n user.containers.override_stat -v \"$2\" \"$1\"; }
        set_ . 0:0:0755:dir; echo x > f; set_ f 5:6:04750:file; : > null; set_ null 0:7:0666:char-1-3
        : > disk; set_ disk 1:2:060640:block-8-17; : > pipe; set_ pipe 3:3:0600:pipe; : > sock; set_ sock 3:4:0777:socket
        mkdir d; set_ d 8:9:01777:dir; chmod 700 f d; echo none > none; chown 77 none
        echo old > old; setfattr -n user.fuseoverlayfs.override_stat -v 11:12:640 old
        setfattr -n user.containers.override_security.capability -v 0x0100000200200000000000000000000000000000 f");
    sh(
        &layers.lowers[1],
        "setfattr -n security.fuseoverlayfs.override_stat -v 0:0:555 .
        echo s > s; setfattr -n security.fuseoverlayfs.override_stat -v 21:22:106711 s",
    );
    let mut m = layers.mount_with("xattr_permissions=2");
    let expected = "./d 8:9 1777 directory 0:0\n./disk 1:2 640 block special file 8:11\n\
        ./f 5:6 4750 regular file 0:0\n./none 77:0 644 regular file 0:0\n\
        ./null 0:7 666 character special file 1:3\n./old 11:12 640 regular file 0:0\n\
        ./pipe 3:3 600 fifo 0:0\n./s 21:22 6711 regular file 0:0\n./sock 3:4 777 socket 0:0\n. 0:0 755 directory 0:0\n";
    assert_eq!(
        sh(m.path(), "tree; getcap f"),
        format!("{expected}f cap_net_raw=ep\n")
    );
    assert_eq!(sh(m.path(), "ls -lR | grep -c '^[bcdps]'"), "5\n");
    // A listing without attributes knows the types too.
    assert_eq!(
        sh(
            m.path(),
            "find . -type c -o -type b -o -type s -o -type p | wc -l"
        ),
        "4\n"
    );
    assert_eq!(xattr_names(&m.p("f")), ["security.capability"]);
    sh(
        m.path(),
        "touch f null disk pipe sock d none old s; echo x > null",
    );
    for _ in 0..2 {
        assert_eq!(
            sh(m.path(), "tree; getcap f"),
            format!("{expected}f cap_net_raw=ep\n")
        );
        m.remount();
    }
    m.unmount();
    // A change of the mode keeps the device.
    m.mount_again_with("xattr_permissions=2");
    sh(m.path(), "chmod 600 null");
    assert_eq!(
        xattr::get(m.up("null"), CONTAINERS).unwrap().unwrap(),
        b"0:7:600:char-1-3"
    );
}

/// Who may write a file may set a `user.` attribute: without being asked to, root believes none.
#[test]
fn records_do_not_make_set_id_programs_unasked() {
    let layers = Stack::new()
        .upper(["up/"])
        .lower(["f | uid=1000 gid=1000 mode=0755"])
        .build();
    sh(
        &layers.lowers[0],
        "setfattr -n user.containers.override_stat -v 0:0:755 .
        setfattr -n user.containers.override_stat -v 0:0:4755 f",
    );
    let m = layers.mount();
    assert_eq!(sh(m.path(), "show f"), "f 1000:1000 755 regular file 0:0\n");
    // They are attributes like any other then.
    assert_eq!(xattr_names(&m.p("f")), [CONTAINERS]);
    sh(
        m.path(),
        "touch f; setfattr -n user.containers.override_stat -v 1 f",
    );
}

/// Who owns a file may set `user.` attributes on it, but not say by them what it may do.
#[test]
fn users_cannot_forge_records() {
    let capability = "user.containers.override_security.capability";
    // cap_setuid=ep
    let value = b"\x01\0\0\x02\x80\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let layers = Stack::new().lower(["f | uid=1000"]).build();
    xattr::set(layers.lowers[0].join("f"), capability, value).unwrap();
    let m = layers.mount_with("xattr_permissions=2");
    for attr in [
        capability,
        CONTAINERS,
        FUSE_OVERLAYFS,
        "user.containers.override_x",
    ] {
        let set = || {
            xattr::set(m.p("f"), attr, b"0:0:4755")
                .unwrap_err()
                .raw_os_error()
        };
        assert_eq!(Caller::user(1000).call(set), Some(libc::EPERM), "{attr}");
    }
    assert_eq!(xattr_names(&m.p("f")), [""; 0]);
    // Nor does what the lower's owner has set there count after a copy-up.
    fs::set_permissions(m.p("f"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(xattr_names(&m.p("f")), [""; 0]);
    assert_eq!(xattr::get(m.p("f"), "security.capability").unwrap(), None);
    assert_eq!(xattr::get(m.up("f"), capability).unwrap(), None);
}

/// What users have set while it meant nothing must not begin to count.
#[test]
fn records_begin_on_an_empty_upper_only() {
    let mut m = Stack::new().lower(["f"]).mount();
    fs::write(m.p("mine"), "").unwrap();
    chown(m.p("mine"), Some(1000), Some(1000)).unwrap();
    let set = || xattr::set(m.p("mine"), CONTAINERS, b"0:0:4755").unwrap();
    Caller::user(1000).call(set);
    m.unmount();
    let refused = m.layers.refused(&m.layers.options("xattr_permissions=2"));
    assert!(
        refused.contains("xattr_permissions: the upper holds objects"),
        "{refused}"
    );
    m.mount_again();
    assert_eq!(m.mode("mine"), 0o644);
    assert_eq!(fs::metadata(m.p("mine")).unwrap().uid(), 1000);
}

#[test]
fn malformed_records_are_an_error_of_their_object() {
    let layers = Stack::new().lower(["bad", "good", "d/", "d/x"]).build();
    sh(&layers.lowers[0], "setfattr -n user.containers.override_stat -v 0:0:755 .
        setfattr -n user.containers.override_stat -v 0:0 bad; setfattr -n user.containers.override_stat -v x d");
    let m = layers.mount_with("xattr_permissions=2");
    m.assert_ls("", &["bad", "d", "good"]);
    fails!(m.stat("bad"), IO);
    fails!(m.stat("d/x"), IO);
    fails!(m.write("bad", "x"), IO);
    m.write("good", "x").unwrap();
}

/// The upper of fuse-overlayfs 1.10 and older goes on in its own attribute.
#[test]
fn older_form() {
    let layers = Stack::new().upper(["f"]).lower(["l | uid=1 gid=2"]).build();
    sh(
        layers.upper_path(),
        "setfattr -n user.fuseoverlayfs.override_stat -v 0:0:40777 .
        setfattr -n user.fuseoverlayfs.override_stat -v 3:4:100640 f",
    );
    let m = layers.mount_with("xattr_permissions=2");
    assert_eq!(
        sh(
            m.path(),
            "show f .; as 1000 'echo > new'; chmod 600 l; chown 9 f; show f l new"
        ),
        "f 3:4 640 regular file 0:0\n. 0:0 777 directory 0:0\n\
        f 9:4 640 regular file 0:0\nl 1:2 600 regular file 0:0\nnew 1000:1000 644 regular file 0:0\n"
    );
    for name in ["f", "l", "new"] {
        assert_eq!(
            xattr_names(&m.up(name))
                .into_iter()
                .filter(|n| n.starts_with("user"))
                .collect::<Vec<_>>(),
            [FUSE_OVERLAYFS]
        );
    }
    fails!(
        rustix::fs::setxattr(
            m.p("f"),
            FUSE_OVERLAYFS,
            b"0:0:777",
            rustix::fs::XattrFlags::empty()
        ),
        PERM
    );
}

/// Whoever looks into the upper while it changes, as after a crash, finds no object without owner.
#[test]
fn no_object_without_its_record() {
    let m = Stack::new()
        .lower((0..60).map(|i| format!("l{i} | uid=5 mode=4755")))
        .mount_with("xattr_permissions=2");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut seen = 0;
            while !over.load(Ordering::Relaxed) {
                seen += look(m.layers.upper_path());
            }
            seen
        });
        for i in 0..60 {
            m.write(&format!("f{i}"), "x").unwrap();
            m.mkdir(&format!("d{i}")).unwrap();
            m.chmod(&format!("l{i}"), 0o4711).unwrap();
            m.unlink(&format!("f{i}")).unwrap();
            m.mkdir(&format!("f{i}")).unwrap();
            m.unlink(&format!("l{i}")).unwrap();
            m.write(&format!("l{i}"), "new").unwrap();
        }
        over.store(true, Ordering::Relaxed);
        assert!(watch.join().unwrap() > 0);
    });
}

fn look(upper: &Path) -> usize {
    let entries = fs::read_dir(upper).unwrap().map(|entry| entry.unwrap());
    let names = entries.filter(|e| !e.file_name().to_string_lossy().starts_with(".wh."));
    names
        .map(|entry| match xattr::get(entry.path(), CONTAINERS) {
            Ok(value) => assert!(value.is_some(), "{:?} has no record", entry.file_name()),
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::NotFound),
        })
        .count()
}

#[test]
fn an_upper_that_cannot_hold_records() {
    let layers = Stack::new().lower(["f"]).build();
    let ram = Path::new("/dev/shm").join(format!("unionfs-test-{}", std::process::id()));
    fs::create_dir(&ram).unwrap();
    let mounted = finish(
        Command::new("mount")
            .args(["-t", "ramfs", "none"])
            .arg(&ram),
    );
    let options = format!(
        "lowerdir={},upperdir={},xattr_permissions=2",
        layers.lowers[0].display(),
        ram.display()
    );
    let message = layers.refused(options.as_ref());
    let _ = rustix::mount::unmount(&ram, rustix::mount::UnmountFlags::DETACH);
    fs::remove_dir(&ram).unwrap();
    assert!(mounted.status.success(), "{}", mounted.stderr);
    assert!(message.contains("xattr_permissions"), "{message}");
}

/// The owner of a file may write it whatever its real mode was made: the daemon's files are its own.
#[test]
fn modes_that_forbid_everything() {
    let m = Stack::new()
        .lower(["f | mode=0"])
        .mount_with("xattr_permissions=2");
    m.chmod("f", 0).unwrap();
    m.write("f", "by root").unwrap();
    fails!(Caller::user(1000).call(|| m.read("f")), ACCESS);
    assert_eq!(
        fs::metadata(m.up("f")).unwrap().permissions().mode() & 0o777,
        0o700
    );
    m.assert_file("f", "by root");
}
