//! `unionfs plink`: what aufs's `auplink` does.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{CliError, Command};
use crate::options::{self, Options};

/// What is asked about pseudo-links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plink {
    /// Remove them, after every name has got its place in the upper; else list them.
    pub flush: bool,
    /// The list is told as JSON.
    pub json: bool,
    /// A mountpoint, or the upper of a union that is not mounted.
    pub place: PathBuf,
    /// The union that the upper belongs to, if it was given.
    pub options: Option<Box<Options>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Action {
    /// Show the inode number and the names of every file that pseudo-links hold together
    List,
    /// Give every name its own place in the upper, which then stands alone
    Flush,
}

#[derive(Debug, Args)]
pub(super) struct PlinkArgs {
    /// Show the numbers and names of such files, or give every name its own place in the upper
    #[arg(value_name = "list|flush")]
    action: Action,
    /// Of the list: one JSON array, an object for each name
    #[arg(long)]
    json: bool,
    /// For an upper that is not mounted: the options that mount it, its lowerdir above all
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<OsString>,
    /// A mountpoint, or the upper of a union that is not mounted
    #[arg(value_name = "UPPER|MOUNTPOINT")]
    place: PathBuf,
}

impl PlinkArgs {
    pub(super) fn check(self) -> Result<Command, CliError> {
        let flush = self.action == Action::Flush;
        if flush && self.json {
            return Err(CliError::Usage(
                "flush prints nothing; --json is for plink list".to_owned(),
            ));
        }
        let options = match self.options.as_slice() {
            [] => None,
            raw => {
                let mut options = options::parse(raw)?;
                options.upper = Some(self.place.clone());
                options.work = None;
                options.read_only = !flush;
                Some(Box::new(options))
            }
        };
        Ok(Command::Plink(Plink {
            flush,
            json: self.json,
            place: self.place,
            options,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::parse;

    fn plink(words: &[&str]) -> Plink {
        let words = ["unionfs", "plink"].iter().chain(words);
        match parse(words).unwrap() {
            Command::Plink(plink) => plink,
            other => panic!("not plink: {other:?}"),
        }
    }

    #[test]
    fn a_place_and_perhaps_its_union() {
        let live = plink(&["list", "/m"]);
        assert!(!live.flush && live.options.is_none());
        assert_eq!(live.place, PathBuf::from("/m"));
        let upper = plink(&["flush", "-o", "lowerdir=/l,workdir=/w", "/u"]);
        let options = upper.options.unwrap();
        assert_eq!(options.upper, Some("/u".into()));
        assert!(upper.flush && !options.read_only && options.work.is_none());
        // A look takes nothing over.
        assert!(
            plink(&["list", "-olowerdir=/l", "/u"])
                .options
                .unwrap()
                .read_only
        );
    }

    #[test]
    fn what_is_missing_is_told() {
        assert!(plink(&["list", "--json", "/u"]).json);
        for words in [
            &["plink"][..],
            &["plink", "list"],
            &["plink", "drop", "/u"],
            &["plink", "flush", "--json", "/u"],
        ] {
            assert!(parse(["unionfs"].iter().chain(words)).is_err(), "{words:?}");
        }
    }
}
