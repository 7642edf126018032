//! Owner and mode kept in an extended attribute instead of the inode, as containers/storage and
//! fuse-overlayfs keep them: `UID:GID:MODE[:TYPE]`, the mode octal.
//!
//! Regular files and directories carry records. An empty regular file may stand for a device, a
//! fifo or a socket, which TYPE says. A layer holds records when its root directory has one.

use std::os::fd::BorrowedFd;

use crate::sys::{self, Errno, FileKind, Result, Stat};

use super::name::{NAME_MAX, NameBuf};

const SECURITY: &[u8] = b"security.fuseoverlayfs.override_stat";
const CONTAINERS: &[u8] = b"user.containers.override_stat";
const FUSE_OVERLAYFS: &[u8] = b"user.fuseoverlayfs.override_stat";
/// Before the names of attributes that would act on the real file, or may not be set on it.
const OVERRIDE: &[u8] = b"user.containers.override_";
/// Attributes that are kept under [`OVERRIDE`].
const OVERRIDDEN: [&[u8]; 2] = [b"security.", b"system.posix_acl_"];

/// Where a layer keeps its records.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Form {
    /// `security.fuseoverlayfs.override_stat`, which only an administrator can set.
    Security,
    /// `user.containers.override_stat`.
    Containers,
    /// `user.fuseoverlayfs.override_stat`, as fuse-overlayfs before 1.14 wrote.
    FuseOverlayfs,
}

impl Form {
    /// The attribute of a record.
    pub fn attr(self) -> &'static [u8] {
        match self {
            Self::Security => SECURITY,
            Self::Containers => CONTAINERS,
            Self::FuseOverlayfs => FUSE_OVERLAYFS,
        }
    }

    /// The other one of the two that may both be in one layer.
    fn fallback(self) -> Option<Self> {
        match self {
            Self::Security => None,
            Self::Containers => Some(Self::FuseOverlayfs),
            Self::FuseOverlayfs => Some(Self::Containers),
        }
    }
}

/// True for the attributes of records, in whichever form, and for those that stand for others. All
/// of them say what a file may do, so they are not for its owner to set.
pub(crate) fn is_record(attr: &[u8]) -> bool {
    attr.starts_with(OVERRIDE) || [SECURITY, FUSE_OVERLAYFS].contains(&attr)
}

/// The name under which a layer keeps an attribute.
///
/// # Errors
/// ERANGE when it gets too long.
pub(crate) fn stored_name(form: Option<Form>, attr: &[u8]) -> Result<NameBuf> {
    let mut name = NameBuf::new();
    if form == Some(Form::Containers) && OVERRIDDEN.iter().any(|p| attr.starts_with(p)) {
        name.extend_from_slice(OVERRIDE);
    }
    name.extend_from_slice(attr);
    if name.len() > NAME_MAX {
        return Err(Errno::RANGE);
    }
    Ok(name)
}

/// The name that users know for what a layer keeps as `stored`; `None` for what is no one's.
pub(crate) fn users_name(form: Option<Form>, stored: &[u8]) -> Option<&[u8]> {
    if form != Some(Form::Containers) {
        return Some(stored);
    }
    let is_overridden = |attr: &[u8]| OVERRIDDEN.iter().any(|p| attr.starts_with(p));
    match stored.strip_prefix(OVERRIDE) {
        Some(attr) if is_overridden(attr) => Some(attr),
        // The real file's own.
        _ if is_overridden(stored) => None,
        _ => Some(stored),
    }
}

/// What a record says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Record {
    /// Owner, as on disk.
    pub uid: u32,
    /// Group, as on disk.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
    /// What an empty regular file stands for, and its device number.
    pub special: Option<(FileKind, u64)>,
}

impl Record {
    /// Owner and mode of these attributes; for a type that is kept as a regular file, that too.
    pub fn of(stat: &Stat) -> Self {
        let kind = stat.kind();
        let special = is_special(kind).then_some((kind, stat.rdev));
        Self {
            uid: stat.uid,
            gid: stat.gid,
            mode: stat.mode & 0o7777,
            special,
        }
    }

    /// Puts what it says into the attributes of the real object.
    pub fn apply(&self, stat: &mut Stat) {
        stat.uid = self.uid;
        stat.gid = self.gid;
        stat.mode = (stat.mode & libc::S_IFMT) | self.mode;
        let is_file = stat.kind() == FileKind::Regular && stat.size == 0;
        if let Some((kind, rdev)) = self.special.filter(|_| is_file) {
            stat.mode = (stat.mode & !libc::S_IFMT) | type_bits(kind);
            stat.rdev = rdev;
        }
    }

    /// As it is written.
    pub fn text(&self) -> String {
        let Self { uid, gid, mode, .. } = self;
        let plain = format!("{uid}:{gid}:{mode:o}");
        let device = |rdev| format!("{}-{}", libc::major(rdev), libc::minor(rdev));
        match self.special {
            Some((FileKind::CharDevice, rdev)) => format!("{plain}:char-{}", device(rdev)),
            Some((FileKind::BlockDevice, rdev)) => format!("{plain}:block-{}", device(rdev)),
            Some((FileKind::Fifo, _)) => format!("{plain}:pipe"),
            Some((FileKind::Socket, _)) => format!("{plain}:socket"),
            // The real object says the rest, and the oldest readers know three parts only.
            _ => plain,
        }
    }

    /// Reads a record; `None` when it is malformed.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?.trim_end_matches('\0');
        let mut parts = text.splitn(4, ':');
        let (uid, gid) = (id(parts.next()?)?, id(parts.next()?)?);
        let mode = u32::from_str_radix(parts.next()?, 8).ok()? & 0o7777;
        let special = match parts.next() {
            None => None,
            Some(kind) => special(kind)?,
        };
        Some(Self {
            uid,
            gid,
            mode,
            special,
        })
    }
}

/// Types that records keep as empty regular files.
pub(crate) fn is_special(kind: FileKind) -> bool {
    !matches!(
        kind,
        FileKind::Regular | FileKind::Directory | FileKind::Symlink
    )
}

/// Permission bits of the real object behind a record: its owner, the daemon, may do everything;
/// others only what the record lets them read or execute. No set-id bit is ever real.
pub(crate) fn real_mode(mode: u32) -> u32 {
    0o700 | (mode & 0o055)
}

fn type_bits(kind: FileKind) -> u32 {
    match kind {
        FileKind::CharDevice => libc::S_IFCHR,
        FileKind::BlockDevice => libc::S_IFBLK,
        FileKind::Fifo => libc::S_IFIFO,
        FileKind::Socket => libc::S_IFSOCK,
        _ => libc::S_IFREG,
    }
}

/// An id; fuse-overlayfs writes large ones as negative numbers.
fn id(text: &str) -> Option<u32> {
    let number: i64 = text.parse().ok()?;
    let negative = || i32::try_from(number).ok().map(i32::cast_unsigned);
    u32::try_from(number).ok().or_else(negative)
}

/// `None` when it is malformed; an inner `None` is a type that the real object shows itself.
fn special(text: &str) -> Option<Option<(FileKind, u64)>> {
    let device = |rest: &str| {
        let (major, minor) = rest.strip_prefix('-')?.split_once('-')?;
        Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
    };
    Some(match text {
        "file" | "dir" | "symlink" => None,
        "pipe" => Some((FileKind::Fifo, 0)),
        "socket" => Some((FileKind::Socket, 0)),
        _ => Some(
            match (text.strip_prefix("char"), text.strip_prefix("block")) {
                (Some(rest), _) => (FileKind::CharDevice, device(rest)?),
                (_, Some(rest)) => (FileKind::BlockDevice, device(rest)?),
                _ => return None,
            },
        ),
    })
}

/// The record of the object `name` of `dir`, of a layer with records in this form.
///
/// # Errors
/// EIO for a malformed one.
pub(crate) fn read(dir: BorrowedFd<'_>, name: &[u8], form: Form) -> Result<Option<Record>> {
    for form in [Some(form), form.fallback()].into_iter().flatten() {
        let Some(value) = sys::xattr::get(dir, name, form.attr())? else {
            continue;
        };
        let record = Record::parse(&value);
        if record.is_none() {
            let (attr, value) = (form.attr().escape_ascii(), value.escape_ascii());
            tracing::error!("{attr}: '{value}' is no owner and mode");
        }
        return record.map(Some).ok_or(Errno::IO);
    }
    Ok(None)
}

/// Writes the record of the object `name` of `dir`.
pub(crate) fn write(dir: BorrowedFd<'_>, name: &[u8], form: Form, record: &Record) -> Result<()> {
    sys::xattr::set(dir, name, form.attr(), record.text().as_bytes(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_others_write() {
        let plain = |uid, gid, mode| Record {
            uid,
            gid,
            mode,
            special: None,
        };
        let special = |kind, rdev| Record {
            special: Some((kind, rdev)),
            ..plain(0, 0, 0o644)
        };
        for (text, expected) in [
            ("1:2:755", plain(1, 2, 0o755)),
            ("0:0:0644:file", plain(0, 0, 0o644)),
            ("0:0:40755:dir", plain(0, 0, 0o755)),
            ("-2:65534:104755", plain(4_294_967_294, 65534, 0o4755)),
            ("0:0:0644:pipe", special(FileKind::Fifo, 0)),
            (
                "0:0:0644:char-1-3",
                special(FileKind::CharDevice, libc::makedev(1, 3)),
            ),
            (
                "0:0:0644:block-8-17",
                special(FileKind::BlockDevice, libc::makedev(8, 17)),
            ),
        ] {
            assert_eq!(Record::parse(text.as_bytes()), Some(expected), "{text}");
        }
        for text in [
            "",
            "1:2",
            "a:0:755",
            "0:0:8",
            "0:0:755:",
            "0:0:755:thing",
            "0:0:644:char-1",
        ] {
            assert_eq!(Record::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn names_of_attributes() {
        let containers = Some(Form::Containers);
        let stored = b"user.containers.override_security.capability";
        assert_eq!(
            *stored_name(containers, b"security.capability").unwrap(),
            stored[..]
        );
        assert_eq!(
            users_name(containers, stored),
            Some(&b"security.capability"[..])
        );
        assert_eq!(users_name(containers, b"security.capability"), None);
        for form in [None, containers, Some(Form::Security)] {
            assert_eq!(*stored_name(form, b"user.a").unwrap(), b"user.a"[..]);
            assert_eq!(users_name(form, b"user.a"), Some(&b"user.a"[..]));
        }
        assert_eq!(users_name(None, stored), Some(&stored[..]));
        let long = [b"security.".as_slice(), &[b'x'; 240]].concat();
        assert_eq!(stored_name(containers, &long), Err(Errno::RANGE));
    }

    #[test]
    fn real_files_give_no_one_more_than_their_records() {
        for mode in 0..=0o7777 {
            let real = real_mode(mode);
            assert_eq!(real & 0o7022, 0, "{mode:o}");
            assert_eq!(real & 0o055 & !mode, 0, "{mode:o}");
            assert_eq!(real & 0o700, 0o700);
        }
    }

    fn kinds() -> impl Strategy<Value = Option<(FileKind, u64)>> {
        let device = (0..0xfff_u32, 0..0xf_ffff_u32).prop_map(|(a, b)| libc::makedev(a, b));
        prop_oneof![
            Just(None),
            Just(Some((FileKind::Fifo, 0))),
            Just(Some((FileKind::Socket, 0))),
            device.clone().prop_map(|d| Some((FileKind::CharDevice, d))),
            device.prop_map(|d| Some((FileKind::BlockDevice, d))),
        ]
    }

    proptest! {
        #[test]
        fn written_records_read_back(uid: u32, gid: u32, mode in 0..0o10000_u32, special in kinds()) {
            let record = Record { uid, gid, mode, special };
            prop_assert_eq!(Record::parse(record.text().as_bytes()), Some(record));
        }

        #[test]
        fn any_value_is_a_record_or_none(value in prop::collection::vec(any::<u8>(), 0..50)) {
            let _ = Record::parse(&value);
        }
    }
}
