//! Work whose end is acknowledged by fsync(2) or one of its kin, and what must be found from then on.
//!
//! Each piece of work has a directory of its own, so that what it was told stays true to the end.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};

use crate::calls::list;
use crate::found::{absent, mode, one_file, same};
use crate::memory::Map;
use crate::support::Mount;

/// What is appended.
pub const MORE: &[u8] = b"more";
/// What is written over the beginning, or in the middle.
const PATCH: &[u8] = b"PATCH";
/// What is put into new files.
const NEW: &[u8] = b"all new";

type Holds = Box<dyn Fn(&Path) -> Result<(), String>>;

/// Something that holds from a moment on.
pub struct Fact {
    /// The moment, as the disk counts.
    pub since: usize,
    text: String,
    holds: Holds,
}

impl Fact {
    /// Why it does not hold in the union at `root`.
    pub fn broken(&self, root: &Path) -> Option<String> {
        let why = (self.holds)(root).err()?;
        Some(format!("{} (since {}): {why}", self.text, self.since))
    }
}

/// Who works in a union at `root`; `now` tells the present moment.
pub struct Worker<'a> {
    root: PathBuf,
    upper: PathBuf,
    now: &'a dyn Fn() -> usize,
    /// What is mapped is the upper's file itself.
    maps_past_us: bool,
    pub facts: Vec<Fact>,
    /// The directory of the present piece of work.
    dir: String,
}

/// Bytes of which no block is like another, so that one that is missing or another's shows.
pub fn content(seed: usize, size: usize) -> Vec<u8> {
    let byte = |at: usize| ((at / 512) * 31 + at % 7 + seed * 3 + 1) as u8 | 1;
    (0..size).map(byte).collect()
}

/// What the file has in the lower.
fn original(name: &str) -> Vec<u8> {
    match name {
        "f" => content(1, 9000),
        "g" => content(2, 700),
        "a" | "b" => content(3, 5000),
        "big" => content(4, 70_000),
        _ => content(5, 40),
    }
}

fn with_more(name: &str) -> Vec<u8> {
    [&original(name), MORE].concat()
}

fn patched(name: &str, at: usize) -> Vec<u8> {
    let mut data = original(name);
    data[at..at + PATCH.len()].copy_from_slice(PATCH);
    data
}

/// Makes in the lower what a piece of work finds.
pub fn make(lower: &Path, dir: &str) {
    let at = |name: &str| lower.join(dir).join(name);
    fs::create_dir_all(at("sub")).unwrap();
    for name in ["f", "g", "a", "big", "sub/x", "sub/y"] {
        fs::write(at(name), original(name)).unwrap();
    }
    fs::hard_link(at("a"), at("b")).unwrap();
}

/// The pieces of work, by name.
pub type Piece = (&'static str, fn(&mut Worker<'_>));

pub const PIECES: [Piece; 27] = [
    ("append", append),
    ("patch", patch),
    ("sync-write", sync_write),
    ("direct-write", direct_write),
    ("mapped", mapped),
    ("cut", cut),
    ("chmod", chmod),
    ("xattr", xattr),
    ("create", create),
    ("tree", tree),
    ("unlink", unlink),
    ("rmdir", rmdir),
    ("opaque", opaque),
    ("rename", rename),
    ("rename-away", rename_away),
    ("rename-over", rename_over),
    ("rename-dir", rename_dir),
    ("exchange", exchange),
    ("link", link),
    ("linked-write", linked_write),
    ("linked-unlink", linked_unlink),
    ("replace", replace),
    ("data-later", data_later),
    ("symlink", make_symlink),
    ("new-over-old", new_over_old),
    ("whole-disk", whole_disk),
    ("several", several),
];

impl Worker<'_> {
    /// Does a piece of work in `dir`.
    pub fn run(&mut self, dir: &str, piece: Piece) {
        self.dir = dir.to_owned();
        (piece.1)(self);
    }

    pub fn new<'a>(m: &Mount, options: &str, now: &'a dyn Fn() -> usize) -> Worker<'a> {
        Worker {
            root: m.path().to_owned(),
            upper: m.layers.upper_path().to_owned(),
            now,
            maps_past_us: options.contains("open=passthrough"),
            facts: Vec::new(),
            dir: String::new(),
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.join(&self.dir).join(name)
    }

    fn open(&self, name: &str) -> File {
        let file = File::options().read(true).write(true).open(self.at(name));
        file.unwrap()
    }

    /// fsync(2) of directories.
    fn sync_dirs(&self, names: &[&str]) {
        for name in names {
            File::open(self.at(name)).unwrap().sync_all().unwrap();
        }
    }

    fn since(
        &mut self, since: usize, what: &str, holds: impl Fn(&Path) -> Result<(), String> + 'static,
    ) {
        let dir = self.dir.clone();
        self.facts.push(Fact {
            since,
            text: format!("{dir}: {what}"),
            holds: Box::new(move |root| holds(&root.join(&dir))),
        });
    }

    /// From now on.
    fn told(&mut self, what: &str, holds: impl Fn(&Path) -> Result<(), String> + 'static) {
        self.since((self.now)(), what, holds);
    }

    /// At any time since the mount.
    fn always(&mut self, what: &str, holds: impl Fn(&Path) -> Result<(), String> + 'static) {
        self.since(0, what, holds);
    }

    fn has(&mut self, name: &'static str, data: Vec<u8>) {
        self.told(&format!("{name} is written"), move |dir| {
            same(dir, name, &data)
        });
    }

    fn gone(&mut self, name: &'static str) {
        self.told(&format!("{name} is gone"), move |dir| absent(dir, name));
    }

    /// One of both names has the data at any time, and the other is as `other` says.
    fn moves(&mut self, from: &'static str, to: &'static str, over: Option<Vec<u8>>) {
        let data = original(from);
        self.always(&format!("{from} or {to}"), move |dir| {
            let before = match &over {
                Some(over) => same(dir, to, over),
                None => absent(dir, to),
            };
            let old = same(dir, from, &data).and(before);
            let new = absent(dir, from).and_then(|()| same(dir, to, &data));
            old.or_else(|old| new.map_err(|new| format!("neither old ({old}) nor new ({new})")))
        });
    }
}

fn append(w: &mut Worker<'_>) {
    let mut file = File::options().append(true).open(w.at("f")).unwrap();
    file.write_all(MORE).unwrap();
    file.sync_all().unwrap();
    w.has("f", with_more("f"));
}

fn patch(w: &mut Worker<'_>) {
    let file = w.open("f");
    file.write_all_at(PATCH, 5000).unwrap();
    file.sync_data().unwrap();
    w.has("f", patched("f", 5000));
}

fn sync_write(w: &mut Worker<'_>) {
    for (name, flag) in [("f", libc::O_SYNC), ("g", libc::O_DSYNC)] {
        let file = File::options()
            .write(true)
            .custom_flags(flag)
            .open(w.at(name));
        file.unwrap().write_all_at(PATCH, 100).unwrap();
        w.has(name, patched(name, 100));
    }
}

fn direct_write(w: &mut Worker<'_>) {
    let flags = libc::O_DIRECT | libc::O_DSYNC;
    let file = File::options()
        .write(true)
        .custom_flags(flags)
        .open(w.at("f"))
        .unwrap();
    // Memory of whole pages, as O_DIRECT wants it.
    let mut data = Map::of_memory(4096);
    data.bytes_mut().copy_from_slice(&content(9, 4096));
    file.write_all_at(data.bytes_mut(), 4096).unwrap();
    let mut wanted = original("f");
    wanted[4096..8192].copy_from_slice(&content(9, 4096));
    w.has("f", wanted);
}

fn mapped(w: &mut Worker<'_>) {
    let file = w.open("f");
    let mut map = Map::shared(&file, 9000);
    map.bytes_mut()[4097..4097 + PATCH.len()].copy_from_slice(PATCH);
    map.sync();
    if w.maps_past_us {
        // The kernel flushes the data of such a mapping without telling us; the copy's name it does not.
        file.sync_data().unwrap();
    }
    w.has("f", patched("f", 4097));
}

fn cut(w: &mut Worker<'_>) {
    let file = w.open("f");
    file.set_len(100).unwrap();
    file.sync_all().unwrap();
    w.has("f", original("f")[..100].to_vec());
}

fn chmod(w: &mut Worker<'_>) {
    let file = File::open(w.at("f")).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o4751))
        .unwrap();
    file.sync_all().unwrap();
    w.told("mode", |dir| mode(dir, "f", 0o4751));
    w.has("f", original("f"));
}

fn xattr(w: &mut Worker<'_>) {
    let file = File::open(w.at("g")).unwrap();
    rustix::fs::fsetxattr(&file, "user.k", b"v", rustix::fs::XattrFlags::empty()).unwrap();
    file.sync_all().unwrap();
    w.told("attribute", |dir| {
        let found = xattr::get(dir.join("g"), "user.k").map_err(|e| e.to_string())?;
        (found.as_deref() == Some(b"v"))
            .then_some(())
            .ok_or(format!("{found:?}"))
    });
}

fn create(w: &mut Worker<'_>) {
    let mut file = File::create_new(w.at("n")).unwrap();
    file.write_all(NEW).unwrap();
    file.sync_all().unwrap();
    w.sync_dirs(&[""]);
    w.has("n", NEW.to_vec());
}

fn tree(w: &mut Worker<'_>) {
    fs::create_dir_all(w.at("n/m")).unwrap();
    let mut file = File::create_new(w.at("n/m/f")).unwrap();
    file.write_all(NEW).unwrap();
    file.sync_data().unwrap();
    w.sync_dirs(&["n/m", "n", ""]);
    w.has("n/m/f", NEW.to_vec());
}

fn unlink(w: &mut Worker<'_>) {
    fs::remove_file(w.at("f")).unwrap();
    w.sync_dirs(&[""]);
    w.gone("f");
}

fn rmdir(w: &mut Worker<'_>) {
    fs::remove_dir_all(w.at("sub")).unwrap();
    w.sync_dirs(&[""]);
    w.gone("sub");
}

fn opaque(w: &mut Worker<'_>) {
    fs::remove_dir_all(w.at("sub")).unwrap();
    fs::create_dir(w.at("sub")).unwrap();
    fs::write(w.at("sub/n"), NEW).unwrap();
    w.open("sub/n").sync_all().unwrap();
    w.sync_dirs(&["sub", ""]);
    w.has("sub/n", NEW.to_vec());
    w.told("sub has nothing else", |dir| {
        let names = fs::read_dir(dir.join("sub")).map_or(vec![], |_| list(&dir.join("sub")));
        (names == ["n"]).then_some(()).ok_or(format!("{names:?}"))
    });
}

fn rename(w: &mut Worker<'_>) {
    w.moves("f", "n", None);
    fs::rename(w.at("f"), w.at("n")).unwrap();
    w.sync_dirs(&[""]);
    w.gone("f");
    w.has("n", original("f"));
}

fn rename_away(w: &mut Worker<'_>) {
    w.moves("f", "sub/n", None);
    fs::rename(w.at("f"), w.at("sub/n")).unwrap();
    w.sync_dirs(&["sub", ""]);
    w.gone("f");
    w.has("sub/n", original("f"));
}

fn rename_over(w: &mut Worker<'_>) {
    w.moves("f", "g", Some(original("g")));
    fs::rename(w.at("f"), w.at("g")).unwrap();
    w.sync_dirs(&[""]);
    w.gone("f");
    w.has("g", original("f"));
}

fn rename_dir(w: &mut Worker<'_>) {
    w.moves("sub/x", "n/x", None);
    w.moves("sub/y", "n/y", None);
    fs::rename(w.at("sub"), w.at("n")).unwrap();
    w.sync_dirs(&["n", ""]);
    w.gone("sub");
    w.has("n/x", original("sub/x"));
    w.has("n/y", original("sub/y"));
}

fn exchange(w: &mut Worker<'_>) {
    let both = |dir: &Path, f: &str, g: &str| {
        same(dir, "f", &original(f)).and_then(|()| same(dir, "g", &original(g)))
    };
    w.always("f and g, exchanged or not", move |dir| {
        both(dir, "f", "g").or_else(|_| both(dir, "g", "f"))
    });
    rustix::fs::renameat_with(CWD, w.at("f"), CWD, w.at("g"), RenameFlags::EXCHANGE).unwrap();
    w.sync_dirs(&[""]);
    w.told("exchanged", move |dir| both(dir, "g", "f"));
}

fn link(w: &mut Worker<'_>) {
    fs::hard_link(w.at("f"), w.at("n")).unwrap();
    w.sync_dirs(&[""]);
    w.told("f and n are one", |dir| one_file(dir, "f", "n"));
    w.has("n", original("f"));
}

fn linked_write(w: &mut Worker<'_>) {
    let mut file = File::options().append(true).open(w.at("a")).unwrap();
    file.write_all(MORE).unwrap();
    file.sync_all().unwrap();
    w.has("a", with_more("a"));
    w.has("b", with_more("b"));
    w.told("a and b are one", |dir| one_file(dir, "a", "b"));
}

fn linked_unlink(w: &mut Worker<'_>) {
    fs::remove_file(w.at("a")).unwrap();
    w.sync_dirs(&[""]);
    w.gone("a");
    let file = w.open("b");
    file.write_all_at(PATCH, 10).unwrap();
    file.sync_data().unwrap();
    w.has("b", patched("b", 10));
}

fn replace(w: &mut Worker<'_>) {
    w.always("f is the old or the new", |dir| {
        same(dir, "f", &original("f")).or_else(|old| same(dir, "f", NEW).map_err(|new| old + &new))
    });
    let mut file = File::create_new(w.at("tmp")).unwrap();
    file.write_all(NEW).unwrap();
    file.sync_all().unwrap();
    fs::rename(w.at("tmp"), w.at("f")).unwrap();
    w.sync_dirs(&[""]);
    w.has("f", NEW.to_vec());
    w.gone("tmp");
}

fn data_later(w: &mut Worker<'_>) {
    let file = w.open("big");
    file.set_permissions(fs::Permissions::from_mode(0o600))
        .unwrap();
    file.sync_all().unwrap();
    w.told("mode", |dir| mode(dir, "big", 0o600));
    let (old, new) = (original("big"), patched("big", 60_000));
    let later = new.clone();
    w.told("big is whole", move |dir| {
        same(dir, "big", &old).or_else(|_| same(dir, "big", &later))
    });
    file.write_all_at(PATCH, 60_000).unwrap();
    file.sync_data().unwrap();
    w.has("big", new);
}

fn make_symlink(w: &mut Worker<'_>) {
    symlink("somewhere", w.at("n")).unwrap();
    w.sync_dirs(&[""]);
    w.told("symlink", |dir| match fs::read_link(dir.join("n")) {
        Ok(target) if target == Path::new("somewhere") => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

fn new_over_old(w: &mut Worker<'_>) {
    fs::remove_file(w.at("g")).unwrap();
    w.sync_dirs(&[""]);
    let mut file = File::create_new(w.at("g")).unwrap();
    file.write_all(NEW).unwrap();
    file.sync_all().unwrap();
    w.sync_dirs(&[""]);
    w.has("g", NEW.to_vec());
}

/// syncfs(2) of the mount brings what the kernel keeps to the upper; the upper's own, to its disk.
fn whole_disk(w: &mut Worker<'_>) {
    let mut file = File::options().append(true).open(w.at("f")).unwrap();
    file.write_all(MORE).unwrap();
    fs::rename(w.at("g"), w.at("n")).unwrap();
    rustix::fs::syncfs(&file).unwrap();
    drop(file);
    let upper = File::open(&w.upper).unwrap();
    rustix::fs::syncfs(&upper).unwrap();
    w.has("f", with_more("f"));
    w.gone("g");
    w.has("n", original("g"));
}

/// Several changes of one file, each acknowledged.
fn several(w: &mut Worker<'_>) {
    let file = w.open("f");
    let mut wanted = original("f");
    for round in 0..3 {
        let at = 2000 * round;
        file.write_all_at(PATCH, at as u64).unwrap();
        wanted[at..at + PATCH.len()].copy_from_slice(PATCH);
        file.sync_data().unwrap();
        let from = wanted[..at + PATCH.len()].to_vec();
        w.told("f so far", move |dir| {
            let found = fs::read(dir.join("f")).map_err(|e| e.to_string())?;
            (found.starts_with(&from))
                .then_some(())
                .ok_or(format!("{} bytes", found.len()))
        });
    }
    w.has("f", wanted);
}
