//! Whose objects are: the ids on disk, the ids shown, and where they are kept. No I/O.

use super::error::{OptionError, shown};
use super::grammar::{self, Field};

/// What an id that the map does not hold shows as, and what root's new objects get when root
/// itself is not in the map: the kernel's overflow id.
pub const OVERFLOW_ID: u32 = 65534;

/// Shown to the kernel for an id of nobody: it displays it as its overflow id, matches no caller
/// with it and lets no one change the object.
pub const NOBODYS_ID: u32 = u32::MAX;

const EXPECTED_MAP: &str = "a list of ON-DISK:SHOWN:COUNT";
const EXPECTED_RANGE: &str = "a list of ranges that end below 4294967295 and are not empty";
const EXPECTED_DISJOINT: &str = "a list of ranges that do not overlap";
const EXPECTED_ID: &str = "a number from 0 to 4294967294";
const EXPECTED_RECORDS: &str = "0, 1 or 2";

/// `count` ids from `disk` on the disk are shown as those from `shown`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    disk: u32,
    shown: u32,
    count: u32,
}

/// A map between the ids on disk and those shown; an empty one changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdMap {
    ranges: Vec<Range>,
}

/// Why a text is no map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MapError {
    Form,
    Range,
    Overlap,
}

impl MapError {
    fn expected(self) -> &'static str {
        match self {
            Self::Form => EXPECTED_MAP,
            Self::Range => EXPECTED_RANGE,
            Self::Overlap => EXPECTED_DISJOINT,
        }
    }
}

impl IdMap {
    /// Reads `C:H:N[:C:H:N...]`; commas may stand for colons, and empty parts are skipped. An empty
    /// list changes nothing, as for fuse-overlayfs.
    fn parse(text: &[u8]) -> Result<Self, MapError> {
        let number = |part: &[u8]| {
            let digits = part.iter().all(u8::is_ascii_digit);
            let text = std::str::from_utf8(part).ok().filter(|_| digits);
            text.and_then(|text| text.parse::<u64>().ok())
                .ok_or(MapError::Form)
        };
        let parts = text.split(|&b| b == b':' || b == b',');
        let numbers = parts.filter(|part| !part.is_empty()).map(number);
        let numbers = numbers.collect::<Result<Vec<u64>, _>>()?;
        let (triples, rest) = numbers.as_chunks::<3>();
        if !rest.is_empty() {
            return Err(MapError::Form);
        }
        let ranges = triples.iter().map(|&[disk, shown, count]| {
            // The last id of all means "none", so a range ends before it.
            let limit = u64::from(u32::MAX);
            let fits = |first: u64| first.checked_add(count).is_some_and(|end| end <= limit);
            if count == 0 || !fits(disk) || !fits(shown) {
                return Err(MapError::Range);
            }
            let narrow = |n: u64| u32::try_from(n).map_err(|_| MapError::Range);
            Ok(Range {
                disk: narrow(disk)?,
                shown: narrow(shown)?,
                count: narrow(count)?,
            })
        });
        let ranges = ranges.collect::<Result<Vec<_>, _>>()?;
        let overlaps = |of: fn(&Range) -> u32| {
            let mut sorted: Vec<_> = ranges.iter().map(|r| (of(r), r.count)).collect();
            sorted.sort_unstable();
            sorted.windows(2).any(|w| w[0].0 + w[0].1 > w[1].0)
        };
        if overlaps(|r| r.disk) || overlaps(|r| r.shown) {
            return Err(MapError::Overlap);
        }
        Ok(Self { ranges })
    }

    /// True when ids are shown as they are.
    #[must_use]
    pub fn is_identity(&self) -> bool {
        self.ranges.is_empty()
    }

    /// What an id on disk is shown as; `None` when the map does not hold it.
    #[must_use]
    pub fn shown(&self, id: u32) -> Option<u32> {
        if self.ranges.is_empty() {
            return Some(id);
        }
        let hit = |r: &Range| id.checked_sub(r.disk).filter(|at| *at < r.count);
        self.ranges
            .iter()
            .find_map(|r| hit(r).map(|at| r.shown + at))
    }

    /// The id on disk behind a shown one; `None` when the map does not hold it.
    #[must_use]
    pub fn on_disk(&self, id: u32) -> Option<u32> {
        if self.ranges.is_empty() {
            return Some(id);
        }
        let hit = |r: &Range| id.checked_sub(r.shown).filter(|at| *at < r.count);
        self.ranges
            .iter()
            .find_map(|r| hit(r).map(|at| r.disk + at))
    }

    /// What an id on disk is shown as, with a stand-in for those the map does not hold: the
    /// overflow id, or nobody's where the overflow id is a user of the map.
    fn shown_or_overflow(&self, id: u32) -> u32 {
        self.shown(id).unwrap_or_else(|| {
            let is_taken = self.on_disk(OVERFLOW_ID).is_some();
            if is_taken { NOBODYS_ID } else { OVERFLOW_ID }
        })
    }
}

/// Where owner and mode of the upper's objects are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Records {
    /// In the inode, unless the upper's root says otherwise.
    #[default]
    Inode,
    /// In `security.fuseoverlayfs.override_stat`.
    Security,
    /// In `user.containers.override_stat`, or in `user.fuseoverlayfs.override_stat` where the
    /// upper's root has that.
    User,
}

/// How owners and permissions are stored and shown. The default changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ownership {
    /// User ids.
    pub uids: IdMap,
    /// Group ids.
    pub gids: IdMap,
    /// Everything is shown as this user's.
    pub squash_uid: Option<u32>,
    /// Everything is shown as this group's.
    pub squash_gid: Option<u32>,
    /// Where owner and mode are kept.
    pub records: Records,
    /// POSIX ACLs are neither shown nor enforced.
    pub no_acl: bool,
    /// Directories have a link count of 1.
    pub static_nlink: bool,
}

impl Ownership {
    /// True when ids are shown as they are on disk.
    #[must_use]
    pub fn shows_as_is(&self) -> bool {
        self.is_unmapped() && self.squash_uid.is_none() && self.squash_gid.is_none()
    }

    /// True when there is no map.
    #[must_use]
    pub fn is_unmapped(&self) -> bool {
        self.uids.is_identity() && self.gids.is_identity()
    }

    /// True when all objects show as one owner's, so that changing it shows nothing.
    #[must_use]
    pub fn squashes(&self) -> bool {
        self.squash_uid.is_some() || self.squash_gid.is_some()
    }

    /// The user shown for one on disk.
    #[must_use]
    pub fn shown_uid(&self, uid: u32) -> u32 {
        self.squash_uid
            .unwrap_or_else(|| self.uids.shown_or_overflow(uid))
    }

    /// The group shown for one on disk.
    #[must_use]
    pub fn shown_gid(&self, gid: u32) -> u32 {
        self.squash_gid
            .unwrap_or_else(|| self.gids.shown_or_overflow(gid))
    }
}

/// Collects the options about ownership from the fields of `-o`.
#[derive(Debug, Default)]
pub(super) struct Reader {
    uids: Vec<u8>,
    gids: Vec<u8>,
    /// A field of numbers now continues the list of this option.
    open: Option<&'static str>,
    squash_root: bool,
    found: Ownership,
}

const UIDS: &str = "uidmapping";
const GIDS: &str = "gidmapping";

impl Reader {
    /// Takes a field if it is about ownership; false when it is not.
    ///
    /// # Errors
    /// A value that the option cannot have.
    pub(super) fn take(&mut self, field: Field<'_>) -> Result<bool, OptionError> {
        let open = self.open.take();
        let Some(raw) = field.value else {
            return self.take_word(field.name, open);
        };
        let value = grammar::unescape(raw);
        let bad = |expected| bad(field.name, raw, expected);
        match field.name {
            b"uidmapping" => {
                self.uids = value;
                self.open = Some(UIDS);
            }
            b"gidmapping" => {
                self.gids = value;
                self.open = Some(GIDS);
            }
            b"squash_to_uid" => self.found.squash_uid = Some(id(&value).ok_or(bad(EXPECTED_ID))?),
            b"squash_to_gid" => self.found.squash_gid = Some(id(&value).ok_or(bad(EXPECTED_ID))?),
            b"xattr_permissions" => {
                self.found.records = match &*value {
                    b"0" => Records::Inode,
                    b"1" => Records::Security,
                    b"2" => Records::User,
                    _ => return Err(bad(EXPECTED_RECORDS)),
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn take_word(&mut self, word: &[u8], open: Option<&'static str>) -> Result<bool, OptionError> {
        let is_list = !word.is_empty() && word.iter().all(|b| b.is_ascii_digit() || *b == b':');
        match (word, open) {
            (b"squash_to_root", _) => self.squash_root = true,
            (b"noacl", _) => self.found.no_acl = true,
            (b"static_nlink", _) => self.found.static_nlink = true,
            // `uidmapping=0:1000:1,1:100000:65536`: the comma is part of the list.
            (_, Some(option)) if is_list => {
                let list = if option == UIDS {
                    &mut self.uids
                } else {
                    &mut self.gids
                };
                list.push(b',');
                list.extend_from_slice(word);
                self.open = open;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What all fields together say.
    ///
    /// # Errors
    /// A list that is no map.
    pub(super) fn finish(mut self) -> Result<Ownership, OptionError> {
        let map = |option: &str, text: &[u8]| {
            IdMap::parse(text).map_err(|e| bad(option.as_bytes(), text, e.expected()))
        };
        self.found.uids = map(UIDS, &self.uids)?;
        self.found.gids = map(GIDS, &self.gids)?;
        if self.squash_root {
            self.found.squash_uid.get_or_insert(0);
            self.found.squash_gid.get_or_insert(0);
        }
        Ok(self.found)
    }
}

fn id(value: &[u8]) -> Option<u32> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| digits)?;
    text.parse().ok().filter(|id| *id != u32::MAX)
}

fn bad(option: &[u8], value: &[u8], expected: &'static str) -> OptionError {
    OptionError::BadValue {
        option: shown(option),
        value: shown(value),
        expected: expected.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Ownership, String> {
        let mut reader = Reader::default();
        for field in grammar::fields(text.as_bytes()).map_err(|e| e.to_string())? {
            reader.take(field).map_err(|e| e.to_string())?;
        }
        reader.finish().map_err(|e| e.to_string())
    }

    #[test]
    fn forms_of_a_list() {
        let one = read("uidmapping=0:1000:1:1:100000:65536").unwrap();
        for same in [
            "uidmapping=:0:1000:1:1:100000:65536",
            "uidmapping=0:1000:1,1:100000:65536",
            "uidmapping=0:1000:1\\,1:100000:65536",
            "uidmapping=\"0:1000:1,1:100000:65536\"",
            "uidmapping=:0:1000:1:,1:100000:65536,gidmapping=,",
        ] {
            let found = read(&same.replace(",gidmapping=,", ""));
            assert_eq!(found.as_ref(), Ok(&one), "{same}");
        }
        assert_eq!(one.uids.shown(0), Some(1000));
        assert_eq!(one.uids.shown(65536), Some(165_535));
        assert_eq!(one.uids.shown(65537), None);
        assert_eq!(one.uids.on_disk(100_000), Some(1));
        assert_eq!(one.uids.on_disk(0), None);
        assert!(one.gids.is_identity());
        // As containers/storage passes it.
        let podman = read(",,volatile,uidmapping=:0:200000:5000,gidmapping=:0:200000:5000");
        assert_eq!(podman.unwrap().gids.shown(4999), Some(204_999));
    }

    #[test]
    fn a_list_ends_at_the_next_option() {
        let found = read("uidmapping=0:5:1,ro,1:6:1").unwrap();
        assert_eq!(found.uids.shown(1), None);
    }

    #[test]
    fn bad_lists() {
        let long = "option uidmapping: '0:0:4294967296' is not";
        for (text, message) in [
            (
                "uidmapping=0:1000",
                "option uidmapping: '0:1000' is not a list",
            ),
            ("gidmapping=a:1:1", "option gidmapping: 'a:1:1'"),
            ("uidmapping=-1:1:1", "is not a list of ON-DISK"),
            ("uidmapping=0:0:0", "not empty"),
            ("uidmapping=0:0:4294967296", long),
            ("uidmapping=1:4294967295:1", "end below"),
            ("uidmapping=18446744073709551615:0:1", "end below"),
            ("uidmapping=0:10:5:4:100:5", "do not overlap"),
            ("uidmapping=0:10:5:10:14:5", "do not overlap"),
            ("uidmapping=0:10:5,10:14", "is not a list"),
            ("squash_to_uid=4294967295", "a number from 0"),
            ("squash_to_gid=-1", "option squash_to_gid"),
            ("xattr_permissions=3", "0, 1 or 2"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(message), "{text}: {error}");
            assert_eq!(error.lines().count(), 1);
        }
    }

    #[test]
    fn squashing() {
        let found = read("squash_to_root,squash_to_gid=7").unwrap();
        assert_eq!((found.shown_uid(5), found.shown_gid(5)), (0, 7));
        assert!(found.is_unmapped() && !found.shows_as_is());
        assert!(read("rw").unwrap().shows_as_is());
    }

    #[test]
    fn ids_outside_of_the_map() {
        let far = read("uidmapping=0:200000:5000").unwrap();
        assert_eq!(far.shown_uid(5000), OVERFLOW_ID);
        // Here 65534 is somebody, who must not own what is not his.
        let near = read("uidmapping=100000:0:65536").unwrap();
        assert_eq!(near.shown_uid(5), NOBODYS_ID);
    }

    proptest! {
        #[test]
        fn both_ways(list in prop::collection::vec((0..200_u32, 0..200_u32, 1..20_u32), 1..6), id in 0..250_u32) {
            let text: Vec<String> = list.iter().map(|(c, h, n)| format!("{c}:{h}:{n}")).collect();
            let by_hand = |from: fn(&(u32, u32, u32)) -> (u32, u32), id: u32| -> Vec<u32> {
                list.iter().filter(|r| (from(r).0..from(r).0 + r.2).contains(&id))
                    .map(|r| id - from(r).0 + from(r).1).collect()
            };
            let crowded = |from: fn(&(u32, u32, u32)) -> (u32, u32)| (0..250).any(|i| by_hand(from, i).len() > 1);
            let (to_shown, to_disk): (fn(&_) -> _, fn(&_) -> _) = (|r: &(u32, u32, u32)| (r.0, r.1), |r: &(u32, u32, u32)| (r.1, r.0));
            match IdMap::parse(text.join(":").as_bytes()) {
                Ok(map) => {
                    prop_assert!(!crowded(to_shown) && !crowded(to_disk));
                    prop_assert_eq!(map.shown(id), by_hand(to_shown, id).first().copied());
                    prop_assert_eq!(map.on_disk(id), by_hand(to_disk, id).first().copied());
                    if let Some(shown) = map.shown(id) {
                        prop_assert_eq!(map.on_disk(shown), Some(id));
                    }
                }
                Err(e) => prop_assert!(e == MapError::Overlap && (crowded(to_shown) || crowded(to_disk))),
            }
        }

        #[test]
        fn any_text_is_a_map_or_an_error(text in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = IdMap::parse(&text);
        }
    }
}
