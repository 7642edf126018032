//! A source, then texts of `-o`, one a line.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut lines = unionfs_fuzz::lines(input);
    let source = lines.next();
    let texts: Vec<_> = lines.collect();
    let outcome = unionfs::options::parse_with_source(source.as_deref(), &texts);
    unionfs_fuzz::answer(&outcome);
    if let (Ok(options), Some(source)) = (outcome, source) {
        // Whatever becomes of the layers, the name shown is the one given.
        let named = texts
            .iter()
            .any(|text| unionfs_fuzz::contains(text, b"fsname"));
        assert!(source.is_empty() || named || options.source() == source);
    }
});
