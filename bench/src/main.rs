//! Measurements of unionfs on real mounts. Figures go to stdout; nothing here passes or fails.

#![allow(clippy::print_stdout)] // Its purpose.

mod inodes;

use std::process::ExitCode;

const USAGE: &str = "usage: bench inodes [COUNT]    daemon memory for each known file (root)";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["inodes"] => inodes::measure(1_000_000),
        ["inodes", count] => match count.parse() {
            Ok(count) => inodes::measure(count),
            Err(_) => Err(USAGE.into()),
        },
        _ => Err(USAGE.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench: {e}");
            ExitCode::FAILURE
        }
    }
}
