//! `unionfs ctl`: what is asked of a running mount.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, ValueEnum};

use super::{CliError, Command};

/// What is asked of a running mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ctl {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// What is asked.
    pub what: What,
    /// How it is told.
    pub form: Form,
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// What it is made of.
    Status,
    /// What it did.
    Stats,
    /// What it does, again and again.
    Top {
        /// Time between two looks.
        every: Duration,
        /// So many looks; without end if that is `None`.
        count: Option<u64>,
    },
    /// Which requests took long lately.
    Trace {
        /// What is long, in milliseconds, from now on.
        slower: Option<u64>,
    },
    /// Whether it measures how long requests take.
    Measure(bool),
    /// Which layers it has, after a change.
    Layers(Option<Change>),
    /// That it lets go of what it keeps for speed, and writes what is not written yet.
    Flush,
}

/// A change of the layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A further lower, on top of the others, or directly below another layer.
    Add {
        /// Its directory.
        path: PathBuf,
        /// The layer above it.
        below: Option<PathBuf>,
    },
    /// A lower goes.
    Remove {
        /// Its directory, as the mount names it.
        path: PathBuf,
    },
    /// A lower takes the place of another.
    Replace {
        /// The directory of the one that goes, as the mount names it.
        old: PathBuf,
        /// That of the one that comes.
        new: PathBuf,
    },
}

/// How an answer is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Text,
    /// As JSON.
    Json,
    /// In the text format of Prometheus.
    Prometheus,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Action {
    /// Layers, options, the way of data, and what is used instead of something better
    Status,
    /// Requests, copy-ups, caches, inodes, descriptors, and times if they are measured
    Stats,
    /// What goes on, shown anew every two seconds; times are measured meanwhile
    Top,
    /// Requests that took long lately, while times are measured
    Trace,
    /// Measure how long requests take from now on, or no longer: on or off
    Measure,
    /// Show the layers, or change them: add DIR, remove DIR, replace OLD NEW
    Layers,
    /// Let go of what is kept for speed, here and in the kernel, and write what is not written yet
    Flush,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("form").args(["json", "prometheus"])))]
pub(super) struct CtlArgs {
    /// Where it is mounted
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,
    /// What is asked
    #[arg(value_name = "status|stats|top|trace|measure|layers|flush")]
    action: Action,
    /// For measure: on or off; for layers: add DIR, remove DIR, or replace OLD NEW
    #[arg(value_name = "WORD")]
    words: Vec<OsString>,
    /// Tell it as JSON
    #[arg(long)]
    json: bool,
    /// Tell stats as Prometheus reads them
    #[arg(long)]
    prometheus: bool,
    /// For trace: keep requests that take so many milliseconds or longer from now on; 10 at first
    #[arg(long, value_name = "MS")]
    slower: Option<u64>,
    /// For layers add: directly below this layer; without it, on top of the lowers
    #[arg(long, value_name = "LAYER")]
    below: Option<PathBuf>,
    /// For top: look every so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    every: Option<u64>,
    /// For top: end after so many looks
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

/// Seconds between two looks of top.
const EVERY: u64 = 2;

impl CtlArgs {
    pub(super) fn check(self) -> Result<Command, CliError> {
        let usage = |text: &str| Err(CliError::Usage(text.to_owned()));
        let is = |action| self.action == action;
        if self.prometheus && !is(Action::Stats) {
            return usage("--prometheus is for stats");
        }
        if self.slower.is_some() && !is(Action::Trace) {
            return usage("--slower is for trace");
        }
        if (self.every.is_some() || self.count.is_some()) && !is(Action::Top) {
            return usage("--every and --count are for top");
        }
        if self.json && is(Action::Top) {
            return usage("--json is not for top, which shows stats");
        }
        let adds = self.words.first().is_some_and(|word| word == "add");
        if self.below.is_some() && !(is(Action::Layers) && adds) {
            return usage("--below is for layers add");
        }
        if !self.words.is_empty() && !is(Action::Measure) && !is(Action::Layers) {
            return usage("too many words");
        }
        let what = match self.action {
            Action::Status => What::Status,
            Action::Stats => What::Stats,
            Action::Top => What::Top {
                every: Duration::from_secs(self.every.unwrap_or(EVERY)),
                count: self.count,
            },
            Action::Trace => What::Trace {
                slower: self.slower,
            },
            Action::Measure => match self.words.as_slice() {
                [word] if word == OsStr::new("on") => What::Measure(true),
                [word] if word == OsStr::new("off") => What::Measure(false),
                _ => return usage("measure: on or off"),
            },
            Action::Layers => match change(&self.words, self.below) {
                Some(change) => What::Layers(change),
                None => return usage("layers: add DIR, remove DIR, or replace OLD NEW"),
            },
            Action::Flush => What::Flush,
        };
        let form = match (self.json, self.prometheus) {
            (true, _) => Form::Json,
            (_, true) => Form::Prometheus,
            _ => Form::Text,
        };
        Ok(Command::Ctl(Ctl {
            mountpoint: self.mountpoint,
            what,
            form,
        }))
    }
}

/// The change of the layers that is asked for; `Some(None)` is none.
fn change(words: &[OsString], below: Option<PathBuf>) -> Option<Option<Change>> {
    let path = |word: &OsString| PathBuf::from(word);
    let verb = words.first().and_then(|word| word.to_str());
    Some(match (verb, words.get(1..).unwrap_or_default()) {
        (None, []) if words.is_empty() => None,
        (Some("add"), [dir]) => Some(Change::Add {
            path: path(dir),
            below,
        }),
        (Some("remove"), [dir]) => Some(Change::Remove { path: path(dir) }),
        (Some("replace"), [old, new]) => Some(Change::Replace {
            old: path(old),
            new: path(new),
        }),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::parse;

    fn ctl(words: &[&str]) -> Result<Ctl, String> {
        let words = ["unionfs", "ctl", "/m"].iter().chain(words);
        match parse(words) {
            Ok(Command::Ctl(ctl)) => Ok(ctl),
            Ok(other) => panic!("not ctl: {other:?}"),
            Err(e) => Err(e.to_string()),
        }
    }

    #[test]
    fn a_mountpoint_and_what_is_asked() {
        let plain = ctl(&["status"]).unwrap();
        assert_eq!((plain.what, plain.form), (What::Status, Form::Text));
        assert_eq!(plain.mountpoint, PathBuf::from("/m"));
        assert_eq!(ctl(&["stats", "--json"]).unwrap().form, Form::Json);
        let prometheus = ctl(&["stats", "--prometheus"]).unwrap();
        assert_eq!(prometheus.form, Form::Prometheus);
        let what = |words: &[&str]| ctl(words).unwrap().what;
        assert_eq!(what(&["measure", "off"]), What::Measure(false));
        let slower = Some(5);
        assert_eq!(what(&["trace", "--slower", "5"]), What::Trace { slower });
        assert_eq!(what(&["flush"]), What::Flush);
        assert_eq!(what(&["layers"]), What::Layers(None));
        let add = Change::Add {
            path: "/l".into(),
            below: Some("/k".into()),
        };
        let words = ["layers", "add", "/l", "--below", "/k"];
        assert_eq!(what(&words), What::Layers(Some(add)));
        let (old, new) = ("/l".into(), "/n".into());
        let replace = What::Layers(Some(Change::Replace { old, new }));
        assert_eq!(what(&["layers", "replace", "/l", "/n"]), replace);
        let top = What::Top {
            every: Duration::from_secs(1),
            count: Some(3),
        };
        assert_eq!(what(&["top", "--every=1", "--count=3"]), top);
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        for words in [
            &[][..],
            &["state"],
            &["status", "--prometheus"],
            &["stats", "--json", "--prometheus"],
            &["stats", "--slower=3"],
            &["stats", "--count=3"],
            &["top", "--every=0"],
            &["top", "--json"],
            &["measure"],
            &["measure", "perhaps"],
            &["status", "x"],
            &["layers", "add"],
            &["layers", "remove", "/l", "/m"],
            &["layers", "replace", "/l"],
            &["layers", "drop", "/l"],
            &["layers", "remove", "/l", "--below", "/k"],
            &["flush", "x"],
        ] {
            assert!(ctl(words).is_err(), "{words:?}");
        }
    }
}
