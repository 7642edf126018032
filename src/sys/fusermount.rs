//! Unmounting through fusermount3.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::Command;

/// Where the helper may be when PATH, which a service may lack, does not lead to it.
const HELPERS: [&str; 3] = ["fusermount3", "/usr/bin/fusermount3", "/bin/fusermount3"];

/// Unmounts by the setuid helper of libfuse, for ordinary users.
///
/// # Errors
/// Its own words, or that it is not installed.
pub(crate) fn fusermount(mountpoint: &Path, lazy: bool) -> Result<(), String> {
    let options: &[&str] = if lazy {
        &["-u", "-z", "--"]
    } else {
        &["-u", "--"]
    };
    // The variable that the mounting side (fuser) obeys too.
    let chosen = std::env::var_os("FUSERMOUNT_PATH").map(|helper| vec![helper]);
    for helper in chosen.unwrap_or_else(|| HELPERS.map(OsString::from).to_vec()) {
        match Command::new(&helper).args(options).arg(mountpoint).output() {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let line = said.lines().find(|line| !line.trim().is_empty());
                let status = || format!("{}: {}", helper.display(), output.status);
                return Err(line.map_or_else(status, |line| line.trim().to_owned()));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{}: {error}", helper.display())),
        }
    }
    Err("operation not permitted, and fusermount3 is not installed".to_owned())
}
