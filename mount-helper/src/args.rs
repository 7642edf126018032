//! The words that mount(8) gives its helpers: `SOURCE TARGET [-sfnv] [-N NS] [-o OPTS] [-t TYPE]`.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// What mount(8) asks for.
#[derive(Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // Four letters of the protocol.
pub(crate) struct Request {
    pub(crate) source: OsString,
    pub(crate) target: OsString,
    /// The values of all `-o`, in their order.
    pub(crate) options: Vec<OsString>,
    /// `-N`: the mount namespace to mount in, as a path.
    pub(crate) namespace: Option<OsString>,
    /// `-f`: do everything but mount. (The daemon's own `-f` is another thing.)
    pub(crate) fake: bool,
    /// `-s`: say nothing about unknown options.
    pub(crate) sloppy: bool,
    /// `-v`: tell what is run.
    pub(crate) verbose: bool,
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
        _ => Err("usage: SOURCE TARGET [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]".to_owned()),
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
            b's' => request.sloppy = true,
            b'v' => request.verbose = true,
            // There is no /etc/mtab to leave alone.
            b'n' => {}
            b'o' | b't' | b'N' => {
                let value = if rest.is_empty() {
                    words.next()
                } else {
                    Some(OsString::from_vec(rest.to_vec()))
                };
                let name = char::from(*letter);
                let value = value.ok_or_else(|| format!("option -{name} needs a value"))?;
                match letter {
                    b'o' => request.options.push(value),
                    b'N' => request.namespace = Some(namespace_path(value)?),
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

/// mount(8) gives a path. A person may give the number of a process, as to mount(8) itself.
fn namespace_path(value: OsString) -> Result<OsString, String> {
    match value.as_bytes() {
        [b'/', ..] => Ok(value),
        digits if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) => {
            let mut path = OsString::from("/proc/");
            path.push(&value);
            path.push("/ns/mnt");
            Ok(path)
        }
        other => Err(format!(
            "option -N: '{}' is neither a process id nor an absolute path",
            other.escape_ascii()
        )),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(words: &[&str]) -> Result<Request, String> {
        parse(words.iter().map(OsString::from))
    }

    #[test]
    fn words_as_mount_gives_them() {
        let full = request(&[
            "/a:/b",
            "/m",
            "-s",
            "-n",
            "-v",
            "-o",
            "rw,nodev",
            "-t",
            "unionfs",
            "-N",
            "/proc/1/fd/4",
        ]);
        let expected = Request {
            source: "/a:/b".into(),
            target: "/m".into(),
            options: vec!["rw,nodev".into()],
            namespace: Some("/proc/1/fd/4".into()),
            fake: false,
            sloppy: true,
            verbose: true,
        };
        assert_eq!(full.unwrap(), expected);
        let short = request(&["-sfnv", "none", "-orw", "/m", "-o", "ro"]).unwrap();
        assert!(short.fake && short.sloppy && short.verbose);
        assert_eq!(short.options, ["rw", "ro"]);
        assert_eq!(short.source, "none");
        let fake_with_value = request(&["-fo", "rw", "none", "/m"]).unwrap();
        assert!(fake_with_value.fake && fake_with_value.options == ["rw"]);
        let pid = request(&["none", "/m", "-N12"]).unwrap();
        assert_eq!(pid.namespace.unwrap(), "/proc/12/ns/mnt");
    }

    #[test]
    fn odd_operands() {
        let dashes = request(&["--", "-s", "-t"]).unwrap();
        assert_eq!(
            (dashes.source.as_os_str(), dashes.target.as_os_str()),
            ("-s".as_ref(), "-t".as_ref())
        );
        assert_eq!(request(&["-", "/m"]).unwrap().source, "-");
        assert_eq!(request(&["", "/m"]).unwrap().source, "");
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
        for (words, expected) in [
            (["a", "b", "-o"], "option -o needs a value"),
            (["a", "b", "-x"], "unknown option -x"),
            (["a", "b", "-s\n"], "unknown option -\\n"),
            (
                ["a", "b", "-Nns/mnt"],
                "option -N: 'ns/mnt' is neither a process id nor an absolute path",
            ),
        ] {
            assert_eq!(request(&words).unwrap_err(), expected);
        }
    }

    fn any_word() -> impl Strategy<Value = OsString> {
        let odd = prop_oneof![
            Just(b'-'),
            Just(b'o'),
            Just(b'N'),
            Just(b'f'),
            Just(b'/'),
            1u8..
        ];
        proptest::collection::vec(odd, 0..6).prop_map(OsString::from_vec)
    }

    proptest! {
        #[test]
        fn any_words_are_a_request_or_one_line(
            words in proptest::collection::vec(any_word(), 0..8),
        ) {
            match parse(words.into_iter()) {
                Ok(request) => prop_assert!(!request.target.is_empty()),
                Err(error) => prop_assert!(!error.contains('\n') && error.is_ascii()),
            }
        }

        #[test]
        fn what_mount_sends_arrives(
            source in any_word(), target in any_word(), options in any_word(),
        ) {
            prop_assume!(!target.is_empty());
            let sent = ["-o".into(), options.clone(), "--".into(), source.clone(), target.clone()];
            let request = parse(sent.into_iter()).unwrap();
            prop_assert_eq!(request.source, source);
            prop_assert_eq!(request.target, target);
            prop_assert_eq!(request.options, [options]);
        }
    }
}
