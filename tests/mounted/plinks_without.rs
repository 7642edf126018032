//! Linked files of a lower on an upper whose filesystem has no links, such as FAT.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::process::script as script_in;
use crate::support::Stack;

/// What a classic BPF program is made of: code, jumps if true and if false, value.
type Step = (u16, u8, u8, u32);

/// Refuses linkat with EPERM and O_TMPFILE with EOPNOTSUPP, as FAT does.
fn without_links() -> Vec<u8> {
    const LOAD: u16 = 0x20;
    const EQUALS: u16 = 0x15;
    const HAS_BITS: u16 = 0x45;
    const RETURN: u16 = 0x06;
    const ALLOW: u32 = 0x7fff_0000;
    const ERROR: u32 = 0x0005_0000;
    let number = |call: libc::c_long| u32::try_from(call).unwrap();
    // In `struct seccomp_data` the call's number is at 0, the low half of its third argument at 32.
    let little = u32::from(cfg!(target_endian = "big")) * 4;
    let tmpfile = libc::O_TMPFILE & !libc::O_DIRECTORY;
    let steps: [Step; 8] = [
        (LOAD, 0, 0, 0),
        (EQUALS, 4, 0, number(libc::SYS_linkat)),
        (EQUALS, 0, 2, number(libc::SYS_openat)),
        (LOAD, 0, 0, 32 + little),
        (HAS_BITS, 2, 0, tmpfile.unsigned_abs()),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, ERROR | libc::EPERM.unsigned_abs()),
        (RETURN, 0, 0, ERROR | libc::EOPNOTSUPP.unsigned_abs()),
    ];
    let bytes = |(code, yes, no, value): Step| {
        let value = value.to_ne_bytes();
        let code = code.to_ne_bytes();
        [&code[..], &[yes, no], &value].concat()
    };
    steps.into_iter().flat_map(bytes).collect()
}

/// Runs a script in the directory of the test; what it starts has no links.
fn run(dir: &Path, options: &std::ffi::OsStr, script: &str) -> String {
    fs::write(dir.join("filter"), without_links()).unwrap();
    let text = format!(
        "exec 9<filter; exec bwrap --dev-bind / / --cap-add ALL --seccomp 9 sh -euc '{script}'"
    );
    script_in(dir, &text, &[("options", options)])
}

/// The names part at once, not at the next mount only, and nothing else is lost.
#[test]
fn names_part() {
    let layers = Stack::new().lower(["a=old", "a~b", "a~c"]).build();
    let text = run(
        layers.scratch(),
        &layers.options(""),
        r#"
        $unionfs -o "$options" mnt
        cat mnt/a mnt/b mnt/c; echo
        printf new >> mnt/a
        mv mnt/b mnt/d
        cat mnt/a mnt/d mnt/c; echo
        if ln mnt/a mnt/x 2> refused; then echo linked; fi
        umount mnt
        $unionfs -o "$options" mnt
        cat mnt/a mnt/d mnt/c; echo
        umount mnt
        "#,
    );
    assert_eq!(
        text.lines().collect::<Vec<_>>(),
        ["oldoldold", "oldnewoldold", "oldnewoldold"]
    );
    let upper = layers.upper_path();
    let links = |name: &str| fs::metadata(upper.join(name)).unwrap().nlink();
    assert_eq!((links("a"), links("d")), (1, 1));
    assert!(!upper.join(".wh..wh.plnk").exists());
}
