//! The daemon's program and the words it is started with.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::args::Request;

/// Where the daemon may be when it is not beside the helper; mount(8) may unset PATH.
const PLACES: [&str; 4] = ["/usr/bin", "/usr/local/bin", "/usr/sbin", "/sbin"];

/// Where `make` was told that it will be.
const INSTALLED: Option<&str> = option_env!("UNIONFS_BINDIR");

const PROGRAM: &str = "unionfs";

/// The directories looked through, but for the helper's own.
pub(crate) fn places() -> impl Iterator<Item = &'static str> {
    INSTALLED.into_iter().chain(PLACES)
}

/// Finds the daemon's program.
pub(crate) fn find() -> Option<PathBuf> {
    let own = std::env::current_exe().ok();
    find_in(own.as_deref().and_then(Path::parent))
}

fn find_in(own: Option<&Path>) -> Option<PathBuf> {
    own.map(Path::to_owned)
        .into_iter()
        .chain(places().map(PathBuf::from))
        .map(|dir| dir.join(PROGRAM))
        .find(|path| path.is_file())
}

/// The words after the program's name that carry out `request`. What the options and the source
/// mean is for the daemon to decide.
pub(crate) fn words(request: &Request) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["mount".into()];
    if request.fake {
        words.push("--check".into());
    }
    if request.sloppy {
        words.push("--sloppy".into());
    }
    if let Some(namespace) = &request.namespace {
        words.extend(["-N".into(), namespace.clone()]);
    }
    // A mount that nobody made by hand shall outlive its daemon. What was written comes later, and wins.
    words.extend(["-o".into(), "supervise=auto".into()]);
    for text in &request.options {
        words.extend(["-o".into(), text.clone()]);
    }
    words.extend(["--".into(), request.source.clone(), request.target.clone()]);
    words
}

/// A command line as one would type it, for people to read.
pub(crate) fn shown(program: &Path, words: &[OsString]) -> String {
    let mut line = in_shell(program.as_os_str());
    for word in words {
        line.push(' ');
        line.push_str(&in_shell(word));
    }
    line
}

fn in_shell(word: &OsStr) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/:=,.-_+@%".contains(byte);
    let bytes = word.as_bytes();
    if !bytes.is_empty() && bytes.iter().all(plain) {
        String::from_utf8_lossy(bytes).into_owned()
    } else if bytes.iter().all(|byte| (b' '..=b'~').contains(byte)) {
        let text = String::from_utf8_lossy(bytes);
        format!("'{}'", text.replace('\'', r"'\''"))
    } else {
        let escaped = bytes.escape_ascii().to_string();
        format!("$'{escaped}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_interpreted() {
        let request = Request {
            source: "/u=RW:/l=RO".into(),
            target: "/m".into(),
            options: vec!["rw,cow".into(), "a=b".into()],
            ..Request::default()
        };
        let expected = [
            "mount",
            "-o",
            "supervise=auto",
            "-o",
            "rw,cow",
            "-o",
            "a=b",
            "--",
            "/u=RW:/l=RO",
            "/m",
        ];
        assert_eq!(words(&request), expected);
        let all = Request {
            source: "".into(),
            namespace: Some("/proc/1/fd/4".into()),
            fake: true,
            sloppy: true,
            verbose: true,
            options: vec![],
            ..request
        };
        let expected = [
            "mount",
            "--check",
            "--sloppy",
            "-N",
            "/proc/1/fd/4",
            "-o",
            "supervise=auto",
            "--",
            "",
            "/m",
        ];
        assert_eq!(words(&all), expected);
    }

    #[test]
    fn a_shown_command_can_be_typed() {
        let words = ["-o", "a b", "it's", "", "x\n", "/l:/m=RW,-_"].map(OsString::from);
        assert_eq!(
            shown(Path::new("/bin/unionfs"), &words),
            r"/bin/unionfs -o 'a b' 'it'\''s' '' $'x\n' /l:/m=RW,-_"
        );
    }

    #[test]
    fn the_program_beside_the_helper_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(PROGRAM), "").unwrap();
        assert_eq!(find_in(Some(dir.path())), Some(dir.path().join(PROGRAM)));
    }
}
