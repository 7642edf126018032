//! The Debian root, made by mmdebstrap once and cached beside the one of the test suites.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::Result;

/// The tar of the root.
pub(crate) fn root() -> Result<PathBuf> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/debian-root.sh");
    let output = Command::new("bash")
        .arg(script)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| format!("bash: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match (output.status.success(), text.lines().last()) {
        (true, Some(path)) => Ok(path.into()),
        _ => Err(format!("{script}: {} (--small needs no Debian root)", output.status).into()),
    }
}
