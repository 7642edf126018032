//! A session that another process can go on with.
//!
//! fuser begins a session by answering the kernel's first request, which comes only once for each
//! mount. So it is given a channel in which that request lies, written down when it came, and when
//! it has answered, its descriptor is made to stand for the connection itself. All it does goes
//! through that one descriptor (`clone_fd` is off; requests read through a clone would fail when
//! its process ends, instead of being sent again).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use fuser::{Config, Filesystem, Session, SessionACL};

use crate::sys::handover::{channel, replace, resend};
use crate::union::journal::{self, Journal};

use super::leftover::{self, Inherited};

/// Large enough for any first request; the kernel wants at least 8 KiB.
const REQUEST: usize = 1 << 16;
/// `FUSE_HAS_RESEND`, in the second half of the flags.
const HAS_RESEND: u32 = 1 << (39 - 32);
/// `FUSE_PASSTHROUGH`, there too.
const PASSTHROUGH: u32 = 1 << (37 - 32);
/// `FUSE_INIT_EXT`: there is a second half.
const INIT_EXT: u32 = 1 << 30;

/// Where things are in the first request.
mod request {
    pub const FLAGS: usize = 52;
    pub const FLAGS_2: usize = 56;
    pub const LEN: usize = 60;
}

/// Where things are in its answer.
mod answer {
    pub const ERROR: usize = 4;
    pub const VERSION: std::ops::Range<usize> = 16..24;
    pub const FLAGS: usize = 28;
    pub const FLAGS_2: usize = 48;
    pub const LEN: usize = 52;
}

/// Begins a session on a connection, or goes on with it if another process of ours has begun.
///
/// # Errors
/// What fuser gives; Unsupported for a kernel before 6.9, or when this program understands the
/// kernel otherwise than the one that began.
pub(super) fn session<F: Filesystem>(
    filesystem: F, connection: OwnedFd, acl: SessionACL, config: Config,
    inherited: Option<Inherited>,
) -> io::Result<Session<F>> {
    let Some(journal) = journal::active() else {
        return Session::from_fd(filesystem, connection, acl, config);
    };
    let begun = journal.session();
    let (ours, theirs) = channel()?;
    let first = match &begun {
        Some((request, answer)) => narrowed(request, answer),
        None => first_request(&connection)?,
    };
    rustix::io::write(&ours, &first)?;
    let session = Session::from_fd(filesystem, theirs, acl, config)?;
    let mut answer = vec![0; 4096];
    let length = rustix::io::read(&ours, &mut answer)?;
    answer.truncate(length);
    match &begun {
        None => begin(journal, &connection, &first, &answer)?,
        Some((_, first)) => check_same(first, &answer)?,
    }
    replace(session.as_fd(), &connection)?;
    if let Some((_, first)) = &begun {
        if passes_through(first)
            && let Err(e) = leftover::close_later(journal, &connection, inherited)
        {
            tracing::warn!("files of the last server stay with the kernel: {e}");
        }
        resend(&connection)?;
        journal.tell_ready();
    }
    Ok(session)
}

/// Whether the kernel was told, at the beginning of the mount, that it may get files.
pub(super) fn passes_through(answer: &[u8]) -> bool {
    word(answer, answer::FLAGS_2) & PASSTHROUGH != 0
}

fn unsupported(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, reason)
}

/// The kernel's first request.
fn first_request(connection: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut request = vec![0; REQUEST];
    let length = rustix::io::retry_on_intr(|| rustix::io::read(connection, &mut *request))?;
    request.truncate(length);
    let offers = |bit| length >= request::LEN && word(&request, request::FLAGS_2) & bit != 0;
    if !offers(HAS_RESEND) {
        return Err(unsupported(
            "option supervise: needs Linux 6.9, which sends requests again",
        ));
    }
    Ok(request)
}

/// Passes the answer on to the kernel and has both kept.
fn begin(journal: &Journal, connection: &OwnedFd, request: &[u8], answer: &[u8]) -> io::Result<()> {
    rustix::io::write(connection, answer)?;
    if answer.len() < answer::LEN || word(answer, answer::ERROR) != 0 {
        return Ok(());
    }
    Ok(journal.keep_session(request, answer, connection.as_fd())?)
}

/// The first request as it would have been had the kernel offered just what was taken then: what
/// this process takes beyond that the kernel would not know.
fn narrowed(request: &[u8], answer: &[u8]) -> Vec<u8> {
    let mut narrowed = request.to_vec();
    for (at, taken) in [
        (request::FLAGS, word(answer, answer::FLAGS) | INIT_EXT),
        (request::FLAGS_2, word(answer, answer::FLAGS_2)),
    ] {
        let both = word(request, at) & taken;
        if let Some(place) = narrowed.get_mut(at..at + 4) {
            place.copy_from_slice(&both.to_ne_bytes());
        }
    }
    narrowed
}

/// The kernel goes by the first answer; another one would mean that the two misunderstand.
fn check_same(first: &[u8], now: &[u8]) -> io::Result<()> {
    let flags = |of: &[u8]| (word(of, answer::FLAGS), word(of, answer::FLAGS_2));
    let is_same = now.len() >= answer::LEN
        && word(now, answer::ERROR) == 0
        && first.get(answer::VERSION) == now.get(answer::VERSION)
        && flags(first) == flags(now);
    if is_same {
        return Ok(());
    }
    Err(unsupported(
        "the mount was begun by a version that agreed on other things with the kernel",
    ))
}

/// Four bytes as a number, 0 beyond the end.
fn word(bytes: &[u8], at: usize) -> u32 {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(len: usize, values: &[(usize, u32)]) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for (at, value) in values {
            bytes[*at..*at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn only_what_was_taken_is_offered_again() {
        let request = with(
            104,
            &[
                (request::FLAGS, INIT_EXT | 0b1110),
                (request::FLAGS_2, 0b11),
            ],
        );
        let answer = with(80, &[(answer::FLAGS, 0b0111), (answer::FLAGS_2, 0b10)]);
        let narrowed = narrowed(&request, &answer);
        assert_eq!(word(&narrowed, request::FLAGS), INIT_EXT | 0b0110);
        assert_eq!(word(&narrowed, request::FLAGS_2), 0b10);
    }

    #[test]
    fn another_answer_than_the_first_is_refused() {
        let first = with(80, &[(16, 7), (20, 40), (answer::FLAGS, 5)]);
        let more = with(80, &[(16, 7), (20, 40), (answer::FLAGS, 7)]);
        let newer = with(80, &[(16, 7), (20, 41), (answer::FLAGS, 5)]);
        let refused = with(
            80,
            &[(16, 7), (20, 40), (answer::FLAGS, 5), (answer::ERROR, 1)],
        );
        assert!(check_same(&first, &first.clone()).is_ok());
        for other in [more, newer, refused, Vec::new()] {
            assert!(check_same(&first, &other).is_err());
        }
    }
}
