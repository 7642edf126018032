//! Texts of `-o`, one a line: options, or an error of one line.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let texts: Vec<_> = unionfs_fuzz::lines(input).collect();
    unionfs_fuzz::answer(&unionfs::options::parse(&texts));
});
