//! What other programs see of a mount.

use crate::machine::Machine;

#[test]
fn findmnt_and_mount() {
    let machine = Machine::new();
    machine.fstab("@/l1:@/l2 @/m unionfs upperdir=@/u,workdir=@/w 0 0\n");
    machine.sh("mount -a").good();
    let found = machine.sh("findmnt -n -o SOURCE,TARGET,FSTYPE @/m");
    let words: Vec<&str> = found.good().stdout.split_whitespace().collect();
    assert_eq!(words.join(" "), machine.at("@/l1:@/l2 @/m fuse.unionfs"));
    for command in [
        "findmnt -n -o TARGET -t fuse.unionfs",
        "findmnt -n -o TARGET -S @/l1:@/l2",
        "df --output=target -t fuse.unionfs | tail -n +2",
    ] {
        let found = machine.sh(command);
        assert_eq!(found.good().stdout.trim(), machine.at("@/m"), "{command}");
    }
    let listed = machine.sh("mount -t fuse.unionfs");
    let start = machine.at("@/l1:@/l2 on @/m type fuse.unionfs (rw,");
    assert!(
        listed.good().stdout.starts_with(&start),
        "{}",
        listed.stdout
    );
    // Its whole line, as other FUSE filesystems show it.
    let line = machine.mounted("m");
    for option in [
        "user_id=0",
        "group_id=0",
        "default_permissions",
        "allow_other",
    ] {
        assert!(line.has(option), "{line:?}");
    }
    for option in ["nosuid", "nodev", "noexec"] {
        assert!(!line.has(option), "{line:?}");
    }
    // The table in fstab and the one of the kernel agree.
    assert_eq!(machine.sh("findmnt --verify").code, Some(0));
    machine.umount("m");
}

#[test]
fn df_and_stat_show_the_upper() {
    let machine = Machine::new();
    // An upper of another size than that of the lowers.
    machine
        .sh("mount -t tmpfs -o size=12345k,nr_inodes=3210 upper @/u && mkdir @/u/up")
        .good();
    machine
        .sh("mount -t unionfs -o lowerdir=@/l1:@/l2,upperdir=@/u/up none @/m")
        .good();
    for command in [
        "df -k --output=size,used,avail,itotal,iused",
        "stat -f -c '%a %b %c %d %f %l %s %S'",
    ] {
        let [union, upper] = ["@/m", "@/u"].map(|place| {
            let out = machine.sh(&format!("{command} {place}"));
            out.good().stdout.clone()
        });
        assert_eq!(union, upper, "{command}");
    }
    let length = machine.sh("stat -f -c '%l %T' @/m");
    assert_eq!(length.good().stdout, "255 fuseblk\n");
    machine.sh("umount @/m").good();
    // Only then has the daemon let go of the upper: the kernel does not wait for a daemon at unmount.
    machine.is_gone("m");
    machine.sh("umount @/u").good();
}

#[test]
fn ps_shows_the_place() {
    let machine = Machine::new();
    machine.fstab("@/l1:@/l2 @/m unionfs upperdir=@/u 0 0\nunionfs#@/l1 @/m2 fuse defaults 0 0\n");
    machine.sh("mount -a").good();
    let shown = machine.sh("ps -e -o comm=,args= | grep '^unionfs .*@/m'");
    // A second one keeps the mount, but where libfuse's helper starts the program.
    for (place, processes) in [("@/m", 2), ("@/m2", 1)] {
        let place = machine.at(place);
        let lines = shown.good().stdout.lines();
        assert_eq!(
            lines
                .filter(|line| line.split(' ').any(|word| word == place))
                .count(),
            processes,
            "{}",
            shown.stdout
        );
    }
    machine.sh("umount @/m2").good();
    machine.sh("umount @/m").good();
    machine.is_gone("m");
}

#[test]
fn findmnt_with_many_layers() {
    let machine = Machine::new();
    let mut list = machine.at("@/l1:@/l2");
    for n in 0..300 {
        let dir = machine.path(&format!("layer-{n}"));
        std::fs::create_dir(&dir).unwrap();
        list.push_str(&format!(":{}", dir.display()));
    }
    // A name in the source field keeps the table readable; the layers stay out of it.
    machine.fstab(&format!("union @/m unionfs lowerdir={list} 0 0\n"));
    machine.sh("mount -a").good();
    let found = machine.sh("findmnt -n @/m");
    assert!(found.good().stdout.len() < 300, "{}", found.stdout);
    machine.umount("m");
    // Layers in the source are shown in full up to what the kernel takes: a page.
    machine.fstab(&format!("{list} @/m unionfs defaults 0 0\n"));
    machine.sh("mount -a").good();
    machine.shows_lowers("m");
    machine.umount("m");
}
