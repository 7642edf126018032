//! aufs's options beyond branches.

use super::Peer::{Aufs, FuseOverlayfs2, Overlayfs};
use super::Row;
use super::Status::{Accepted, Refused, Supported};
use super::Takes::{Maybe, Nothing, Value};

pub(super) const ROWS: &[Row] = &[
    Row {
        names: &["plink"],
        takes: Nothing,
        peers: &[Aufs],
        status: Supported,
        text: "All names of one lower file stay one file when it is changed (the default).",
        example: "lowerdir=/l1,plink",
    },
    Row {
        names: &["noplink"],
        takes: Nothing,
        peers: &[Aufs],
        status: Supported,
        text: "Names of one lower file part when one of them is copied up, and `.wh..wh.plnk` is not \
               written nor followed.",
        example: "lowerdir=/l1,noplink",
    },
    Row {
        names: &["clean_plink", "list_plink"],
        takes: Nothing,
        peers: &[Aufs],
        status: Accepted,
        text: "`unionfs plink flush` and `unionfs plink list` do it.",
        example: "lowerdir=/l1,list_plink",
    },
    Row {
        names: &["xino"],
        takes: Value("FILE|off|auto|on"),
        peers: &[Aufs, Overlayfs, FuseOverlayfs2],
        status: Supported,
        text: "Inode numbers are stable and unique without a table, always. `on` refuses the mount \
               unless every layer's filesystem has file handles.",
        example: "lowerdir=/l1,xino=auto",
    },
    Row {
        names: &[
            "noxino",
            "trunc_xino",
            "trunc_xino_path",
            "itrunc_xino",
            "notrunc_xino",
            "trunc_xib",
            "notrunc_xib",
        ],
        takes: Maybe("VALUE"),
        peers: &[Aufs],
        status: Accepted,
        text: "There is no inode table to truncate.",
        example: "lowerdir=/l1,noxino",
    },
    Row {
        names: &["udba"],
        takes: Value("none|reval|notify|fsnotify"),
        peers: &[Aufs],
        status: Supported,
        text: "Changes that others make in the layers. `none` (default): undefined, as in overlayfs. \
               `reval`: seen after a second, or after `timeout=` and its like. `notify`: layers are \
               watched, changes are seen at once.",
        example: "lowerdir=/l1,udba=notify",
    },
    Row {
        names: &["dirwh"],
        takes: Value("N"),
        peers: &[Aufs],
        status: Accepted,
        text: "Directories full of whiteouts are removed at once.",
        example: "lowerdir=/l1,dirwh=3",
    },
    Row {
        names: &["create", "create_policy", "cpup", "copyup", "copyup_policy"],
        takes: Value("POLICY"),
        peers: &[Aufs],
        status: Supported,
        text: "Which writable branch takes an object: there is one, so every policy chooses \
               it.",
        example: "lowerdir=/l1,create=mfs,cpup=bup",
    },
    Row {
        names: &["dirperm1"],
        takes: Nothing,
        peers: &[Aufs],
        status: Supported,
        text: "A directory's permissions are those of its topmost layer. They always are.",
        example: "lowerdir=/l1,dirperm1",
    },
    Row {
        names: &["nodirperm1"],
        takes: Nothing,
        peers: &[Aufs],
        status: Accepted,
        text: "The permissions of covered directories are never asked: the caller sees one \
               directory.",
        example: "lowerdir=/l1,nodirperm1",
    },
    Row {
        names: &["warn_perm", "nowarn_perm"],
        takes: Nothing,
        peers: &[Aufs],
        status: Accepted,
        text: "Permissions of covered directories have no effect, so there is nothing to warn \
               of.",
        example: "lowerdir=/l1,warn_perm",
    },
    Row {
        names: &["verbose", "noverbose", "v", "quiet", "q"],
        takes: Nothing,
        peers: &[Aufs],
        status: Accepted,
        text: "The log has its own levels: `log=`.",
        example: "lowerdir=/l1,q",
    },
    Row {
        names: &["shwh"],
        takes: Nothing,
        peers: &[Aufs],
        status: Refused,
        text: "whiteouts are never shown by the union; look into the layers",
        example: "lowerdir=/l1,shwh",
    },
    Row {
        names: &["noshwh"],
        takes: Nothing,
        peers: &[Aufs],
        status: Supported,
        text: "Whiteouts do not show. They never do.",
        example: "lowerdir=/l1,noshwh",
    },
    Row {
        names: &["sum"],
        takes: Nothing,
        peers: &[Aufs],
        status: Supported,
        text: "df shows the sum of the filesystems of all layers.",
        example: "lowerdir=/l1,sum",
    },
    Row {
        names: &["wsum", "nosum"],
        takes: Nothing,
        peers: &[Aufs],
        status: Supported,
        text: "df shows the upper's. The default.",
        example: "lowerdir=/l1,nosum",
    },
    Row {
        names: &["dio", "nodio"],
        takes: Nothing,
        peers: &[Aufs],
        status: Accepted,
        text: "O_DIRECT is always allowed.",
        example: "lowerdir=/l1,nodio",
    },
    Row {
        names: &[
            "rdcache", "rdblk", "rdhash", "fhsm_sec", "acl", "si", "delete", "imap", "nodlgt",
        ],
        takes: Maybe("VALUE"),
        peers: &[Aufs],
        status: Accepted,
        text: "Tunes what this program does not have, or is obsolete in aufs too.",
        example: "lowerdir=/l1,rdcache=10,rdblk=4096",
    },
    Row {
        names: &["dirren", "nodirren"],
        takes: Maybe("VALUE"),
        peers: &[Aufs],
        status: Accepted,
        text: "Directories that are also in a lower are renamed without aufs's records; see \
               `rename_dir`.",
        example: "lowerdir=/l1,nodirren",
    },
    Row {
        names: &["droplvl"],
        takes: Value("-9 to 9"),
        peers: &[Aufs],
        status: Supported,
        text: "mount.aufs's shorthand. From 1 on: noatime; all else that it stands for has no \
               effect here.",
        example: "lowerdir=/l1,droplvl=1",
    },
    Row {
        names: &["ephemeral"],
        takes: Nothing,
        peers: &[Aufs],
        status: Supported,
        text: "mount.aufs's shorthand for noatime and options without effect here.",
        example: "lowerdir=/l1,ephemeral",
    },
];
