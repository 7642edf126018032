//! The command line: words in, a [`Command`] out. No I/O.

mod commit;
mod ctl;
mod overlay;
mod plink;
mod run;
mod tools;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ErrorKind};
use clap::{Args, Parser, Subcommand};

use crate::options::{self, OptionError, Options};

pub use commit::Commit;
pub use ctl::{Change, Ctl, Form, What};
pub use plink::Plink;
pub use run::{Ending, Run};
pub use tools::{Apply, Check, Convert, Dialect, Diff, DiffForm};

/// What the program is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Mount a union.
    Mount(Box<Mount>),
    /// Take a mount away.
    Umount {
        /// Where it is mounted.
        mountpoint: PathBuf,
    },
    /// Have this program serve a mount in the place of the one that does.
    Upgrade {
        /// Where it is mounted.
        mountpoint: PathBuf,
    },
    /// Look into a running mount, or change it.
    Ctl(Ctl),
    /// Look at or flush pseudo-links.
    Plink(Plink),
    /// Tell what an upper changes.
    Diff(Diff),
    /// Unpack a layer.
    Apply(Apply),
    /// Look through an upper.
    Check(Check),
    /// Change the form of a layer's marks.
    Convert(Convert),
    /// Merge an upper into the directory below it.
    Commit(Commit),
    /// Run a command on a view that takes its changes.
    Run(Run),
    /// Show on screen what a union does.
    Demo,
    /// Print a text (help, version) and end.
    Print(String),
}

/// A mount to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// What it shall be.
    pub options: Options,
    /// Where it shall appear; possibly relative.
    pub mountpoint: PathBuf,
    /// Stay in the foreground.
    pub foreground: bool,
    /// Lines for stderr before anything else is done.
    pub announce: Vec<String>,
    /// Check what can be checked, mount nothing.
    pub check: bool,
    /// The mount namespace to mount in, as a file of /proc.
    pub namespace: Option<PathBuf>,
}

/// Why a command line cannot be used. Always one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CliError {
    /// The words themselves.
    #[error("{0}; see unionfs --help")]
    Usage(String),
    /// The same, for those who started another name than ours.
    #[error("{0}")]
    Plain(String),
    /// What stands after `-o`.
    #[error(transparent)]
    Option(#[from] OptionError),
}

const OPTIONS_HELP: &str = "\
Options of -o, with commas between them; the first lower directory is on top:
  lowerdir=L1:L2...        read-only directories (\\: \\\\ \\, or double quotes for odd names)
  upperdir=U               the directory that takes changes; without it the mount is read-only
  workdir=W                where temporary objects are made, on the filesystem of U
  whiteout=aufs|overlay    how deletions are written to U (default aufs: .wh. files)
  ro, volatile             take no changes; do not write back on fsync
  fsname=NAME              the device name shown in /proc/mounts
  threads=N                serve with N threads, 1 to 64
  allow_other, noallow_other, nosuid, nodev, noexec, noatime, dirsync, sync
  log=FILTER               error, warn, info, debug or trace (default: RUST_LOG, or warn)
  log_file=FILE            log there, not to stderr (foreground) or syslog (background)";

/// A union filesystem: read-only lower directories and one upper that takes the changes.
#[derive(Debug, Parser)]
#[command(
    name = "unionfs",
    version,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    after_help = OPTIONS_HELP
)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    mount: Option<MountArgs>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Mount a union (the default: the word may be left out)
    #[command(after_help = OPTIONS_HELP)]
    Mount(MountArgs),
    /// Take a mount away
    Umount {
        /// Where it is mounted
        mountpoint: PathBuf,
    },
    /// Have this program serve a mount (made with -o supervise) from now on
    Upgrade {
        /// Where it is mounted
        mountpoint: PathBuf,
    },
    /// Look into a running mount: what it is made of, what it does and how long that takes
    Ctl(ctl::CtlArgs),
    /// List or flush what holds the names of linked files together
    Plink(plink::PlinkArgs),
    /// Show what an upper changes: as a list, as JSON, as a layer or an image for container engines
    Diff(tools::DiffArgs),
    /// Unpack a layer of a container engine, or of diff, onto a directory
    Apply(tools::ApplyArgs),
    /// Find what serves nothing in an upper: what a crash or another program left; and mend it
    Check(tools::CheckArgs),
    /// Change the whiteouts and opaque marks of a layer to the form of another program, in place
    Convert(tools::ConvertArgs),
    /// Merge the changes of an upper into the directory below it; the upper is empty afterwards
    Commit(commit::CommitArgs),
    /// Run a command on a throw-away view of all files, and show what it changed
    Run(run::RunArgs),
    /// Build a small stack of layers, mount it and show what a union does
    Demo,
}

#[derive(Debug, Args)]
struct MountArgs {
    /// Mount options, see below; may be given several times
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<OsString>,
    /// Stay in the foreground
    #[arg(short = 'f')]
    foreground: bool,
    /// Debug: stay in the foreground and log everything
    #[arg(short = 'd')]
    debug: bool,
    /// Take no changes: -o ro
    #[arg(short = 'r')]
    read_only: bool,
    /// Serve with one thread, as libfuse's programs do
    #[arg(short = 's')]
    single: bool,
    /// Say nothing about options that are not known
    #[arg(long)]
    sloppy: bool,
    /// Mount in the mount namespace of that file, such as /proc/PID/ns/mnt
    #[arg(short = 'N', value_name = "FILE")]
    namespace: Option<PathBuf>,
    /// Check the options, the layers and the mountpoint, but mount nothing
    #[arg(long)]
    check: bool,
    /// Where the union appears; a word before it is shown as the mount's device
    #[arg(value_name = "[SOURCE] MOUNTPOINT", required = true, num_args = 1..=2)]
    operands: Vec<OsString>,
}

/// The command line as clap knows it, for the man page and the shell completions.
#[must_use]
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// Reads a command line; `args` begins with the program's name.
///
/// # Errors
/// When it is not one that can be carried out; nothing was done then.
pub fn parse<I, T>(args: I) -> Result<Command, CliError>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    let name = args.first().map(Path::new).and_then(Path::file_name);
    if name.is_some_and(|name| name == overlay::NAME) {
        return overlay::parse(args.into_iter().skip(1));
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return from_clap(&error),
    };
    match (cli.verb, cli.mount) {
        (Some(Verb::Umount { mountpoint }), _) => Ok(Command::Umount { mountpoint }),
        (Some(Verb::Upgrade { mountpoint }), _) => Ok(Command::Upgrade { mountpoint }),
        (Some(Verb::Ctl(ctl)), _) => ctl.check(),
        (Some(Verb::Plink(plink)), _) => plink.check(),
        (Some(Verb::Diff(diff)), _) => diff.check(),
        (Some(Verb::Apply(apply)), _) => Ok(apply.check()),
        (Some(Verb::Check(check)), _) => check.check(),
        (Some(Verb::Convert(convert)), _) => convert.check(),
        (Some(Verb::Commit(commit)), _) => Ok(commit.check()),
        (Some(Verb::Run(run)), _) => Ok(run.check()),
        (Some(Verb::Demo), _) => Ok(Command::Demo),
        (Some(Verb::Mount(mount)), _) | (None, Some(mount)) => {
            Ok(Command::Mount(Box::new(mount.check()?)))
        }
        (None, None) => Err(CliError::Usage("a mountpoint is needed".to_owned())),
    }
}

impl MountArgs {
    fn check(self) -> Result<Mount, CliError> {
        let mut operands = self.operands.into_iter().rev();
        let mountpoint = operands.next().filter(|path| !path.is_empty());
        let source = operands.next().filter(|source| !source.is_empty());
        let Some(mountpoint) = mountpoint.map(PathBuf::from) else {
            return Err(CliError::Usage("the mountpoint is empty".to_owned()));
        };
        let mut options = options::parse_with_source(source.as_deref(), &self.options)?;
        if self.debug {
            options.log.get_or_insert_with(|| "debug".to_owned());
        }
        options.read_only |= self.read_only;
        if self.single {
            options.threads.get_or_insert(1);
        }
        if self.sloppy {
            options.ignored.clear();
            options.warnings.clear();
        }
        Ok(Mount {
            check: self.check,
            namespace: self.namespace,
            options,
            mountpoint,
            foreground: self.foreground || self.debug,
            announce: Vec::new(),
        })
    }
}

/// Help and version are texts to print; the rest is told in one line.
fn from_clap(error: &clap::Error) -> Result<Command, CliError> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            return Ok(Command::Print(error.render().to_string()));
        }
        ErrorKind::MissingRequiredArgument => {
            return Err(CliError::Usage("a mountpoint is needed".to_owned()));
        }
        _ => {}
    }
    let invalid = error.get(ContextKind::InvalidArg).map(ToString::to_string);
    let reason = match (error.kind(), invalid) {
        (ErrorKind::UnknownArgument, Some(word)) => {
            format!("unexpected argument '{}'", one_line(&word))
        }
        _ => {
            let text = error.render().to_string();
            let first = text.lines().next().unwrap_or("bad command line");
            one_line(first.strip_prefix("error: ").unwrap_or(first))
        }
    };
    Err(CliError::Usage(reason))
}

fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn command(words: &[&str]) -> Result<Command, CliError> {
        parse(std::iter::once("unionfs").chain(words.iter().copied()))
    }

    fn mount(words: &[&str]) -> Mount {
        match command(words).unwrap() {
            Command::Mount(mount) => *mount,
            other => panic!("not a mount: {other:?}"),
        }
    }

    fn message(words: &[&str]) -> String {
        command(words).unwrap_err().to_string()
    }

    #[test]
    fn the_word_mount_may_be_left_out() {
        let plain = mount(&["-o", "lowerdir=/l", "/m"]);
        assert_eq!(plain, mount(&["mount", "-o", "lowerdir=/l", "/m"]));
        assert_eq!(plain, mount(&["mount", "/m", "-olowerdir=/l"]));
        assert_eq!(plain, mount(&["/m", "-o", "lowerdir=/l"]));
        assert_eq!(plain.mountpoint, PathBuf::from("/m"));
        assert!(!plain.foreground);
    }

    #[test]
    fn options_add_up() {
        let mount = mount(&["-o", "lowerdir=/l,ro", "/m", "-o", "rw,upperdir=/u"]);
        assert_eq!(mount.options.upper, Some("/u".into()));
        assert!(!mount.options.read_only);
    }

    #[test]
    fn a_word_before_the_mountpoint_is_the_source() {
        let labelled = mount(&["-o", "lowerdir=/l", "overlay", "/m"]);
        assert_eq!(labelled.options.source(), "overlay");
        assert_eq!(labelled.mountpoint, PathBuf::from("/m"));
        let both = mount(&["overlay", "/m", "-o", "lowerdir=/l,fsname=named"]);
        assert_eq!(both.options.source(), "named");
        let neither = mount(&["", "/m", "-o", "lowerdir=/l"]);
        assert_eq!(neither.options.source(), "unionfs");
    }

    #[test]
    fn foreground_and_debug() {
        let foreground = mount(&["-f", "-o", "lowerdir=/l", "/m"]);
        assert!(foreground.foreground);
        assert_eq!(foreground.options.log, None);
        let debug = mount(&["-d", "-o", "lowerdir=/l", "/m"]);
        assert!(debug.foreground);
        assert_eq!(debug.options.log.as_deref(), Some("debug"));
        let quiet = mount(&["-d", "-o", "lowerdir=/l,log=error", "/m"]);
        assert_eq!(quiet.options.log.as_deref(), Some("error"));
    }

    #[test]
    fn verbs_as_mountpoints() {
        for verb in ["mount", "umount", "demo", "help"] {
            let named = mount(&["mount", "-o", "lowerdir=/l", verb]);
            assert_eq!(named.mountpoint, PathBuf::from(verb));
            let after_options = mount(&["-o", "lowerdir=/l", verb]);
            assert_eq!(after_options.mountpoint, PathBuf::from(verb));
        }
        assert_eq!(
            mount(&["help", "-olowerdir=/l"]).mountpoint,
            PathBuf::from("help")
        );
    }

    #[test]
    fn other_verbs() {
        assert_eq!(
            command(&["umount", "/m"]).unwrap(),
            Command::Umount {
                mountpoint: "/m".into()
            }
        );
        assert_eq!(command(&["demo"]).unwrap(), Command::Demo);
        assert_eq!(
            message(&["umount"]),
            "a mountpoint is needed; see unionfs --help"
        );
        assert_eq!(
            message(&["demo", "-x"]),
            "unexpected argument '-x'; see unionfs --help"
        );
    }

    #[test]
    fn names_are_bytes() {
        let name = OsString::from_vec(b"/m\xff".to_vec());
        let option = OsString::from_vec(b"lowerdir=/l\xfe".to_vec());
        let command = parse(["unionfs".into(), "-o".into(), option, name.clone()]).unwrap();
        let Command::Mount(mount) = command else {
            panic!("not a mount")
        };
        assert_eq!(mount.mountpoint, PathBuf::from(name));
        assert_eq!(mount.options.lowers.len(), 1);
    }

    #[test]
    fn errors_are_one_line() {
        assert_eq!(message(&[]), "a mountpoint is needed; see unionfs --help");
        assert_eq!(
            message(&["-o", "lowerdir=/l"]),
            "a mountpoint is needed; see unionfs --help"
        );
        assert_eq!(
            message(&["-o", "lowerdir=/l", ""]),
            "the mountpoint is empty; see unionfs --help"
        );
        assert_eq!(
            message(&["/m"]),
            "option lowerdir: missing, at least one lower directory is needed \
             (or SOURCE, br=, dirs=)"
        );
        assert_eq!(
            message(&["-o", "lowerdir=/l,whiteout=x", "/m"]),
            "option whiteout: 'x' is not aufs or overlay"
        );
        for words in [
            &["-o", "lowerdir=/l", "a", "b", "c"][..],
            &["-o"],
            &["--frob\nx", "/m"],
            &["umount", "a", "b\nc"],
            &["demo", "x"],
        ] {
            let text = message(words);
            assert!(!text.contains('\n'), "{text:?}");
            assert!(text.ends_with("; see unionfs --help"), "{text:?}");
        }
    }

    #[test]
    fn help_and_version_are_texts() {
        let Command::Print(help) = command(&["--help"]).unwrap() else {
            panic!("no text")
        };
        for word in [
            "lowerdir=",
            "whiteout=aufs|overlay",
            "umount",
            "demo",
            "MOUNTPOINT",
        ] {
            assert!(help.contains(word), "{word} is not in:\n{help}");
        }
        let Command::Print(version) = command(&["--version"]).unwrap() else {
            panic!("no text")
        };
        assert_eq!(version, format!("unionfs {}\n", env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn the_definition_is_sound() {
        super::command().debug_assert();
    }
}
