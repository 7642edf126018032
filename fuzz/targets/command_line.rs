//! Words of the command line, one a line; the first is the name of the program.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let words: Vec<_> = unionfs_fuzz::lines(input).collect();
    unionfs_fuzz::answer(&unionfs::cli::parse(words));
});
