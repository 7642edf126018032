//! Random stacks of layers: their description and how it is drawn.

use std::collections::BTreeMap;
use std::fmt;

use proptest::prelude::*;
use rustix::fs::FileType;

/// Seconds and nanoseconds since 1970.
pub type Time = (i64, u32);

/// Owner, mode, time and attributes of an object.
#[derive(Clone)]
pub struct Meta {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    pub xattrs: BTreeMap<&'static str, Vec<u8>>,
}

impl fmt::Debug for Meta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:o} {}:{} {:?}",
            self.mode, self.uid, self.gid, self.mtime
        )?;
        f.debug_set().entries(self.xattrs.keys()).finish()
    }
}

impl Default for Meta {
    fn default() -> Self {
        Self {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: (1_000_000_000, 0),
            xattrs: BTreeMap::new(),
        }
    }
}

/// Contents of a file.
#[derive(Clone, Copy, Debug)]
pub enum Data {
    Bytes {
        seed: u8,
        len: u32,
    },
    /// Ten bytes at `at`, holes around them.
    Sparse {
        seed: u8,
        at: u64,
        len: u64,
    },
}

/// An object of a layer.
#[derive(Clone, Debug)]
pub enum Node {
    Dir(Dir),
    File {
        data: Data,
        meta: Meta,
    },
    Symlink {
        target: Vec<u8>,
        meta: Meta,
    },
    Special {
        kind: FileType,
        rdev: u64,
        meta: Meta,
    },
}

impl Node {
    pub fn meta_mut(&mut self) -> &mut Meta {
        match self {
            Self::Dir(Dir { meta, .. })
            | Self::File { meta, .. }
            | Self::Symlink { meta, .. }
            | Self::Special { meta, .. } => meta,
        }
    }
}

/// Marks of a directory, in any dialect.
#[derive(Clone, Default)]
pub struct Marks {
    /// `.wh..wh..opq`.
    pub opaque_file: bool,
    /// Attributes with the value `y`.
    pub opaque_attrs: Vec<&'static str>,
    /// Attribute with the value `x`.
    pub xattr_whiteouts: Option<&'static str>,
}

impl fmt::Debug for Marks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = if self.opaque_file {
            ".wh..wh..opq "
        } else {
            ""
        };
        write!(
            f,
            "{file}y={:?} x={:?}",
            self.opaque_attrs, self.xattr_whiteouts
        )
    }
}

impl Marks {
    pub fn is_opaque(&self) -> bool {
        self.opaque_file || !self.opaque_attrs.is_empty()
    }
}

/// A whiteout that stands at the name it hides.
#[derive(Clone, Copy, Debug)]
pub enum AtName {
    /// Character device 0:0.
    Device,
    /// Empty file with this attribute.
    Attr(&'static str),
}

/// What a layer's directory has for one name.
#[derive(Clone, Default)]
pub struct Slot {
    pub real: Option<Node>,
    pub at_name: Option<AtName>,
    /// `.wh.NAME` is there.
    pub beside: bool,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.beside {
            write!(f, "[beside its .wh.] ")?;
        }
        if let Some(at_name) = self.at_name {
            write!(f, "whiteout {at_name:?} ")?;
        }
        match &self.real {
            None => Ok(()),
            Some(Node::Dir(dir)) => dir.fmt(f),
            Some(Node::File { data, meta }) => write!(f, "File {data:?} {meta:?}"),
            Some(Node::Symlink { target, meta }) => {
                write!(f, "Symlink {} {meta:?}", target.escape_ascii())
            }
            Some(Node::Special { kind, rdev, meta }) => {
                write!(f, "{kind:?} {rdev:x} {meta:?}")
            }
        }
    }
}

/// A directory of a layer.
#[derive(Clone, Default)]
pub struct Dir {
    pub meta: Meta,
    pub marks: Marks,
    pub slots: BTreeMap<Vec<u8>, Slot>,
    /// Reserved names that mean nothing.
    pub odd: Vec<Vec<u8>>,
}

impl fmt::Debug for Dir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dir {:?} {:?} ", self.meta, self.marks)?;
        if !self.odd.is_empty() {
            write!(f, "odd={} ", self.odd.len())?;
        }
        let slots = self.slots.iter();
        let name = |name: &[u8]| match name.len() {
            0..=16 => name.escape_ascii().to_string(),
            len => format!("{}..({len})", name[..4].escape_ascii()),
        };
        f.debug_map()
            .entries(slots.map(|(n, slot)| (name(n), slot)))
            .finish()
    }
}

/// Which forms of whiteouts and marks a stack may hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Dialects {
    /// All, mixed.
    All,
    /// What the kernel's overlayfs reads.
    Overlay,
}

/// Names that the whole test uses: few, so that layers collide.
pub fn names() -> Vec<Vec<u8>> {
    vec![
        b"a".to_vec(),
        b"b".to_vec(),
        b"c".to_vec(),
        b"d".to_vec(),
        b"\xff\xfe \n".to_vec(),
        vec![b'm'; 251],
        vec![b'n'; 252],
        vec![b'x'; 255],
    ]
}

/// Index into [`names`]; the odd ones are rarer.
pub fn name_index() -> impl Strategy<Value = usize> + Clone {
    prop_oneof![8 => 0..4_usize, 2 => 4..8_usize]
}

fn name() -> impl Strategy<Value = Vec<u8>> + Clone {
    name_index().prop_map(|at| names()[at].clone())
}

/// Times that are certainly not now: before 1970, with nanoseconds, past 2038's end of 32 bits.
pub fn old_time() -> impl Strategy<Value = Time> + Clone {
    let pool = [
        (1_000_000_000, 0),
        (1_234_567_890, 123_456_789),
        (-1, 999_999_999),
        (-86_400 * 365, 1),
        (0, 0),
        (4_000_000_000, 5),
    ];
    prop::sample::select(pool.to_vec())
}

fn owner() -> impl Strategy<Value = (u32, u32)> + Clone {
    prop::sample::select(vec![(0, 0), (1000, 1000), (7, 8), (0, 1000)])
}

/// An ACL in the kernel's format: owner, one named user, group, mask, others.
pub fn acl(user: u32, perm: u16) -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] = [
        (0x01, 7, u32::MAX),
        (0x02, perm, user),
        (0x04, 5, u32::MAX),
        (0x10, 7, u32::MAX),
        (0x20, 1, u32::MAX),
    ];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(perm.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// cap_net_bind_service=ep, revision 2.
pub fn capability() -> Vec<u8> {
    let words: [u32; 5] = [0x0200_0001, 1 << 10, 0, 0, 0];
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// One attribute that users may see.
pub fn xattr() -> impl Strategy<Value = (&'static str, Vec<u8>)> + Clone {
    let large = vec![b'v'; 600];
    prop::sample::select(vec![
        ("user.k", b"v".to_vec()),
        ("user.k", b"".to_vec()),
        ("user.large", large),
        ("trusted.t", b"\0\xff".to_vec()),
        ("security.s", b"s".to_vec()),
        ("security.capability", capability()),
        ("system.posix_acl_access", acl(1000, 6)),
        ("system.posix_acl_default", acl(7, 5)),
    ])
}

/// Records of union filesystems, which must stay hidden and not be copied.
fn private_xattr() -> impl Strategy<Value = (&'static str, Vec<u8>)> + Clone {
    prop::sample::select(vec![
        ("trusted.overlay.impure", b"y".to_vec()),
        ("trusted.overlay.origin", b"\0\xfb".to_vec()),
        ("user.overlay.protattr", b"".to_vec()),
        ("user.fuseoverlayfs.origin", b"1".to_vec()),
        ("trusted.unionfs.test", b"1".to_vec()),
        ("user.unionfs.test", b"1".to_vec()),
    ])
}

fn meta(dialects: Dialects, modes: &'static [u32]) -> impl Strategy<Value = Meta> + Clone {
    let mode = prop::sample::select(modes.to_vec());
    let xattrs = prop::collection::vec(xattr(), 0..3);
    let private = match dialects {
        Dialects::All => prop::collection::vec(private_xattr(), 0..2).boxed(),
        Dialects::Overlay => Just(Vec::new()).boxed(),
    };
    (mode, owner(), old_time(), xattrs, private).prop_map(|(mode, (uid, gid), mtime, x, p)| Meta {
        mode,
        uid,
        gid,
        mtime,
        xattrs: x.into_iter().chain(p).collect(),
    })
}

const FILE_MODES: &[u32] = &[0o644, 0o600, 0o4755, 0o2755, 0o6711, 0o444, 0o777];
const DIR_MODES: &[u32] = &[0o755, 0o700, 0o1777, 0o2775, 0o555, 0o3770];

fn data() -> impl Strategy<Value = Data> + Clone {
    prop_oneof![
        3 => (any::<u8>(), prop::sample::select(vec![0, 1, 10, 4096, 5000, 20_000]))
            .prop_map(|(seed, len)| Data::Bytes { seed, len }),
        1 => (any::<u8>(), prop::sample::select(vec![0, 8192, 100_000]))
            .prop_map(|(seed, at)| Data::Sparse { seed, at, len: 131_072 }),
    ]
}

/// Symlink targets; none leads anywhere.
pub fn target() -> impl Strategy<Value = Vec<u8>> + Clone {
    prop::sample::select(vec![
        b"nowhere/zz".to_vec(),
        b"\xffnot-utf8".to_vec(),
        vec![b't'; 300],
    ])
}

/// Types and numbers of special files.
pub fn special() -> impl Strategy<Value = (FileType, u64)> + Clone {
    prop::sample::select(vec![
        (FileType::Fifo, 0),
        (FileType::Socket, 0),
        (FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
        (FileType::CharacterDevice, rustix::fs::makedev(259, 70_000)),
        (FileType::BlockDevice, rustix::fs::makedev(7, 200)),
        (FileType::BlockDevice, 0),
    ])
}

fn node(dialects: Dialects, depth: u32) -> BoxedStrategy<Node> {
    let file =
        (data(), meta(dialects, FILE_MODES)).prop_map(|(data, meta)| Node::File { data, meta });
    let link = (target(), meta(dialects, FILE_MODES))
        .prop_map(|(target, meta)| Node::Symlink { target, meta });
    let special = (special(), meta(dialects, FILE_MODES))
        .prop_map(|((kind, rdev), meta)| Node::Special { kind, rdev, meta });
    if depth == 0 {
        return prop_oneof![5 => file, 1 => link, 1 => special].boxed();
    }
    let dir = dir(dialects, depth - 1).prop_map(Node::Dir);
    prop_oneof![4 => file, 1 => link, 1 => special, 6 => dir].boxed()
}

fn slot(dialects: Dialects, depth: u32) -> BoxedStrategy<Slot> {
    let real = node(dialects, depth).prop_map(|node| Slot {
        real: Some(node),
        ..Slot::default()
    });
    let device = Just(Slot {
        at_name: Some(AtName::Device),
        ..Slot::default()
    });
    // Counts as a whiteout only in a directory that says so; see `dir`.
    let attr = prop::sample::select(match dialects {
        Dialects::All => vec!["trusted.overlay.whiteout", "user.overlay.whiteout"],
        Dialects::Overlay => vec!["trusted.overlay.whiteout"],
    })
    .prop_map(|attr| Slot {
        at_name: Some(AtName::Attr(attr)),
        ..Slot::default()
    });
    if dialects == Dialects::Overlay {
        return prop_oneof![8 => real, 2 => device, 1 => attr].boxed();
    }
    let beside = prop_oneof![
        3 => Just(Slot::default()),
        1 => node(dialects, depth).prop_map(|node| Slot { real: Some(node), ..Slot::default() }),
    ]
    .prop_map(|slot| Slot {
        beside: true,
        ..slot
    });
    prop_oneof![12 => real, 2 => device, 1 => attr, 4 => beside].boxed()
}

fn marks(dialects: Dialects) -> BoxedStrategy<Marks> {
    let opaque = |attr| Marks {
        opaque_attrs: vec![attr],
        ..Marks::default()
    };
    let holder = |attr| Marks {
        xattr_whiteouts: Some(attr),
        ..Marks::default()
    };
    let overlay = prop_oneof![
        10 => Just(Marks::default()),
        2 => Just(opaque("trusted.overlay.opaque")),
        2 => Just(holder("trusted.overlay.opaque")),
    ];
    if dialects == Dialects::Overlay {
        return overlay.boxed();
    }
    prop_oneof![
        14 => overlay,
        2 => Just(Marks { opaque_file: true, ..Marks::default() }),
        1 => Just(opaque("user.overlay.opaque")),
        1 => Just(opaque("user.fuseoverlayfs.opaque")),
        1 => Just(holder("user.overlay.opaque")),
        1 => Just(Marks { opaque_file: true, ..opaque("trusted.overlay.opaque") }),
    ]
    .boxed()
}

fn odd(dialects: Dialects) -> BoxedStrategy<Vec<Vec<u8>>> {
    let pool: Vec<&'static [u8]> = vec![
        b".wh.",
        b".wh..",
        b".wh...",
        b".wh..wh..tmp",
        b".wh..wh.a.0001",
        b".wh.\xff",
    ];
    match dialects {
        Dialects::Overlay => Just(Vec::new()).boxed(),
        Dialects::All => prop::sample::subsequence(pool, 0..=2)
            .prop_map(|odd| odd.into_iter().map(<[u8]>::to_vec).collect())
            .boxed(),
    }
}

/// A directory of a layer, with at most `depth` levels of directories in it.
fn dir(dialects: Dialects, depth: u32) -> BoxedStrategy<Dir> {
    let slots = prop::collection::vec((name(), slot(dialects, depth)), 0..4 + depth as usize);
    let parts = (
        meta(dialects, DIR_MODES),
        marks(dialects),
        slots,
        odd(dialects),
    );
    let build = |(meta, marks, slots, odd): (Meta, Marks, Vec<(Vec<u8>, Slot)>, _)| {
        let mut slots: BTreeMap<Vec<u8>, Slot> = slots.into_iter().collect();
        if marks.xattr_whiteouts.is_none() {
            // Elsewhere such a file is malformed and has no defined meaning.
            slots.retain(|_, slot| !matches!(slot.at_name, Some(AtName::Attr(_))));
        }
        Dir {
            meta,
            marks,
            slots,
            odd,
        }
    };
    parts.prop_map(build).boxed()
}

/// A lower layer.
pub fn lower(dialects: Dialects) -> BoxedStrategy<Dir> {
    let unmarked = dir(dialects, 2).prop_map(|mut dir| {
        // Marked roots hide everything else; a few are enough.
        dir.marks = Marks::default();
        dir.slots
            .retain(|_, slot| !matches!(slot.at_name, Some(AtName::Attr(_))));
        dir
    });
    match dialects {
        Dialects::All => prop_oneof![9 => unmarked, 1 => dir(dialects, 2)].boxed(),
        // The kernel's overlayfs does not look at the marks of roots.
        Dialects::Overlay => unmarked.boxed(),
    }
}

/// An upper layer: often empty.
pub fn upper(dialects: Dialects) -> BoxedStrategy<Dir> {
    let empty = meta(dialects, DIR_MODES).prop_map(|meta| Dir {
        meta,
        ..Dir::default()
    });
    let mut filled = lower(dialects);
    if dialects == Dialects::Overlay {
        filled = filled.prop_map(without_attr_whiteouts).boxed();
    }
    prop_oneof![1 => empty, 1 => filled].boxed()
}

/// The kernel's overlayfs has whiteouts by attribute in lowers only.
fn without_attr_whiteouts(mut dir: Dir) -> Dir {
    dir.marks.xattr_whiteouts = None;
    dir.slots
        .retain(|_, slot| !matches!(slot.at_name, Some(AtName::Attr(_))));
    for slot in dir.slots.values_mut() {
        if let Some(Node::Dir(inner)) = &mut slot.real {
            *inner = without_attr_whiteouts(std::mem::take(inner));
        }
    }
    dir
}
