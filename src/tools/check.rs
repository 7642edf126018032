//! `unionfs check`: what in an upper serves nothing, and how it goes without a change of what shows.

use std::io::{BufWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use crate::cli::Check;
use crate::mount;
use crate::options::Options;
use crate::sys;
use crate::union::Union;

use super::check_walk::{self, Problem};
use super::in_use::{Purpose, lock};
use super::progress::{Progress, Unit};
use super::{Result, ToolError, mend};

/// Looks, and mends if that was asked; findings go to `out`.
///
/// # Errors
/// One line for the first thing that went wrong, or when problems are left.
pub fn check(what: &Check, out: &mut dyn Write) -> Result<()> {
    let below = what.options.as_deref().map(lowers).transpose()?.flatten();
    let root = open(&what.upper)?;
    let purpose = match what.repair {
        true => Purpose::Change,
        false => Purpose::Look,
    };
    let lock = lock(&root, &what.upper, purpose)?;
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
            "{upper}: {left} left, which may be data, or are for root to mend; look at each, and rename \
             or remove it"
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
        out.write_all(&super::printed(&problem.path))?;
        let end = if *mended { " (mended)" } else { "" };
        writeln!(out, "\t{}{end}", problem.text())?;
    }
    if what.json {
        let end = if separator == "[\n" { "[]\n" } else { "\n]\n" };
        out.write_all(end.as_bytes())?;
    }
    out.flush()
}
