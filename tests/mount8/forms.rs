//! Every way of writing a mount that users of the peers know.

use std::fs;

use crate::machine::Machine;

/// By its line in fstab: mounted twice by `mount -a`, which must make one mount, then by `mount PLACE`.
fn by_fstab(line: &str, source: &str) {
    let machine = Machine::new();
    machine.fstab(&format!("{line}\n"));
    // A second one keeps the mount, but where libfuse's helper starts the program.
    let processes = if line.starts_with("unionfs#") { 1 } else { 2 };
    for command in ["mount -a", "mount @/m"] {
        machine.sh(command).good();
        machine.works("m");
        let shown = machine.mounted("m");
        assert_eq!(shown.source, machine.at(source));
        assert_eq!(shown.kind, "fuse.unionfs");
        assert_eq!(machine.daemons().len(), processes);
        if command == "mount -a" {
            machine.sh(command).good();
            machine.mounted("m");
            assert_eq!(machine.daemons().len(), processes);
        }
        machine.umount("m");
    }
}

#[test]
fn lowers_in_the_source() {
    by_fstab(
        "@/l1:@/l2 @/m unionfs upperdir=@/u,workdir=@/w 0 0",
        "@/l1:@/l2",
    );
}

#[test]
fn lowers_in_an_option() {
    by_fstab(
        "none @/m unionfs lowerdir=@/l1:@/l2,upperdir=@/u 0 0",
        "none",
    );
}

#[test]
fn type_fuse_unionfs() {
    by_fstab(
        "overlay @/m fuse.unionfs lowerdir=@/l1:@/l2,upperdir=@/u,workdir=@/w 0 0",
        "overlay",
    );
}

#[test]
fn type_fuse3_unionfs() {
    by_fstab(
        "overlay @/m fuse3.unionfs lowerdir=@/l1:@/l2,upperdir=@/u,workdir=@/w 0 0",
        "overlay",
    );
}

#[test]
fn unionfs_fuse_line() {
    by_fstab(
        "unionfs#@/u=RW:@/l1=RO:@/l2=RO @/m fuse cow,allow_other 0 0",
        "unionfs#@/u=RW:@/l1=RO:@/l2=RO",
    );
}

#[test]
fn unionfs_fuse_branches_with_our_helper() {
    by_fstab(
        "@/u=RW:@/l1=RO:@/l2 @/m unionfs cow 0 0",
        "@/u=RW:@/l1=RO:@/l2",
    );
}

#[test]
fn unionfs_fuse_dirs_win_over_the_source() {
    by_fstab(
        "unionfs#@/m2=RW @/m fuse cow,dirs=@/u=RW:@/l1=RO:@/l2=RO 0 0",
        "unionfs#@/m2=RW",
    );
}

#[test]
fn aufs_br_with_a_colon() {
    by_fstab(
        "none @/m unionfs br:@/u=rw:@/l1=ro+wh:@/l2=ro+wh 0 0",
        "none",
    );
}

#[test]
fn aufs_br_with_an_equals_sign() {
    by_fstab(
        "none @/m unionfs br=@/u=rw:@/l1=ro+wh:@/l2=ro+wh 0 0",
        "none",
    );
}

#[test]
fn aufs_dirs() {
    by_fstab("none @/m unionfs dirs=@/u=rw:@/l1=ro:@/l2=ro 0 0", "none");
}

/// By a command line, twice, so that the first left nothing in the way.
fn by_command(command: &str, source: &str) {
    let machine = Machine::new();
    for _ in 0..2 {
        machine.sh(command).good();
        machine.works("m");
        let shown = machine.mounted("m");
        assert_eq!(shown.source, machine.at(source));
        assert_eq!(shown.kind, "fuse.unionfs");
        machine.umount("m");
    }
}

#[test]
fn mount_type_unionfs() {
    by_command(
        "mount -t unionfs -o upperdir=@/u @/l1:@/l2 @/m",
        "@/l1:@/l2",
    );
}

#[test]
fn mount_type_unionfs_relative() {
    by_command(
        "mount -t unionfs -o upperdir=u,workdir=w l1:l2 @/m",
        "l1:l2",
    );
}

#[test]
fn mount_type_fuse3_unionfs() {
    by_command(
        "mount -t fuse3.unionfs -o workdir=@/w,upperdir=@/u,lowerdir=@/l1:@/l2 overlay @/m",
        "overlay",
    );
}

/// As containerd's fuse-overlayfs-snapshotter does.
#[test]
fn mount_fuse3_with_many_o() {
    by_command(
        "mount.fuse3 overlay @/m -o workdir=@/w -o upperdir=@/u -o lowerdir=@/l1:@/l2 -t unionfs",
        "overlay",
    );
}

/// Exactly so, with the link that `make install FUSE_OVERLAYFS=1` makes.
#[test]
fn mount_fuse3_as_fuse_overlayfs() {
    let machine = Machine::new();
    let layers = "-o workdir=@/w -o upperdir=@/u -o lowerdir=@/l1:@/l2";
    machine
        .sh(&format!(
            "mount.fuse3 overlay @/m {layers} -t fuse-overlayfs"
        ))
        .good();
    machine.works("m");
    assert_eq!(machine.mounted("m").kind, "fuse.fuse-overlayfs");
    machine.sh("mount -o remount,ro @/m").good();
    assert!(machine.mounted("m").has("ro"));
    assert_eq!(machine.daemons().len(), 1);
    machine.umount("m");
}

#[test]
fn mount_type_fuse_with_a_hash() {
    by_command(
        "mount -t fuse -o cow unionfs#@/u=RW:@/l1=RO:@/l2=RO @/m",
        "@/u=RW:@/l1=RO:@/l2=RO",
    );
}

#[test]
fn unionfs_fuse_command() {
    by_command(
        "unionfs -o cow,hide_meta_files @/u=RW:@/l1=RO:@/l2=RO @/m",
        "@/u=RW:@/l1=RO:@/l2=RO",
    );
}

#[test]
fn unionfs_fuse_command_with_dirs() {
    by_command(
        "unionfs -o cow,dirs=@/u=RW:@/l1=RO:@/l2=RO @/m2=RW @/m",
        "@/m2=RW",
    );
}

#[test]
fn read_only_without_an_upper() {
    let machine = Machine::new();
    machine.fstab("@/l1:@/l2 @/m unionfs defaults 0 0\n");
    machine.sh("mount -a").good();
    machine.shows_lowers("m");
    assert!(machine.mounted("m").has("ro"));
    let error = fs::write(machine.path("m/new"), "").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EROFS));
    machine.umount("m");
}

/// More than a page of options, which mount(2) itself could not take.
#[test]
fn several_hundred_lowers_in_fstab() {
    let machine = Machine::new();
    let mut list = machine.at("@/l1:@/l2");
    for n in 0..400 {
        let dir = machine.path(&format!("low-{n}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join(format!("file-{n}")), "").unwrap();
        list.push_str(&format!(":{}", dir.display()));
    }
    assert!(list.len() > 8192);
    machine.fstab(&format!(
        "none @/m unionfs lowerdir={list},upperdir=@/u 0 0\n"
    ));
    machine.sh("mount -a").good();
    machine.works("m");
    assert!(machine.path("m/file-399").exists());
    machine.umount("m");
}
