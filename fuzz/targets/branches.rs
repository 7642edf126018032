//! Branches, one a line: a directory, a blank, a permission. What is quoted is read back.
#![no_main]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use unionfs::options::{OptionError, parse, quote_path};

fuzz_target!(|input: &[u8]| {
    let mut text = OsString::from("br");
    let mut directories = Vec::new();
    for line in input.split(|&byte| byte == b'\n' || byte == 0) {
        let at = line.iter().rposition(|&byte| byte == b' ');
        let (directory, perm) = line.split_at(at.unwrap_or(line.len()));
        // Anything else than a word would be another branch or option.
        let is_perm = |byte: &u8| byte.is_ascii_alphabetic() || b"+_".contains(byte);
        if directory.is_empty() || !perm.iter().skip(1).all(is_perm) {
            return;
        }
        let directory = PathBuf::from(OsString::from_vec(directory.to_vec()));
        text.push(":");
        text.push(quote_path(&directory));
        // Every branch has one: a directory may end like a permission.
        let perm = perm.get(1..).unwrap_or_default();
        let word = perm.split(|&byte| byte == b'+').next().unwrap_or_default();
        let known = [&b"rw"[..], b"ro", b"rr"]
            .iter()
            .any(|known| word.eq_ignore_ascii_case(known));
        text.push("=");
        text.push(OsString::from_vec(if known {
            perm.to_vec()
        } else {
            b"ro+wh".to_vec()
        }));
        directories.push(directory);
    }
    let outcome = parse(&[text]);
    unionfs_fuzz::answer(&outcome);
    match outcome {
        Ok(options) => {
            let upper = options.upper.into_iter();
            let found: Vec<_> = upper
                .chain(options.lowers.into_iter().map(|l| l.path))
                .collect();
            assert_eq!(found, directories);
        }
        Err(error) => assert!(
            matches!(error, OptionError::WritableBelow { .. }),
            "{error}"
        ),
    }
});
