//! The words that mount(8) gives its helper, one a line. A request that is sent arrives.
#![no_main]

use std::ffi::OsString;

use libfuzzer_sys::fuzz_target;

/// The helper is a program and has no library: its parser by its path.
#[allow(dead_code, unused_imports)]
#[path = "../../mount-helper/src/args.rs"]
mod args;

fuzz_target!(|input: &[u8]| {
    let words: Vec<OsString> = unionfs_fuzz::lines(input).collect();
    let request = match args::parse(words.into_iter()) {
        Ok(request) => request,
        Err(error) => {
            assert!(!error.chars().any(char::is_control), "{error:?}");
            return;
        }
    };
    assert!(!request.target.is_empty());
    let mut again: Vec<OsString> = Vec::new();
    for options in &request.options {
        again.extend(["-o".into(), options.clone()]);
    }
    if request.fake {
        again.push("-f".into());
    }
    again.extend(["--".into(), request.source.clone(), request.target.clone()]);
    let again = args::parse(again.into_iter());
    let again = again
        .as_ref()
        .map(|r| (&r.source, &r.target, &r.options, r.fake));
    assert_eq!(
        again,
        Ok((
            &request.source,
            &request.target,
            &request.options,
            request.fake
        ))
    );
});
