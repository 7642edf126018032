//! Merged directory listings.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::layer::name::{self, Name, NameBuf};
use crate::layer::{LayerIndex, origin, whiteout};
use crate::sys::{self, Errno, FileKind, Result};

use super::Union;
use super::inode::{DirPart, DirStack};
use super::names::{Entry, Info, Names};

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

/// How a layer hides a name from those below.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Hiding {
    /// By a whiteout at the name itself.
    Entry,
    /// By a file beside it.
    Marker,
    /// By something beside it that may be no file.
    Odd,
}

/// What one layer's directory holds.
#[derive(Default)]
struct Content {
    entries: Vec<Candidate>,
    /// Names hidden in the layers below.
    hidden: Vec<(NameBuf, Hiding)>,
    dev: u64,
}

/// What is found out about a name on the way down through the layers.
struct Finding {
    info: Info,
    below: Vec<LayerIndex>,
    /// No further layer has a part in it.
    closed: bool,
    /// It is settled whether the lowers show it.
    settled: bool,
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

    /// The merged listing of a directory made of `stack`, of whose parts `fds` are handles.
    pub(super) fn read_names(&self, stack: &DirStack, fds: &[Arc<OwnedFd>]) -> Result<Names> {
        let mut found: HashMap<NameBuf, Finding> = HashMap::new();
        let mut first: Vec<(NameBuf, Finding)> = Vec::new();
        let sole = stack.len() == 1;
        for (part, dir) in stack.iter().zip(fds) {
            let content = self.content(dir, *part)?;
            let with_copies = part.copies && self.layers.is_top(part.layer);
            for candidate in content.entries {
                let known = if sole {
                    None
                } else {
                    found.get_mut(&candidate.name)
                };
                if let Some(known) = known {
                    known.meet(&candidate, part.layer);
                    continue;
                }
                let ino = self.listed_ino(&candidate, part.layer, content.dev, with_copies, dir);
                let in_lower = !self.layers.is_upper(part.layer);
                let finding = Finding::new(&candidate, part.layer, ino, in_lower);
                if sole {
                    first.push((candidate.name, finding));
                } else {
                    found.insert(candidate.name, finding);
                }
            }
            if sole && !content.hidden.is_empty() {
                found.extend(first.drain(..));
            }
            for (name, hiding) in content.hidden {
                let is_upper = self.layers.is_upper(part.layer);
                let known = found.entry(name).or_insert_with(Finding::hidden);
                known.hide(hiding, is_upper);
            }
        }
        let all = found.into_iter().chain(first);
        // What only lowers hide shows nowhere, and needs nothing to go on doing so.
        let all =
            all.filter(|(_, f)| f.info.shown || f.info.whiteout || f.info.marker || f.info.odd);
        Ok(Names::new(all.map(|(name, finding)| {
            let name = name.as_slice().into();
            let info = finding.info;
            (Entry { name, info }, finding.below)
        })))
    }

    /// The inode number that stat shows for an entry.
    fn listed_ino(
        &self, candidate: &Candidate, layer: LayerIndex, dev: u64, with_copies: bool, dir: &OwnedFd,
    ) -> u64 {
        let ino = self.inodes.numbers.of(dev, candidate.ino);
        if !self.layers.is_top(layer) {
            return ino;
        }
        let recorded = || {
            let read = || origin::recorded(dir.as_fd(), &candidate.name, candidate.ino).ok();
            with_copies.then(read).flatten().flatten()
        };
        let known = self.inodes.known_ino(ino);
        let linked = || self.number_of_copy(dev, candidate.ino);
        known.or_else(linked).or_else(recorded).unwrap_or(ino)
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
            seen.extend(content.hidden.into_iter().map(|(name, _)| name));
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
                    let hiding = match entry.kind {
                        Some(FileKind::Regular) => Hiding::Marker,
                        _ => Hiding::Odd,
                    };
                    content.hidden.push((NameBuf::from_slice(hidden), hiding));
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
                        content.hidden.push((name, Hiding::Entry));
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

impl Finding {
    /// An object in the topmost layer that has the name.
    fn new(candidate: &Candidate, layer: LayerIndex, ino: u64, in_lower: bool) -> Self {
        let info = Info {
            layer,
            ..Info::in_upper(candidate.kind, ino, in_lower)
        };
        Self {
            info,
            below: Vec::new(),
            closed: !candidate.kind.is_dir(),
            settled: in_lower,
        }
    }

    /// A name that nothing above has.
    fn hidden() -> Self {
        Self {
            info: Info::hidden(false, false, false),
            below: Vec::new(),
            closed: true,
            settled: false,
        }
    }

    /// A lower has an object of this name too.
    fn meet(&mut self, candidate: &Candidate, layer: LayerIndex) {
        self.info.in_lower |= !self.settled;
        self.settled = true;
        if !candidate.kind.is_dir() {
            self.closed = true;
        } else if !self.closed {
            self.below.push(layer);
        }
    }

    /// A layer hides the name from those below.
    fn hide(&mut self, hiding: Hiding, is_upper: bool) {
        self.closed = true;
        self.info.odd |= hiding == Hiding::Odd;
        if is_upper {
            self.info.whiteout |= hiding == Hiding::Entry;
            self.info.marker |= hiding == Hiding::Marker;
        } else {
            self.settled = true;
        }
    }
}
