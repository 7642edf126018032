//! Operations on the union's core, as the kernel would ask for them.
//!
//! The kernel answers some questions before it asks a filesystem: permission, loops and kinds in
//! renames, set-group-id bits that a caller may not set. That part is played here; permission is
//! not checked on either side.

use std::collections::BTreeMap;

use rustix::fs::FileType;
use rustix::io::Errno;
use unionfs::options::Options;
use unionfs::union::types::SetTime;
use unionfs::union::{Attr, Caller, Entry, FileKind, Make, OpenMode, ROOT, SetAttr, Time, Union};

use crate::invariants::Raw;
use crate::ops::{Action, Do, Object, Outcome, Result, SetTo, Side, Who};

/// The union with the references that a kernel would hold.
pub struct UnionSide {
    pub options: Options,
    pub union: Option<Union>,
    /// References held, by node.
    pub refs: BTreeMap<u64, u64>,
    /// Nodes that are open, with one of the references.
    pub kept: Vec<u64>,
    /// Former uppers, which are lowers now.
    pub frozen: Vec<Raw>,
    pub remounts: usize,
}

pub fn kind_of(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::CharDevice => FileType::CharacterDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Fifo => FileType::Fifo,
        FileKind::Socket => FileType::Socket,
    }
}

pub fn caller(who: Who) -> Caller {
    Caller {
        uid: who.uid,
        gid: who.gid,
        pid: 0,
    }
}

fn set_time(to: SetTo) -> SetTime {
    match to {
        SetTo::Omit => SetTime::Omit,
        SetTo::Now => SetTime::Now,
        SetTo::At((sec, nsec)) => SetTime::At(Time { sec, nsec }),
    }
}

const S_ISGID: u32 = 0o2000;
const S_IXGRP: u32 = 0o010;

impl UnionSide {
    pub fn new(options: Options) -> Self {
        let mut side = Self::closed(options);
        side.reopen();
        side
    }

    /// One that is not mounted yet.
    #[cfg_attr(not(feature = "faults"), allow(dead_code))]
    pub fn closed(options: Options) -> Self {
        Self {
            options,
            union: None,
            refs: BTreeMap::new(),
            kept: Vec::new(),
            frozen: Vec::new(),
            remounts: 0,
        }
    }

    pub fn union(&self) -> &Union {
        self.union.as_ref().expect("open")
    }

    pub fn count(&mut self, entry: Entry) -> Entry {
        if entry.id != ROOT {
            *self.refs.entry(entry.id).or_default() += 1;
        }
        entry
    }

    /// The node at a path. The root's attributes are asked for, others come with the lookup.
    pub fn walk(&mut self, names: &[Vec<u8>]) -> Result<u64> {
        let mut id = ROOT;
        for name in names {
            let attr = self.union().getattr(id)?;
            if attr.kind() != FileKind::Directory {
                return Err(Errno::NOTDIR);
            }
            let found = self.union().lookup(id, name)?.ok_or(Errno::NOENT)?;
            id = self.count(found).id;
        }
        Ok(id)
    }

    /// The node of the parent and the last name.
    fn parent<'a>(&mut self, names: &'a [Vec<u8>]) -> Result<(u64, &'a [u8])> {
        let (name, parent) = names.split_last().expect("not the root");
        let id = self.walk(parent)?;
        if self.union().getattr(id)?.kind() != FileKind::Directory {
            return Err(Errno::NOTDIR);
        }
        Ok((id, name))
    }

    fn object(&mut self, object: &Object) -> Result<u64> {
        match object {
            Object::Path(names) => self.walk(names),
            Object::Kept(n) => Ok(self.kept[*n]),
        }
    }

    /// The answer to making something: it must agree with what is asked later.
    fn made(&mut self, entry: Entry) -> Result<u64> {
        let entry = self.count(entry);
        let now = self.union().getattr(entry.id)?;
        let key = |a: &Attr| {
            (
                a.ino,
                a.stat.mode,
                a.stat.uid,
                a.stat.gid,
                a.stat.size,
                a.stat.nlink,
            )
        };
        assert_eq!(key(&entry.attr), key(&now), "the entry and getattr differ");
        Ok(entry.id)
    }

    /// The set-group-id bit that the kernel takes from a new file in a directory of a group that
    /// the caller is not in.
    fn allowed_mode(&self, parent: u64, mode: u32, who: Who) -> Result<u32> {
        let dir = self.union().getattr(parent)?.stat;
        let both = S_ISGID | S_IXGRP;
        let strip =
            dir.mode & S_ISGID != 0 && mode & both == both && who.uid != 0 && who.gid != dir.gid;
        Ok(if strip { mode & !S_ISGID } else { mode })
    }

    fn create(
        &mut self, who: Who, path: &[Vec<u8>], mode: u32, exclusive: bool, data: &[u8],
    ) -> Result {
        let (parent, name) = self.parent(path)?;
        let open = OpenMode {
            append: false,
            write: true,
            truncate: false,
        };
        let found = self.union().lookup(parent, name)?;
        let id = match found.map(|found| self.count(found)) {
            Some(_) if exclusive => return Err(Errno::EXIST),
            Some(found) => {
                self.union().open(found.id, open, caller(who))?;
                found.id
            }
            None => {
                let mode = self.allowed_mode(parent, mode, who)? | libc::S_IFREG;
                let made =
                    self.union()
                        .create(parent, name, mode, exclusive, caller(who), who.umask)?;
                self.made(made)?
            }
        };
        self.write(who, id, 0, data)
    }

    fn write(&self, who: Who, id: u64, offset: u64, data: &[u8]) -> Result {
        let n = self
            .union()
            .write(id, offset, data, (who.uid != 0).then(|| caller(who)))?;
        assert_eq!(n, data.len(), "a short write");
        Ok(Outcome::Number(n as u64))
    }

    fn make(&mut self, who: Who, path: &[Vec<u8>], make: Make<'_>) -> Result {
        let (parent, name) = self.parent(path)?;
        let made = self
            .union()
            .make(parent, name, make, caller(who), who.umask)?;
        self.made(made)?;
        Ok(Outcome::Done)
    }

    fn rename(&mut self, from: &[Vec<u8>], to: &[Vec<u8>], flags: u32) -> Result {
        if flags & !7 != 0 || (flags & 2 != 0 && flags & 5 != 0) {
            return Err(Errno::INVAL);
        }
        let (old_dir, old) = self.parent(from)?;
        let (new_dir, new) = self.parent(to)?;
        if self
            .union()
            .lookup(old_dir, old)?
            .map(|e| self.count(e))
            .is_none()
        {
            return Err(Errno::NOENT);
        }
        let target = self.union().lookup(new_dir, new)?.map(|e| self.count(e));
        let exchange = flags & 2 != 0;
        if flags & 1 != 0 && target.is_some() {
            return Err(Errno::EXIST);
        }
        if exchange && target.is_none() {
            return Err(Errno::NOENT);
        }
        if to.len() > from.len() && to.starts_with(from) {
            return Err(Errno::INVAL);
        }
        if from.len() > to.len() && from.starts_with(to) {
            return Err(if exchange {
                Errno::INVAL
            } else {
                Errno::NOTEMPTY
            });
        }
        self.union().rename(old_dir, old, new_dir, new, flags)?;
        Ok(Outcome::Done)
    }

    fn on(&mut self, who: Who, object: &Object, action: &Action) -> Result {
        let id = self.object(object)?;
        let opened = matches!(object, Object::Kept(_));
        let writes = matches!(
            action,
            Action::Write { .. }
                | Action::Append { .. }
                | Action::Truncate { .. }
                | Action::Allocate { .. }
        );
        if action.on_data() && !opened && !matches!(action, Action::OpenTruncate) {
            let mode = OpenMode {
                append: false,
                write: writes,
                truncate: false,
            };
            self.union().open(id, mode, caller(who))?;
        }
        self.check_xattr(id, action)?;
        let set = self.settings(who, id, action)?;
        if let Some(set) = set {
            let attr = self.union().setattr(id, &set, caller(who))?;
            if let Some(SetTime::At(time)) = set.atime {
                assert_eq!(attr.stat.atime, time, "the access time that was set");
            }
            return Ok(Outcome::Done);
        }
        let union = self.union();
        match action {
            Action::Read { offset, len } => {
                let mut buf = vec![0; *len];
                let n = union.read(id, *offset, &mut buf)?;
                buf.truncate(n);
                return Ok(Outcome::Bytes(buf));
            }
            Action::Seek { offset, hole } => {
                return union
                    .seek_data(id, None, *offset, *hole)
                    .map(Outcome::Number);
            }
            Action::Write { offset, data } => return self.write(who, id, *offset, data),
            Action::Append { data } => {
                let end = union.getattr(id)?.stat.size;
                return self.write(who, id, end, data);
            }
            Action::OpenTruncate => {
                let mode = OpenMode {
                    append: false,
                    write: true,
                    truncate: true,
                };
                union.open(id, mode, caller(who))?;
            }
            Action::SetXattr { attr, value, flags } => {
                union.setxattr(id, attr.as_bytes(), value, *flags, caller(who))?;
            }
            Action::RemoveXattr { attr } => union.removexattr(id, attr.as_bytes())?,
            Action::GetXattr { attr } => {
                return union.getxattr(id, attr.as_bytes()).map(Outcome::Bytes);
            }
            Action::Allocate { mode, offset, len } => {
                union.fallocate(id, *mode as i32, *offset, *len, caller(who))?;
            }
            Action::Sync { data_only } => union.fsync(id, 0, *data_only)?,
            _ => {
                union.getattr(id)?;
            }
        }
        Ok(Outcome::Done)
    }

    /// What the kernel refuses by itself.
    fn check_xattr(&self, id: u64, action: &Action) -> Result<()> {
        let (Action::SetXattr { attr, .. }
        | Action::RemoveXattr { attr }
        | Action::GetXattr { attr }) = action
        else {
            return Ok(());
        };
        let kind = self.union().getattr(id)?.kind();
        let plain = matches!(kind, FileKind::Regular | FileKind::Directory);
        if attr.starts_with("user.") && !plain {
            let reads = matches!(action, Action::GetXattr { .. });
            return Err(if reads { Errno::NODATA } else { Errno::PERM });
        }
        if attr.starts_with("system.") && kind == FileKind::Symlink {
            return Err(Errno::OPNOTSUPP);
        }
        Ok(())
    }

    /// The setattr that an action is, with what the kernel adds.
    fn settings(&self, who: Who, id: u64, action: &Action) -> Result<Option<SetAttr>> {
        let mut set = SetAttr::default();
        match action {
            Action::Truncate { size } | Action::Cut { size } => set.size = Some(*size),
            Action::Chmod { mode } => {
                let stat = self.union().getattr(id)?.stat;
                let strip = who.uid != 0 && who.gid != stat.gid;
                set.mode = Some(if strip { mode & !S_ISGID } else { *mode });
            }
            Action::Chown { uid, gid } => (set.uid, set.gid) = (*uid, *gid),
            Action::Times { atime, mtime } => {
                (set.atime, set.mtime) = (Some(set_time(*atime)), Some(set_time(*mtime)));
            }
            _ => return Ok(None),
        }
        Ok(Some(set))
    }

    fn link(&mut self, from: &Object, to: &[Vec<u8>]) -> Result {
        let id = self.object(from)?;
        let (parent, name) = self.parent(to)?;
        if self
            .union()
            .lookup(parent, name)?
            .map(|e| self.count(e))
            .is_some()
        {
            return Err(Errno::EXIST);
        }
        let made = self.union().link(id, parent, name)?;
        self.made(made)?;
        Ok(Outcome::Done)
    }

    fn copy_range(&mut self, who: Who, what: &Do) -> Result {
        let Do::CopyRange {
            from,
            from_offset,
            to,
            to_offset,
            len,
        } = what
        else {
            unreachable!()
        };
        let (from, to) = (self.object(from)?, self.object(to)?);
        if self.union().getattr(from)?.stat.size <= *from_offset {
            // The kernel knows that there is nothing to copy.
            return Ok(Outcome::Number(0));
        }
        let pairs = ((from, *from_offset), (to, *to_offset));
        match self
            .union()
            .copy_range(pairs.0, None, pairs.1, *len, caller(who))
        {
            // The kernel copies by reading and writing then.
            Err(Errno::XDEV) => {
                let mut data = vec![0; usize::try_from(*len).unwrap()];
                let n = self.union().read(from, *from_offset, &mut data)?;
                self.write(who, to, *to_offset, &data[..n])
            }
            n => Ok(Outcome::Number(n? as u64)),
        }
    }

    fn keep(&mut self, path: &[Vec<u8>], who: Who) -> Result {
        let id = self.walk(path)?;
        if self.union().getattr(id)?.kind() == FileKind::Regular {
            let mode = OpenMode {
                append: false,
                write: true,
                truncate: false,
            };
            self.union().open(id, mode, caller(who))?;
        }
        self.kept.push(id);
        Ok(Outcome::Done)
    }

    /// Gives back all references, but one for each kept node.
    pub fn forget(&mut self) {
        let mut keep: BTreeMap<u64, u64> = BTreeMap::new();
        for id in &self.kept {
            keep.insert(*id, 1);
        }
        for (id, count) in std::mem::take(&mut self.refs) {
            let kept = keep.get(&id).copied().unwrap_or(0).min(count);
            if count > kept {
                self.union().forget(id, count - kept);
            }
            if kept > 0 {
                self.refs.insert(id, kept);
            }
        }
    }
}

impl Side for UnionSide {
    fn run(&mut self, who: Who, what: &Do) -> Result {
        match what {
            Do::Create {
                path,
                mode,
                exclusive,
                data,
            } => self.create(who, path, *mode, *exclusive, data),
            Do::Mkdir { path, mode } => {
                let mode = mode & 0o1777;
                self.make(who, path, Make::Directory { mode })
            }
            Do::Mknod {
                path,
                kind,
                mode,
                rdev,
            } => {
                let (parent, _) = self.parent(path)?;
                let mode = self.allowed_mode(parent, *mode, who)? | kind.as_raw_mode();
                self.make(who, path, Make::Node { mode, rdev: *rdev })
            }
            Do::Symlink { path, target } => self.make(who, path, Make::Symlink { target }),
            Do::Unlink { path } => {
                let (parent, name) = self.parent(path)?;
                self.union().unlink(parent, name)?;
                Ok(Outcome::Done)
            }
            Do::Rmdir { path } => {
                let (parent, name) = self.parent(path)?;
                self.union().rmdir(parent, name)?;
                Ok(Outcome::Done)
            }
            Do::Rename { from, to, flags } => self.rename(from, to, *flags),
            Do::Link { from, to } => self.link(from, to),
            Do::On { object, action } => self.on(who, object, action),
            Do::CopyRange { .. } => self.copy_range(who, what),
            Do::Keep { path } => self.keep(path, who),
            Do::Close { kept } => {
                self.kept.remove(*kept);
                Ok(Outcome::Done)
            }
            Do::Forget => Ok({
                self.forget();
                Outcome::Done
            }),
            Do::Flush => self.flush(),
            Do::Remount => {
                self.remount();
                Ok(Outcome::Done)
            }
        }
    }
}
