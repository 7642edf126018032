//! Where `unionfs ctl` asks: questions in words, answers as JSON.

use std::fmt;
use std::sync::{Arc, OnceLock};

use fuser::Notifier;
use serde_json::{Value, json};

use crate::options::Options;
use crate::stats::{Counts, Op};
use crate::sys::Result;
use crate::union::Union;

use super::answers::{Answers, Asked};
use super::clock::Clock;
use super::io::Choice;
use super::passthrough::Passthrough;

/// What is counted and known of a mount beside its union.
pub(super) struct Desk {
    pub union: Arc<Union>,
    pub passthrough: Option<Arc<Passthrough>>,
    pub choice: Choice,
    pub options: Options,
    pub counts: Counts,
    pub clock: Clock,
    answers: Answers,
    /// The way to tell the kernel, once the mount is served.
    pub notifier: OnceLock<Notifier>,
}

impl Desk {
    pub fn new(
        union: &Arc<Union>, passthrough: Option<Arc<Passthrough>>, choice: Choice,
        options: &Options,
    ) -> Self {
        Self {
            union: Arc::clone(union),
            passthrough,
            choice,
            options: options.clone(),
            counts: Counts::default(),
            clock: Clock::default(),
            answers: Answers::default(),
            notifier: OnceLock::new(),
        }
    }

    /// Counts a request.
    pub fn count(&self, op: Op) {
        self.counts.add(op);
        self.clock.name(op);
    }

    /// The answer to the argument of an ioctl, or a piece of it.
    ///
    /// # Errors
    /// EINVAL for what is no question, ESTALE for an answer that is not kept any more.
    pub fn tell(&self, argument: &[u8]) -> Result<Vec<u8>> {
        match Asked::of(argument)? {
            Asked::More { ticket, offset } => self.answers.go_on(ticket, offset),
            Asked::New(question) => {
                let answer = match serde_json::from_slice::<Value>(question) {
                    Ok(question) => self.answer(&question),
                    Err(_) => Err("the question is not JSON".to_owned()),
                };
                let answer = answer.unwrap_or_else(|error| json!({ "error": error }));
                Ok(self.answers.begin(answer.to_string().into_bytes()))
            }
        }
    }

    /// Answers `{"ask": WHAT, ...}`, or says in one line why not.
    fn answer(&self, question: &Value) -> std::result::Result<Value, String> {
        match question["ask"].as_str().unwrap_or_default() {
            "status" => Ok(self.status()),
            "stats" => Ok(self.stats(question)),
            "trace" => Ok(self.trace(question)),
            "layers" => self.change_layers(question),
            "flush" => self.flush(),
            "measure" => Ok(self.measure(question)),
            what => Err(format!("the daemon of this mount does not know '{what}'")),
        }
    }
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk")
            .field("choice", &self.choice)
            .finish_non_exhaustive()
    }
}
