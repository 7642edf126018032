//! `unionfs check`: what in an upper serves nothing, and how it goes without a change of what shows.

use std::io::{BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use crate::cli::Check;
use crate::layer::LOCK_PATIENCE;
use crate::mount;
use crate::options::Options;
use crate::sys::{self, Errno, ioctl};
use crate::union::Union;

use super::check_walk::{self, Problem};
use super::progress::{Progress, Unit};
use super::{Result, ToolError, mend};

/// Looks, and mends if that was asked; findings go to `out`.
///
/// # Errors
/// One line for the first thing that went wrong, or when problems are left.
pub fn check(what: &Check, out: &mut dyn Write) -> Result<()> {
    let below = what.options.as_deref().map(lowers).transpose()?.flatten();
    let root = open(&what.upper)?;
    let lock = lock(&root, &what.upper)?;
    let progress = Progress::new("reading directories", Unit::Items);
    let mut problems = check_walk::find(&root, below.as_ref(), &progress)?;
    problems.sort_by(|a, b| (&a.path, a.text()).cmp(&(&b.path, b.text())));
    let mut mended = vec![false; problems.len()];
    if what.repair {
        progress.next("mending", Some(problems.len() as u64));
        for (problem, mended) in problems.iter().zip(&mut mended) {
            *mended = mend::mend(&root, problem)?;
            progress.add(1);
        }
    }
    drop(progress);
    drop(lock);
    let told = tell(what, &problems, &mended, out);
    told.map_err(|e| ToolError::new(format_args!("writing: {e}")))?;
    let left = mended.iter().filter(|mended| !**mended).count();
    let upper = what.upper.display();
    match (left, what.repair) {
        (0, _) => Ok(()),
        (left, false) => {
            let hint = "see unionfs check --repair";
            Err(ToolError::new(format_args!(
                "{upper}: {left} found; {hint}"
            )))
        }
        (left, true) => Err(ToolError::new(format_args!(
            "{upper}: {left} left, as nothing tells which way is right"
        ))),
    }
}

/// The lowers of these options, if there are any.
pub(super) fn lowers(options: &Options) -> Result<Option<Union>> {
    let options = Options {
        upper: None,
        work: None,
        read_only: true,
        ..options.clone()
    };
    if options.lowers.is_empty() {
        return Ok(None);
    }
    let union = mount::open_union(&options);
    union
        .map(Some)
        .map_err(|e| ToolError::new(format_args!("{e}")))
}

pub(super) fn open(upper: &Path) -> Result<Arc<OwnedFd>> {
    let path = upper.as_os_str().as_bytes();
    let root = sys::at::open_root(path).map_err(|e| ToolError::at(path, e))?;
    Ok(Arc::new(root))
}

/// The lock that a mount holds on its upper, for as long as we work on it.
pub(super) fn lock(root: &Arc<OwnedFd>, upper: &Path) -> Result<OwnedFd> {
    let fail = |e| ToolError::at(upper.as_os_str().as_bytes(), e);
    let busy = || {
        let upper = upper.display();
        ToolError::new(format_args!("{upper}: in use by a mount; unmount it first"))
    };
    let lock = sys::fd::reopen_dir(&**root).map_err(fail)?;
    if ioctl::control(&lock, ioctl::LAYER, 0).is_ok() {
        let upper = upper.display();
        return Err(ToolError::new(format_args!(
            "{upper}: a mounted union; unmount it, and give its upper"
        )));
    }
    match sys::fd::lock_within(&lock, LOCK_PATIENCE) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(busy()),
        Err(e) => return Err(fail(e)),
    }
    // Overlayfs takes no such lock, but says which its upper is; as its mounter wrote it, so nothing
    // can be told of a relative path.
    let own = sys::stat::fstat(root.as_fd()).map_err(fail)?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in mounts.lines() {
        let mut words = line.split(' ').skip_while(|word| *word != "-").skip(1);
        if words.next() != Some("overlay") {
            continue;
        }
        let options = words.last().unwrap_or_default().split(',');
        let mut uppers = options.filter_map(|option| option.strip_prefix("upperdir="));
        let is_own = |path: &str| {
            if !path.starts_with('/') {
                return false;
            }
            let there = sys::at::open_root(path.as_bytes()).and_then(sys::stat::fstat);
            there.is_ok_and(|there| (there.dev, there.ino) == (own.dev, own.ino))
        };
        if uppers.any(is_own) {
            return Err(busy());
        }
    }
    Ok(lock)
}

fn tell(
    what: &Check, problems: &[Problem], mended: &[bool], out: &mut dyn Write,
) -> std::io::Result<()> {
    let mut out = BufWriter::new(out);
    let mut separator = "[\n";
    for (problem, mended) in problems.iter().zip(mended) {
        if what.json {
            let path = String::from_utf8_lossy(&problem.path);
            let mut item = json!({ "path": path, "problem": problem.text(), "mended": mended });
            if std::str::from_utf8(&problem.path).is_err() {
                item["bytes"] = json!(problem.path);
            }
            write!(out, "{separator}{item}")?;
            separator = ",\n";
            continue;
        }
        out.write_all(match problem.path.as_slice() {
            [] => b".",
            path => path,
        })?;
        let end = if *mended { " (mended)" } else { "" };
        writeln!(out, "\t{}{end}", problem.text())?;
    }
    if what.json {
        let end = if separator == "[\n" { "[]\n" } else { "\n]\n" };
        out.write_all(end.as_bytes())?;
    }
    out.flush()
}
