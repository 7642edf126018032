//! The one place where owners and modes on disk become the ones that users see, and back.
//!
//! Three steps, each nothing by default: the real object's attributes; what a record says instead
//! ([`crate::layer::record`]); the ids that are shown for those on disk
//! ([`crate::options::ownership`]). Between the first two steps and the last, everything in the
//! core means ids on disk.

use std::borrow::Cow;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::sys::sync::Mutex;

use crate::layer::name::{self, NameBuf};
use crate::layer::private::is_private;
use crate::layer::record::{self, Form, Record};
use crate::layer::{LayerIndex, LayerStack};
use crate::options::ownership::{IdMap, OVERFLOW_ID, Ownership, Records};
use crate::sys::cred::Creds;
use crate::sys::{self, Errno, FileKind, Result, Stat};

use super::Union;
use super::descriptors::Real;
use super::inode::Inode;
use super::mapped_values;
use super::types::{Caller, SetAttr};

/// Takes an object's file capabilities along with its attributes.
const CAPABILITY: &[u8] = b"security.capability";

/// How owners of this union's objects are kept and shown.
#[derive(Debug)]
pub(crate) struct Owners {
    shown: Ownership,
    /// Where each layer keeps its records, top first; empty when none has any.
    forms: Vec<Option<Form>>,
    /// The upper has records.
    in_upper: bool,
    /// Held while a record is read and written again.
    changing: Mutex<()>,
}

impl Owners {
    /// Looks where the layers keep their records, and makes the upper's root the first object with
    /// one where that was asked for.
    ///
    /// # Errors
    /// ENOTEMPTY when records are to begin on an upper that holds objects already; what reading the
    /// roots or writing the upper's first record gives.
    pub fn open(layers: &LayerStack, wanted: &Ownership) -> Result<Self> {
        let upper = usize::from(layers.upper.is_some());
        let all = layers.all();
        let mut forms = Vec::with_capacity(all.len());
        for (_, layer) in all {
            forms.push(form_of(layer.root().as_fd(), wanted.records)?);
        }
        let asked = wanted.records != Records::Inode;
        if asked && upper == 1 {
            let form = match (wanted.records, forms.first().copied().flatten()) {
                (Records::Security, _) => Form::Security,
                (_, Some(Form::FuseOverlayfs)) => Form::FuseOverlayfs,
                _ => Form::Containers,
            };
            let root = layers.get(0).root();
            let root = root.as_fd();
            if sys::xattr::get(root, b"", form.attr())?.is_none() {
                // Without records `user.` attributes of their names are anybody's to set on his
                // own files: there must be no file yet when they begin to count.
                if form != Form::Security && !is_empty(root)? {
                    return Err(Errno::NOTEMPTY);
                }
                let record = first_record(layers, &forms)?;
                record::write(root, b"", form, &record)?;
            }
            forms[0] = Some(form);
        }
        if forms.iter().all(Option::is_none) {
            forms.clear();
        }
        let in_upper = upper == 1 && forms.first().copied().flatten().is_some();
        Ok(Self {
            shown: wanted.clone(),
            forms,
            in_upper,
            changing: Mutex::new(()),
        })
    }

    /// Where a layer keeps its records.
    fn form(&self, layer: LayerIndex) -> Option<Form> {
        self.forms.get(usize::from(layer)).copied().flatten()
    }

    /// True when no layer has records, nor has one with this root directory.
    pub fn would_be_without_records(&self, root: BorrowedFd<'_>) -> Result<bool> {
        Ok(self.forms.is_empty() && form_of(root, self.shown.records)?.is_none())
    }

    /// True when the layer's objects may have records.
    pub fn has_records(&self, layer: LayerIndex) -> bool {
        self.form(layer).is_some()
    }

    /// Where owners were asked to be kept.
    pub fn asked_records(&self) -> Records {
        self.shown.records
    }

    /// True when new objects of the upper get records.
    pub fn keeps_records(&self) -> bool {
        self.in_upper
    }

    /// True when POSIX ACLs are shown and enforced. On an upper with records they would act on the
    /// real files, which are not their users'.
    pub fn has_acls(&self) -> bool {
        !self.shown.no_acl && !self.in_upper
    }

    /// Ids on disk as users see them.
    pub fn show(&self, stat: &mut Stat) {
        if self.shown.shows_as_is() {
            return;
        }
        stat.uid = self.shown.shown_uid(stat.uid);
        stat.gid = self.shown.shown_gid(stat.gid);
    }

    /// True when every directory shows one link.
    pub fn hides_dir_links(&self) -> bool {
        self.shown.static_nlink
    }

    /// True when the caller is in the group that `gid` on disk is shown as.
    pub fn is_in_group(&self, caller: Caller, gid: u32) -> bool {
        caller.in_group(self.shown.shown_gid(gid))
    }

    /// The caller, as objects of his are stored.
    ///
    /// # Errors
    /// EOVERFLOW when the map does not hold him. Root's objects get the overflow id then, as
    /// container tools prepare a mount from outside of its map.
    pub fn creds(&self, caller: Caller, umask: u32) -> Result<Creds> {
        let mut creds = caller.creds(umask);
        if self.shown.is_unmapped() {
            return Ok(creds);
        }
        let stand_in = (caller.uid == 0).then_some(OVERFLOW_ID);
        let uid = self.shown.uids.on_disk(caller.uid).or(stand_in);
        let gid = self.shown.gids.on_disk(caller.gid).or(stand_in);
        creds.uid = uid.ok_or(Errno::OVERFLOW)?;
        creds.gid = gid.ok_or(Errno::OVERFLOW)?;
        Ok(creds)
    }

    /// A change of attributes with the ids that go to disk.
    ///
    /// # Errors
    /// EOVERFLOW for an id that the map does not hold.
    pub fn to_disk(&self, set: &SetAttr) -> Result<SetAttr> {
        let map = |id: Option<u32>, map: &IdMap| {
            id.map(|id| map.on_disk(id).ok_or(Errno::OVERFLOW))
                .transpose()
        };
        Ok(SetAttr {
            uid: map(set.uid, &self.shown.uids)?,
            gid: map(set.gid, &self.shown.gids)?,
            ..*set
        })
    }

    /// True for attributes that users neither see nor set.
    pub fn is_hidden(&self, attr: &[u8]) -> bool {
        is_private(attr) || (!self.forms.is_empty() && record::is_record(attr))
    }

    /// The name under which a layer keeps an attribute of users'.
    pub fn stored_name(&self, layer: LayerIndex, attr: &[u8]) -> Result<NameBuf> {
        record::stored_name(self.form(layer), attr)
    }

    /// The users' name of an attribute in a layer, if it is for them.
    pub fn users_name<'a>(&self, layer: LayerIndex, stored: &'a [u8]) -> Option<&'a [u8]> {
        record::users_name(self.form(layer), stored).filter(|attr| !self.is_hidden(attr))
    }

    /// The value of an attribute as users see it.
    pub fn shown_value(&self, attr: &[u8], value: Vec<u8>) -> Result<Vec<u8>> {
        if self.shown.is_unmapped() {
            return Ok(value);
        }
        mapped_values::map(&self.shown, attr, value, false)
    }

    /// The value of an attribute as it is stored.
    pub fn stored_value<'a>(&self, attr: &[u8], value: &'a [u8]) -> Result<Cow<'a, [u8]>> {
        if self.shown.is_unmapped() {
            return Ok(Cow::Borrowed(value));
        }
        mapped_values::map(&self.shown, attr, value.to_vec(), true).map(Cow::Owned)
    }

    /// What the record of an object of a layer says in place of its real attributes.
    ///
    /// # Errors
    /// EIO for a malformed record, and what reading it gives.
    pub fn recorded(
        &self, layer: LayerIndex, dir: BorrowedFd<'_>, name: &[u8], mut stat: Stat,
    ) -> Result<Stat> {
        if let Some(form) = self.form(layer)
            && holds_record(stat.kind())
            && let Some(record) = record::read(dir, name, form)?
        {
            record.apply(&mut stat);
        }
        Ok(stat)
    }

    /// Gives an object of the upper that no one can see yet its owner, unless it is what it was
    /// `made` with; with records, its mode too.
    pub fn give(
        &self, dir: BorrowedFd<'_>, name: &[u8], stat: &Stat, made: Option<&Stat>,
    ) -> Result<()> {
        let Some(form) = self.form(0).filter(|_| self.in_upper) else {
            if made.is_some_and(|made| (made.uid, made.gid) == (stat.uid, stat.gid)) {
                return Ok(());
            }
            return self.chown(dir, name, Some(stat.uid), Some(stat.gid));
        };
        if stat.kind() == FileKind::Symlink {
            return best_effort(sys::at::chown_at(dir, name, Some(stat.uid), Some(stat.gid)));
        }
        record::write(dir, name, form, &Record::of(stat))
    }

    /// The permission bits with which a file is best made that shall have those of `stat`: for the
    /// usual one they are right from the beginning.
    pub fn first_mode(&self, stat: &Stat) -> u32 {
        if self.in_upper {
            0o600
        } else {
            stat.mode & 0o777
        }
    }

    /// Gives an object that no one can see yet its permission bits; the last change of them, after
    /// owner and ACLs.
    pub fn give_mode(&self, dir: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> Result<()> {
        if stat.kind() == FileKind::Symlink {
            return Ok(());
        }
        let mode = if self.in_upper {
            record::real_mode(stat.mode)
        } else {
            stat.mode
        };
        sys::at::chmod_at(dir, name, mode)
    }

    fn chown(
        &self, dir: BorrowedFd<'_>, name: &[u8], uid: Option<u32>, gid: Option<u32>,
    ) -> Result<()> {
        let result = sys::at::chown_at(dir, name, uid, gid);
        if self.shown.squashes() {
            // Whose it is does not show; where it cannot be stored, that is no one's concern.
            return best_effort(result);
        }
        result
    }
}

impl Union {
    /// Attributes of a real object, a record's in place of its own.
    pub(super) fn stat_of(&self, real: &Real) -> Result<Stat> {
        let stat = real.stat()?;
        self.owners
            .recorded(real.layer, real.fd(), &real.name, stat)
    }

    /// Attributes of an inode whose file is open.
    pub(super) fn stat_open(&self, inode: &Arc<Inode>, file: &impl AsFd) -> Result<Stat> {
        if !self.owners.keeps_records() {
            return sys::stat::fstat(file);
        }
        self.with_real(inode, |real| self.stat_of(real))
    }

    /// Changes the owner of an object of the upper, ids as on disk. Set-id bits and capabilities
    /// go, as chown(2) has it.
    pub(super) fn change_owner(
        &self, real: &Real, uid: Option<u32>, gid: Option<u32>,
    ) -> Result<()> {
        let chown = || self.owners.chown(real.fd(), &real.name, uid, gid);
        if !self.owners.keeps_records() {
            return chown();
        }
        // First, so that a failure leaves nobody a file of theirs with another's capabilities.
        if self.owners.form(0).is_some() && holds_record(real.stat()?.kind()) {
            self.drop_capabilities(real)?;
        }
        let changed = self.change_record(real, |stat| {
            stat.uid = uid.unwrap_or(stat.uid);
            stat.gid = gid.unwrap_or(stat.gid);
            if !stat.kind().is_dir() {
                stat.mode &= !libc::S_ISUID;
                if stat.mode & libc::S_IXGRP != 0 {
                    stat.mode &= !libc::S_ISGID;
                }
            }
        })?;
        if changed {
            Ok(())
        } else {
            best_effort(chown())
        }
    }

    /// Changes the permission bits of an object of the upper.
    pub(super) fn change_mode(&self, real: &Real, mode: u32) -> Result<()> {
        let chmod = |mode| sys::at::chmod_at(real.fd(), &real.name, mode);
        if !self.owners.keeps_records() {
            return chmod(mode);
        }
        let set = |stat: &mut Stat| stat.mode = (stat.mode & libc::S_IFMT) | (mode & 0o7777);
        if self.change_record(real, set)? {
            // The real file follows, so that it opens nothing to others; the record is what counts.
            let _ = chmod(record::real_mode(mode));
            return Ok(());
        }
        chmod(mode)
    }

    /// Changes a record; false for an object that has no place for one.
    fn change_record(&self, real: &Real, change: impl FnOnce(&mut Stat)) -> Result<bool> {
        let Some(form) = self.owners.form(0) else {
            return Ok(false);
        };
        let _changing = self.owners.changing.lock();
        let mut stat = real.stat()?;
        if !holds_record(stat.kind()) {
            return Ok(false);
        }
        let (dir, name) = (real.fd(), real.name.as_slice());
        stat = self.owners.recorded(0, dir, name, stat)?;
        change(&mut stat);
        record::write(dir, name, form, &Record::of(&stat))?;
        Ok(true)
    }

    /// Removes file capabilities, which a change of owner or data ends.
    fn drop_capabilities(&self, real: &Real) -> Result<()> {
        let stored = self.owners.stored_name(0, CAPABILITY)?;
        // Hardly any file has one, and what need not be changed cannot fail half-way.
        if sys::xattr::get(real.fd(), &real.name, &stored)?.is_none() {
            return Ok(());
        }
        match sys::xattr::remove(real.fd(), &real.name, &stored) {
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
            result => result,
        }
    }

    /// The same for a file whose data change, where they are kept under a name that means nothing
    /// to the backing filesystem.
    pub(super) fn data_change(&self, inode: &Arc<Inode>) -> Result<()> {
        if !self.owners.in_upper || self.owners.form(0) != Some(Form::Containers) {
            return Ok(());
        }
        self.with_real(inode, |real| self.drop_capabilities(real))
    }

    /// EPERM for a `user.` attribute of a device, fifo or socket: its real object could hold one.
    pub(super) fn check_holder(&self, inode: &Inode, attr: &[u8]) -> Result<()> {
        if record::is_special(inode.kind) && attr.starts_with(b"user.") {
            return Err(Errno::PERM);
        }
        Ok(())
    }

    /// True when ACLs are on.
    pub fn has_acls(&self) -> bool {
        self.owners.has_acls()
    }
}

/// Real objects of these types carry records.
fn holds_record(kind: FileKind) -> bool {
    matches!(kind, FileKind::Regular | FileKind::Directory)
}

/// An owner that this process may not give is left out.
fn best_effort(result: Result<()>) -> Result<()> {
    match result {
        Err(Errno::PERM | Errno::INVAL | Errno::OVERFLOW | Errno::OPNOTSUPP) => Ok(()),
        result => result,
    }
}

/// Where the layer with this root keeps its records.
fn form_of(root: BorrowedFd<'_>, wanted: Records) -> Result<Option<Form>> {
    for form in [Form::Security, Form::Containers, Form::FuseOverlayfs] {
        let has = match sys::xattr::get(root, b"", form.attr()) {
            Ok(value) => value.is_some(),
            Err(Errno::ACCESS | Errno::PERM) => false,
            Err(e) => return Err(e),
        };
        if !has {
            continue;
        }
        // Whoever may write a file may set a `user.` record on it. For an administrator such
        // layers are taken at their word only when he says so: they could make set-id programs.
        if form != Form::Security && wanted != Records::User && sys::cred::is_real_root() {
            tracing::warn!(
                "a layer keeps owners in {}; they count with xattr_permissions=2 only",
                form.attr().escape_ascii()
            );
            return Ok(None);
        }
        return Ok(Some(form));
    }
    Ok(None)
}

/// True when a layer holds nothing but reserved names.
fn is_empty(root: BorrowedFd<'_>) -> Result<bool> {
    let readable = sys::fd::reopen_dir(root)?;
    let mut empty = true;
    sys::dir::for_each_entry(&readable, |entry| {
        empty &= name::is_reserved(entry.name);
        Ok(())
    })?;
    Ok(empty)
}

/// What the upper's root shows when records begin: what the topmost lower with records shows, as
/// the upper's own was made by the caller; else its own.
fn first_record(layers: &LayerStack, forms: &[Option<Form>]) -> Result<Record> {
    for ((_, layer), form) in layers.all().into_iter().zip(forms).skip(1) {
        if let Some(form) = form
            && let Some(record) = record::read(layer.root().as_fd(), b"", *form)?
        {
            return Ok(record);
        }
    }
    Ok(Record::of(&sys::stat::fstat(&*layers.get(0).root())?))
}
