//! Options of fuse-overlayfs, of the kernel's overlayfs and of unionfs-fuse.

use super::Peer::{Aufs, FuseOverlayfs1, FuseOverlayfs2, Mount, Overlayfs, UnionfsFuse};
use super::Row;
use super::Status::{Accepted, Refused, Supported};
use super::Takes::{Maybe, Nothing, Value};

pub(super) const ROWS: &[Row] = &[
    Row {
        names: &["uidmapping", "gidmapping"],
        takes: Value("C:H:N[:C:H:N...]"),
        peers: &[FuseOverlayfs1, FuseOverlayfs2],
        status: Supported,
        text: "Ids C to C+N-1 of the layers show as H to H+N-1, and new objects are stored \
               the other way round.",
        example: "lowerdir=/l1,upperdir=/u,uidmapping=0:100000:65536",
    },
    Row {
        names: &["squash_to_root"],
        takes: Nothing,
        peers: &[FuseOverlayfs1, FuseOverlayfs2],
        status: Supported,
        text: "Everything shows as root's. Implies `nosuid`, unless `suid` is given.",
        example: "lowerdir=/l1,squash_to_root",
    },
    Row {
        names: &["squash_to_uid", "squash_to_gid"],
        takes: Value("N"),
        peers: &[FuseOverlayfs1, FuseOverlayfs2],
        status: Supported,
        text: "Everything shows as this user's, this group's. Implies `nosuid`, unless `suid` is given.",
        example: "lowerdir=/l1,squash_to_uid=1000",
    },
    Row {
        names: &["xattr_permissions"],
        takes: Value("0|1|2"),
        peers: &[FuseOverlayfs1, FuseOverlayfs2],
        status: Supported,
        text: "Owners and modes are kept in attributes of the upper.",
        example: "lowerdir=/l1,upperdir=/u,xattr_permissions=2",
    },
    Row {
        names: &["noacl"],
        takes: Nothing,
        peers: &[FuseOverlayfs1, FuseOverlayfs2, Mount, Aufs],
        status: Supported,
        text: "POSIX ACLs are neither kept nor obeyed.",
        example: "lowerdir=/l1,noacl",
    },
    Row {
        names: &["noxattrs"],
        takes: Maybe("0|1"),
        peers: &[FuseOverlayfs1, FuseOverlayfs2],
        status: Supported,
        text: "Extended attributes are neither shown nor kept.",
        example: "lowerdir=/l1,noxattrs=1",
    },
    Row {
        names: &["static_nlink"],
        takes: Nothing,
        peers: &[FuseOverlayfs1, FuseOverlayfs2],
        status: Supported,
        text: "Directories show a link count of 1.",
        example: "lowerdir=/l1,static_nlink",
    },
    Row {
        names: &["ino32_t"],
        takes: Nothing,
        peers: &[FuseOverlayfs2],
        status: Supported,
        text: "Only the lower 32 bits of inode numbers are shown; two files may then show the same.",
        example: "lowerdir=/l1,ino32_t",
    },
    Row {
        names: &["threaded", "fast_ino", "fast_ino_check", "writeback"],
        takes: Value("0|1"),
        peers: &[FuseOverlayfs1, FuseOverlayfs2],
        status: Accepted,
        text: "Requests are always served by several threads, inode numbers cost nothing, and \
               pages are written back when that is right.",
        example: "lowerdir=/l1,threaded=1",
    },
    Row {
        names: &["plugins"],
        takes: Value("FILE[:FILE...]"),
        peers: &[FuseOverlayfs1, FuseOverlayfs2],
        status: Refused,
        text: "plug-ins are native code of another program, and the layers that they bring \
               would be missing",
        example: "lowerdir=/l1,plugins=x.so",
    },
    Row {
        names: &["userxattr"],
        takes: Nothing,
        peers: &[Overlayfs],
        status: Supported,
        text: "Marks in `user.overlay.` attributes are read too. Opaque marks always are; redirect \
               and metacopy records, by which the owner of a file could reach others' files, only \
               with this option or in a mount without privilege.",
        example: "lowerdir=/l1,userxattr",
    },
    Row {
        names: &["redirect_dir"],
        takes: Value("on|off|follow|nofollow"),
        peers: &[Overlayfs, FuseOverlayfs1, FuseOverlayfs2],
        status: Supported,
        text: "`on`: as `rename_dir=redirect`. All else is `rename_dir=copy`. Records that are there \
               are always followed.",
        example: "lowerdir=/l1,redirect_dir=on",
    },
    Row {
        names: &["index", "nfs_export"],
        takes: Value("on|off"),
        peers: &[Overlayfs],
        status: Accepted,
        text: "Hard links and file handles are not indexed on disk.",
        example: "lowerdir=/l1,index=off,nfs_export=off",
    },
    Row {
        names: &["metacopy"],
        takes: Value("on|off"),
        peers: &[Overlayfs],
        status: Supported,
        text: "`on`: changing the owner, mode, times or extended attributes of a large file of a \
               lower copies none of its data, and the upper says so in overlayfs's way; image tools \
               do not know it. Default: `off`. Records that are there are always followed.",
        example: "lowerdir=/l1,upperdir=/u,metacopy=on",
    },
    Row {
        names: &["uuid"],
        takes: Value("on|off|null|auto"),
        peers: &[Overlayfs],
        status: Accepted,
        text: "A FUSE mount has no UUID.",
        example: "lowerdir=/l1,uuid=off",
    },
    Row {
        names: &["verity"],
        takes: Value("off|on|require"),
        peers: &[Overlayfs],
        status: Supported,
        text: "`off` is the default. `on` and `require` promise checks that are not made, and \
               are refused.",
        example: "lowerdir=/l1,verity=off",
    },
    Row {
        names: &["override_creds"],
        takes: Nothing,
        peers: &[Overlayfs],
        status: Supported,
        text: "The daemon reads its layers with its own rights. It always does.",
        example: "lowerdir=/l1,override_creds",
    },
    Row {
        names: &["nooverride_creds"],
        takes: Nothing,
        peers: &[Overlayfs],
        status: Refused,
        text: "the daemon reads its layers with its own rights",
        example: "lowerdir=/l1,nooverride_creds",
    },
    Row {
        names: &["datadir+"],
        takes: Value("DIR"),
        peers: &[Overlayfs],
        status: Refused,
        text: "layers that hold data only are not supported",
        example: "lowerdir=/l1,datadir+=/l2",
    },
    Row {
        names: &["cow"],
        takes: Nothing,
        peers: &[UnionfsFuse],
        status: Supported,
        text: "Changed files are copied to the upper. They always are.",
        example: "dirs=/u=RW:/l1=RO,cow",
    },
    Row {
        names: &["hide_meta_files", "hide_meta_dir"],
        takes: Nothing,
        peers: &[UnionfsFuse],
        status: Supported,
        text: "Whiteouts and the like do not show. They never do.",
        example: "dirs=/u=RW:/l1=RO,hide_meta_files",
    },
    Row {
        names: &["statfs_omit_ro"],
        takes: Nothing,
        peers: &[UnionfsFuse],
        status: Supported,
        text: "df leaves out the layers that are only read. The default.",
        example: "dirs=/u=RW:/l1=RO,statfs_omit_ro",
    },
    Row {
        names: &["debug_file"],
        takes: Value("FILE"),
        peers: &[UnionfsFuse],
        status: Supported,
        text: "`log_file=`.",
        example: "lowerdir=/l1,debug_file=/dev/null",
    },
    Row {
        names: &["max_files"],
        takes: Value("N"),
        peers: &[UnionfsFuse],
        status: Accepted,
        text: "The limit of open files is raised as far as it goes.",
        example: "lowerdir=/l1,max_files=32768",
    },
    Row {
        names: &[
            "noinitgroups",
            "preserve_branch",
            "relaxed_permissions",
            "stats",
        ],
        takes: Maybe("VALUE"),
        peers: &[UnionfsFuse],
        status: Accepted,
        text: "Belongs to what this program does otherwise; permissions are always checked.",
        example: "lowerdir=/l1,relaxed_permissions",
    },
];
