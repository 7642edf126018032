//! Values of the attributes that layers carry: redirect, metacopy, override_stat, origin, pseudo-links.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    unionfs::fuzzing::record(input);
});
