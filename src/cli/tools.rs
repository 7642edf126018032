//! Commands on layers: `unionfs diff`, `apply`, `check`, `convert`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum};

use super::{CliError, Command};
use crate::options::{self, Options};

/// In which form changes are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiffForm {
    /// A line for each, on stdout.
    List,
    /// JSON, on stdout.
    Json,
    /// A layer, written to this file; `-` is stdout.
    Tar(PathBuf),
    /// An image of one layer, in the same way.
    Oci(PathBuf),
}

/// What is asked about the changes in an upper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diff {
    /// A mountpoint, or an upper.
    pub place: PathBuf,
    /// The union that the upper belongs to, if it was given.
    pub options: Option<Box<Options>>,
    /// How they are told.
    pub form: DiffForm,
}

/// A layer to be unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Apply {
    /// The archive; `-` is stdin.
    pub layer: PathBuf,
    /// Where to.
    pub dir: PathBuf,
    /// Whiteouts are kept, not carried out.
    pub is_layer: bool,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("form").args(["json", "tar", "oci"])))]
pub(super) struct DiffArgs {
    /// One JSON array, an object for each change
    #[arg(long)]
    json: bool,
    /// Write a layer archive: tar with whiteouts, hard links, attributes and holes; - is stdout
    #[arg(long, value_name = "FILE")]
    tar: Option<PathBuf>,
    /// Write an image of that one layer, for podman load; - is stdout
    #[arg(long, value_name = "FILE")]
    oci: Option<PathBuf>,
    /// For an upper: the options that mount it, its lowerdir above all
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<OsString>,
    /// A mountpoint, or an upper
    #[arg(value_name = "UPPER|MOUNTPOINT")]
    place: PathBuf,
}

impl DiffArgs {
    pub(super) fn check(self) -> Result<Command, CliError> {
        let options = match self.options.as_slice() {
            [] => None,
            raw => Some(Box::new(options::parse(raw)?)),
        };
        let form = match (self.json, self.tar, self.oci) {
            (true, ..) => DiffForm::Json,
            (_, Some(file), _) => DiffForm::Tar(file),
            (.., Some(file)) => DiffForm::Oci(file),
            _ => DiffForm::List,
        };
        Ok(Command::Diff(Diff {
            place: self.place,
            options,
            form,
        }))
    }
}

#[derive(Debug, Args)]
pub(super) struct ApplyArgs {
    /// Keep whiteouts as they are: the directory is to be a layer of a union
    #[arg(long)]
    layer: bool,
    /// The layer archive; - is stdin
    #[arg(value_name = "LAYER.tar")]
    archive: PathBuf,
    /// The directory that it changes
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl ApplyArgs {
    pub(super) fn check(self) -> Command {
        Command::Apply(Apply {
            layer: self.archive,
            dir: self.dir,
            is_layer: self.layer,
        })
    }
}

/// An upper to be looked through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// The upper, of a union that is not mounted.
    pub upper: PathBuf,
    /// The union that it belongs to, if it was given.
    pub options: Option<Box<Options>>,
    /// Mend what can be mended.
    pub repair: bool,
    /// Tell it as JSON.
    pub json: bool,
}

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Mend what can be mended without a change of what the union shows
    #[arg(long)]
    repair: bool,
    /// One JSON array, an object for each problem
    #[arg(long)]
    json: bool,
    /// The options that mount the upper, its lowerdir above all
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<OsString>,
    /// The upper of a union that is not mounted
    #[arg(value_name = "UPPER")]
    upper: PathBuf,
}

impl CheckArgs {
    pub(super) fn check(self) -> Result<Command, CliError> {
        let options = match self.options.as_slice() {
            [] => None,
            raw => Some(Box::new(options::parse(raw)?)),
        };
        Ok(Command::Check(Check {
            upper: self.upper,
            options,
            repair: self.repair,
            json: self.json,
        }))
    }
}

/// Whose whiteouts and opaque marks are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dialect {
    /// `.wh.` files.
    Aufs,
    /// Devices and attributes.
    Overlay,
    /// Devices, attributes and files.
    FuseOverlayfs,
    /// Files in `.unionfs`.
    UnionfsFuse,
    /// The same in `.unionfs-fuse`, for its version 1.0, which is Debian's.
    #[value(name = "unionfs-fuse-1.0")]
    UnionfsFuse1,
}

/// A layer to be converted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Convert {
    /// Into this form.
    pub to: Dialect,
    /// The union that it belongs to, if it was given.
    pub options: Option<Box<Options>>,
    /// The layer, which nobody uses now.
    pub dir: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct ConvertArgs {
    /// Whose form the whiteouts and opaque marks get: aufs, overlay, fuse-overlayfs,
    /// unionfs-fuse, or unionfs-fuse-1.0 (which has another directory for them)
    #[arg(long, value_name = "FORM")]
    to: Dialect,
    /// The options that mount the layer: the lowerdir below it, userxattr
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<OsString>,
    /// The upper or lower of unions that are not mounted
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl ConvertArgs {
    pub(super) fn check(self) -> Result<Command, CliError> {
        let options = match self.options.as_slice() {
            [] => None,
            raw => Some(Box::new(options::parse(raw)?)),
        };
        Ok(Command::Convert(Convert {
            to: self.to,
            options,
            dir: self.dir,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::parse;

    fn diff(words: &[&str]) -> Diff {
        match parse(["unionfs", "diff"].iter().chain(words)).unwrap() {
            Command::Diff(diff) => diff,
            other => panic!("not diff: {other:?}"),
        }
    }

    #[test]
    fn forms_of_diff() {
        assert_eq!(diff(&["/u"]).form, DiffForm::List);
        assert_eq!(diff(&["--json", "/u"]).form, DiffForm::Json);
        let tar = diff(&["/u", "--tar", "f", "-o", "lowerdir=/l"]);
        assert_eq!(tar.form, DiffForm::Tar("f".into()));
        assert_eq!(tar.options.unwrap().lowers.len(), 1);
        assert_eq!(diff(&["--oci", "-", "/u"]).form, DiffForm::Oci("-".into()));
        for words in [
            &["diff"][..],
            &["diff", "--json", "--oci", "f", "/u"],
            &["diff", "--tar"],
            &["apply", "f"],
            &["diff", "/u", "-o", "upperdir=/u"],
        ] {
            assert!(parse(["unionfs"].iter().chain(words)).is_err(), "{words:?}");
        }
    }

    #[test]
    fn a_layer_and_a_directory() {
        let expected = Apply {
            layer: "f.tar".into(),
            dir: "/d".into(),
            is_layer: true,
        };
        assert_eq!(
            parse(["unionfs", "apply", "--layer", "f.tar", "/d"]),
            Ok(Command::Apply(expected))
        );
    }

    #[test]
    fn an_upper_to_be_checked() {
        let Command::Check(check) = parse(["unionfs", "check", "--repair", "/u"]).unwrap() else {
            panic!("not check")
        };
        assert!(check.repair && !check.json && check.options.is_none());
        assert_eq!(check.upper, PathBuf::from("/u"));
        assert!(parse(["unionfs", "check"]).is_err());
    }

    #[test]
    fn a_form_and_a_layer() {
        let expected = Convert {
            to: Dialect::FuseOverlayfs,
            options: None,
            dir: "/d".into(),
        };
        assert_eq!(
            parse(["unionfs", "convert", "--to", "fuse-overlayfs", "/d"]),
            Ok(Command::Convert(expected))
        );
        for words in [
            &["convert", "/d"][..],
            &["convert", "--to", "zfs", "/d"],
            &["convert", "--to", "aufs"],
        ] {
            assert!(parse(["unionfs"].iter().chain(words)).is_err(), "{words:?}");
        }
    }
}
