//! Measurements of unionfs on real mounts. Figures go to stdout and to docs/; nothing here passes or fails.

#![allow(clippy::print_stdout)] // Its purpose.

mod compare;
mod inodes;
mod plinks;
mod rename;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures unionfs beside other unions, as root. Without a command: all workloads, all peers.
#[derive(Parser)]
#[command(name = "bench", args_conflicts_with_subcommands = true)]
struct Program {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    compare: compare::Args,
}

#[derive(Subcommand)]
enum Command {
    /// Daemon memory for each known file
    Inodes {
        #[arg(default_value_t = 1_000_000)]
        count: usize,
    },
    /// Mount and memory of so many linked files that were copied up
    Plinks {
        #[arg(default_value_t = 100_000)]
        count: usize,
    },
    /// mv of a lower directory of so many files, beside other unions
    Rename {
        #[arg(default_value_t = 10_000)]
        count: usize,
    },
    /// One workload on one mount, for the process that compares
    #[command(hide = true)]
    Client(compare::client::Args),
}

fn main() -> ExitCode {
    let args = Program::parse();
    let result = match args.command {
        Some(Command::Inodes { count }) => inodes::measure(count),
        Some(Command::Plinks { count }) => plinks::measure(count),
        Some(Command::Rename { count }) => rename::measure(count),
        Some(Command::Client(args)) => compare::client::run(&args),
        None => compare::run(&args.compare),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench: {e}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_sound() {
        <Program as clap::CommandFactory>::command().debug_assert();
        for line in [
            &["bench"][..],
            &["bench", "rename", "5"],
            &["bench", "--peers", "plain,unionfs"],
        ] {
            assert!(Program::try_parse_from(line).is_ok(), "{line:?}");
        }
        assert!(Program::try_parse_from(["bench", "--rounds", "1", "inodes"]).is_err());
    }
}
