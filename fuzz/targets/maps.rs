//! Lists for `uidmapping` and `gidmapping`, one a line: what is shown leads back to what is on disk.
#![no_main]

use std::ffi::OsString;

use libfuzzer_sys::fuzz_target;
use unionfs::options::{parse, quote};

fuzz_target!(|input: &[u8]| {
    let mut lines = unionfs_fuzz::lines(input);
    let mut text = OsString::from("lowerdir=/l,uidmapping=");
    text.push(quote(&lines.next().unwrap_or_default()));
    text.push(",gidmapping=");
    text.push(quote(&lines.next().unwrap_or_default()));
    let outcome = parse(&[text]);
    unionfs_fuzz::answer(&outcome);
    let Ok(options) = outcome else {
        return;
    };
    // Ids at the ends of ranges, which are numbers of the input, and some anywhere.
    let numbers = input.split(|byte| !byte.is_ascii_digit());
    let numbers =
        numbers.filter_map(|digits| std::str::from_utf8(digits).ok()?.parse::<u32>().ok());
    for number in numbers.chain([0, 1000, u32::MAX]) {
        for id in [number.wrapping_sub(1), number, number.wrapping_add(1)] {
            for map in [&options.ownership.uids, &options.ownership.gids] {
                if let Some(shown) = map.shown(id) {
                    assert_eq!(map.on_disk(shown), Some(id));
                }
                if let Some(disk) = map.on_disk(id) {
                    assert_eq!(map.shown(disk), Some(id));
                }
            }
            // Any id at all shows as one.
            let _ = (
                options.ownership.shown_uid(id),
                options.ownership.shown_gid(id),
            );
        }
    }
});
