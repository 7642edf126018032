//! Reading a layer archive, entry after entry, from anything that can be read.
//!
//! The fields of headers are read by the tar crate. Putting the headers of one entry together is done
//! here, as PAX records with line breaks in their values (capabilities) are beyond the crate.

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::pax;

const BLOCK: usize = 512;
/// More than names, targets and all attributes of one object can take.
const MAX_HEADER: u64 = 16 << 20;
/// No file is larger.
const MAX_SIZE: u64 = i64::MAX as u64;
/// More parts of a file between holes than writers make.
const MAX_PARTS: usize = 1 << 20;
/// Where a header has its sum, for which it counts as blanks.
const SUM: std::ops::Range<usize> = 148..156;

/// One object of the archive.
pub(crate) struct Entry {
    pub kind: EntryType,
    /// As written, perhaps with slashes at either end.
    pub path: Vec<u8>,
    /// Of a symlink or a hard link.
    pub target: Vec<u8>,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Major and minor.
    pub device: (u32, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Size of the object, with its holes.
    pub size: u64,
    /// Where the data belong that follow in the archive.
    parts: Vec<(u64, u64)>,
}

/// An archive.
pub(crate) struct Reader<R> {
    input: R,
    /// PAX records for all entries that follow.
    global: Vec<u8>,
    /// Data and padding of the last entry that were not read.
    left: u64,
    padding: u64,
}

const OTHER_SPARSE: &str =
    "holes in a form of PAX that is not read; pack it with tar --sparse-version=1.0";

fn bad(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Headers that stand before the one they are about.
#[derive(Default)]
struct Before {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    pax: Vec<u8>,
}

impl<R: Read> Reader<R> {
    pub fn new(input: R) -> Self {
        Self {
            input,
            global: Vec::new(),
            left: 0,
            padding: 0,
        }
    }

    /// The next entry; `None` after the mark of the end.
    pub fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut before = Before::default();
        loop {
            self.skip()?;
            let mut header = Header::new_old();
            let block = header.as_mut_bytes();
            let cut = self.input.read_exact(block).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => bad("the archive is cut off, or none"),
                _ => e,
            });
            check_compression(block)?;
            cut?;
            if block.iter().all(|&b| b == 0) {
                // Whoever writes into a pipe wants it to be read to its end.
                io::copy(&mut self.input, &mut io::sink())?;
                return Ok(None);
            }
            check_sum(&header)?;
            let kind = header.entry_type();
            let is_own = !matches!(
                kind,
                EntryType::XHeader
                    | EntryType::XGlobalHeader
                    | EntryType::GNULongName
                    | EntryType::GNULongLink
            );
            if is_own {
                return self.entry(&header, before).map(Some);
            }
            let size = header.entry_size()?;
            if size > MAX_HEADER {
                return Err(bad("a header of the archive is too large"));
            }
            self.will_follow(size)?;
            let mut data = vec![0; usize::try_from(size).unwrap_or(0)];
            self.input.read_exact(&mut data)?;
            self.left = 0;
            let text = |data: &[u8]| data.split(|&b| b == 0).next().unwrap_or(b"").to_vec();
            match kind {
                EntryType::GNULongName => before.path = Some(text(&data)),
                EntryType::GNULongLink => before.target = Some(text(&data)),
                EntryType::XHeader => before.pax = data,
                EntryType::XGlobalHeader => self.global = data,
                _ => {}
            }
        }
    }

    /// Gives the data of the last entry away, with the place of each piece in the object.
    pub fn data(
        &mut self, entry: &Entry, mut each: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 18];
        for &(start, length) in &entry.parts {
            let mut done = 0;
            while done < length {
                let left = usize::try_from(length - done).unwrap_or(buffer.len());
                let room = left.min(buffer.len());
                self.input.read_exact(&mut buffer[..room])?;
                each(start + done, &buffer[..room])?;
                done += room as u64;
                self.left -= room as u64;
            }
        }
        Ok(())
    }

    fn will_follow(&mut self, size: u64) -> io::Result<()> {
        if i64::try_from(size).is_err() {
            return Err(bad("larger than a file can be"));
        }
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    fn skip(&mut self) -> io::Result<()> {
        let rest = self.left + self.padding;
        (self.left, self.padding) = (0, 0);
        let skipped = io::copy(&mut (&mut self.input).take(rest), &mut io::sink())?;
        match skipped == rest {
            true => Ok(()),
            false => Err(bad("the archive is cut off")),
        }
    }

    fn entry(&mut self, header: &Header, before: Before) -> io::Result<Entry> {
        let global = std::mem::take(&mut self.global);
        let result = self.entry_with(header, before, &global);
        self.global = global;
        result
    }

    fn entry_with(&mut self, header: &Header, before: Before, global: &[u8]) -> io::Result<Entry> {
        let parse = |data| pax::parse(data).ok_or_else(|| bad("malformed PAX records"));
        let mut records = parse(global)?;
        records.extend(parse(&before.pax)?);
        let id = |id: u64| u32::try_from(id).map_err(|_| bad("an owner is out of range"));
        let link = header.link_name_bytes().unwrap_or_default().into_owned();
        // Before 1970 it is a number of all bits.
        let mtime = header.mtime()?.cast_signed();
        let mut entry = Entry {
            kind: header.entry_type(),
            path: before
                .path
                .unwrap_or_else(|| header.path_bytes().into_owned()),
            target: before.target.unwrap_or(link),
            mode: header.mode()? & 0o7777,
            uid: id(header.uid()?)?,
            gid: id(header.gid()?)?,
            mtime: (mtime, 0),
            device: (0, 0),
            xattrs: Vec::new(),
            size: header.entry_size()?,
            parts: Vec::new(),
        };
        if matches!(entry.kind, EntryType::Char | EntryType::Block) {
            let number = |n: Option<u32>| n.ok_or_else(|| bad("a device without a number"));
            let (major, minor) = (header.device_major()?, header.device_minor()?);
            entry.device = (number(major)?, number(minor)?);
        }
        let number = |value: &[u8]| {
            let text = std::str::from_utf8(value).ok();
            let number = text.and_then(|text| text.parse::<u64>().ok());
            number.ok_or_else(|| bad("malformed PAX records"))
        };
        let mut sparse = PaxSparse::default();
        for (key, value) in records {
            match key {
                b"GNU.sparse.major" => sparse.major = number(value)?,
                b"GNU.sparse.minor" => sparse.minor = number(value)?,
                b"GNU.sparse.name" => sparse.name = Some(value.to_vec()),
                b"GNU.sparse.realsize" => sparse.size = Some(number(value)?),
                b"path" => entry.path = value.to_vec(),
                b"linkpath" => entry.target = value.to_vec(),
                b"size" => entry.size = number(value)?,
                b"uid" => entry.uid = id(number(value)?)?,
                b"gid" => entry.gid = id(number(value)?)?,
                b"mtime" => {
                    let time = pax::parse_time(value);
                    entry.mtime = time.ok_or_else(|| bad("malformed PAX records"))?;
                }
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(bad(OTHER_SPARSE));
                }
                key => {
                    if let Some(attr) = key.strip_prefix(pax::XATTR.as_bytes()) {
                        entry.xattrs.push((attr.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        if entry.kind == EntryType::Regular && entry.path.ends_with(b"/") {
            // As archives before POSIX have directories.
            entry.kind = EntryType::Directory;
        }
        let sizes = [Some(entry.size), sparse.size];
        if sizes.into_iter().flatten().any(|size| size > MAX_SIZE) {
            return Err(bad("a size is out of range"));
        }
        match sparse.size {
            Some(size) => self.place_parts(&mut entry, sparse, size)?,
            None => self.place_data(header, &mut entry)?,
        }
        Ok(entry)
    }

    /// Finds out how much follows, and where it belongs.
    fn place_data(&mut self, header: &Header, entry: &mut Entry) -> io::Result<()> {
        let size = entry.size;
        if entry.kind != EntryType::GNUSparse {
            // Of links some writers tell the size of the file.
            let has_data = matches!(entry.kind, EntryType::Regular | EntryType::Continuous);
            let follows = has_data || !known_without_data(entry.kind);
            self.will_follow(if follows { size } else { 0 })?;
            if has_data {
                entry.parts = vec![(0, size)];
            }
            return Ok(());
        }
        let wrong = || bad("a malformed map of holes");
        let gnu = header.as_gnu().ok_or_else(wrong)?;
        entry.size = gnu.real_size()?;
        add_parts(&mut entry.parts, &gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            self.input.read_exact(block.as_mut_bytes())?;
            add_parts(&mut entry.parts, &block.sparse)?;
            more = block.is_extended();
        }
        check_parts(&entry.parts, entry.size, size)?;
        self.will_follow(size)
    }

    /// The same where the map of the data stands before them, after PAX records.
    fn place_parts(&mut self, entry: &mut Entry, sparse: PaxSparse, size: u64) -> io::Result<()> {
        let wrong = || bad("a malformed map of holes");
        if (sparse.major, sparse.minor) != (1, 0) || entry.kind != EntryType::Regular {
            return Err(bad(OTHER_SPARSE));
        }
        let stored = entry.size;
        entry.path = sparse
            .name
            .unwrap_or_else(|| std::mem::take(&mut entry.path));
        entry.size = size;
        self.will_follow(stored)?;
        let mut numbers = Vec::new();
        let mut text = Vec::new();
        let mut wanted = 1;
        while numbers.len() < wanted {
            let mut block = [0; BLOCK];
            self.left = self.left.checked_sub(BLOCK as u64).ok_or_else(wrong)?;
            self.input.read_exact(&mut block)?;
            for &byte in &block {
                match byte {
                    b'0'..=b'9' if text.len() < 20 => text.push(byte),
                    b'\n' if numbers.len() < wanted => {
                        let number = std::str::from_utf8(&text).ok();
                        let number = number.and_then(|text| text.parse::<u64>().ok());
                        let number = number.ok_or_else(wrong)?;
                        if numbers.is_empty() {
                            let count = usize::try_from(number).ok().filter(|n| *n <= MAX_PARTS);
                            let count = count.and_then(|n| n.checked_mul(2)?.checked_add(1));
                            wanted = count.ok_or_else(wrong)?;
                        }
                        numbers.push(number);
                        text.clear();
                    }
                    0 if numbers.len() == wanted => {}
                    _ => return Err(wrong()),
                }
            }
        }
        let (pairs, _) = numbers[1..].as_chunks::<2>();
        entry.parts = pairs
            .iter()
            .map(|&[start, length]| (start, length))
            .collect();
        check_parts(&entry.parts, size, self.left)
    }
}

/// What PAX records say of a file with holes.
#[derive(Default)]
struct PaxSparse {
    major: u64,
    minor: u64,
    name: Option<Vec<u8>>,
    size: Option<u64>,
}

/// The parts follow each other, are in the file, and are as much as is stored.
fn check_parts(parts: &[(u64, u64)], size: u64, stored: u64) -> io::Result<()> {
    let wrong = || bad("a malformed map of holes");
    let mut end = 0;
    let mut sum: u64 = 0;
    for &(start, length) in parts {
        if start < end {
            return Err(wrong());
        }
        end = start.checked_add(length).ok_or_else(wrong)?;
        sum += length;
    }
    match end <= size && sum == stored {
        true => Ok(()),
        false => Err(wrong()),
    }
}

fn known_without_data(kind: EntryType) -> bool {
    matches!(
        kind,
        EntryType::Link
            | EntryType::Symlink
            | EntryType::Char
            | EntryType::Block
            | EntryType::Directory
            | EntryType::Fifo
    )
}

fn add_parts(parts: &mut Vec<(u64, u64)>, slots: &[GnuSparseHeader]) -> io::Result<()> {
    for slot in slots.iter().filter(|slot| !slot.is_empty()) {
        let part = (slot.offset()?, slot.length()?);
        if part.1 > 0 {
            parts.push(part);
        }
        if parts.len() > MAX_PARTS {
            return Err(bad("too many holes in one file"));
        }
    }
    Ok(())
}

fn check_sum(header: &Header) -> io::Result<()> {
    let bytes = header.as_bytes();
    let sum = |range: &[u8]| range.iter().map(|&b| u32::from(b)).sum::<u32>();
    let blanks = 8 * u32::from(b' ');
    let found = sum(&bytes[..SUM.start]) + blanks + sum(&bytes[SUM.end..]);
    match header.cksum() {
        Ok(told) if told == found => Ok(()),
        _ => Err(bad("the archive is damaged, or none")),
    }
}

fn check_compression(block: &[u8]) -> io::Result<()> {
    for (magic, name) in [
        (&[0x1f, 0x8b][..], "gzip"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
        (&[0xfd, b'7', b'z'], "xz"),
    ] {
        if block.starts_with(magic) {
            return Err(bad(&format!("compressed with {name}: decompress it first")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by fuzzing: the next entry was looked for at a place before this one.
    #[test]
    fn an_entry_that_would_be_larger_than_a_file_can_be() {
        for size in [u64::MAX, u64::MAX - 511, 1 << 63] {
            let mut header = Header::new_ustar();
            header.set_path("f").unwrap();
            header.set_entry_type(EntryType::Regular);
            header.set_size(0);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_size(size);
            header.set_cksum();
            let data = [header.as_bytes().as_slice(), &[0; 4 * BLOCK]].concat();
            assert!(Reader::new(data.as_slice()).next().is_err(), "{size}");
        }
    }
}
