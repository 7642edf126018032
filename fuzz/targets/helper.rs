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
    let flags = [
        (request.fake, "-f"),
        (request.sloppy, "-s"),
        (request.verbose, "-v"),
    ];
    let flags = flags.into_iter().filter(|(set, _)| *set);
    let mut again: Vec<OsString> = flags.map(|(_, flag)| flag.into()).collect();
    for options in &request.options {
        again.extend(["-o".into(), options.clone()]);
    }
    if let Some(namespace) = &request.namespace {
        again.extend(["-N".into(), namespace.clone()]);
    }
    again.extend(["--".into(), request.source.clone(), request.target.clone()]);
    assert_eq!(args::parse(again.into_iter()), Ok(request));
});
