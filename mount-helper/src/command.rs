//! The daemon's program and the words it is started with.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::args::Request;

/// Where the daemon may be when it is not beside the helper; mount(8) may unset PATH.
pub(crate) const PLACES: [&str; 4] = ["/usr/bin", "/usr/local/bin", "/usr/sbin", "/sbin"];

const PROGRAM: &str = "unionfs";

/// Finds the daemon's program.
pub(crate) fn find() -> Option<PathBuf> {
    let own = std::env::current_exe().ok();
    find_in(own.as_deref().and_then(Path::parent))
}

fn find_in(own: Option<&Path>) -> Option<PathBuf> {
    own.into_iter()
        .chain(PLACES.iter().map(Path::new))
        .map(|dir| dir.join(PROGRAM))
        .find(|path| path.is_file())
}

/// The command that carries out `request`.
pub(crate) fn build(program: &Path, request: &Request) -> Command {
    let mut command = Command::new(program);
    command.args(words(request));
    command
}

/// The words after the program's name.
fn words(request: &Request) -> Vec<OsString> {
    let mut words = vec!["mount".into()];
    let option = |words: &mut Vec<OsString>, text| words.extend(["-o".into(), text]);
    let layers = request
        .options
        .iter()
        .any(|text| names_lowers(text.as_bytes()));
    if !layers && request.source.as_bytes().contains(&b'/') {
        let mut lowers = b"lowerdir=".to_vec();
        lowers.extend(list_in_options(&request.source));
        option(&mut words, OsString::from_vec(lowers));
    }
    for text in &request.options {
        option(&mut words, text.clone());
    }
    if !request.source.is_empty() {
        // Last, so that it counts: mount -a and umount SOURCE know a mount by this name.
        let mut name = b"fsname=".to_vec();
        name.extend(quoted(&request.source));
        option(&mut words, OsString::from_vec(name));
    }
    words.push("--".into());
    words.push(request.target.clone());
    words
}

/// Is there a `lowerdir=` among these options?
fn names_lowers(text: &[u8]) -> bool {
    let mut rest = text;
    while !rest.is_empty() {
        if rest.starts_with(b"lowerdir=") {
            return true;
        }
        let end = field_len(rest);
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    false
}

/// The length of the first field: up to a comma without a backslash and outside a quoted value.
fn field_len(text: &[u8]) -> usize {
    let (mut quoted, mut before) = (false, None);
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        match byte {
            b'\\' => at += 1,
            b'"' if quoted || before == Some(b'=') => quoted = !quoted,
            b',' if !quoted => return at,
            _ => {}
        }
        before = Some(byte);
        at += 1;
    }
    text.len()
}

/// A source that is a list of layers already, with its own escapes: only what would end the
/// option, or begin a quoted value, needs one more.
fn list_in_options(source: &OsStr) -> Vec<u8> {
    let mut text = Vec::new();
    let mut escaped = false;
    for (index, &byte) in source.as_bytes().iter().enumerate() {
        if !escaped && (byte == b',' || byte == b'"' && index == 0) {
            text.push(b'\\');
        }
        escaped = byte == b'\\' && !escaped;
        text.push(byte);
    }
    text
}

/// A value that stands for itself in `-o`.
fn quoted(value: &OsStr) -> Vec<u8> {
    let mut text = Vec::new();
    for &byte in value.as_bytes() {
        if matches!(byte, b':' | b'\\' | b',' | b'"') {
            text.push(b'\\');
        }
        text.push(byte);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(source: &str, options: &[&str]) -> Vec<OsString> {
        words(&Request {
            source: source.into(),
            target: "/m".into(),
            options: options.iter().map(OsString::from).collect(),
            fake: false,
        })
    }

    #[test]
    fn a_source_with_layers() {
        assert_eq!(
            given("/a:/b", &["rw,upperdir=/u"]),
            [
                "mount",
                "-o",
                "lowerdir=/a:/b",
                "-o",
                "rw,upperdir=/u",
                "-o",
                r"fsname=/a\:/b",
                "--",
                "/m"
            ]
        );
        let odd = given(r"/a\:b,c\,d", &[]);
        assert_eq!(odd[2], r"lowerdir=/a\:b\,c\,d");
        assert_eq!(odd[4], r"fsname=/a\\\:b\,c\\\,d");
    }

    #[test]
    fn a_source_that_is_only_a_name() {
        assert_eq!(
            given("none", &["rw,lowerdir=/a"]),
            [
                "mount",
                "-o",
                "rw,lowerdir=/a",
                "-o",
                "fsname=none",
                "--",
                "/m"
            ]
        );
        assert_eq!(
            given("/some/label", &["lowerdir=/a"]),
            [
                "mount",
                "-o",
                "lowerdir=/a",
                "-o",
                "fsname=/some/label",
                "--",
                "/m"
            ]
        );
        assert_eq!(
            given("", &["lowerdir=/a"]),
            ["mount", "-o", "lowerdir=/a", "--", "/m"]
        );
    }

    #[test]
    fn lowerdir_counts_only_as_an_option() {
        for text in [
            "lowerdir=/a",
            "rw,lowerdir=/a",
            r#"context="x,y",lowerdir=/a"#,
            r"a\\,lowerdir=",
        ] {
            assert!(names_lowers(text.as_bytes()), "{text}");
        }
        for text in [
            "",
            "rw",
            "xlowerdir=/a",
            r#"context="x,lowerdir=y""#,
            r"upperdir=/u\,lowerdir=x",
        ] {
            assert!(!names_lowers(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn the_program_beside_the_helper_comes_first() {
        let dir = std::env::temp_dir().join(format!("mount-helper-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join(PROGRAM), "").unwrap();
        let found = find_in(Some(&dir));
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(found, Some(dir.join(PROGRAM)));
    }
}
