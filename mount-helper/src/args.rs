//! The words that mount(8) gives its helpers: `SOURCE TARGET [-sfnv] [-N NS] [-o OPTS] [-t TYPE]`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// What mount(8) asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) source: OsString,
    pub(crate) target: OsString,
    /// The values of all `-o`, in their order.
    pub(crate) options: Vec<OsString>,
    /// `-f`: do everything but mount. (The daemon's own `-f` is another thing.)
    pub(crate) fake: bool,
}

/// Reads the words after the program's name.
pub(crate) fn parse(words: impl Iterator<Item = OsString>) -> Result<Request, String> {
    let mut request = Request::default();
    let mut operands = Vec::new();
    let mut words = words;
    let mut only_operands = false;
    while let Some(word) = words.next() {
        match word.as_bytes() {
            b"--" if !only_operands => only_operands = true,
            [b'-', letters @ ..] if !only_operands && !letters.is_empty() => {
                read_letters(letters, &mut words, &mut request)?;
            }
            _ => operands.push(word),
        }
    }
    let mut operands = operands.into_iter();
    match (operands.next(), operands.next(), operands.next()) {
        (Some(source), Some(target), None) if !target.is_empty() => Ok(Request {
            source,
            target,
            ..request
        }),
        _ => Err("usage: mount.unionfs SOURCE TARGET [-sfnv] [-o OPTIONS] [-t TYPE]".to_owned()),
    }
}

/// One word of options, such as `-sf` or `-oro`.
fn read_letters(
    letters: &[u8], words: &mut impl Iterator<Item = OsString>, request: &mut Request,
) -> Result<(), String> {
    let mut letters = letters;
    while let [letter, rest @ ..] = letters {
        letters = rest;
        match letter {
            b'f' => request.fake = true,
            // Unknown options are tolerated anyway, /etc/mtab is history, and there is no more to
            // tell than the daemon tells.
            b's' | b'n' | b'v' => {}
            b'o' | b't' | b'N' => {
                let value = if rest.is_empty() {
                    words.next()
                } else {
                    Some(os_string(rest))
                };
                let name = char::from(*letter);
                let value = value.ok_or_else(|| format!("option -{name} needs a value"))?;
                match letter {
                    b'o' => request.options.push(value),
                    b'N' => return Err(foreign_namespace(&value)),
                    // The type is what brought mount(8) here.
                    _ => {}
                }
                return Ok(());
            }
            other => return Err(format!("unknown option -{}", other.escape_ascii())),
        }
    }
    Ok(())
}

fn foreign_namespace(namespace: &OsStr) -> String {
    let namespace = namespace.as_bytes().escape_ascii();
    format!("cannot mount in the namespace {namespace}: use nsenter")
}

fn os_string(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(words: &[&str]) -> Result<Request, String> {
        parse(words.iter().map(OsString::from))
    }

    #[test]
    fn words_as_mount_gives_them() {
        let full = request(&[
            "/a:/b", "/m", "-s", "-n", "-v", "-o", "rw,nodev", "-t", "unionfs",
        ]);
        let expected = Request {
            source: "/a:/b".into(),
            target: "/m".into(),
            options: vec!["rw,nodev".into()],
            fake: false,
        };
        assert_eq!(full.unwrap(), expected);
        let short = request(&["-sfnv", "none", "-orw", "/m", "-o", "ro"]).unwrap();
        assert!(short.fake);
        assert_eq!(short.options, ["rw", "ro"]);
        assert_eq!(short.source, "none");
        let fake_with_value = request(&["-fo", "rw", "none", "/m"]).unwrap();
        assert!(fake_with_value.fake && fake_with_value.options == ["rw"]);
    }

    #[test]
    fn odd_operands() {
        let dashes = request(&["--", "-s", "-t"]).unwrap();
        assert_eq!(
            (dashes.source.as_os_str(), dashes.target.as_os_str()),
            ("-s".as_ref(), "-t".as_ref())
        );
        assert_eq!(request(&["-", "/m"]).unwrap().source, "-");
        let bytes = [b"/\xff".to_vec(), b"/\xfe".to_vec()].map(OsString::from_vec);
        assert_eq!(parse(bytes.clone().into_iter()).unwrap().target, bytes[1]);
    }

    #[test]
    fn bad_words() {
        for words in [&[][..], &["a"], &["a", "b", "c"], &["a", ""]] {
            assert!(
                request(words).unwrap_err().starts_with("usage: "),
                "{words:?}"
            );
        }
        assert_eq!(
            request(&["a", "b", "-o"]).unwrap_err(),
            "option -o needs a value"
        );
        assert_eq!(request(&["a", "b", "-x"]).unwrap_err(), "unknown option -x");
        assert_eq!(
            request(&["a", "b", "-s\n"]).unwrap_err(),
            "unknown option -\\n"
        );
        let namespace = request(&["a", "b", "-N", "/proc/1/ns/mnt"]).unwrap_err();
        assert!(namespace.starts_with("cannot mount in the namespace /proc/1/ns/mnt"));
    }
}
