//! Merged directory listings.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::layer::name::{self, Name, NameBuf};
use crate::layer::{LayerIndex, origin, whiteout};
use crate::sys::{self, Errno, FileKind, Result};

use super::Union;
use super::inode::{DirPart, DirStack};
use super::types::DirEntry;

/// Positions below this are `.`, `..` and the start.
const FIRST_POSITION: u64 = 16;
/// Positions stay below this, so that they are positive as a signed offset.
const POSITIONS: u64 = 1 << 62;

/// Whether to go on with a listing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Go {
    On,
    Stop,
}

/// An entry of one layer that may show.
struct Candidate {
    name: NameBuf,
    ino: u64,
    kind: FileKind,
}

/// What one layer's directory holds.
#[derive(Default)]
struct Content {
    entries: Vec<Candidate>,
    /// Names hidden in the layers below.
    hidden: Vec<NameBuf>,
    dev: u64,
}

impl Union {
    /// True when a directory made of `stack` shows no entry. `fd_of` opens its parts.
    pub(super) fn shows_nothing(
        &self, stack: &DirStack, fd_of: impl Fn(LayerIndex) -> Result<Arc<OwnedFd>>,
    ) -> Result<bool> {
        let mut empty = true;
        self.merge(stack, fd_of, |_, _, _| {
            empty = false;
            Go::Stop
        })?;
        Ok(empty)
    }

    /// True when a lower has a part in what a directory made of `stack` shows: an entry of its own,
    /// a part of a subdirectory (which need not show anything), or the data of a file.
    pub(super) fn lower_contributes(
        &self, stack: &DirStack, fd_of: impl Fn(LayerIndex) -> Result<Arc<OwnedFd>>,
    ) -> Result<bool> {
        let mut contributes = false;
        let mut subdirectories = Vec::new();
        let mut files = Vec::new();
        self.merge(stack, &fd_of, |candidate, layer, _| {
            contributes = !self.layers.is_upper(layer);
            match candidate.kind {
                FileKind::Directory => subdirectories.push(candidate.name),
                FileKind::Regular => files.push(candidate.name),
                _ => {}
            }
            if contributes { Go::Stop } else { Go::On }
        })?;
        if contributes {
            return Ok(true);
        }
        let parts = stack.iter().map(|part| Ok((*part, fd_of(part.layer)?)));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        for name in subdirectories {
            if self.is_merged(&parts, Name::new(&name)?)? {
                return Ok(true);
            }
        }
        if let Some((_, upper)) = parts
            .first()
            .filter(|(part, _)| self.layers.is_upper(part.layer))
        {
            for name in files {
                if self.needs_pin(upper, &name)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// The visible names of a directory made of `stack`, each with its top layer.
    pub(super) fn names_by_layer(
        &self, stack: &DirStack, fd_of: impl Fn(LayerIndex) -> Result<Arc<OwnedFd>>,
    ) -> Result<Vec<(NameBuf, LayerIndex, FileKind)>> {
        let mut names = Vec::new();
        self.merge(stack, fd_of, |candidate, layer, _| {
            names.push((candidate.name, layer, candidate.kind));
            Go::On
        })?;
        Ok(names)
    }

    /// How many subdirectories a directory made of `stack` shows; `fds` are handles of its parts.
    pub(super) fn read_subdirs(&self, stack: &DirStack, fds: &[Arc<OwnedFd>]) -> Result<u32> {
        let fd_of = |layer| {
            let at = stack.iter().position(|part| part.layer == layer);
            at.map(|at| Arc::clone(&fds[at])).ok_or(Errno::IO)
        };
        let mut count = 0;
        self.merge(stack, fd_of, |candidate, _, _| {
            count += u32::from(candidate.kind.is_dir());
            Go::On
        })?;
        Ok(count)
    }

    /// The entries of a directory made of `stack`, ordered by position.
    pub(super) fn list(
        &self, stack: &DirStack, fd_of: impl Fn(LayerIndex) -> Result<Arc<OwnedFd>>,
    ) -> Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        let with_copies = stack
            .first()
            .filter(|part| part.copies && self.layers.is_top(part.layer));
        let with_copies = with_copies.map(|part| fd_of(part.layer)).transpose()?;
        self.merge(stack, fd_of, |candidate, layer, dev| {
            let mut ino = self.inodes.numbers.of(dev, candidate.ino);
            if self.layers.is_top(layer) {
                let recorded = || {
                    let dir = with_copies.as_ref()?.as_fd();
                    origin::recorded(dir, &candidate.name, candidate.ino)
                        .ok()
                        .flatten()
                };
                let known = self.inodes.known_ino(ino);
                let linked = || self.number_of_copy(dev, candidate.ino);
                ino = known.or_else(linked).or_else(recorded).unwrap_or(ino);
            }
            let next = position_of(&candidate.name);
            entries.push(DirEntry {
                name: candidate.name,
                ino,
                kind: candidate.kind,
                next,
            });
            Go::On
        })?;
        entries.sort_unstable_by(|a, b| a.next.cmp(&b.next).then_with(|| a.name.cmp(&b.name)));
        let mut last = FIRST_POSITION;
        for entry in &mut entries {
            // Equal hashes are told apart by the order of the names.
            entry.next = entry.next.max(last + 1);
            last = entry.next;
        }
        Ok(entries)
    }

    /// Gives every visible name once, from its top layer.
    fn merge(
        &self, stack: &DirStack, fd_of: impl Fn(LayerIndex) -> Result<Arc<OwnedFd>>,
        mut each: impl FnMut(Candidate, LayerIndex, u64) -> Go,
    ) -> Result<()> {
        let mut seen: HashSet<NameBuf> = HashSet::new();
        for (at, part) in stack.iter().enumerate() {
            let is_last = at + 1 == stack.len();
            let dir = fd_of(part.layer)?;
            let content = self.content(&dir, *part)?;
            for candidate in content.entries {
                // Whether a name is new is asked for in every layer but a sole one.
                let is_new = match (at == 0, is_last) {
                    (true, true) => true,
                    (_, true) => !seen.contains(&candidate.name),
                    _ => seen.insert(candidate.name.clone()),
                };
                if is_new && each(candidate, part.layer, content.dev) == Go::Stop {
                    return Ok(());
                }
            }
            seen.extend(content.hidden);
        }
        Ok(())
    }

    /// Reads one layer's directory whole.
    fn content(&self, dir: &OwnedFd, part: DirPart) -> Result<Content> {
        let whiteouts = self.layers.get(part.layer).whiteouts;
        let readable = self.with_descriptors(|| sys::fd::reopen_dir(dir))?;
        let has_records = self.owners.has_records(part.layer);
        let mut content = Content {
            dev: sys::stat::fstat(dir)?.dev,
            ..Content::default()
        };
        sys::dir::for_each_entry(&readable, |entry| {
            if name::is_reserved(entry.name) {
                if let Some(hidden) = name::hidden_by(entry.name).filter(|_| whiteouts) {
                    content.hidden.push(NameBuf::from_slice(hidden));
                }
                return Ok(());
            }
            let name = NameBuf::from_slice(entry.name);
            let kind = match entry.kind {
                // These may be whiteouts, or are not known at all.
                None | Some(FileKind::CharDevice) => None,
                Some(FileKind::Regular) if part.xattr_whiteouts || has_records => None,
                kind => kind,
            };
            let kind = match kind {
                Some(kind) => kind,
                None => match whiteout::entry(dir.as_fd(), entry.name, part.xattr_whiteouts) {
                    Ok(whiteout::Entry::Real(stat)) if has_records && stat.size == 0 => {
                        // A record that cannot be read is the lookup's error.
                        let shown = self
                            .owners
                            .recorded(part.layer, dir.as_fd(), entry.name, stat);
                        shown.unwrap_or(stat).kind()
                    }
                    Ok(whiteout::Entry::Real(stat)) => stat.kind(),
                    Ok(whiteout::Entry::Whiteout) if !whiteouts => {
                        entry.kind.unwrap_or(FileKind::CharDevice)
                    }
                    Ok(whiteout::Entry::Whiteout) => {
                        content.hidden.push(name);
                        return Ok(());
                    }
                    // Gone since.
                    Ok(whiteout::Entry::Nothing) | Err(Errno::NOENT) => return Ok(()),
                    Err(e) => return Err(e),
                },
            };
            content.entries.push(Candidate {
                name,
                ino: entry.ino,
                kind,
            });
            Ok(())
        })?;
        Ok(content)
    }
}

/// The position of a name in any listing: a hash, so that it does not depend on the other names.
fn position_of(name: &[u8]) -> u64 {
    // DefaultHasher::new() has fixed keys: the same name has the same position in every listing.
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    FIRST_POSITION + 1 + hasher.finish() % (POSITIONS - FIRST_POSITION - 1)
}
