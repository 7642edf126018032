//! Layer archives, as `unionfs apply` reads them, and the PAX records in them by themselves. Sums of headers
//! are made right, as no input would come past them else.
#![no_main]

use libfuzzer_sys::fuzz_target;

const BLOCK: usize = 512;
const SUM: std::ops::Range<usize> = 148..156;

fuzz_target!(|input: &[u8]| {
    unionfs::fuzzing::pax(input);
    let mut archive = input.to_vec();
    for block in archive.chunks_exact_mut(BLOCK) {
        // What looks like a header.
        if block[257..262] == *b"ustar" {
            block[SUM].fill(b' ');
            let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
            block[SUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    unionfs::fuzzing::archive(&archive);
});
