//! `unionfs run`: a command on a view of all files that takes changes and can be thrown away.
//!
//! Three processes, each the child of the one before, beside a daemon for each union: this one, in a
//! mount namespace of its own (and a user namespace, if an ordinary user started it), mounts unions over
//! what there is; `inside` makes the command's root directory of them, in further namespaces, and is the
//! first process there, so all ends with it; the last one is the command. When it has ended the unions
//! are unmounted, and their uppers tell what was changed.

mod ending;
mod inside;
mod plan;
mod points;
mod serve;
mod signals;
mod users;

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::cli::{Ending, Run};
use crate::layer::remove_tree::remove_tree;
use crate::options::{Allow, Lower, Options};
use crate::sys;
use crate::sys::namespace::{self, Own};

use super::{Result, ToolError};
use plan::{Part, Shows};
use points::Points;
use serve::Server;

/// Where changes are kept if nobody says where: not in memory, as there may be many.
const DEFAULT_PLACE: &str = "/var/tmp";

/// One union of the view.
struct Shown {
    /// Where it shows, from the root of the view.
    path: PathBuf,
    /// What is mounted.
    options: Options,
    upper: PathBuf,
}

/// The directories of one run.
struct Place {
    /// Ours, made for this run.
    own: PathBuf,
    /// Where the root of the command is put together.
    view: PathBuf,
    /// One upper for each union.
    uppers: PathBuf,
}

/// Runs the command; returns the exit status for our own end.
///
/// # Errors
/// One line, when it could not be run at all, or its changes could not be shown or made.
pub fn run(what: &Run) -> Result<u8> {
    let lowers = absolute(&what.lowers)?;
    let kept = what.upper.as_deref().map(make_dir).transpose()?;
    let users = users::Users::of_caller()?;
    users.check_device()?;
    users.enter(Own {
        mounts: true,
        ..Own::default()
    })?;
    namespace::keep_mounts_to_us().map_err(|e| failed("a mount namespace", e))?;
    let place = Place::new(kept)?;
    let mut has_run = false;
    let outcome = in_place(what, &lowers, &users, &place, &mut has_run);
    let removed = place.remove(!has_run);
    let status = outcome?;
    removed.map(|()| status)
}

fn in_place(
    what: &Run, lowers: &[PathBuf], users: &users::Users, place: &Place, has_run: &mut bool,
) -> Result<u8> {
    let parts = parts(lowers, users)?;
    let unions = unions(what, lowers, &parts, users, place)?;
    let anew = plan::ANEW.iter().map(Path::new);
    let paths = anew.chain(parts.iter().map(|part| part.path.as_path()));
    let needed = lowers.is_empty() && !users.is_privileged();
    let points = Points::put(&unions, paths.filter(|_| needed))?;
    let (mut servers, mut shown) = (Vec::new(), Vec::new());
    for union in unions {
        let target = below(&place.view, &union.path);
        match Server::start(&union.options, &target) {
            Ok(server) => servers.push(server),
            // Unmounted, and removed, since we looked.
            Err(_) if union.path.symlink_metadata().is_err() => continue,
            Err(e) => return Err(e),
        }
        shown.push(union);
    }
    let unions = shown;
    let made = make_missing(place)?;
    let inside = inside::Inside {
        view: &place.view,
        hidden: place.hidden(),
        parts: &parts,
        net: what.net,
        of_host: lowers.is_empty(),
        command: &what.command,
    };
    *has_run = true;
    let status = inside.run();
    for dir in made {
        // The command may have put something there.
        let _ = std::fs::remove_dir(dir);
    }
    // Those on top of others first.
    for server in servers.into_iter().rev() {
        server.end()?;
    }
    points.take()?;
    let status = status?;
    ending::end(what, &unions, place)?;
    Ok(status)
}

fn failed(what: &str, error: impl Into<std::io::Error>) -> ToolError {
    ToolError::new(format_args!("{what}: {}", error.into()))
}

fn at(path: &Path, error: impl Into<std::io::Error>) -> ToolError {
    ToolError::about(path.as_os_str().as_bytes(), error.into())
}

fn absolute(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let find = |path: &PathBuf| std::fs::canonicalize(path).map_err(|e| at(path, e));
    paths.iter().map(find).collect()
}

fn make_dir(path: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(path)
        .and_then(|()| std::fs::canonicalize(path))
        .map_err(|e| at(path, e))
}

/// A path of the view as one of this process.
fn below(view: &Path, path: &Path) -> PathBuf {
    view.join(path.strip_prefix("/").unwrap_or(path))
}

/// What is below the root directory: nothing in a root of the user's choice.
fn parts(lowers: &[PathBuf], users: &users::Users) -> Result<Vec<Part>> {
    if !lowers.is_empty() {
        return Ok(Vec::new());
    }
    let table = std::fs::read("/proc/self/mountinfo").map_err(|e| failed("the mounts", e))?;
    let is_file = |path: &Path| {
        let handle = sys::at::open_root(path.as_os_str().as_bytes());
        handle.is_err()
    };
    let mut parts = plan::parts(&table, is_file);
    // What an ordinary user cannot reach he does not miss; and some may be gone by now. Others' servers may
    // not answer, and are not asked.
    let is_there = |part: &Part| match part.shows == Shows::Union || !users.is_privileged() {
        true => part.path.symlink_metadata().is_ok(),
        false => true,
    };
    parts.retain(is_there);
    Ok(parts)
}

fn unions(
    what: &Run, lowers: &[PathBuf], parts: &[Part], users: &users::Users, place: &Place,
) -> Result<Vec<Shown>> {
    let mut unions = Vec::new();
    let writable = parts.iter().filter(|part| part.shows == Shows::Union);
    let paths = std::iter::once(Path::new("/")).chain(writable.map(|part| part.path.as_path()));
    for path in paths {
        let lowers = match lowers {
            [] => vec![path.to_owned()],
            lowers => lowers.to_vec(),
        };
        let upper = place.uppers.join(plan::upper_name(path));
        make_upper(&upper, &lowers[0])?;
        let mut options = Options {
            lowers: lowers.into_iter().map(Lower::from).collect(),
            upper: Some(upper.clone()),
            upper_inside: true,
            volatile: what.ending == Ending::Discard && what.upper.is_none(),
            allow: Allow::Other,
            ..Options::default()
        };
        users.set(&mut options);
        unions.push(Shown {
            path: path.to_owned(),
            options,
            upper,
        });
    }
    Ok(unions)
}

/// An upper whose root is like that of the lower, as the view shows the upper's.
fn make_upper(upper: &Path, lower: &Path) -> Result<()> {
    match std::fs::create_dir(upper) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        Err(e) => return Err(at(upper, e)),
    }
    let open = |path: &Path| sys::at::open_root(path.as_os_str().as_bytes());
    let open_both = || Ok::<_, sys::Errno>((open(lower)?, open(upper)?));
    let (from, to) = open_both().map_err(|e| at(upper, e))?;
    points::alike(&from, &to).map_err(|e| at(upper, e))
}

/// Makes the directories over which filesystems are mounted, where the view has none.
fn make_missing(place: &Place) -> Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    for dir in plan::ANEW {
        let dir = below(&place.view, Path::new(dir));
        match std::fs::create_dir(&dir) {
            Ok(()) => made.push(dir),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(at(&dir, e)),
        }
    }
    Ok(made)
}

impl Place {
    fn new(kept: Option<PathBuf>) -> Result<Self> {
        let above = std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty());
        let above = above.map_or_else(|| PathBuf::from(DEFAULT_PLACE), PathBuf::from);
        let pattern = above.join("unionfs-run-XXXXXX");
        let own = nix::unistd::mkdtemp(&pattern).map_err(|e| at(&above, e))?;
        let own = std::fs::canonicalize(&own).map_err(|e| at(&own, e))?;
        let place = Self {
            view: own.join("view"),
            uppers: kept.unwrap_or_else(|| own.join("changes")),
            own,
        };
        for dir in [&place.view, &place.uppers] {
            match std::fs::create_dir(dir) {
                Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(at(dir, e));
                }
                _ => {}
            }
        }
        Ok(place)
    }

    /// Removes what was made for this run; changes that are still there stay, unless there are none yet.
    fn remove(&self, unused: bool) -> Result<()> {
        let remove = || {
            let own = sys::at::open_root(self.own.as_os_str().as_bytes())?;
            if unused {
                remove_tree(&own, b"changes")?;
            }
            remove_tree(&own, b"view")
        };
        remove().map_err(|e| at(&self.own, e))?;
        match std::fs::remove_dir(&self.own) {
            // Changes are kept there.
            Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(()),
            result => result.map_err(|e| at(&self.own, e)),
        }
    }

    /// What the command is not to see; none is in another.
    fn hidden(&self) -> Vec<&Path> {
        match self.uppers.starts_with(&self.own) {
            true => vec![&self.own],
            false => vec![&self.own, &self.uppers],
        }
    }

    /// Throws all changes away.
    fn discard(&self, unions: &[Shown]) -> Result<()> {
        self.drop_uppers(unions.iter())?;
        if self.uppers.starts_with(&self.own) {
            std::fs::remove_dir(&self.uppers).map_err(|e| at(&self.uppers, e))?;
        }
        Ok(())
    }

    fn drop_uppers<'a>(&self, unions: impl Iterator<Item = &'a Shown>) -> Result<()> {
        let uppers = sys::at::open_root(self.uppers.as_os_str().as_bytes());
        let uppers = uppers.map_err(|e| at(&self.uppers, e))?;
        for union in unions {
            let name = plan::upper_name(&union.path);
            remove_tree(&uppers, name.as_bytes()).map_err(|e| at(&union.upper, e))?;
        }
        Ok(())
    }
}
