//! `mount -a` once more: what is mounted stays as it is, whatever its source looks like.

use std::fs;

use crate::machine::Machine;

/// Mounts `line` twice, and takes it away by what it is called.
fn twice(machine: &Machine, line: &str, source: &str) {
    machine.fstab(&format!("{line}\n"));
    for _ in 0..3 {
        machine.sh("mount -a").good();
    }
    assert_eq!(machine.mounted("m").source, machine.at(source));
    assert_eq!(machine.daemons().len(), 2);
    // umount(8) takes a directory for the place.
    let is_dir = std::path::Path::new(&machine.at(source)).is_dir();
    let name = if is_dir { "@/m" } else { source };
    machine.sh(&format!("umount '{name}'")).good();
    machine.is_gone("m");
}

#[test]
fn plain_sources() {
    let machine = Machine::new();
    for source in [
        "none",
        "overlay",
        "my-union",
        "a:b",
        "a,b",
        "a#b",
        "@/l1",
        "@/l1:@/l2",
    ] {
        twice(
            &machine,
            &format!("{source} @/m unionfs lowerdir=@/l1:@/l2 0 0"),
            source,
        );
    }
}

#[test]
fn a_single_lower_as_source() {
    let machine = Machine::new();
    twice(&machine, "@/l1 @/m unionfs upperdir=@/u 0 0", "@/l1");
    // mount(8) itself takes the slash off, both times.
    twice(&machine, "@/l1/ @/m unionfs upperdir=@/u 0 0", "@/l1");
    twice(
        &machine,
        "@/l1/:@/l2/ @/m/ unionfs upperdir=@/u 0 0",
        "@/l1/:@/l2/",
    );
}

#[test]
fn odd_sources() {
    let machine = Machine::new();
    for name in ["a b", "a,b", "tab\there", "back\\slash", "quo\"te", "hash#"] {
        fs::create_dir_all(machine.path(&format!("odd/{name}"))).unwrap();
    }
    for (name, in_fstab) in [
        ("a b", r"a\040b"),
        ("a,b", "a,b"),
        ("tab\there", r"tab\011here"),
        ("hash#", "hash#"),
    ] {
        let line = format!("@/odd/{in_fstab}:@/l1 @/m unionfs upperdir=@/u 0 0");
        twice(&machine, &line, &format!("@/odd/{name}:@/l1"));
        let line = format!("@/odd/{in_fstab} @/m unionfs upperdir=@/u 0 0");
        twice(&machine, &line, &format!("@/odd/{name}"));
    }
    // The source shows as it was given, with what quotes the layers' names.
    let line = r"@/odd/back\134\134slash:@/odd/quo\134\042te @/m unionfs upperdir=@/u 0 0";
    machine.fstab(&format!("{line}\n"));
    machine.sh("mount -a; mount -a").good();
    assert_eq!(
        machine.mounted("m").source,
        machine.at(r#"@/odd/back\\slash:@/odd/quo\"te"#)
    );
    machine.umount("m");
}

#[test]
fn an_odd_place() {
    let machine = Machine::new();
    let place = machine.path("m/the place, so:named");
    fs::create_dir(&place).unwrap();
    machine.fstab("@/l1:@/l2 @/m/the\\040place,\\040so:named unionfs upperdir=@/u 0 0\n");
    machine.sh("mount -a; mount -a").good();
    machine.mounted("m/the place, so:named");
    machine.shows_lowers("m/the place, so:named");
    machine.sh("umount '@/m/the place, so:named'").good();
    machine.is_gone("m/the place, so:named");
}

#[test]
fn many_lines() {
    let machine = Machine::new();
    machine.fstab(
        "# two unions of the same source, one union by libfuse's helper, one that is not for now\n\
         none @/m unionfs lowerdir=@/l1:@/l2 0 0\n\
         none @/m2 unionfs lowerdir=@/l2:@/l1 0 0\n\
         unionfs#@/l1=RO:@/l2=RO @/w fuse noatime 0 0\n\
         none @/u unionfs noauto,lowerdir=@/l1 0 0\n",
    );
    machine.sh("mount -a").good();
    machine.sh("mount -a").good();
    for name in ["m", "m2", "w"] {
        machine.mounted(name);
    }
    assert_eq!(machine.mounts("u").len(), 0);
    // Two for each, but where libfuse's helper starts the program.
    assert_eq!(machine.daemons().len(), 5);
    machine.sh("umount -a -t fuse.unionfs").good();
    for name in ["m", "m2", "w"] {
        machine.is_gone(name);
    }
}
