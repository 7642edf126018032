//! Why an `-o` text cannot be used.

/// Why an `-o` text cannot be used. Always one line that names the option and the cause.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// There is nothing to show.
    #[error(
        "option lowerdir: missing, at least one lower directory is needed (or SOURCE, br=, dirs=)"
    )]
    NoLower,
    /// The option is a word without its value, or the value is empty.
    #[error("option {option}: needs a value, {expected}")]
    NeedsValue {
        /// The option's name.
        option: String,
        /// What would be right.
        expected: String,
    },
    /// The option is a plain word and was given a value.
    #[error("option {option}: takes no value, and got '{value}'")]
    TakesNoValue {
        /// The option's name.
        option: String,
        /// What was given.
        value: String,
    },
    /// The value is none of those the option knows.
    #[error("option {option}: '{value}' is not {expected}")]
    BadValue {
        /// The option's name.
        option: String,
        /// What was given.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// One part of a list is empty.
    #[error("option {option}: part {part} of the list is empty (\\: writes a colon)")]
    EmptyPart {
        /// The option's name.
        option: String,
        /// Which part, counted from 1.
        part: usize,
    },
    /// A value begins with a double quote and nothing ends it.
    #[error("option {option}: the double quote is never closed")]
    OpenQuote {
        /// The option's name.
        option: String,
    },
    /// There is text between the closing quote and the next comma.
    #[error("option {option}: text after the closing double quote")]
    AfterQuote {
        /// The option's name.
        option: String,
    },
    /// The option names a directory that was named otherwise before.
    #[error("option {option}: given twice, as '{first}' and as '{second}'")]
    Twice {
        /// The option's name.
        option: String,
        /// The value that came first.
        first: String,
        /// The value that came later.
        second: String,
    },
    /// Two options that cannot both hold.
    #[error("option {option}: contradicts {other}")]
    Contradicts {
        /// The option's name.
        option: String,
        /// The other one's.
        other: String,
    },
    /// A branch list whose writable branch is not the first.
    #[error("option {option}: the writable branch {branch} is not the first")]
    WritableBelow {
        /// The option's name.
        option: String,
        /// The branch, as written.
        branch: String,
    },
    /// Branches were to be changed that are not there.
    #[error("option {option}: {reason}")]
    Branch {
        /// The option's name.
        option: String,
        /// What is wrong.
        reason: String,
    },
    /// An option that must not be passed over, and is not carried out.
    #[error("option {option}: refused: {why}")]
    Refused {
        /// The option's name.
        option: String,
        /// Why.
        why: &'static str,
    },
}

/// Bytes from outside as text for a message: one line, whatever they are.
pub(super) fn shown(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}
