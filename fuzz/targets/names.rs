//! Names in directories of layers, one a line: whiteouts, reserved names, pseudo-links.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    input
        .split(|&byte| byte == b'\n')
        .for_each(unionfs::fuzzing::name);
});
