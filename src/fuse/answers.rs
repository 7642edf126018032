//! Answers to `unionfs ctl`: text of any length, over an ioctl that passes less than 16 KiB.
//!
//! A question is answered with the first piece and a ticket, by which the other pieces are had. So an
//! answer is of one moment, however long it is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::sys::ioctl::{TELL_HEAD, TELL_WORDS};
use crate::sys::{Errno, Result};

/// Answers that are kept for those who are still reading. Who reads more slowly has to ask again.
const KEPT: usize = 8;
/// Bytes of text in one piece.
const PIECE: usize = 8 * (TELL_WORDS - TELL_HEAD);

/// What an argument asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked<'a> {
    /// This.
    New(&'a [u8]),
    /// The piece of the answer with a ticket that begins at a byte.
    More { ticket: u64, offset: u64 },
}

impl<'a> Asked<'a> {
    /// Takes an argument apart.
    ///
    /// # Errors
    /// EINVAL when it is none.
    pub fn of(argument: &'a [u8]) -> Result<Self> {
        let (head, text) = argument
            .split_at_checked(8 * TELL_HEAD)
            .ok_or(Errno::INVAL)?;
        let mut words = head.chunks_exact(8).map(|word| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(word);
            u64::from_ne_bytes(bytes)
        });
        let mut next = || words.next().unwrap_or_default();
        let (ticket, offset, length) = (next(), next(), next());
        if ticket != 0 {
            return Ok(Self::More { ticket, offset });
        }
        let length = usize::try_from(length).map_err(|_| Errno::INVAL)?;
        text.get(..length).map(Self::New).ok_or(Errno::INVAL)
    }
}

/// See the module text.
#[derive(Debug, Default)]
pub(super) struct Answers {
    last: AtomicU64,
    kept: Mutex<VecDeque<(u64, Arc<[u8]>)>>,
}

impl Answers {
    /// The first piece of an answer, of which the rest is kept.
    pub fn begin(&self, text: Vec<u8>) -> Vec<u8> {
        let ticket = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let piece = piece(ticket, &text, 0);
        if text.len() > PIECE {
            let mut kept = self.kept.lock();
            if kept.len() >= KEPT {
                kept.pop_front();
            }
            kept.push_back((ticket, text.into()));
        }
        piece
    }

    /// A further piece.
    ///
    /// # Errors
    /// ESTALE when the answer is not kept any more.
    pub fn go_on(&self, ticket: u64, offset: u64) -> Result<Vec<u8>> {
        let kept = self.kept.lock();
        let text = kept.iter().find(|(of, _)| *of == ticket);
        let text = text.map(|(_, text)| Arc::clone(text));
        drop(kept);
        let text = text.ok_or(Errno::STALE)?;
        Ok(piece(ticket, &text, offset))
    }
}

fn piece(ticket: u64, text: &[u8], offset: u64) -> Vec<u8> {
    let from = usize::try_from(offset).map_or(text.len(), |offset| offset.min(text.len()));
    let part = &text[from..text.len().min(from + PIECE)];
    let head = [ticket, from as u64, part.len() as u64, text.len() as u64];
    let mut bytes: Vec<u8> = head.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.extend_from_slice(part);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(bytes: &[u8]) -> Vec<u64> {
        let head = bytes.chunks_exact(8).take(TELL_HEAD);
        head.map(|word| u64::from_ne_bytes(word.try_into().unwrap()))
            .collect()
    }

    #[test]
    fn an_answer_comes_in_pieces_of_one_moment() {
        let answers = Answers::default();
        let text: Vec<u8> = (0..2 * PIECE + 7).map(|n| (n % 251) as u8).collect();
        let mut piece = answers.begin(text.clone());
        let mut all = Vec::new();
        loop {
            let head = words(&piece);
            assert_eq!(head[3], text.len() as u64);
            assert_eq!(head[2] as usize, piece.len() - 8 * TELL_HEAD);
            assert!(piece.len() <= 8 * TELL_WORDS);
            all.extend_from_slice(&piece[8 * TELL_HEAD..]);
            if all.len() == text.len() {
                break;
            }
            piece = answers.go_on(head[0], all.len() as u64).unwrap();
        }
        assert_eq!(all, text);
        assert_eq!(words(&answers.go_on(1, u64::MAX).unwrap())[2], 0);
        for _ in 0..KEPT {
            answers.begin(text.clone());
        }
        assert_eq!(answers.go_on(1, 0), Err(Errno::STALE));
    }

    #[test]
    fn what_is_no_question_is_refused() {
        assert_eq!(Asked::of(&[0; 31]), Err(Errno::INVAL));
        let mut argument = vec![0; 40];
        argument[16] = 9;
        assert_eq!(Asked::of(&argument), Err(Errno::INVAL));
        argument[16] = 8;
        assert_eq!(Asked::of(&argument), Ok(Asked::New(&[0; 8])));
        argument[0] = 3;
        let more = Asked::More {
            ticket: 3,
            offset: 0,
        };
        assert_eq!(Asked::of(&argument), Ok(more));
    }
}
