//! Layers and what is this program's own.

use super::Peer::{Aufs, FuseOverlayfs1, FuseOverlayfs2, Libfuse, Overlayfs, Own, UnionfsFuse};
use super::Row;
use super::Status::Supported;
use super::Takes::{Maybe, Nothing, Value};

pub(super) const ROWS: &[Row] = &[
    Row {
        names: &["lowerdir"],
        takes: Value("DIR[:DIR...]"),
        peers: &[Own, Overlayfs, FuseOverlayfs1, FuseOverlayfs2],
        status: Supported,
        text: "The read-only layers, the first on top. `\\:`, `\\,` and `\\\\` write these bytes; a value \
               in double quotes may hold commas. Given twice with other directories: refused.",
        example: "lowerdir=/l1:/l2",
    },
    Row {
        names: &["lowerdir+"],
        takes: Value("DIR"),
        peers: &[Own, Overlayfs],
        status: Supported,
        text: "One more read-only layer, below those named so far.",
        example: "lowerdir=/l1,lowerdir+=/l2",
    },
    Row {
        names: &["upperdir"],
        takes: Value("DIR"),
        peers: &[Own, Overlayfs, FuseOverlayfs1, FuseOverlayfs2],
        status: Supported,
        text: "The directory that takes all changes. Without it the mount is read-only.",
        example: "lowerdir=/l1,upperdir=/u",
    },
    Row {
        names: &["workdir"],
        takes: Value("DIR"),
        peers: &[Own, Overlayfs, FuseOverlayfs1, FuseOverlayfs2],
        status: Supported,
        text: "Where temporary objects are made, on the filesystem of the upper. Without it they are \
               in `.wh..wh.orph` of the upper.",
        example: "lowerdir=/l1,upperdir=/u,workdir=/w",
    },
    Row {
        names: &["plink_flush"],
        takes: Value("umount|off"),
        peers: &[Own],
        status: Supported,
        text: "At a clean unmount every name of a linked file gets its place in the upper, so that the \
               upper stands alone (`unionfs plink flush` at that moment).",
        example: "lowerdir=/l1,upperdir=/u,plink_flush=umount",
    },
    Row {
        names: &["supervise"],
        takes: Maybe("auto"),
        peers: &[Own],
        status: Supported,
        text: "A second process keeps the mount while its daemon is replaced: when it dies, another goes on \
               where it was, and whoever uses the mount only waits for a moment. Needs Linux 6.9; with `auto` \
               nobody does where the kernel is older. `auto` is what mount(8), and so a line of fstab, begins with.",
        example: "lowerdir=/l1,upperdir=/u,supervise",
    },
    Row {
        names: &["nosupervise"],
        takes: Nothing,
        peers: &[Own],
        status: Supported,
        text: "Nobody does. The default, but for mount(8) and lines of fstab.",
        example: "lowerdir=/l1,upperdir=/u,nosupervise",
    },
    Row {
        names: &["br", "dirs"],
        takes: Value("DIR[=PERM[+ATTR...]][:...]"),
        peers: &[Own, Aufs, UnionfsFuse],
        status: Supported,
        text: "All layers as branches, top first, also written `br:DIR...`. PERM is `rw` for the upper, \
               which is the first branch, or `ro`, `rr`; `RW` and `RO` as unionfs-fuse has them. Without \
               PERM the first branch is `rw`, all others are `ro+wh`. A lower case `ro` or `rr` without \
               `+wh` leaves the layer's whiteouts out, as aufs does. `+nolwh` makes each whiteout an \
               inode of its own; other attributes of aufs have no effect. A second writable branch is \
               only read, with a warning.",
        example: "br:/u=rw:/l1=ro+wh:/l2=ro+wh",
    },
    Row {
        names: &["add", "ins"],
        takes: Value("INDEX:BRANCH[:BRANCH...]"),
        peers: &[Aufs],
        status: Supported,
        text: "Puts branches at a place of the list that `br=` gave.",
        example: "br:/u=rw:/l1=ro+wh,add:1:/l2=ro+wh",
    },
    Row {
        names: &["append"],
        takes: Value("BRANCH[:BRANCH...]"),
        peers: &[Aufs],
        status: Supported,
        text: "Puts branches below those named so far.",
        example: "br:/u=rw:/l1=ro+wh,append:/l2=ro+wh",
    },
    Row {
        names: &["prepend"],
        takes: Value("BRANCH[:BRANCH...]"),
        peers: &[Aufs],
        status: Supported,
        text: "Puts branches above those named so far.",
        example: "br:/l1=ro+wh,prepend:/u=rw",
    },
    Row {
        names: &["del"],
        takes: Value("DIR"),
        peers: &[Aufs],
        status: Supported,
        text: "Takes a branch out of the list; one that is not in it is passed over.",
        example: "br:/u=rw:/l1=ro+wh:/l2=ro+wh,del:/l2",
    },
    Row {
        names: &["mod"],
        takes: Value("BRANCH"),
        peers: &[Aufs],
        status: Supported,
        text: "Gives a branch of the list another permission.",
        example: "br:/u=rw:/l1=ro,mod:/l1=ro+wh",
    },
    Row {
        names: &["chroot"],
        takes: Value("DIR"),
        peers: &[UnionfsFuse],
        status: Supported,
        text: "All layers are named from this directory, as if it were `/`.",
        example: "chroot=/,lowerdir=/l1",
    },
    Row {
        names: &["whiteout"],
        takes: Value("aufs|overlay"),
        peers: &[Own],
        status: Supported,
        text: "How deletions are written to the upper: `.wh.` files (the default), or character devices \
               0:0 and the `overlay.opaque` attribute. Both are always read.",
        example: "lowerdir=/l1,upperdir=/u,whiteout=overlay",
    },
    Row {
        names: &["diropq"],
        takes: Value("a|w"),
        peers: &[Aufs],
        status: Supported,
        text: "`a`: every new directory is marked opaque. `w` (the default): where something below \
               would show through.",
        example: "lowerdir=/l1,upperdir=/u,diropq=a",
    },
    Row {
        names: &["rename_dir"],
        takes: Value("copy|redirect|exdev"),
        peers: &[Own],
        status: Supported,
        text: "How a directory of which a lower has a part is renamed. `copy` (default): it is \
               completed in the upper first, so that any tool can read the result. `redirect`: the \
               upper says where the rest is, as overlayfs does with `redirect_dir=on`; at once, \
               whatever the size. `exdev`: not at all, programs then copy.",
        example: "lowerdir=/l1,upperdir=/u,rename_dir=redirect",
    },
    Row {
        names: &["volatile"],
        takes: Nothing,
        peers: &[Own, Overlayfs, FuseOverlayfs1, FuseOverlayfs2],
        status: Supported,
        text: "fsync and the flush of a copy-up are left out. Faster; a crash of the machine may lose \
               everything since the mount.",
        example: "lowerdir=/l1,upperdir=/u,volatile",
    },
    Row {
        names: &["fsync"],
        takes: Value("0|1|auto|strict|volatile"),
        peers: &[FuseOverlayfs1, FuseOverlayfs2, Overlayfs],
        status: Supported,
        text: "0 or `volatile`: as the option of this name. All else is the default: fsync flushes, and a \
               copy-up is flushed before it gets its name.",
        example: "lowerdir=/l1,upperdir=/u,fsync=0",
    },
    Row {
        names: &["open"],
        takes: Value("auto|passthrough|none|cached"),
        peers: &[Own],
        status: Supported,
        text: "How data travel. `passthrough`: the kernel reads and writes the layers' files itself; only \
               root of the machine can have it. `none`: the kernel opens files without asking, and writes \
               back late. `cached`: each open is asked for, each write told at once. `auto` (default): \
               `passthrough` where it can be had, else `cached` for root and `none` for others. What \
               cannot be had becomes `none`, with a warning.",
        example: "lowerdir=/l1,open=none",
    },
    Row {
        names: &["writeback"],
        takes: Value("0|1"),
        peers: &[Own, FuseOverlayfs1, FuseOverlayfs2],
        status: Supported,
        text: "0: with `open=none` every write is told at once, too. Default: 1.",
        example: "lowerdir=/l1,writeback=0",
    },
    Row {
        names: &["threads"],
        takes: Value("1-64"),
        peers: &[Own],
        status: Supported,
        text: "How many threads take requests at most; those that copy or flush data have threads of their own. \
               Default: one for each processor, 2 to 4.",
        example: "lowerdir=/l1,threads=2",
    },
    Row {
        names: &["log"],
        takes: Value("error|warn|info|debug|trace"),
        peers: &[Own],
        status: Supported,
        text: "What is logged, or a list `TARGET=LEVEL,...` in double quotes. Default: the environment's \
               RUST_LOG, or warn.",
        example: "lowerdir=/l1,log=info",
    },
    Row {
        names: &["log_file"],
        takes: Value("FILE"),
        peers: &[Own],
        status: Supported,
        text: "Where the log goes, instead of stderr (foreground) or syslog (background).",
        example: "lowerdir=/l1,log_file=/dev/null",
    },
    Row {
        names: &["fsname"],
        takes: Value("NAME"),
        peers: &[Own, Libfuse],
        status: Supported,
        text: "The device name shown in the mount table. Default: SOURCE as it was given, or the \
               program's name.",
        example: "lowerdir=/l1,fsname=name",
    },
];
