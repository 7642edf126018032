//! Changes as a layer in the form that container engines exchange: a tar archive with whiteouts.
//!
//! Names and targets that are too long for a header have one of GNU tar's before it, since those take
//! bytes of any kind; attributes and broken times are PAX records.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use tar::{EntryType, Header};

use crate::layer::name;
use crate::sys::{Errno, FileKind};
use crate::union::{Attr, Union};

use super::changes::{Before, Change, xattrs};
use super::pax;
use super::progress::Progress;
use super::{Result, ToolError, join};

/// Data that are read at once.
const PIECE: usize = 1 << 20;
/// Holes are told in blocks of this size.
const BLOCK: u64 = 512;
/// The longest map of holes.
const MAX_MAP: usize = 512 << 10;
/// Room for a name in a header.
const NAME_FIELD: usize = 100;

/// Where an archive goes, until something fails: dropping the builder would write the mark of the end.
struct Gate<W> {
    out: W,
    failed: bool,
}

impl<W: Write> Write for Gate<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self.failed {
            true => Err(io::Error::other("given up")),
            false => self.out.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A layer that is being written.
pub(super) struct LayerWriter<'a, W: Write> {
    union: &'a Union,
    builder: tar::Builder<Gate<W>>,
    /// No time is later than this.
    latest: Option<i64>,
    /// The first name of each file with several, by its inode number.
    links: HashMap<u64, Vec<u8>>,
    progress: &'a Progress,
}

impl<'a, W: Write> LayerWriter<'a, W> {
    /// Objects are read from `union`.
    pub fn new(union: &'a Union, out: W, latest: Option<i64>, progress: &'a Progress) -> Self {
        Self {
            union,
            builder: tar::Builder::new(Gate { out, failed: false }),
            latest,
            links: HashMap::new(),
            progress,
        }
    }

    /// Writes one change; a directory has to come before what is in it.
    pub fn put(&mut self, change: &Change) -> Result<()> {
        let result = self.try_put(change);
        self.builder.get_mut().failed |= result.is_err();
        result
    }

    fn try_put(&mut self, change: &Change) -> Result<()> {
        match change.now {
            None => self.whiteout(&change.path),
            Some((id, attr)) => {
                if !change.path.is_empty() || change.counts {
                    self.object(change, id, &attr)?;
                }
                match change.opaque {
                    true => self.marker(&join(&change.path, name::OPAQUE)),
                    false => Ok(()),
                }
            }
        }
    }

    /// Ends the archive.
    pub fn finish(self) -> Result<W> {
        let out = self.builder.into_inner();
        let out = out.and_then(|mut gate| gate.flush().map(|()| gate.out));
        out.map_err(|e| ToolError::new(format_args!("writing: {e}")))
    }

    fn whiteout(&mut self, path: &[u8]) -> Result<()> {
        let at = path.iter().rposition(|&b| b == b'/').map_or(0, |at| at + 1);
        match name::whiteout_of(&path[at..]) {
            Some(marker) => self.marker(&[&path[..at], marker.as_slice()].concat()),
            None => Err(ToolError::about(
                path,
                "a whiteout of so long a name has no place in a layer archive",
            )),
        }
    }

    /// An empty file. Only its name means something, so nothing else of it is told.
    fn marker(&mut self, path: &[u8]) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o444);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header.set_mtime(0);
        self.append(path, None, header, io::empty())
    }

    /// Archives have none, and nobody listens to one that was copied.
    fn socket(&mut self, change: &Change) -> Result<()> {
        let path = change.path.as_slice();
        self.progress
            .tell(&format!("{}: a socket, left out", path.escape_ascii()));
        match change.before {
            Before::Nothing => Ok(()),
            _ => self.whiteout(path),
        }
    }

    fn object(&mut self, change: &Change, id: u64, attr: &Attr) -> Result<()> {
        let path = change.path.as_slice();
        let fail = |e| ToolError::at(path, e);
        let stat = &attr.stat;
        if attr.kind() == FileKind::Socket {
            return self.socket(change);
        }
        let parts = self.parts(id, attr).map_err(fail)?;
        let sparse = parts.as_deref().filter(|p| *p != [(0, stat.size)]);
        // GNU tar looks for its newer map of holes only where the header is not its own.
        let mut header = match sparse {
            Some(_) => Header::new_ustar(),
            None => Header::new_gnu(),
        };
        header.set_mode(stat.mode & 0o7777);
        header.set_uid(stat.uid.into());
        header.set_gid(stat.gid.into());
        header.set_size(0);
        let (seconds, nanoseconds) = match self.latest {
            Some(latest) if stat.mtime.sec >= latest => (latest, 0),
            _ => (stat.mtime.sec, stat.mtime.nsec),
        };
        header.set_mtime(u64::try_from(seconds).unwrap_or(0));
        let time = pax::time(seconds, nanoseconds);
        let mut more = Vec::new();
        if nanoseconds != 0 || seconds < 0 {
            more.push(("mtime", time.into_bytes()));
        }
        if !attr.kind().is_dir() && stat.nlink > 1 {
            if let Some(first) = self.links.get(&attr.ino).cloned() {
                // Engines give the owner after they have linked, which takes capabilities away.
                self.records(path, &more, id)?;
                header.set_entry_type(EntryType::Link);
                return self.append(path, Some(&first), header, io::empty());
            }
            self.links.insert(attr.ino, path.to_vec());
        }
        if sparse.is_some() {
            // GNU tar's form 1.0: engines take such a file for a regular one, unlike its older form.
            more.push(("GNU.sparse.major", b"1".to_vec()));
            more.push(("GNU.sparse.minor", b"0".to_vec()));
            more.push(("GNU.sparse.name", path.to_vec()));
            more.push(("GNU.sparse.realsize", stat.size.to_string().into_bytes()));
            more.push(("uid", stat.uid.to_string().into_bytes()));
            more.push(("gid", stat.gid.to_string().into_bytes()));
        }
        self.records(path, &more, id)?;
        match attr.kind() {
            FileKind::Regular => {
                return self.regular(path, id, stat.size, parts.unwrap_or_default(), header);
            }
            FileKind::Directory => {
                header.set_entry_type(EntryType::Directory);
                let named = match path {
                    [] => b"./".to_vec(),
                    path => [path, b"/"].concat(),
                };
                return self.append(&named, None, header, io::empty());
            }
            FileKind::Symlink => {
                header.set_entry_type(EntryType::Symlink);
                let target = self.union.readlink(id).map_err(fail)?;
                return self.append(path, Some(&target), header, io::empty());
            }
            FileKind::CharDevice => header.set_entry_type(EntryType::Char),
            FileKind::BlockDevice => header.set_entry_type(EntryType::Block),
            FileKind::Fifo | FileKind::Socket => header.set_entry_type(EntryType::Fifo),
        }
        if attr.kind() != FileKind::Fifo {
            let set = header.set_device_major(libc::major(stat.rdev));
            set.and_then(|()| header.set_device_minor(libc::minor(stat.rdev)))
                .map_err(|e| ToolError::about(path, e))?;
        }
        self.append(path, None, header, io::empty())
    }

    /// What no header can hold.
    fn records(&mut self, path: &[u8], more: &[(&str, Vec<u8>)], id: u64) -> Result<()> {
        let attrs = xattrs(self.union, id).map_err(|e| ToolError::at(path, e))?;
        let mut records: Vec<(String, &[u8])> = Vec::new();
        for (attr, value) in &attrs {
            if attr.starts_with(b"security.") && attr != b"security.capability" {
                // Labels are this machine's.
                continue;
            }
            let attr = std::str::from_utf8(attr).ok().filter(|a| !a.contains('='));
            let Some(attr) = attr else {
                return Err(ToolError::about(
                    path,
                    "has an attribute whose name no archive can hold",
                ));
            };
            records.push((format!("{}{attr}", pax::XATTR), value));
        }
        let more = more
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.as_slice()));
        records.extend(more);
        let records = records.iter().map(|(key, value)| (key.as_str(), *value));
        self.builder
            .append_pax_extensions(records)
            .map_err(|e| ToolError::about(path, e))
    }

    fn regular(
        &mut self, path: &[u8], id: u64, size: u64, parts: Vec<(u64, u64)>, mut header: Header,
    ) -> Result<()> {
        header.set_entry_type(EntryType::Regular);
        let map = match parts == [(0, size)] {
            true => Vec::new(),
            false => map_of(&parts),
        };
        let stored: u64 = parts.iter().map(|(_, length)| length).sum();
        header.set_size(map.len() as u64 + stored);
        let data = Data::new(self.union, id, parts, self.progress);
        self.append(path, None, header, map.as_slice().chain(data))?;
        self.progress.add(size.saturating_sub(stored));
        Ok(())
    }

    /// Where a regular file has data.
    fn parts(&self, id: u64, attr: &Attr) -> std::result::Result<Option<Vec<(u64, u64)>>, Errno> {
        let stat = &attr.stat;
        if attr.kind() != FileKind::Regular {
            return Ok(None);
        }
        if stat.blocks.saturating_mul(BLOCK) >= stat.size {
            return Ok(Some(vec![(0, stat.size)]));
        }
        self.data_of(id, stat.size).map(Some)
    }

    /// Where a file has data, in whole blocks; an empty part at the end tells its size.
    fn data_of(&self, id: u64, size: u64) -> std::result::Result<Vec<(u64, u64)>, Errno> {
        let mut parts: Vec<(u64, u64)> = Vec::new();
        let mut position = 0;
        while position < size {
            let start = match self.union.seek_data(id, None, position, false) {
                Ok(start) => start.max(position) / BLOCK * BLOCK,
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(vec![(0, size)]),
                Err(e) => return Err(e),
            };
            let end = self.union.seek_data(id, None, start.max(position), true);
            let end = end.unwrap_or(size).div_ceil(BLOCK) * BLOCK;
            let end = end.min(size).max(start + 1).min(size);
            parts.push((start, end - start));
            position = end;
        }
        if parts != [(0, size)] && position < size {
            parts.push((size, 0));
        }
        join_parts(&mut parts);
        Ok(parts)
    }

    /// Writes a header, before it those for what does not fit, and the data after it.
    fn append(
        &mut self, path: &[u8], target: Option<&[u8]>, mut header: Header, data: impl Read,
    ) -> Result<()> {
        let fail = |e: io::Error| ToolError::about(path, e);
        for (kind, text) in [
            (EntryType::GNULongName, Some(path)),
            (EntryType::GNULongLink, target),
        ] {
            let Some(text) = text.filter(|text| text.len() > NAME_FIELD) else {
                continue;
            };
            let mut long = Header::new_gnu();
            long.set_entry_type(kind);
            put_name(&mut long, b"././@LongLink", None);
            long.set_size(text.len() as u64 + 1);
            long.set_cksum();
            let text = text.chain(&b"\0"[..]);
            self.builder.append(&long, text).map_err(fail)?;
        }
        put_name(&mut header, path, target);
        header.set_cksum();
        self.builder.append(&header, data).map_err(fail)
    }
}

fn put_name(header: &mut Header, path: &[u8], target: Option<&[u8]>) {
    let fields = header.as_old_mut();
    let put = |field: &mut [u8; NAME_FIELD], text: &[u8]| {
        let length = text.len().min(NAME_FIELD);
        field[..length].copy_from_slice(&text[..length]);
    };
    put(&mut fields.name, path);
    if let Some(target) = target {
        put(&mut fields.linkname, target);
    }
}

/// Joins parts over small holes until the map of them is one that engines read (Go's archive/tar takes
/// no more than a megabyte).
fn join_parts(parts: &mut Vec<(u64, u64)>) {
    let mut gap = 4096;
    while map_of(parts).len() > MAX_MAP {
        parts.dedup_by(|(start, length), (before, before_length)| {
            let joined = start.saturating_sub(*before + *before_length) <= gap && *length > 0;
            if joined {
                *before_length = *start + *length - *before;
            }
            joined
        });
        gap = gap.saturating_mul(2);
    }
}

/// Where the data are, as it stands before them: decimal numbers in whole blocks.
fn map_of(parts: &[(u64, u64)]) -> Vec<u8> {
    let mut map = format!("{}\n", parts.len()).into_bytes();
    for (offset, length) in parts {
        map.extend_from_slice(format!("{offset}\n{length}\n").as_bytes());
    }
    map.resize(map.len().next_multiple_of(BLOCK as usize), 0);
    map
}

/// The data of a file, part by part.
struct Data<'a> {
    union: &'a Union,
    id: u64,
    parts: Vec<(u64, u64)>,
    part: usize,
    done: u64,
    progress: &'a Progress,
}

impl<'a> Data<'a> {
    fn new(union: &'a Union, id: u64, parts: Vec<(u64, u64)>, progress: &'a Progress) -> Self {
        Self {
            union,
            id,
            parts,
            part: 0,
            done: 0,
            progress,
        }
    }
}

impl Read for Data<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some((start, length)) = self.parts.get(self.part).copied() {
            if self.done == length {
                (self.part, self.done) = (self.part + 1, 0);
                continue;
            }
            let left = usize::try_from(length - self.done).unwrap_or(PIECE);
            let room = buf.len().min(left).min(PIECE);
            let got = self
                .union
                .read(self.id, start + self.done, &mut buf[..room])?;
            if got == 0 && room > 0 {
                return Err(io::Error::other("was cut while it was read"));
            }
            self.done += got as u64;
            self.progress.add(got as u64);
            return Ok(got);
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_of_holes_is_not_too_long() {
        let part = |i: u64| (i / 2 * (1 << 20) + i % 2 * 8192, 4096);
        let mut parts: Vec<(u64, u64)> = (0..40_000).map(part).collect();
        parts.push((1 << 40, 0));
        assert!(map_of(&parts).len() > MAX_MAP);
        join_parts(&mut parts);
        // Only over the small holes, and the end still tells the size.
        assert_eq!(parts.len(), 20_001);
        assert_eq!(parts[..2], [(0, 12288), (1 << 20, 12288)]);
        assert_eq!(parts.last(), Some(&(1 << 40, 0)));
        assert!(map_of(&parts).len() <= MAX_MAP);
        let few = vec![(0, 512), (1024, 512)];
        let mut same = few.clone();
        join_parts(&mut same);
        assert_eq!(same, few);
    }
}
