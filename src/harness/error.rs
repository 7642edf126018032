//! What went wrong, and what to do next.

use std::fmt;

/// Why something could not be done.
///
/// It shows as one line: what failed, why, and where that is known, what to do next. It becomes an
/// [`io::Error`](std::io::Error) by `?` where a test returns that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    reason: String,
    next: Option<&'static str>,
    busy: bool,
}

/// What is to be done when a reason holds one of these.
const NEXT: [(&str, &str); 9] = [
    (
        "/dev/fuse is missing",
        "load the module, or give the container the device (--device /dev/fuse)",
    ),
    (
        "/dev/fuse may not be opened",
        "chmod 666 /dev/fuse, as most systems have it, or run as root",
    ),
    (
        "fusermount3 is not installed",
        "install fuse3, or run in a user namespace (unshare -Urm)",
    ),
    (
        "fusermount3 cannot help",
        "run as root or in a user namespace (unshare -Urm)",
    ),
    (
        "in use by another mount",
        "give each mount an upper of its own",
    ),
    (
        "overlaps",
        "no layer may be inside another one; put them side by side",
    ),
    (
        "on the filesystem of upperdir",
        "make the workdir beside the upper",
    ),
    (
        "names that begin with .wh. cannot be made",
        "put the upper outside of the union it is in, such as on a tmpfs",
    ),
    (
        "Too many open files",
        "raise the limit (ulimit -n), or hold fewer mounts at a time",
    ),
];

impl Error {
    pub(super) fn new(reason: impl fmt::Display) -> Self {
        let reason = reason.to_string();
        let found = NEXT.iter().find(|(text, _)| reason.contains(text));
        Self {
            next: found.map(|(_, next)| *next),
            reason,
            busy: false,
        }
    }

    pub(super) fn with(reason: impl fmt::Display, next: &'static str) -> Self {
        Self {
            reason: reason.to_string(),
            next: Some(next),
            busy: false,
        }
    }

    pub(super) fn busy(reason: impl fmt::Display) -> Self {
        let next = "close what is open in it, end the programs that run there, and try again";
        Self {
            busy: true,
            ..Self::with(reason, next)
        }
    }

    /// True when something still uses the mount: an open file, a program's directory, another mount in it.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.busy
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)?;
        match self.next {
            Some(next) => write!(f, "; {next}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        let kind = match error.busy {
            true => std::io::ErrorKind::ResourceBusy,
            false => std::io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_to_do_next() {
        let error = Error::new("upperdir=/u: in use by another mount");
        let text = "upperdir=/u: in use by another mount; give each mount an upper of its own";
        assert_eq!(error.to_string(), text);
        assert_eq!(Error::new("odd").to_string(), "odd");
        assert!(Error::busy("x").is_busy() && !error.is_busy());
        let error = std::io::Error::from(Error::busy("x"));
        assert_eq!(error.kind(), std::io::ErrorKind::ResourceBusy);
    }
}
