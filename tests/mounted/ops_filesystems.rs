//! Layers on different filesystems: copies cannot be made by links or within one filesystem.

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::dialects;
use crate::fails;
use crate::plinks::append;
use crate::process::{copied_by_open, finish, wait_for};
use crate::spec::{self, Dialect};
use crate::support::{Layers, Mount, Stack};

/// Something mounted on a layer's directory, for as long as this lives.
pub struct Covered(pub PathBuf);

impl Covered {
    fn tmpfs(path: &Path) -> Self {
        Self::tmpfs_with(path, c"mode=755")
    }

    fn tmpfs_with(path: &Path, options: &CStr) -> Self {
        let flags = MountFlags::empty();
        rustix::mount::mount("none", path, "tmpfs", flags, Some(options)).unwrap();
        Self(path.to_owned())
    }

    /// The kernel's own union, with one file in each of two directories.
    pub fn overlay(path: &Path, scratch: &Path) -> Self {
        let at = |name: &str| scratch.join("of-overlay").join(name);
        fs::create_dir_all(at("one/d")).unwrap();
        fs::create_dir_all(at("two/d")).unwrap();
        fs::write(at("one/d/x"), "x").unwrap();
        fs::write(at("two/f"), "f").unwrap();
        let options = format!("lowerdir={}:{}", at("one").display(), at("two").display());
        let options = std::ffi::CString::new(options).unwrap();
        let flags = MountFlags::empty();
        rustix::mount::mount("overlay", path, "overlay", flags, Some(&*options)).unwrap();
        Self(path.to_owned())
    }
}

impl Covered {
    /// A filesystem of a user's process, which has no RENAME_NOREPLACE and its like, as NFS.
    fn bindfs(path: &Path, scratch: &Path) -> Self {
        let store = scratch.join("of-bindfs");
        fs::create_dir(&store).unwrap();
        let mut command = std::process::Command::new("bindfs");
        command.args(["-o", "attr_timeout=0,entry_timeout=0"]);
        let done = finish(command.arg(store).arg(path));
        assert!(done.status.success(), "{}", done.stderr);
        Self(path.to_owned())
    }
}

impl Drop for Covered {
    fn drop(&mut self) {
        let gone = || rustix::mount::unmount(&self.0, UnmountFlags::empty()).ok();
        if wait_for(std::time::Duration::from_secs(5), gone).is_none() {
            let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
        }
        // The test's directory was to be removed before that, and was busy.
        if let Some(scratch) = self.0.parent() {
            let _ = fs::remove_dir_all(scratch);
        }
    }
}

const ITEMS: [&str; 6] = [
    "f=text | mode=0640 uid=5 gid=6 mtime=-7.8 x:user.k=v x:trusted.k=w",
    "d/x=1",
    "d/y=2",
    "s->f",
    "g=gone",
    "fifo(p)",
];

fn layers(dialect: Dialect) -> Layers {
    Stack::of(dialect).lower([""; 0]).build()
}

fn fill(lower: &Path) {
    spec::build(lower, &ITEMS.map(str::to_owned), false);
    let mut data = vec![0; 3 << 20];
    data[2 << 20..].fill(7);
    fs::write(lower.join("big"), data).unwrap();
}

fn use_it(m: &mut Mount) {
    let ids = |m: &Mount| ["", "f", "d", "d/x", "s", "big"].map(|n| m.stat(n).unwrap().st_ino);
    let mut unique = ids(m).to_vec();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), 6);
    let held = m.remembered(&["", "f", "d", "d/x", "s", "big"]);
    let before = ids(m);
    m.chmod("f", 0o600).unwrap();
    m.chmod("big", 0o600).unwrap();
    m.chmod("d/x", 0o600).unwrap();
    m.chown("s", 9, 9).unwrap();
    assert_eq!(ids(m), before);
    drop(held);
    m.unlink("g").unwrap();
    m.rename("d/y", "y").unwrap();
    m.link("f", "h").unwrap();
    m.chmod("p", 0o600).unwrap();
    m.write("n", "new").unwrap();
    m.mkdir("g").unwrap();
    for _ in 0..2 {
        m.assert_ls("", &["big", "d", "f", "g", "h", "n", "p", "s", "y"]);
        m.assert_ls("d", &["x"]);
        m.assert_file("h", "text");
        let f = fs::metadata(m.p("f")).unwrap();
        assert_eq!(
            (f.mode() & 0o7777, f.uid(), f.gid(), f.nlink()),
            (0o600, 5, 6, 2)
        );
        assert_eq!((f.mtime(), f.mtime_nsec()), (-7, 8));
        for (key, value) in [("user.k", b"v"), ("trusted.k", b"w")] {
            assert_eq!(
                xattr::get(m.p("f"), key).unwrap().as_deref(),
                Some(&value[..])
            );
        }
        let big = fs::read(m.p("big")).unwrap();
        assert!(big.len() == 3 << 20 && big[0] == 0 && big[2 << 20..].iter().all(|b| *b == 7));
        m.remount();
    }
}

dialects! {
    fn lower_on_another_filesystem(dialect) {
        let layers = layers(dialect);
        let _lower = Covered::tmpfs(&layers.lowers[0]);
        fill(&layers.lowers[0]);
        let mut m = layers.mount();
        use_it(&mut m);
    }

    fn upper_on_another_filesystem(dialect) {
        let mut layers = layers(dialect);
        let upper = layers.upper.clone().unwrap();
        let _upper = Covered::tmpfs(&upper);
        if let Some(work) = &mut layers.work {
            *work = upper.join("work");
            fs::create_dir(&*work).unwrap();
            fs::create_dir(upper.join("upper")).unwrap();
            layers.upper = Some(upper.join("upper"));
        }
        fill(&layers.lowers[0]);
        let mut m = layers.mount();
        use_it(&mut m);
    }
}

/// A union of unions: the kernel's below ours, and ours below ours.
#[test]
fn lower_that_is_a_union_itself() {
    let layers = Stack::new()
        .lower([""; 0])
        .lower(["f=below", "d/z=below"])
        .build();
    let _lower = Covered::overlay(&layers.lowers[0], layers.scratch());
    let m = layers.mount();
    m.assert_ls("", &["d", "f"]);
    m.assert_ls("d", &["x", "z"]);
    m.assert_file("f", "f");
    m.write("d/x", "changed").unwrap();
    m.unlink("f").unwrap();
    m.assert_upper(["d/", "d/x", "wh(f)"]);
    let mut over = Stack::new().lower(["top"]).build();
    over.lowers.push(m.path().to_owned());
    let over = over.mount();
    over.assert_ls("", &["d", "top"]);
    over.assert_file("d/x", "changed");
    over.write("d/x", "again").unwrap();
    over.unlink("d/z").unwrap();
    m.assert_file("d/x", "changed");
    m.assert_file("d/z", "below");
    over.assert_upper(["d/", "d/x", "d/wh(z)"]);
}

/// A record of many names is a walk for every lookup: none is followed that is longer than a path.
#[test]
fn redirect_records_are_bounded() {
    let layers = Stack::new().lower([""; 0]).lower(["d/x"]).build();
    let top = layers.lowers[0].clone();
    // Where a record may have 64 KiB.
    let _covered = Covered::tmpfs(&top);
    let parts = ["n".repeat(250).as_str(); 16].join("/");
    for (name, more) in [("fits", 4095), ("long", 4096)] {
        fs::create_dir(top.join(name)).unwrap();
        let mut record = format!("/{parts}/");
        record.push_str(&"n".repeat(more + 1 - record.len()));
        xattr::set(
            top.join(name),
            "trusted.overlay.redirect",
            record.as_bytes(),
        )
        .unwrap();
    }
    let m = layers.mount();
    m.assert_ls("fits", &[]);
    fails!(m.stat("long"), IO);
}

/// Room for the copy but not for the entry that its other names follow: no change is made then. That
/// the name alone got its copy would show at the next mount, when the others have the old data.
#[test]
fn no_space_for_a_pseudo_link() {
    let layers = Stack::new().lower(["a=old", "a~b"]).build();
    let upper = layers.upper.clone().unwrap();
    let _upper = Covered::tmpfs_with(&upper, c"mode=755,nr_inodes=10");
    let mut m = layers.mount_with(copied_by_open());
    m.assert_file("b", "old");
    let filler = |n: u32| upper.join(format!("filler{n}"));
    let made = (0..20)
        .take_while(|n| fs::write(filler(*n), "").is_ok())
        .count();
    for n in 0..2 {
        fs::remove_file(filler(n)).unwrap();
    }
    fails!(m.open("a", OFlags::WRONLY), NOSPC);
    m.assert_file("a", "old");
    assert_eq!(m.stat("b").unwrap().st_nlink, 2);
    for n in 2..u32::try_from(made).unwrap() {
        fs::remove_file(filler(n)).unwrap();
    }
    append(&m, "a", "new");
    for _ in 0..2 {
        m.assert_file("a", "oldnew");
        m.assert_file("b", "oldnew");
        m.remount();
    }
}

/// Directories of lowers are moved where the upper's filesystem knows no flags of rename(2).
#[test]
fn upper_without_flags_of_rename() {
    let mut layers = Stack::new()
        .lower(["tree/a/f=1", "tree/a/g=2", "tree/b/f=3", "gone/f=4", "f=5"])
        .build();
    let covered = layers.scratch().join("covered");
    fs::create_dir(&covered).unwrap();
    let _upper = Covered::bindfs(&covered, layers.scratch());
    layers.upper = Some(covered.join("upper"));
    fs::create_dir(covered.join("upper")).unwrap();
    let mut m = layers.mount();
    m.rename("tree/a", "tree/moved").unwrap();
    m.unlink("tree/moved/g").unwrap();
    m.unlink("gone/f").unwrap();
    m.rename("tree/b", "gone").unwrap();
    m.mkdir("tree/b").unwrap();
    m.unlink("f").unwrap();
    m.rename("tree/moved/f", "f").unwrap();
    for _ in 0..2 {
        m.assert_ls("", &["f", "gone", "tree"]);
        m.assert_ls("gone", &["f"]);
        m.assert_file("gone/f", "3");
        m.assert_ls("tree", &["b", "moved"]);
        m.assert_ls("tree/b", &[]);
        m.assert_ls("tree/moved", &[]);
        m.assert_file("f", "1");
        m.remount();
    }
}

/// Directories come and go where whiteout devices stand, though the upper's filesystem cannot let two
/// objects change places.
#[test]
fn whiteout_devices_where_nothing_changes_places() {
    let long = "n".repeat(250);
    let mut layers = Stack::of(Dialect::Overlay)
        .lower(["d/f=1", "e/f=2", "g/f=3", "h/f=4", "i/f=5", "file=6"])
        .lower([format!("{long}/f=7")])
        .build();
    let covered = layers.scratch().join("covered");
    fs::create_dir(&covered).unwrap();
    let _upper = Covered::bindfs(&covered, layers.scratch());
    for (name, at) in [("upper", &mut layers.upper), ("work", &mut layers.work)] {
        fs::create_dir(covered.join(name)).unwrap();
        *at = Some(covered.join(name));
    }
    let mut m = layers.mount();
    for name in ["d", "e", "g", "h", "i", &long] {
        m.unlink(&format!("{name}/f")).unwrap();
        m.rmdir(name).unwrap();
    }
    m.unlink("file").unwrap();
    // Made where it was, filled, removed and made once more.
    for name in ["d", "file", &long] {
        for _ in 0..2 {
            m.mkdir(name).unwrap();
            m.assert_ls(name, &[]);
            m.write(&format!("{name}/n"), "new").unwrap();
            m.unlink(&format!("{name}/n")).unwrap();
            m.rmdir(name).unwrap();
            fails!(m.stat(name), NOENT);
        }
        m.mkdir(name).unwrap();
    }
    // Renamed there: one that only the upper has, and one that leaves a whiteout itself.
    m.mkdir("new").unwrap();
    m.write("new/x", "x").unwrap();
    m.rename("new", "e").unwrap();
    m.mkdir("g").unwrap();
    m.write("g/y", "y").unwrap();
    m.rename("g", "h").unwrap();
    m.mkdir("i").unwrap();
    m.rename("i", "g").unwrap();
    for _ in 0..2 {
        m.assert_ls("", &["d", "e", "file", "g", "h", &long]);
        for name in ["d", "file", "g", &long] {
            m.assert_ls(name, &[]);
        }
        m.assert_ls("e", &["x"]);
        m.assert_ls("h", &["y"]);
        m.remount();
    }
    let markers = m.afterwards().into_iter().filter(|e| e.contains(".wh."));
    assert_eq!(
        markers.collect::<Vec<_>>(),
        [""; 0],
        "what overlayfs does not know"
    );
}
