//! Branches: layers as aufs and unionfs-fuse users write them, `DIR[=PERM[+ATTR...]]`.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::error::{OptionError, shown};
use super::{Lower, Options, grammar};

/// Whose rules hold where a branch does not say all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Style {
    /// A first branch without a permission is writable; `ro` without `wh` leaves whiteouts out.
    #[default]
    Aufs,
    /// Branches without a permission are read-only, and whiteouts always count.
    UnionfsFuse,
}

/// What may be done with a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Perm {
    /// Nothing was said.
    Unsaid,
    /// Takes changes; with whiteouts that are inodes of their own, or not.
    Write { separate_whiteouts: bool },
    /// Is only read. Its whiteouts count by word or, in capitals, by unionfs-fuse's habit: RO means
    /// no more to its users than "not written".
    Read { whiteouts: bool },
}

/// One branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Branch {
    path: PathBuf,
    perm: Perm,
}

/// A branch list as it grows, option by option.
#[derive(Clone, Debug, Default)]
pub(super) struct Branches {
    list: Vec<Branch>,
    style: Style,
    /// The option that gave the list, for messages.
    option: String,
}

/// True when `list` has a branch with a permission: then it is more than a list of lowers.
pub(super) fn has_permission(list: &[u8]) -> bool {
    let parts = grammar::split_list(list);
    parts.into_iter().any(|part| split(part).1.is_some())
}

/// A part of a list, parted into directory and permission. What stands after the last `=` counts
/// as a permission only if it is one: directories may have a `=` in their names.
fn split(part: &[u8]) -> (&[u8], Option<&[u8]>) {
    let Some(at) = part.iter().rposition(|&b| b == b'=') else {
        return (part, None);
    };
    let perm = &part[at + 1..];
    let word = perm.split(|&b| b == b'+').next().unwrap_or_default();
    let known = matches!(word.to_ascii_lowercase().as_slice(), b"rw" | b"ro" | b"rr");
    if known && at > 0 {
        (&part[..at], Some(perm))
    } else {
        (part, None)
    }
}

impl Branches {
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The option that gave the list.
    pub(super) fn option(&self) -> &str {
        &self.option
    }

    /// `br=`, `dirs=`, or a source: all branches at once, top first.
    pub(super) fn set(
        &mut self, option: &[u8], parts: &[Vec<u8>], style: Style, warnings: &mut Vec<String>,
    ) -> Result<(), OptionError> {
        let list: Vec<_> = parts
            .iter()
            .map(|part| read(option, part, warnings))
            .collect();
        if !self.list.is_empty() && self.list != list {
            return Err(self.error("the branches are given twice, and not the same"));
        }
        self.list = list;
        self.style = style;
        self.option = shown(option);
        Ok(())
    }

    /// `append=` and `prepend=`.
    pub(super) fn extend(
        &mut self, option: &[u8], parts: &[Vec<u8>], at_top: bool, warnings: &mut Vec<String>,
    ) {
        let new = parts.iter().map(|part| read(option, part, warnings));
        let at = if at_top { 0 } else { self.list.len() };
        let new: Vec<_> = new.collect();
        self.list.splice(at..at, new);
        self.name_after(option);
    }

    /// `add=N:BRANCH...` and `ins=N:BRANCH...`.
    pub(super) fn insert(
        &mut self, option: &[u8], parts: &[Vec<u8>], warnings: &mut Vec<String>,
    ) -> Result<(), OptionError> {
        self.name_after(option);
        let (index, parts) = parts.split_first().ok_or_else(|| self.error("no branch"))?;
        let index = std::str::from_utf8(index)
            .ok()
            .and_then(|i| i.parse::<usize>().ok());
        let Some(index) = index.filter(|&i| i <= self.list.len() && !parts.is_empty()) else {
            return Err(self.error("needs the number of a place, and branches to put there"));
        };
        let new = parts.iter().map(|part| read(option, part, warnings));
        let new: Vec<_> = new.collect();
        self.list.splice(index..index, new);
        Ok(())
    }

    /// `del=DIR`; one that is not there is left alone, as aufs does.
    pub(super) fn delete(&mut self, part: &[u8]) {
        let path = grammar::path(part);
        self.list.retain(|branch| branch.path != path);
    }

    /// `mod=DIR=PERM`.
    pub(super) fn modify(
        &mut self, option: &[u8], part: &[u8], warnings: &mut Vec<String>,
    ) -> Result<(), OptionError> {
        let new = read(option, part, warnings);
        let Some(branch) = self.list.iter_mut().find(|branch| branch.path == new.path) else {
            self.option = shown(option);
            return Err(self.error("there is no such branch"));
        };
        *branch = new;
        Ok(())
    }

    fn name_after(&mut self, option: &[u8]) {
        if self.option.is_empty() {
            self.option = shown(option);
        }
    }

    fn error(&self, reason: &str) -> OptionError {
        OptionError::Branch {
            option: self.option.clone(),
            reason: reason.to_owned(),
        }
    }

    /// Puts the branches into `options` as upper and lowers.
    /// `unionfs_fuse`: other options say that its rules hold for `dirs=`.
    pub(super) fn resolve(
        mut self, options: &mut Options, unionfs_fuse: bool,
    ) -> Result<(), OptionError> {
        let style = if unionfs_fuse && self.option == "dirs" {
            Style::UnionfsFuse
        } else {
            self.style
        };
        if let Some(first) = self.list.first_mut().filter(|b| b.perm == Perm::Unsaid)
            && style == Style::Aufs
        {
            first.perm = Perm::Write {
                separate_whiteouts: false,
            };
        }
        let writes = |branch: &Branch| matches!(branch.perm, Perm::Write { .. });
        let first_writes = self.list.first().is_some_and(writes);
        for (place, branch) in self.list.iter().enumerate() {
            match branch.perm {
                Perm::Write { separate_whiteouts } if place == 0 => {
                    options.upper = Some(branch.path.clone());
                    options.separate_whiteouts = separate_whiteouts;
                    continue;
                }
                Perm::Write { .. } if !first_writes => {
                    return Err(OptionError::WritableBelow {
                        option: self.option,
                        branch: shown_path(&branch.path),
                    });
                }
                Perm::Write { .. } => options.warnings.push(format!(
                    "option {}: {}: only the first branch can be written, this one is read-only",
                    self.option,
                    shown_path(&branch.path)
                )),
                Perm::Read { .. } | Perm::Unsaid => {}
            }
            options.lowers.push(Lower {
                path: branch.path.clone(),
                whiteouts: style == Style::UnionfsFuse
                    || branch.perm != Perm::Read { whiteouts: false },
            });
        }
        Ok(())
    }
}

fn shown_path(path: &Path) -> String {
    shown(path.as_os_str().as_bytes())
}

/// Reads one branch. Attributes nobody knows are dropped with a warning, as aufs does.
fn read(option: &[u8], part: &[u8], warnings: &mut Vec<String>) -> Branch {
    let (dir, perm) = split(part);
    let path = grammar::path(dir);
    let Some(perm) = perm else {
        return Branch {
            path,
            perm: Perm::Unsaid,
        };
    };
    let mut words = perm.split(|&b| b == b'+');
    let word = words.next().unwrap_or_default();
    let write = word.eq_ignore_ascii_case(b"rw");
    let mut whiteouts = word.iter().any(u8::is_ascii_uppercase);
    let mut separate_whiteouts = false;
    for word in words {
        match word {
            b"wh" => whiteouts = true,
            b"nolwh" => separate_whiteouts = true,
            b"coo_reg" | b"coo_all" | b"moo" | b"fhsm" | b"unpin" | b"icex" | b"icexsec"
            | b"icexsys" | b"icextr" | b"icexusr" | b"icexoth" => {}
            other => warnings.push(format!(
                "option {}: {}: branch attribute {} is not known and has no effect",
                shown(option),
                shown_path(&path),
                shown(other)
            )),
        }
    }
    let perm = if write {
        Perm::Write { separate_whiteouts }
    } else {
        Perm::Read { whiteouts }
    };
    Branch { path, perm }
}
