//! Ids inside the values of extended attributes: POSIX ACLs and file capabilities.

use crate::options::ownership::Ownership;
use crate::sys::{Errno, Result};

/// Tags of the ACL entries that name a user or a group (`linux/posix_acl.h`).
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;
/// Bytes of an ACL's header and of each entry: tag, permissions, id.
const ACL_HEADER: usize = 4;
const ACL_ENTRY: usize = 8;

/// Revisions of file capabilities (`linux/capability.h`): the second belongs to the root of the
/// first user namespace, the third names its root in the last four bytes.
const CAP_REVISION: u32 = 0xff00_0000;
const CAP_2: u32 = 0x0200_0000;
const CAP_3: u32 = 0x0300_0000;
const CAP_2_LEN: usize = 20;
const CAP_3_LEN: usize = 24;

/// The value with its ids mapped, to the disk or from it.
///
/// # Errors
/// As the kernel has it for idmapped mounts: EINVAL for an id outside of the map that is to be
/// stored, EOVERFLOW for capabilities to be shown whose root is outside. An ACL's entry that cannot
/// be shown is left out: none of the map's users is meant by it.
pub(super) fn map(ids: &Ownership, attr: &[u8], value: Vec<u8>, to_disk: bool) -> Result<Vec<u8>> {
    if attr.starts_with(b"system.posix_acl_") {
        return acl(ids, value, to_disk);
    }
    if attr == b"security.capability" {
        return capability(ids, value, to_disk);
    }
    Ok(value)
}

fn acl(ids: &Ownership, value: Vec<u8>, to_disk: bool) -> Result<Vec<u8>> {
    let Some((header, entries)) = value.split_at_checked(ACL_HEADER) else {
        return Ok(value);
    };
    let mut mapped = header.to_vec();
    let (entries, rest) = entries.as_chunks::<ACL_ENTRY>();
    for entry in entries {
        let [tag_low, tag_high, perm_low, perm_high, id @ ..] = *entry;
        let map = match u16::from_le_bytes([tag_low, tag_high]) {
            ACL_USER => &ids.uids,
            ACL_GROUP => &ids.gids,
            _ => {
                mapped.extend_from_slice(entry);
                continue;
            }
        };
        let id = u32::from_le_bytes(id);
        let id = match if to_disk {
            map.on_disk(id)
        } else {
            map.shown(id)
        } {
            Some(id) => id,
            None if to_disk => return Err(Errno::INVAL),
            None => continue,
        };
        mapped.extend_from_slice(&[tag_low, tag_high, perm_low, perm_high]);
        mapped.extend_from_slice(&id.to_le_bytes());
    }
    mapped.extend_from_slice(rest);
    Ok(mapped)
}

fn capability(ids: &Ownership, mut value: Vec<u8>, to_disk: bool) -> Result<Vec<u8>> {
    let Some(magic) = value.first_chunk::<4>().map(|b| u32::from_le_bytes(*b)) else {
        return Ok(value);
    };
    let root = match (magic & CAP_REVISION, value.len()) {
        (CAP_2, CAP_2_LEN) => 0,
        (CAP_3, CAP_3_LEN) => {
            let root = value.split_off(CAP_2_LEN);
            root.first_chunk().map_or(0, |b| u32::from_le_bytes(*b))
        }
        _ => return Ok(value),
    };
    let root = if to_disk {
        ids.uids.on_disk(root)
    } else {
        ids.uids.shown(root)
    };
    let outside = if to_disk {
        Errno::INVAL
    } else {
        Errno::OVERFLOW
    };
    let root = root.ok_or(outside)?;
    let revision = if root == 0 { CAP_2 } else { CAP_3 };
    let magic = (magic & !CAP_REVISION) | revision;
    value[..4].copy_from_slice(&magic.to_le_bytes());
    if root != 0 {
        value.extend_from_slice(&root.to_le_bytes());
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options;

    fn ids() -> Ownership {
        let text = "lowerdir=/l,uidmapping=0:1000:10,gidmapping=5:2000:10";
        options::parse(&[text.into()]).unwrap().ownership
    }

    fn acl_of(entries: &[(u16, u32)]) -> Vec<u8> {
        let mut value = 2_u32.to_le_bytes().to_vec();
        for (tag, id) in entries {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&6_u16.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }

    #[test]
    fn acls() {
        let attr = b"system.posix_acl_access";
        let none = u32::MAX;
        let disk = acl_of(&[
            (1, none),
            (ACL_USER, 3),
            (4, none),
            (ACL_GROUP, 7),
            (16, none),
        ]);
        let shown = acl_of(&[
            (1, none),
            (ACL_USER, 1003),
            (4, none),
            (ACL_GROUP, 2002),
            (16, none),
        ]);
        assert_eq!(map(&ids(), attr, disk.clone(), false), Ok(shown.clone()));
        assert_eq!(map(&ids(), attr, shown, true), Ok(disk));
        let far = acl_of(&[(1, none), (ACL_USER, 99), (32, none)]);
        let near = acl_of(&[(1, none), (32, none)]);
        assert_eq!(map(&ids(), attr, far.clone(), false), Ok(near));
        assert_eq!(map(&ids(), attr, far, true), Err(Errno::INVAL));
        for odd in [&b""[..], b"abc", b"abcdefghi"] {
            assert_eq!(map(&ids(), attr, odd.to_vec(), false), Ok(odd.to_vec()));
        }
    }

    #[test]
    fn capabilities() {
        let attr = b"security.capability";
        let mut disk = (CAP_2 | 1).to_le_bytes().to_vec();
        disk.resize(CAP_2_LEN, 7);
        let mut shown = disk.clone();
        shown[..4].copy_from_slice(&(CAP_3 | 1).to_le_bytes());
        shown.extend_from_slice(&1000_u32.to_le_bytes());
        assert_eq!(map(&ids(), attr, disk.clone(), false), Ok(shown.clone()));
        assert_eq!(map(&ids(), attr, shown, true), Ok(disk.clone()));
        // Root of the machine is no one in this map.
        assert_eq!(map(&ids(), attr, disk, true), Err(Errno::INVAL));
        assert_eq!(
            map(&ids(), attr, b"short".to_vec(), true),
            Ok(b"short".to_vec())
        );
    }
}
