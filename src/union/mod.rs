//! The file system: values in, values out. It knows layers and inodes, not FUSE.
//!
//! # Lock order
//!
//! A lock is taken only while no lock of the same or a higher rank is held, except where said.
//!
//! 0. [`Union::restacking`]: held by the one thread that changes the layers, for all of the change.
//! 1. [`Inode::copying`]: held by the one thread that copies the inode up, while its data move.
//!    Of a chain of directories that are copied up, one at a time.
//! 2. [`Union::tree`]: read by every operation that walks or changes names, for the duration of
//!    its system calls but never while data are copied; written by rename, so that no path
//!    changes under a walk.
//! 3. [`inode::Dir::names`]: read by lookups and listings of the directory, written by changes of
//!    its names. Two directories: the one with the lower serial first; only with `tree` written.
//! 4. [`plink_table::Plinks::change`]: held while the number of names of a lower file of several
//!    changes, for the system calls of the change.
//! 5. [`Inode::place`], [`inode::Dir::stack`]: momentary, no call is made under them.
//! 6. Leaves: the maps of [`inode_table::InodeTable`], the table of pseudo-links, descriptor caches,
//!    [`inode::Dir::known`], the upper's hidden directories, [`ownership::Owners`]'s change of a record. Nothing else is
//!    taken under them.
//!
//! No lock is held while a reply is sent, which this module never does, or a notification (`stale`).
//! `docs/LOCKING.md` says why this is free of deadlock; [`rank`] asserts it in debug builds.

mod access;
mod attr;
mod backing;
mod complete;
pub(crate) mod control;
mod copy_up;
mod create;
mod descriptors;
mod facts;
mod fate;
mod figures;
mod find;
mod found;
mod idle;
mod inode;
mod inode_map;
mod inode_table;
mod io;
pub(crate) mod journal;
mod kept;
mod known_check;
mod known_names;
mod link;
mod listing;
mod look_again;
mod lookup;
mod mapped;
mod mapped_values;
mod metacopy;
mod names;
mod nlink;
mod nodes;
mod numbers;
mod ownership;
mod place;
mod plink;
mod plink_change;
mod plink_flush;
mod plink_table;
mod published;
mod rank;
mod readdir;
mod redirect;
mod refs;
mod remove;
mod rename;
mod rename_disk;
mod rename_names;
mod restack;
mod restack_walk;
mod settle;
mod settled;
mod stage;
mod stale;
mod take_over;
mod told;
pub mod types;
mod watch;
mod work;
mod xattr;

use crate::sys::sync::atomic::AtomicU64;

use crate::layer::plink::PlinkDir;
use crate::layer::{LayerStack, Upper};
use crate::options::{RenameDir, Udba};
pub use crate::sys::{Errno, FileKind, Result, Stat, stat::Time};

use backing::DataMoved;
pub use backing::{Backing, Source};
use descriptors::Descriptors;
pub(crate) use figures::LayerFacts;
use inode::{DirPart, Inode, NewInode};
use inode_table::{InodeTable, ROOT_ID};
use known_names::Keeper;
pub(crate) use look_again::Notice;
use mapped::Maps;
use nodes::Nodes;
use numbers::Numbers;
pub(crate) use ownership::Owners;
pub use plink_flush::Flushed;
use plink_table::Plinks;
use rank::{LayersLock, TreeLock};
pub(crate) use restack::LayerChange;
use stale::Stale;
pub(crate) use stale::What;
pub(crate) use take_over::TakenOver;
use told::Told;
pub use types::{Attr, Caller, DirEntry, Entry, Keep, Make, OpenMode, SetAttr, SetTime, StatFs};
use watch::Watching;
pub use work::Work;

/// Node id of the union's root directory.
pub const ROOT: u64 = ROOT_ID;

/// A union of layers.
///
/// All methods may be called from several threads at once. Nodes are named by the id of an
/// [`Entry`]; a node stays known until all references to it are given back with
/// [`forget`](Self::forget).
#[derive(Debug)]
pub struct Union {
    layers: LayerStack,
    inodes: InodeTable,
    descriptors: Descriptors,
    tree: TreeLock,
    maps: Maps,
    known_names: Keeper,
    /// Data of a copy-up are not flushed before it is published, and fsync does nothing.
    volatile: bool,
    /// statfs adds up the filesystems of all layers.
    sum_statfs: bool,
    stale: Stale,
    nodes: Nodes,
    told: Told,
    watching: Watching,
    data_moved: DataMoved,
    owners: Owners,
    plinks: Plinks,
    /// How often a directory has moved.
    moves: AtomicU64,
    /// Only the lower 32 bits of inode numbers are shown.
    ino32: bool,
    elsewhere: Elsewhere,
    counted: figures::Counted,
    /// Held while the layers change, before any other lock; how often they have.
    restacking: LayersLock,
    restacks: AtomicU64,
}

/// How contents may be elsewhere than names say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Elsewhere {
    /// How a directory with parts in the lowers is renamed.
    pub rename_dir: RenameDir,
    /// Changing the attributes of a file of a lower does not copy its data.
    pub metacopy: bool,
    /// Records that say so count in `user.*` too, where the owner of a file may have written them.
    pub user_records: bool,
}

/// Settings of a union that are not layers.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Descriptors that may be kept open for caching.
    pub descriptors: usize,
    /// Crash safety is not wanted: data of a copy-up are not flushed before it is published, and
    /// fsync does nothing.
    pub volatile: bool,
    /// statfs adds up the filesystems of all layers.
    pub sum_statfs: bool,
    /// How owners are kept and shown.
    pub owners: Owners,
    /// How contents may be elsewhere than the upper's names say.
    pub elsewhere: Elsewhere,
    /// Names of one lower file stay one file.
    pub plinks: bool,
    /// Only the lower 32 bits of inode numbers are shown.
    pub ino32: bool,
    /// Names change in no other way than through the union, so what they stand for may be kept.
    pub names_last: bool,
    /// What is done about changes that others make in the layers, and how long things are trusted with
    /// [`Udba::Reval`].
    pub udba: (Udba, std::time::Duration),
}

impl Union {
    /// The union of `layers`.
    ///
    /// # Errors
    /// What reading the root directories gives; ELOOP for a root that is redirected elsewhere.
    pub(crate) fn new(layers: LayerStack, settings: Settings) -> Result<Self> {
        let stack = lookup::root_stack(&layers)?;
        let numbers = Numbers::new(layers.all().into_iter().map(|(_, l)| l.dev));
        let root = NewInode {
            id: ROOT_ID,
            serial: 1,
            ino: ROOT_ID,
            key: 0,
            layer: stack.first().map_or(0, |part: &DirPart| part.layer),
            kind: crate::sys::FileKind::Directory,
            by_name: false,
            plinked: false,
            alias: None,
            stack: Some(stack),
            lower: None,
            subdirs: None,
            noted: (journal::Cell::default(), 1),
        };
        let top = layers.top().filter(|_| layers.has_upper);
        let disk = top.map(|top| PlinkDir::new(&top.root())).transpose()?;
        let has_links = layers.upper.as_ref().is_none_or(Upper::has_links);
        let follow = settings.plinks && has_links;
        let plinks = Plinks::new(disk, follow);
        let union = Self {
            inodes: InodeTable::new(numbers, root, follow),
            descriptors: Descriptors::new(settings.descriptors),
            layers,
            tree: TreeLock::default(),
            maps: Maps::default(),
            known_names: Keeper::new(settings.names_last),
            volatile: settings.volatile,
            sum_statfs: settings.sum_statfs,
            stale: Stale::default(),
            nodes: Nodes::default(),
            told: Told::new(),
            watching: Watching::new(settings.udba.0, settings.udba.1),
            data_moved: DataMoved::default(),
            owners: settings.owners,
            elsewhere: settings.elsewhere,
            plinks,
            moves: AtomicU64::new(0),
            ino32: settings.ino32,
            counted: figures::Counted::default(),
            restacking: LayersLock::default(),
            restacks: AtomicU64::new(0),
        };
        union.watch_root();
        union.load_plinks()?;
        Ok(union)
    }

    /// The writable layer.
    ///
    /// # Errors
    /// EROFS when there is none.
    fn upper(&self) -> Result<&Upper> {
        self.layers.upper.as_ref().ok_or(Errno::ROFS)
    }

    /// True when nothing can be changed.
    pub fn is_read_only(&self) -> bool {
        self.layers.upper.is_none()
    }

    /// True when the inode's real object is in the writable layer.
    fn in_upper(&self, inode: &Inode) -> bool {
        self.layers.upper.is_some() && inode.layer() == 0
    }

    /// An inode number as users see it.
    fn shown(&self, number: u64) -> u64 {
        if self.ino32 {
            // Never 0, which readdir(3) takes for a name that is gone.
            (number & 0xffff_ffff).max(1)
        } else {
            number
        }
    }

    /// Gives back `count` references to a node.
    pub fn forget(&self, id: u64, count: u64) {
        for inode in self.inodes.forget(id, count) {
            if inode.dir.is_none() && (inode.layer() > 0 || !self.layers.has_upper) {
                self.maps.drop(inode.serial);
            }
            self.unwatch(&inode);
            self.descriptors.forget(&inode);
            self.forget_node(&inode);
            self.forget_told(&inode);
        }
    }

    /// The same for what the kernel sends, which may hold strays.
    pub fn forget_by_kernel(&self, id: u64, count: u64) {
        let count = self.inodes.without_owed(id, count);
        if count > 0 {
            self.forget(id, count);
        }
    }

    /// Says that the kernel will give back a reference to a node that it was never given.
    pub fn expect_stray_forget(&self, id: u64) {
        self.inodes.owe_forget(id);
    }

    /// Sends the ids of nodes that changed without the kernel's knowledge to `listener`, which is
    /// called without locks and before the request under way is answered.
    pub(crate) fn on_stale(&self, listener: stale::Listener) {
        self.stale.listen(listener);
    }

    /// Number of inodes known.
    pub fn inode_count(&self) -> usize {
        self.inodes.len()
    }
}
