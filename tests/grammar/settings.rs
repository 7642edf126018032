//! All other options that have a value, with what they mean.

use std::ffi::OsString;

use proptest::prelude::*;
use unionfs::options::ownership::Records;
use unionfs::options::{DataPath, RenameDir, Udba, WhiteoutForm};

use crate::draw::*;

/// An SELinux label, in quotes for its comma.
fn label() -> impl Strategy<Value = (OsString, String)> {
    "[a-z_]{1,9}(:[a-z_]{1,9}){2}(:s[0-9]:c[0-9]{1,3},c[0-9]{1,3})?"
        .prop_map(|label| (format!("\"{label}\"").into(), label))
}

/// As the kernel is given it.
fn shown(name: &str, label: &str) -> OsString {
    format!("{name}=\"{label}\"").into()
}

const UDBAS: [(&str, Udba); 4] = [
    ("none", Udba::None),
    ("reval", Udba::Reval),
    ("notify", Udba::Notify),
    ("fsnotify", Udba::Notify),
];

/// Options with one of a few words.
pub(crate) fn choices(name: &'static str) -> Option<Case> {
    let forms = [
        ("aufs", WhiteoutForm::Aufs),
        ("overlay", WhiteoutForm::Overlay),
    ];
    let syncs = [
        ("0", true),
        ("1", false),
        ("volatile", true),
        ("auto", false),
        ("strict", false),
    ];
    let opaque = [
        ("a", true),
        ("always", true),
        ("w", false),
        ("whiteouted", false),
    ];
    let records = [
        ("0", Records::Inode),
        ("1", Records::Security),
        ("2", Records::User),
    ];
    let renames = [
        ("copy", RenameDir::Copy),
        ("redirect", RenameDir::Redirect),
        ("exdev", RenameDir::Exdev),
    ];
    let redirects = [
        ("on", RenameDir::Redirect),
        ("off", RenameDir::Copy),
        ("follow", RenameDir::Copy),
        ("nofollow", RenameDir::Copy),
    ];
    let xino = [("off", false), ("auto", false), ("on", true)];
    let autos = [("auto", true)];
    let opens = [
        ("auto", DataPath::Auto),
        ("passthrough", DataPath::Passthrough),
        ("none", DataPath::NoOpen),
        ("cached", DataPath::Cached),
    ];
    let case = match name {
        "open" => setting(name, words(&opens), |o, mode| o.open = mode),
        "udba" => setting(name, words(&UDBAS), |o, udba| o.udba = udba),
        "writeback" => setting(name, words(&[("0", true), ("1", false)]), |o, through| {
            o.write_through = through;
        }),
        "rename_dir" => setting(name, words(&renames), |o, mode| o.rename_dir = mode),
        "redirect_dir" => setting(name, words(&redirects), |o, mode| o.rename_dir = mode),
        "metacopy" => setting(name, words(&[("on", true), ("off", false)]), |o, on| {
            o.metacopy = on;
        }),
        "xino" => setting(name, words(&xino), |o, on| o.identity.xino_on = on),
        "plink_flush" => setting(name, words(&[("umount", true), ("off", false)]), |o, on| {
            o.identity.flush_at_umount = on;
        }),
        "whiteout" => setting(name, words(&forms), |o, form| o.whiteout = form),
        "diropq" => setting(name, words(&opaque), |o, always| o.always_opaque = always),
        "fsync" | "sync" => setting(name, words(&syncs), |o, volatile| o.volatile = volatile),
        "xattr_permissions" => setting(name, words(&records), |o, kept| o.ownership.records = kept),
        "noxattrs" => setting(name, words(&[("0", false), ("1", true)]), |o, no| {
            o.no_xattrs = no;
        }),
        "supervise" => setting(name, words(&autos), |o, auto| o.supervise_auto = auto),
        "verity" => setting(name, words(&[("off", ())]), |_, ()| {}),
        _ => return None,
    };
    Some(case)
}

/// Options with a number.
pub(crate) fn numbers(name: &'static str) -> Option<Case> {
    let ids = || (0..u32::MAX).prop_map(number);
    let sizes = || (4096u32..=1 << 20).prop_map(number);
    let case = match name {
        "threads" => setting(name, (1usize..=64).prop_map(number), |o, n| {
            o.threads = Some(n);
        }),
        "max_threads" => setting(name, (1usize..).prop_map(number), |o, n| {
            o.threads = Some(n.min(64));
        }),
        "timeout" => setting(name, seconds(), |o, time| {
            (o.cache.attr, o.cache.entry, o.cache.negative) = (time, time, time);
        }),
        "attr_timeout" => setting(name, seconds(), |o, time| o.cache.attr = time),
        "entry_timeout" => setting(name, seconds(), |o, time| o.cache.entry = time),
        "negative_timeout" => setting(name, seconds(), |o, time| o.cache.negative = time),
        "max_read" => setting(name, sizes(), |o, n| o.max_read = Some(n)),
        "max_write" => setting(name, sizes(), |o, n| o.max_write = Some(n)),
        "umask" => setting(name, octal(), |o, mask| {
            (o.shown.file_mask, o.shown.dir_mask) = (mask, mask);
        }),
        "fmask" => setting(name, octal(), |o, mask| o.shown.file_mask = mask),
        "dmask" => setting(name, octal(), |o, mask| o.shown.dir_mask = mask),
        "uid" => setting(name, ids(), |o, id| {
            o.shown.uid = Some(id);
            o.kernel_flags.nosuid = true;
        }),
        "gid" => setting(name, ids(), |o, id| {
            o.shown.gid = Some(id);
            o.kernel_flags.nosuid = true;
        }),
        "squash_to_uid" => setting(name, ids(), |o, id| {
            o.ownership.squash_uid = Some(id);
            o.kernel_flags.nosuid = true;
        }),
        "squash_to_gid" => setting(name, ids(), |o, id| {
            o.ownership.squash_gid = Some(id);
            o.kernel_flags.nosuid = true;
        }),
        // With a value it is aufs's, and without effect.
        "debug" => setting(name, any::<u8>().prop_map(number), |_, _| {}),
        "droplvl" => setting(name, (-9i8..=9).prop_map(number), |o, level| {
            o.kernel_flags.noatime = level >= 1;
        }),
        _ => return None,
    };
    Some(case)
}

/// Options with a text.
pub(crate) fn texts(name: &'static str) -> Option<Case> {
    let case = match name {
        "fsname" => setting(name, bytes().prop_map(quoted), |o, source| {
            o.source = Some(source);
        }),
        "log" => setting(name, text().prop_map(quoted), |o, log| o.log = Some(log)),
        "log_file" | "debug_file" => setting(name, path().prop_map(quoted), |o, file| {
            o.log_file = Some(file);
        }),
        "subtype" => setting(name, "[a-zA-Z0-9._+-]{1,64}".prop_map(quoted), |o, word| {
            o.subtype = Some(word.into());
        }),
        "context" => setting(name, label(), |o, text| {
            o.labels = vec![shown("context", &text)];
        }),
        "fscontext" => setting(name, label(), |o, text| {
            o.labels = vec![shown("fscontext", &text)];
        }),
        "defcontext" => setting(name, label(), |o, text| {
            o.labels = vec![shown("defcontext", &text)];
        }),
        "rootcontext" => setting(name, label(), |o, text| {
            o.labels = vec![shown("rootcontext", &text)];
        }),
        "create" | "create_policy" | "cpup" | "copyup" | "copyup_policy" => {
            setting(name, bytes().prop_map(quoted), |_, _| {})
        }
        _ => return None,
    };
    Some(case)
}
