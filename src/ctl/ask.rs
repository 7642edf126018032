//! Questions and answers over the mount's root directory.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::sys::ioctl::{self, TELL_HEAD, TELL_WORDS};
use crate::sys::{Errno, Result};

use super::CtlError;

/// How often an answer is asked for that is not kept long enough to be read to its end.
const TRIES: usize = 10;

/// A mount, open for questions.
pub(super) struct Mount {
    root: File,
    place: PathBuf,
}

impl Mount {
    pub fn open(place: &Path) -> std::result::Result<Self, CtlError> {
        let root = File::open(place).map_err(|e| CtlError::Place(place.to_owned(), e))?;
        let place = place.to_owned();
        Ok(Self { root, place })
    }

    /// Asks, and waits for the answer.
    pub fn ask(&self, question: &Value) -> std::result::Result<Value, CtlError> {
        let question = question.to_string();
        let mut tries = 0;
        let answer = loop {
            match self.answer(question.as_bytes()) {
                Err(Errno::STALE) if tries < TRIES => tries += 1,
                answer => break answer.map_err(|e| CtlError::of(self.place.clone(), e))?,
            }
        };
        let says = |text: &str| CtlError::Answer(self.place.clone(), text.to_owned());
        let answer: Value = serde_json::from_slice(&answer)
            .map_err(|_| says("the daemon gave no answer that can be read"))?;
        match answer["error"].as_str() {
            Some(_) => Err(says(&super::text(&answer["error"]))),
            None => Ok(answer),
        }
    }

    fn answer(&self, question: &[u8]) -> Result<Vec<u8>> {
        let mut words = Box::new([0; TELL_WORDS]);
        if question.len() > 8 * (TELL_WORDS - TELL_HEAD) {
            return Err(Errno::TOOBIG);
        }
        words[2] = question.len() as u64;
        for (word, bytes) in words[TELL_HEAD..].iter_mut().zip(question.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(whole);
        }
        ioctl::tell(&self.root, &mut words)?;
        let mut answer: Vec<u8> = Vec::new();
        loop {
            let length = usize::try_from(words[2]).map_err(|_| Errno::IO)?;
            let total = words[3];
            let piece = words[TELL_HEAD..]
                .iter()
                .flat_map(|word| word.to_ne_bytes());
            answer.extend(piece.take(length));
            if answer.len() as u64 >= total {
                return Ok(answer);
            }
            if length == 0 {
                return Err(Errno::IO);
            }
            words[1] = answer.len() as u64;
            ioctl::tell(&self.root, &mut words)?;
        }
    }
}
