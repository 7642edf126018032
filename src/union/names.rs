//! A merged listing: the names of a directory, what each stands for, and in which order they are
//! read.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::layer::LayerIndex;
use crate::sys::FileKind;

/// Positions below this are `.`, `..` and the start.
pub(super) const FIRST_POSITION: u64 = 16;
/// Positions stay below this, so that they are positive as a signed offset.
const POSITIONS: u64 = 1 << 62;

/// Memory that a name takes beside its bytes.
const BYTES_PER_NAME: usize = 88;
/// And a directory's further layers.
const BYTES_PER_MERGED: usize = 48;

/// What is known of one name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(clippy::struct_excessive_bools)] // Bits of their own, and four in the space of one word.
pub(super) struct Info {
    /// Inode number, as stat shows it.
    pub ino: u64,
    /// The layer of the object, of a directory the top one.
    pub layer: LayerIndex,
    /// Its type.
    pub kind: FileKind,
    /// There is an object; else the upper hides the name.
    pub shown: bool,
    /// In the upper a whiteout stands at the name itself.
    pub whiteout: bool,
    /// In the upper a whiteout file stands beside the name.
    pub marker: bool,
    /// The lowers show the name, so that hiding it needs a whiteout.
    pub in_lower: bool,
    /// A layer has something odd there: whoever asks has to look.
    pub odd: bool,
}

impl Info {
    /// An object of the upper.
    pub fn in_upper(kind: FileKind, ino: u64, in_lower: bool) -> Self {
        Self {
            ino,
            layer: 0,
            kind,
            shown: true,
            whiteout: false,
            marker: false,
            in_lower,
            odd: false,
        }
    }

    /// A name that the upper hides.
    pub fn hidden(whiteout: bool, marker: bool, in_lower: bool) -> Self {
        Self {
            shown: false,
            whiteout,
            marker,
            ..Self::in_upper(FileKind::Regular, 0, in_lower)
        }
    }
}

/// One name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Entry {
    pub name: Box<[u8]>,
    pub info: Info,
}

/// See the module text. Ordered by position, which is a hash of the name: so it does not depend on
/// the other names, and means the same in any listing of the directory.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Names {
    entries: BTreeMap<u64, Entry>,
    /// Further layers that may have parts of a directory, by position.
    below: HashMap<u64, Box<[LayerIndex]>>,
    /// Some name is not at its own position, as another with the same hash is.
    displaced: bool,
    bytes: usize,
}

impl Names {
    /// Of these names, each with the further layers of a directory.
    pub fn new(all: impl IntoIterator<Item = (Entry, Vec<LayerIndex>)>) -> Self {
        let mut names = Self::default();
        let mut sorted: Vec<(u64, Entry, Vec<LayerIndex>)> = all
            .into_iter()
            .map(|(entry, below)| (position_of(&entry.name), entry, below))
            .collect();
        sorted.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.name.cmp(&b.1.name)));
        let mut last = FIRST_POSITION;
        for (position, _, _) in &mut sorted {
            // Equal hashes are told apart by the order of the names.
            let own = *position;
            *position = own.max(last + 1);
            names.displaced |= *position != own;
            last = *position;
        }
        for (position, entry, below) in &mut sorted {
            names.bytes += weight(&entry.name);
            if !below.is_empty() {
                names.bytes += BYTES_PER_MERGED;
                let below = std::mem::take(below).into_boxed_slice();
                names.below.insert(*position, below);
            }
        }
        names.entries = sorted
            .into_iter()
            .map(|(at, entry, _)| (at, entry))
            .collect();
        names
    }

    /// Memory in bytes, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn find(&self, name: &[u8]) -> Option<(u64, &Entry)> {
        let own = position_of(name);
        if !self.displaced {
            let entry = self.entries.get(&own)?;
            return (*entry.name == *name).then_some((own, entry));
        }
        // Those that had to give way follow without a gap.
        let row = (own..).zip(self.entries.range(own..));
        let mut row = row.take_while(|(expected, (position, _))| *expected == **position);
        let found = row.find(|(_, (_, entry))| *entry.name == *name);
        found.map(|(position, (_, entry))| (position, entry))
    }

    /// What is known of a name, and the further layers of a directory.
    pub fn get(&self, name: &[u8]) -> Option<(Info, &[LayerIndex])> {
        let (position, entry) = self.find(name)?;
        let below = match entry.info.kind {
            FileKind::Directory => self.below.get(&position).map_or(&[][..], |below| below),
            _ => &[],
        };
        Some((entry.info, below))
    }

    /// Says what a name stands for from now on; nothing when it is gone. Returns false when that
    /// cannot be noted: then nothing of this is to be relied on any more.
    pub fn set(&mut self, name: &[u8], info: Option<Info>, below: &[LayerIndex]) -> bool {
        if self.displaced {
            // What has to move is not worth the code.
            return false;
        }
        let position = position_of(name);
        if let Some(old) = self.entries.get_mut(&position) {
            if *old.name != *name {
                return false;
            }
            if self.below.remove(&position).is_some() {
                self.bytes -= BYTES_PER_MERGED;
            }
            match info {
                Some(info) => old.info = info,
                None => {
                    self.entries.remove(&position);
                    self.bytes -= weight(name);
                }
            }
        } else if let Some(info) = info {
            let name: Box<[u8]> = name.into();
            self.bytes += weight(&name);
            self.entries.insert(position, Entry { name, info });
        }
        if !below.is_empty() {
            self.bytes += BYTES_PER_MERGED;
            self.below.insert(position, below.into());
        }
        true
    }

    /// The names that show after a position, each with its own.
    pub fn after(&self, position: u64) -> impl Iterator<Item = (u64, &Entry)> {
        let rest = self.entries.range(position.saturating_add(1)..);
        rest.map(|(at, entry)| (*at, entry))
            .filter(|(_, entry)| entry.info.shown)
    }

    /// What another listing of the directory has otherwise, in words.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let changed = |(at, entry): (&u64, &Entry)| {
            (other.entries.get(at) != Some(entry)).then(|| format!("known {entry:?}"))
        };
        let lacking = |(at, entry): (&u64, &Entry)| {
            (!self.entries.contains_key(at)).then(|| format!("not known {entry:?}"))
        };
        let below = || {
            (self.below != other.below).then(|| {
                format!(
                    "layers of directories: {:?}, not {:?}",
                    self.below, other.below
                )
            })
        };
        let mut own = self.entries.iter();
        own.find_map(changed)
            .or_else(|| other.entries.iter().find_map(lacking))
            .or_else(below)
            .or_else(|| (self.bytes != other.bytes).then(|| "bytes".to_owned()))
    }

    /// True when no name shows.
    pub fn is_empty(&self) -> bool {
        self.after(0).next().is_none()
    }

    /// How many subdirectories show.
    pub fn subdirs(&self) -> u32 {
        let dirs = self.after(0).filter(|(_, entry)| entry.info.kind.is_dir());
        u32::try_from(dirs.count()).unwrap_or(u32::MAX)
    }
}

fn weight(name: &[u8]) -> usize {
    BYTES_PER_NAME + name.len()
}

/// The position of a name in any listing.
fn position_of(name: &[u8]) -> u64 {
    // DefaultHasher::new() has fixed keys: the same name has the same position in every listing.
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    FIRST_POSITION + 1 + hasher.finish() % (POSITIONS - FIRST_POSITION - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(name: &[u8], ino: u64) -> Entry {
        Entry {
            name: name.into(),
            info: Info::in_upper(FileKind::Regular, ino, false),
        }
    }

    #[test]
    fn names_with_one_hash_are_found_and_listed_in_order() {
        let mut names = Names::new([]);
        for name in [b"a", b"b", b"c"] {
            names
                .entries
                .insert(100 + u64::from(name[0]), entry(name, 1));
        }
        // As if `d` had the hash of `a`.
        let own = position_of(b"d");
        for (step, name) in [b"x", b"y", b"d"].into_iter().enumerate() {
            names.entries.insert(own + step as u64, entry(name, 7));
        }
        assert_eq!(names.get(b"d"), None);
        names.displaced = true;
        assert_eq!(names.get(b"d").unwrap().0.ino, 7);
        assert!(!names.set(b"x", None, &[]));
    }

    #[test]
    fn layers_of_directories_come_and_go_with_them() {
        let mut dir = entry(b"d", 1);
        dir.info.kind = FileKind::Directory;
        let mut names = Names::new([(dir.clone(), vec![3, 5])]);
        assert_eq!(names.get(b"d").unwrap().1, &[3, 5]);
        assert_eq!(names.subdirs(), 1);
        assert!(names.set(b"d", Some(dir.info), &[]));
        assert_eq!(names.get(b"d").unwrap().1, &[0; 0]);
        assert!(names.set(b"d", None, &[]));
        assert_eq!((names.bytes(), names.is_empty()), (0, true));
    }

    proptest! {
        #[test]
        fn changes_lead_to_what_a_new_listing_has(
            changes in prop::collection::vec((0..20_u8, any::<Option<u64>>()), 0..60)
        ) {
            let mut names = Names::default();
            let mut model = HashMap::new();
            for (name, ino) in changes {
                let name = [b'n', name];
                let new = ino.map(|ino| entry(&name, ino));
                prop_assert!(names.set(&name, new.as_ref().map(|new| new.info), &[]));
                match new {
                    Some(new) => model.insert(name, new),
                    None => model.remove(&name),
                };
            }
            let again = Names::new(model.into_values().map(|entry| (entry, Vec::new())));
            prop_assert_eq!(names, again);
        }
    }
}
