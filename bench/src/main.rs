//! Measurements of unionfs on real mounts. Figures go to stdout; nothing here passes or fails.

#![allow(clippy::print_stdout)] // Its purpose.

mod inodes;
mod plinks;
mod rename;

use std::process::ExitCode;

const USAGE: &str = "usage (root):
  bench inodes [COUNT]    daemon memory for each known file
  bench plinks [COUNT]    mount and memory of so many linked files that were copied up
  bench rename [COUNT]    mv of a lower directory of so many files, beside other unions";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["inodes"] => inodes::measure(1_000_000),
        ["inodes", count] => match count.parse() {
            Ok(count) => inodes::measure(count),
            Err(_) => Err(USAGE.into()),
        },
        ["plinks"] => plinks::measure(100_000),
        ["plinks", count] => match count.parse() {
            Ok(count) => plinks::measure(count),
            Err(_) => Err(USAGE.into()),
        },
        ["rename"] => rename::measure(10_000),
        ["rename", count] => match count.parse() {
            Ok(count) => rename::measure(count),
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
