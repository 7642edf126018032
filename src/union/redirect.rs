//! Following overlayfs's redirects: an object whose parts in the layers below are under another
//! path.
//!
//! A redirect leads into the layers below the one that holds it, name by name, each looked up as
//! any other (whiteouts and opaque marks on the way count, further redirects are followed), so it
//! cannot leave the layers, and it cannot lead in circles.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::layer::LayerIndex;
use crate::layer::elsewhere::{Record, Redirect};
use crate::layer::name::{Name, NameBuf};
use crate::sys::{Errno, Result};

use super::find::{FoundDir, Step};
use super::inode::{DirPart, Inode, LowerPlace};
use super::lookup::show;
use super::{ROOT, Union};

/// The way down through the layers, one object in each.
pub(super) struct Trail<'a> {
    union: &'a Union,
    parent: &'a Arc<Inode>,
    /// Where the next layer has the object.
    way: Redirect,
    /// The layer that was looked into last.
    layer: LayerIndex,
    /// Nothing further below counts.
    ended: bool,
}

/// An object on the way.
pub(super) struct Stop {
    pub layer: LayerIndex,
    /// Its path from the root of the layer.
    pub path: Vec<u8>,
    /// The directory that holds it.
    pub dir: Arc<OwnedFd>,
    /// Its name there.
    pub name: NameBuf,
    pub step: Step,
}

impl<'a> Trail<'a> {
    /// Starts below `layer`; a sibling is one of an object in `parent`.
    ///
    /// Precondition: the tree lock is held while this lives.
    pub fn below(
        union: &'a Union, parent: &'a Arc<Inode>, layer: LayerIndex, way: Redirect,
    ) -> Self {
        Self {
            union,
            parent,
            way,
            layer,
            ended: false,
        }
    }

    /// The next object down.
    pub fn next(&mut self) -> Result<Option<Stop>> {
        while !self.ended {
            let parts = match self.way {
                Redirect::Sibling(_) => self.parent.stack(),
                Redirect::Path(_) => self.union.inodes.get(ROOT)?.stack(),
            };
            let Some(part) = parts.into_iter().find(|part| part.layer > self.layer) else {
                break;
            };
            self.layer = part.layer;
            let stop = match self.way.clone() {
                Redirect::Sibling(name) => self.beside(part, &name)?,
                Redirect::Path(names) => self.walk(part, &names)?,
            };
            if stop.is_some() {
                return Ok(stop);
            }
        }
        Ok(None)
    }

    /// Goes on at another place, after an object that is no directory said so.
    pub fn turn(&mut self, redirect: Redirect) {
        self.way = redirect;
    }

    fn beside(&mut self, part: DirPart, name: &NameBuf) -> Result<Option<Stop>> {
        let dir = self.union.dir_fd(self.parent, part.layer)?;
        let step = self.union.step(&dir, Name::new(name)?, part)?;
        match &step {
            Step::Nothing => return Ok(None),
            Step::Hidden => {
                self.ended = true;
                return Ok(None);
            }
            Step::File(_) => {}
            Step::Directory { last, redirect, .. } => {
                self.ended = *last;
                if let Some(redirect) = redirect {
                    self.way = redirect.clone();
                }
            }
        }
        let mut path = self.parent.path_in(part.layer);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Ok(Some(Stop {
            layer: part.layer,
            path,
            dir,
            name: name.clone(),
            step,
        }))
    }

    /// Walks down one layer from its root. What is redirected on the way changes the path for the
    /// layers below, not for this one.
    fn walk(&mut self, root: DirPart, names: &[NameBuf]) -> Result<Option<Stop>> {
        let layer = root.layer;
        let mut dir = self.union.layers.get(layer).root();
        let mut part = root;
        let mut below = names.to_vec();
        for (at, name) in names.iter().enumerate() {
            let rest = &names[at + 1..];
            let step = self.union.step(&dir, Name::new(name)?, part)?;
            match &step {
                Step::Nothing => break,
                Step::Hidden => {
                    self.ended = true;
                    break;
                }
                Step::File(_) if !rest.is_empty() => {
                    self.ended = true;
                    break;
                }
                Step::File(_) => {}
                Step::Directory { last, redirect, .. } => {
                    self.ended |= *last;
                    match redirect {
                        Some(Redirect::Path(path)) => {
                            // It says where to go on even below an opaque directory.
                            self.ended = false;
                            below.clone_from(path);
                            below.extend_from_slice(rest);
                        }
                        Some(Redirect::Sibling(name)) => {
                            below.truncate(below.len() - rest.len() - 1);
                            below.push(name.clone());
                            below.extend_from_slice(rest);
                        }
                        None => {}
                    }
                }
            }
            match step {
                Step::Directory {
                    handle,
                    part: inner,
                    ..
                } if !rest.is_empty() => {
                    dir = Arc::new(handle);
                    part = inner;
                }
                step => {
                    self.way = Redirect::Path(below);
                    return Ok(Some(Stop {
                        layer,
                        path: names.join(&b'/'),
                        dir,
                        name: name.clone(),
                        step,
                    }));
                }
            }
        }
        self.way = Redirect::Path(below);
        Ok(None)
    }
}

/// Longest record that is followed, in bytes: no path is longer, and each is walked at every lookup.
const LONGEST: usize = libc::PATH_MAX as usize;

impl Union {
    /// The meaning of the redirect record that an object of `layer` holds.
    ///
    /// # Errors
    /// EIO for one that means nothing, or that may come from someone who has no right to it.
    pub(super) fn redirect_of(
        &self, layer: LayerIndex, name: &[u8], record: Option<Record>,
    ) -> Result<Option<Redirect>> {
        let is_bottom = self.layers.order().last() == Some(&layer);
        let Some(record) = record.filter(|_| !is_bottom) else {
            return Ok(None);
        };
        self.check_trust(layer, name, &record)?;
        let redirect = Redirect::parse(&record.value).filter(|_| record.value.len() <= LONGEST);
        if redirect.is_none() {
            self.refuse(layer, name, "a redirect record that leads nowhere");
        }
        redirect.map(Some).ok_or(Errno::IO)
    }

    /// Refuses a record that the owner of an object may have written to get at others' objects.
    pub(super) fn check_trust(
        &self, layer: LayerIndex, name: &[u8], record: &Record,
    ) -> Result<()> {
        if record.by_user && !self.elsewhere.user_records {
            self.refuse(
                layer,
                name,
                "a user.overlay record, which counts with userxattr only",
            );
            return Err(Errno::IO);
        }
        Ok(())
    }

    /// Says why an object gives EIO.
    pub(super) fn refuse(&self, layer: LayerIndex, name: &[u8], why: &str) {
        let layer = self.layers.get(layer).path.display();
        tracing::error!("{layer}: {} holds {why}", show(name));
    }

    /// Finds the parts of a directory in the layers below `at`, whose part says where they are.
    ///
    /// Precondition: as for [`Self::find`].
    pub(super) fn follow(
        &self, parent: &Arc<Inode>, found: &mut FoundDir, at: LayerIndex, redirect: Redirect,
    ) -> Result<()> {
        let mut place = LowerPlace::default();
        if self.layers.is_upper(at) {
            place.union = Some(match &redirect {
                Redirect::Path(names) => names.join(&b'/'),
                Redirect::Sibling(name) => parent.union_path_with(name),
            });
        }
        let mut trail = Trail::below(self, parent, at, redirect);
        while let Some(stop) = trail.next()? {
            let Step::Directory { part, .. } = stop.step else {
                break;
            };
            place.note(stop.layer, stop.path);
            found.found.stack.get_or_insert_default().push(part);
        }
        found.found.lower = Some(Box::new(place));
        Ok(())
    }

    /// Where the lowers have their parts of a directory, to be kept when it moves.
    ///
    /// Precondition: the tree lock is held.
    pub(super) fn lower_place(inode: &Arc<Inode>) -> LowerPlace {
        let mut place = LowerPlace::default();
        place.union = Some(inode.union_path());
        for part in inode.stack().iter().filter(|part| part.layer > 0) {
            place.note(part.layer, inode.path_in(part.layer));
        }
        place
    }
}
