//! The command line of fuse-overlayfs, for those who start this program by that name: container
//! engines, and scripts that look for it in PATH.
//!
//! What differs from our own: the last operand is the mountpoint whatever stands before it, words
//! nobody knows are told on stderr as that program tells them, and no word is a command.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::{CliError, Command, Mount};
use crate::options;

/// The name that brings us here. It is also the source that a mount shows, and its type.
pub(super) const NAME: &str = "fuse-overlayfs";

/// The version of fuse-overlayfs whose options and behaviour are meant.
const LIKE: &str = "1.16";

const HELP: &str = "\
usage: fuse-overlayfs [options] <mountpoint>

    -h   --help            print help
    -V   --version         print version
    -d   -o debug          enable debug output (implies -f)
    -f                     foreground operation
    -s                     disable multi-threaded operation
    -o lowerdir=L1:L2...   read-only directories, the first on top
    -o upperdir=U          directory that takes the changes
    -o workdir=W           directory for temporary objects
    -o OPTIONS             see unionfs(8)

This is unionfs under the name of fuse-overlayfs.
";

fn version() -> String {
    format!(
        "{NAME}: version {LIKE}\nunionfs version {}\nusing FUSE kernel interface version 7.{}\n",
        env!("CARGO_PKG_VERSION"),
        options::FUSE_MINOR
    )
}

/// Reads the words after the program's name.
pub(super) fn parse(words: impl Iterator<Item = OsString>) -> Result<Command, CliError> {
    let mut words = words;
    let (mut raw, mut operands, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    let (mut foreground, mut debug, mut single, mut only_operands) = (false, false, false, false);
    while let Some(word) = words.next() {
        match word.as_bytes() {
            _ if only_operands => operands.push(word),
            b"--" => only_operands = true,
            b"-h" | b"--help" => return Ok(Command::Print(HELP.to_owned())),
            b"-V" | b"--version" => return Ok(Command::Print(version())),
            b"-f" => foreground = true,
            b"-d" | b"--debug" => debug = true,
            b"-s" => single = true,
            b"-o" => raw.push(
                words
                    .next()
                    .ok_or_else(|| usage("missing argument for -o"))?,
            ),
            [b'-', b'o', text @ ..] => raw.push(OsString::from_vec(text.to_vec())),
            [b'-', _, ..] => unknown.push(word),
            _ => operands.push(word),
        }
    }
    let target = operands.pop().filter(|target| !target.is_empty());
    let target = target.ok_or_else(|| usage("no mountpoint specified"))?;
    let mut options = options::parse(&raw)?;
    options.subtype.get_or_insert_with(|| NAME.into());
    let label = operands.pop().filter(|label| !label.is_empty());
    options.source = options.source.or(label).or_else(|| Some(NAME.into()));
    if debug {
        options.log.get_or_insert_with(|| "debug".to_owned());
    }
    if single {
        options.threads.get_or_insert(1);
    }
    unknown.append(&mut options.ignored);
    let announce = unknown.iter().map(|word| {
        let word = super::one_line(&word.to_string_lossy());
        format!("unknown argument ignored: {word}")
    });
    Ok(Command::Mount(Box::new(Mount {
        announce: announce.collect(),
        options,
        mountpoint: target.into(),
        foreground: foreground || debug,
        check: false,
        namespace: None,
    })))
}

fn usage(reason: &str) -> CliError {
    CliError::Plain(reason.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(words: &[&str]) -> Result<Command, CliError> {
        parse(words.iter().map(OsString::from))
    }

    fn mount(words: &[&str]) -> Mount {
        match command(words).unwrap() {
            Command::Mount(mount) => *mount,
            other => panic!("not a mount: {other:?}"),
        }
    }

    #[test]
    fn the_words_of_container_engines() {
        let podman = "lowerdir=/g/l/A:/g/l/B,upperdir=/g/d,workdir=/g/w,,volatile,private";
        let mount_ = mount(&["-o", podman, "/m"]);
        assert_eq!(mount_.options.lowers.len(), 2);
        assert!(mount_.options.volatile && mount_.announce.is_empty() && !mount_.foreground);
        assert_eq!(mount_.options.source(), NAME);
        assert_eq!(mount_.options.subtype(), NAME);
        let containerd = mount(&[
            "overlay",
            "/m",
            "-o",
            "workdir=/w,upperdir=/u,lowerdir=/l,dev,suid",
        ]);
        assert_eq!(containerd.mountpoint.to_str(), Some("/m"));
        assert_eq!(containerd.options.source(), "overlay");
    }

    #[test]
    fn unknown_words_are_told_and_passed_over() {
        let mount = mount(&["-n", "-olowerdir=/l,frob=1", "--what", "/m"]);
        let told = ["-n", "--what", "frob=1"].map(|w| format!("unknown argument ignored: {w}"));
        assert_eq!(mount.announce, told);
        assert!(mount.options.ignored.is_empty());
    }

    #[test]
    fn texts_and_errors() {
        let Command::Print(version) = command(&["-o", "x", "--version"]).unwrap() else {
            panic!("no text")
        };
        assert!(
            version.starts_with("fuse-overlayfs: version 1.16\n"),
            "{version}"
        );
        assert!(matches!(command(&["-h"]), Ok(Command::Print(_))));
        let text = |words: &[&str]| command(words).unwrap_err().to_string();
        assert_eq!(text(&[]), "no mountpoint specified");
        assert_eq!(text(&["-o"]), "missing argument for -o");
        assert!(text(&["/m"]).starts_with("option lowerdir: missing"));
    }
}
