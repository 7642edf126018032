//! `unionfs ctl`: a running mount is asked what it is and does.
//!
//! The mount's root directory is asked by ioctls (`fuse/desk.rs`), so this works wherever the mount can be
//! seen, in a container as outside, without a socket that somebody has to find. The answers are JSON, which
//! `--json` shows as it is.

mod ask;
mod prometheus;
mod status;
mod times;
mod top;
mod trace;

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cli::{Change, Ctl, Form, What};
use crate::sys::Errno;

use ask::Mount;

/// Why it could not be done. Always one line.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// The mountpoint cannot be opened.
    #[error("{0}: {1}")]
    Place(PathBuf, io::Error),
    /// There is something else, or an older unionfs.
    #[error("{0}: no mount of unionfs, or one served by an older version")]
    NoUnion(PathBuf),
    /// The caller may not ask.
    #[error("{0}: only root and the user of the mount's daemon may ask, and nobody in a container")]
    Refused(PathBuf),
    /// The daemon says why not.
    #[error("{0}: {1}")]
    Answer(PathBuf, String),
    /// The list cannot be written.
    #[error("writing: {0}")]
    Output(#[from] io::Error),
}

impl CtlError {
    fn of(place: PathBuf, errno: Errno) -> Self {
        match errno {
            Errno::NOTTY | Errno::INVAL => Self::NoUnion(place),
            Errno::PERM => Self::Refused(place),
            errno => Self::Place(place, errno.into()),
        }
    }
}

/// Does what was asked; the answer goes to `out`.
///
/// # Errors
/// One line for the first thing that went wrong.
pub fn run(what: &Ctl, out: &mut dyn Write) -> Result<(), CtlError> {
    let mount = Mount::open(&what.mountpoint)?;
    match &what.what {
        What::Status => {
            let told = mount.ask(&json!({ "ask": "status" }))?;
            tell(&told, what.form, out, status::show)
        }
        What::Stats => {
            let told = mount.ask(&json!({ "ask": "stats" }))?;
            match what.form {
                Form::Prometheus => Ok(prometheus::show(&told, out)?),
                form => tell(&told, form, out, times::show),
            }
        }
        What::Top { every, count } => top::run(&mount, *every, *count, out),
        What::Trace { slower } => {
            let told = mount.ask(&json!({ "ask": "trace", "slower_ms": slower }))?;
            tell(&told, what.form, out, trace::show)
        }
        What::Layers(None) => {
            let told = mount.ask(&json!({ "ask": "status" }))?;
            let told = json!({ "layers": told["layers"] });
            tell(&told, what.form, out, status::layers)
        }
        What::Layers(Some(change)) => {
            let told = mount.ask(&asked(change)?)?;
            tell(&told, what.form, out, status::layers)
        }
        What::Flush => {
            let told = mount.ask(&json!({ "ask": "flush" }))?;
            tell(&told, what.form, out, |_, _| Ok(()))
        }
        What::Measure(on) => {
            let told = mount.ask(&json!({ "ask": "measure", "on": on }))?;
            tell(&told, what.form, out, |told, out| {
                writeln!(out, "times measured {}", text(&told["measured"]))
            })
        }
    }
}

/// Has all that was written to the mount at `place` written to its upper. syncfs(2) does not do that: the
/// kernel does not wait for what it keeps of a FUSE filesystem's files.
pub(crate) fn write_back(place: &Path) -> Result<(), CtlError> {
    let mount = Mount::open(place)?;
    mount.ask(&json!({ "ask": "flush" })).map(drop)
}

/// The question for a change of the layers. Paths are the daemon's to open, so they are made absolute.
fn asked(change: &Change) -> Result<Value, CtlError> {
    let path = |path: &Path| -> Result<Value, CtlError> {
        let path = std::path::absolute(path).map_err(|e| CtlError::Place(path.to_owned(), e))?;
        Ok(match path.to_str() {
            Some(text) => json!(text),
            None => json!(path.as_os_str().as_bytes()),
        })
    };
    let mut question = match change {
        Change::Add { path: added, below } => json!({
            "change": "add",
            "path": path(added)?,
            "below": below.as_deref().map(path).transpose()?,
        }),
        Change::Remove { path: old } => json!({ "change": "remove", "path": path(old)? }),
        Change::Replace { old, new } => json!({
            "change": "replace",
            "path": path(old)?,
            "new": path(new)?,
        }),
    };
    question["ask"] = json!("layers");
    Ok(question)
}

fn tell(
    told: &Value, form: Form, out: &mut dyn Write,
    show: impl Fn(&Value, &mut dyn Write) -> io::Result<()>,
) -> Result<(), CtlError> {
    match form {
        Form::Json => Ok(writeln!(out, "{told:#}")?),
        _ => Ok(show(told, out)?),
    }
}

/// A text of an answer; control characters are not for terminals.
fn text(value: &Value) -> String {
    let text = value.as_str().unwrap_or_default();
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}
