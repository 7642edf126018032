//! How operations are drawn at random and then bound to a tree.

use proptest::prelude::*;
use rustix::fs::FileType;

use crate::model::{name_index, names, old_time, special, target, xattr};
use crate::ops::{Action, Do, Object, ROOT, SetTo, Who};
use crate::tree::{Names, Tree};

/// Chooses a path of the tree at hand.
#[derive(Clone, Copy, Debug)]
pub enum Pick {
    /// The n-th object (modulo their number).
    Existing(u16),
    /// The n-th regular file, if there is any.
    File(u16),
    /// The n-th directory, the root included.
    Dir(u16),
    /// A name in the n-th directory, whether it is there or not.
    In(u16, usize),
}

/// A drawn operation, not yet bound to a tree.
#[derive(Clone, Debug)]
pub enum Drawn {
    Create(Pick, u32, bool, Vec<u8>),
    Mkdir(Pick, u32),
    Mknod(Pick, (FileType, u64), u32),
    Symlink(Pick, Vec<u8>),
    Unlink(Pick),
    Rmdir(Pick),
    Rename(Pick, Pick, u32),
    Link(Pick, Pick),
    LinkKept(u8, Pick),
    On(Pick, Action),
    OnKept(u8, Action),
    CopyRange(Pick, u64, Pick, u64, u64),
    Keep(Pick),
    Close(u8),
    Forget,
    Flush,
    Remount,
}

/// A drawn operation and its caller.
#[derive(Clone, Debug)]
pub struct Step {
    pub who: Who,
    pub what: Drawn,
}

fn pick() -> impl Strategy<Value = Pick> + Clone {
    prop_oneof![
        3 => any::<u16>().prop_map(Pick::Existing),
        2 => (any::<u16>(), name_index()).prop_map(|(dir, name)| Pick::In(dir, name)),
    ]
}

fn file() -> impl Strategy<Value = Pick> + Clone {
    prop_oneof![
        3 => any::<u16>().prop_map(Pick::File),
        1 => pick(),
    ]
}

fn directory() -> impl Strategy<Value = Pick> + Clone {
    prop_oneof![
        3 => any::<u16>().prop_map(Pick::Dir),
        1 => pick(),
    ]
}

fn renamed() -> impl Strategy<Value = Pick> + Clone {
    prop_oneof![1 => file(), 1 => directory()]
}

fn new() -> impl Strategy<Value = Pick> + Clone {
    prop_oneof![
        1 => any::<u16>().prop_map(Pick::Existing),
        5 => (any::<u16>(), name_index()).prop_map(|(dir, name)| Pick::In(dir, name)),
    ]
}

fn who() -> impl Strategy<Value = Who> + Clone {
    let user = |uid, gid, umask| Who { uid, gid, umask };
    prop::sample::select(vec![
        ROOT,
        ROOT,
        user(1000, 1000, 0o002),
        user(1000, 8, 0o067),
        user(7, 8, 0o027),
    ])
}

fn mode() -> impl Strategy<Value = u32> + Clone {
    prop::sample::select(vec![
        0o644, 0o666, 0o777, 0o600, 0o4755, 0o6775, 0o1777, 0o2775,
    ])
}

fn payload() -> impl Strategy<Value = Vec<u8>> + Clone {
    (any::<u8>(), prop::sample::select(vec![1, 7, 4096, 6000]))
        .prop_map(|(seed, len)| crate::tree::bytes(seed, len))
}

fn offset() -> impl Strategy<Value = u64> + Clone {
    prop::sample::select(vec![0, 3, 4096, 8192, 70_000])
}

fn set_to() -> impl Strategy<Value = SetTo> + Clone {
    prop_oneof![
        1 => Just(SetTo::Omit),
        1 => Just(SetTo::Now),
        3 => old_time().prop_map(SetTo::At),
    ]
}

const PUNCH: u32 = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32;
const ALLOCATE_MODES: [u32; 5] = [
    0,
    libc::FALLOC_FL_KEEP_SIZE as u32,
    PUNCH,
    libc::FALLOC_FL_ZERO_RANGE as u32,
    // Not a valid combination.
    libc::FALLOC_FL_PUNCH_HOLE as u32,
];

fn action() -> BoxedStrategy<Action> {
    let len = prop::sample::select(vec![1_u64, 4096, 9000]);
    let allocate = (prop::sample::select(ALLOCATE_MODES.to_vec()), offset(), len)
        .prop_map(|(mode, offset, len)| Action::Allocate { mode, offset, len });
    let id = prop::sample::select(vec![None, Some(0), Some(1000), Some(8)]);
    prop_oneof![
        1 => Just(Action::Stat),
        2 => (offset(), prop::sample::select(vec![1_usize, 5000, 200_000]))
            .prop_map(|(offset, len)| Action::Read { offset, len }),
        1 => (offset(), any::<bool>()).prop_map(|(offset, hole)| Action::Seek { offset, hole }),
        4 => (offset(), payload()).prop_map(|(offset, data)| Action::Write { offset, data }),
        2 => payload().prop_map(|data| Action::Append { data }),
        2 => prop::sample::select(vec![0_u64, 1, 4096, 50_000, 200_000])
            .prop_map(|size| Action::Truncate { size }),
        1 => Just(Action::OpenTruncate),
        4 => mode().prop_map(|mode| Action::Chmod { mode }),
        3 => (id.clone(), id).prop_map(|(uid, gid)| Action::Chown {
            // chown(-1, -1) clears set-id bits without saying so to FUSE.
            uid: if gid.is_none() { uid.or(Some(0)) } else { uid },
            gid,
        }),
        3 => (set_to(), set_to()).prop_map(|(atime, mtime)| Action::Times { atime, mtime }),
        3 => (xattr(), 0..3_u32)
            .prop_map(|((attr, value), flags)| Action::SetXattr { attr, value, flags }),
        2 => xattr().prop_map(|(attr, _)| Action::RemoveXattr { attr }),
        1 => xattr().prop_map(|(attr, _)| Action::GetXattr { attr }),
        1 => allocate,
        1 => any::<bool>().prop_map(|data_only| Action::Sync { data_only }),
    ]
    .boxed()
}

/// One random operation.
pub fn step() -> BoxedStrategy<Step> {
    let flags = prop::sample::select(vec![0_u32, 0, 0, 0, 1, 2, 2, 4, 5, 3, 6, 8]);
    let copy = (file(), offset(), file(), offset(), offset());
    let what = prop_oneof![
        6 => (new(), mode(), any::<bool>(), payload())
            .prop_map(|(p, mode, excl, data)| Drawn::Create(p, mode, excl, data)),
        5 => (new(), mode()).prop_map(|(p, mode)| Drawn::Mkdir(p, mode)),
        2 => (new(), special(), mode()).prop_map(|(p, kind, mode)| Drawn::Mknod(p, kind, mode)),
        2 => (new(), target()).prop_map(|(p, target)| Drawn::Symlink(p, target)),
        8 => file().prop_map(Drawn::Unlink),
        5 => directory().prop_map(Drawn::Rmdir),
        14 => (renamed(), pick(), flags.clone())
            .prop_map(|(from, to, flags)| Drawn::Rename(from, to, flags)),
        8 => (any::<u16>().prop_map(Pick::Dir), new(), flags)
            .prop_map(|(from, to, flags)| Drawn::Rename(from, to, flags)),
        4 => (file(), new()).prop_map(|(from, to)| Drawn::Link(from, to)),
        2 => (any::<u8>(), new()).prop_map(|(kept, to)| Drawn::LinkKept(kept, to)),
        8 => (any::<u16>().prop_map(Pick::File), action())
            .prop_map(|(pick, action)| Drawn::On(pick, action)),
        6 => (any::<u16>(), action()).prop_map(|(n, action)| Drawn::On(Pick::Existing(n), action)),
        24 => (any::<u8>(), action()).prop_map(|(kept, action)| Drawn::OnKept(kept, action)),
        3 => copy.prop_map(|(a, b, c, d, e)| Drawn::CopyRange(a, b, c, d, e)),
        12 => file().prop_map(Drawn::Keep),
        1 => any::<u8>().prop_map(Drawn::Close),
        2 => Just(Drawn::Forget),
        1 => Just(Drawn::Flush),
        2 => Just(Drawn::Remount),
    ];
    (who(), what)
        .prop_map(|(who, what)| Step { who, what })
        .boxed()
}

/// Binds drawn operations to a tree.
pub struct Binder<'a> {
    pub tree: &'a Tree,
    /// Kinds of the kept objects.
    pub kept: &'a [FileType],
}

impl Binder<'_> {
    fn path(&self, pick: Pick) -> Names {
        match pick {
            Pick::Existing(n) => {
                let at = usize::from(n) % self.tree.len();
                self.tree.keys().nth(at).cloned().unwrap_or_default()
            }
            Pick::File(n) => self.of_kind(n, FileType::RegularFile),
            Pick::Dir(n) => self.of_kind(n, FileType::Directory),
            Pick::In(n, name) => {
                let mut path = self.of_kind(n, FileType::Directory);
                path.push(names()[name].clone());
                path
            }
        }
    }

    /// The n-th object of a kind; any one when there is none.
    fn of_kind(&self, n: u16, kind: FileType) -> Names {
        let all = || self.tree.iter().filter(|(_, seen)| seen.kind == kind);
        match all().count() {
            0 => self.path(Pick::Existing(n)),
            count => {
                let found = all().nth(usize::from(n) % count);
                found.map(|(path, _)| path.clone()).unwrap_or_default()
            }
        }
    }

    /// An existing or new path other than the root, which the kernel treats by itself.
    fn below_root(&self, pick: Pick) -> Option<Names> {
        Some(self.path(pick)).filter(|path| !path.is_empty())
    }

    fn kind(&self, path: &[Vec<u8>]) -> Option<FileType> {
        self.tree.get(path).map(|seen| seen.kind)
    }

    fn kept(&self, n: u8) -> Option<usize> {
        (!self.kept.is_empty()).then(|| usize::from(n) % self.kept.len())
    }

    /// Data are only asked of files, and of directories for EISDIR; the rest is the kernel's.
    fn fits(action: &Action, kind: FileType) -> bool {
        match kind {
            FileType::RegularFile => true,
            FileType::Directory => match action {
                Action::Write { .. } | Action::OpenTruncate | Action::Truncate { .. } => true,
                action => !action.on_data(),
            },
            FileType::Symlink => !action.on_data() && !matches!(action, Action::Chmod { .. }),
            _ => !action.on_data(),
        }
    }

    /// The concrete operation; nothing when it has no meaning for this tree.
    pub fn bind(&self, drawn: &Drawn) -> Option<Do> {
        Some(match drawn.clone() {
            Drawn::Create(path, mode, exclusive, data) => {
                let path = self.below_root(path)?;
                // What open(2) does to these is up to the kernel.
                let known = self.kind(&path);
                let plain = matches!(
                    known,
                    None | Some(FileType::RegularFile | FileType::Directory)
                );
                if !exclusive && !plain {
                    return None;
                }
                Do::Create {
                    path,
                    mode,
                    exclusive,
                    data,
                }
            }
            Drawn::Mkdir(path, mode) => Do::Mkdir {
                path: self.below_root(path)?,
                mode,
            },
            Drawn::Mknod(path, (kind, rdev), mode) => Do::Mknod {
                path: self.below_root(path)?,
                kind,
                mode,
                rdev,
            },
            Drawn::Symlink(path, target) => Do::Symlink {
                path: self.below_root(path)?,
                target,
            },
            Drawn::Unlink(path) => Do::Unlink {
                path: self.below_root(path)?,
            },
            Drawn::Rmdir(path) => Do::Rmdir {
                path: self.below_root(path)?,
            },
            Drawn::Rename(from, to, flags) => {
                let (from, to) = (self.below_root(from)?, self.below_root(to)?);
                Do::Rename { from, to, flags }
            }
            Drawn::Link(from, to) => Do::Link {
                from: Object::Path(self.below_root(from)?),
                to: self.below_root(to)?,
            },
            Drawn::LinkKept(kept, to) => {
                let kept = self.kept(kept)?;
                if self.kept[kept] == FileType::Directory {
                    return None;
                }
                Do::Link {
                    from: Object::Kept(kept),
                    to: self.below_root(to)?,
                }
            }
            drawn => return self.bind_use(drawn),
        })
    }

    /// The same for operations that change no name.
    fn bind_use(&self, drawn: Drawn) -> Option<Do> {
        Some(match drawn {
            Drawn::On(path, action) => {
                let path = self.path(path);
                let kind = self.kind(&path)?;
                if !Self::fits(&action, kind) {
                    return None;
                }
                Do::On {
                    object: Object::Path(path),
                    action,
                }
            }
            Drawn::OnKept(kept, action) => {
                let kept = self.kept(kept)?;
                let is_dir = self.kept[kept] == FileType::Directory;
                if is_dir && action.on_data() {
                    return None;
                }
                Do::On {
                    object: Object::Kept(kept),
                    action,
                }
            }
            Drawn::CopyRange(from, from_offset, to, to_offset, len) => {
                let (from, to) = (self.path(from), self.path(to));
                let file = |path: &Names| self.kind(path) == Some(FileType::RegularFile);
                if !file(&from) || !file(&to) {
                    return None;
                }
                Do::CopyRange {
                    from: Object::Path(from),
                    from_offset,
                    to: Object::Path(to),
                    to_offset,
                    len: len + 1,
                }
            }
            Drawn::Keep(path) => {
                let path = self.below_root(path)?;
                let kind = self.kind(&path)?;
                if !matches!(kind, FileType::RegularFile | FileType::Directory) {
                    return None;
                }
                Do::Keep { path }
            }
            Drawn::Close(kept) => Do::Close {
                kept: self.kept(kept)?,
            },
            Drawn::Forget => Do::Forget,
            Drawn::Flush => Do::Flush,
            _ => Do::Remount,
        })
    }
}
