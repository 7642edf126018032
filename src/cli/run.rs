//! `unionfs run`: a command on a view of the files that takes changes and can be thrown away.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgGroup, Args};

use super::Command;

/// What becomes of the changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The user is asked, on a terminal.
    Ask,
    /// They stay where they are.
    Keep,
    /// They go.
    Discard,
    /// They are made.
    Commit,
}

/// A command and where it shall run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Directories whose union is the root directory; the one of this process if there are none.
    pub lowers: Vec<PathBuf>,
    /// Holds the changes, of this and earlier commands.
    pub upper: Option<PathBuf>,
    /// What becomes of the changes.
    pub ending: Ending,
    /// The network is that of this process.
    pub net: bool,
    /// Tell the changes as JSON on stdout, instead of as a tree on stderr.
    pub json: bool,
    /// The command with its arguments.
    pub command: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("ending").args(["keep", "discard", "commit"])))]
pub(super) struct RunArgs {
    /// A directory that is the root for the command, instead of /; of several, the first is on top
    #[arg(long, value_name = "DIR")]
    lower: Vec<PathBuf>,
    /// A directory for the changes; what earlier commands changed there shows again
    #[arg(long, value_name = "DIR")]
    upper: Option<PathBuf>,
    /// Keep the changes, and tell where they are
    #[arg(long)]
    keep: bool,
    /// Throw the changes away
    #[arg(long)]
    discard: bool,
    /// Make the changes for real
    #[arg(long)]
    commit: bool,
    /// Let the command use the network
    #[arg(long)]
    net: bool,
    /// Tell the changes as JSON on stdout, instead of as a tree on stderr
    #[arg(long)]
    json: bool,
    /// The command with its arguments
    #[arg(value_name = "CMD", required = true, last = true)]
    command: Vec<OsString>,
}

impl RunArgs {
    pub(super) fn check(self) -> Command {
        Command::Run(Run {
            ending: match (self.keep, self.discard, self.commit) {
                (true, ..) => Ending::Keep,
                (_, true, _) => Ending::Discard,
                (_, _, true) => Ending::Commit,
                _ => Ending::Ask,
            },
            lowers: self.lower,
            upper: self.upper,
            net: self.net,
            json: self.json,
            command: self.command,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::parse;

    #[test]
    fn a_command_after_two_dashes() {
        let words = [
            "unionfs",
            "run",
            "--lower",
            "/a",
            "--lower=/b",
            "--keep",
            "--",
            "sh",
            "-c",
            "x",
        ];
        let expected = Run {
            lowers: vec!["/a".into(), "/b".into()],
            upper: None,
            ending: Ending::Keep,
            net: false,
            json: false,
            command: ["sh", "-c", "x"].map(OsString::from).to_vec(),
        };
        assert_eq!(parse(words), Ok(Command::Run(expected)));
        for words in [
            &["run"][..],
            &["run", "--"],
            &["run", "sh"],
            &["run", "--keep", "--commit", "--", "sh"],
        ] {
            assert!(parse(["unionfs"].iter().chain(words)).is_err(), "{words:?}");
        }
    }
}
