//! `unionfs commit`: what aufs's `aubrsync move` does.

use std::path::PathBuf;

use clap::Args;

use super::Command;

/// An upper to be merged into the directory below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The upper, which is empty afterwards.
    pub upper: PathBuf,
    /// The directory right below it.
    pub lower: PathBuf,
    /// The directories below that one, topmost first. With any the lower keeps whiteouts and opaque marks.
    pub below: Vec<PathBuf>,
    /// Tell as JSON what was done.
    pub json: bool,
}

#[derive(Debug, Args)]
pub(super) struct CommitArgs {
    /// A directory below LOWER, topmost first; may be given several times. LOWER then keeps whiteouts,
    /// which hide what these have
    #[arg(long, value_name = "DIR")]
    below: Vec<PathBuf>,
    /// One JSON object with what was done
    #[arg(long)]
    json: bool,
    /// The upper of a union that is not mounted; it is empty afterwards
    #[arg(value_name = "UPPER")]
    upper: PathBuf,
    /// The directory right below it, which gets all changes
    #[arg(value_name = "LOWER")]
    lower: PathBuf,
}

impl CommitArgs {
    pub(super) fn check(self) -> Command {
        Command::Commit(Commit {
            upper: self.upper,
            lower: self.lower,
            below: self.below,
            json: self.json,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::parse;

    #[test]
    fn an_upper_and_what_is_below_it() {
        let words = [
            "unionfs",
            "commit",
            "/u",
            "/l",
            "--below",
            "/m",
            "--below=/n",
            "--json",
        ];
        let expected = Commit {
            upper: "/u".into(),
            lower: "/l".into(),
            below: vec!["/m".into(), "/n".into()],
            json: true,
        };
        assert_eq!(parse(words), Ok(Command::Commit(expected)));
        for words in [
            &["commit"][..],
            &["commit", "/u"],
            &["commit", "/u", "/l", "/m"],
        ] {
            assert!(parse(["unionfs"].iter().chain(words)).is_err(), "{words:?}");
        }
    }
}
