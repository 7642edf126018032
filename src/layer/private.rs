//! Extended attributes that belong to union filesystems, not to users.

/// Overlayfs's records, as root and with `userxattr`.
const OVERLAY: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
/// fuse-overlayfs's and our own records.
const OTHERS: [&[u8]; 3] = [
    b"user.fuseoverlayfs.",
    b"trusted.unionfs.",
    b"user.unionfs.",
];

/// True for attributes that are neither shown nor copied up nor settable through the union.
pub(crate) fn is_private(attr: &[u8]) -> bool {
    OVERLAY
        .iter()
        .chain(&OTHERS)
        .any(|prefix| attr.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::is_private;

    #[test]
    fn records_of_unions_are_private() {
        for attr in [
            &b"trusted.overlay.opaque"[..],
            b"user.overlay.origin",
            b"user.fuseoverlayfs.opaque",
            b"trusted.unionfs.x",
        ] {
            assert!(is_private(attr));
        }
        for attr in [
            &b"user.overlayfs"[..],
            b"security.capability",
            b"system.posix_acl_access",
            b"user.containers.override_stat",
        ] {
            assert!(!is_private(attr));
        }
    }
}
