//! Layers that somebody changes at the very moment they are looked at: what is shown may be old or new,
//! but nothing outside of the layers is ever reached, and nothing hangs.

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, OFlags, RenameFlags};

use crate::bare::{Bare, SECRET};

/// How long each scene is raced.
const RACE: Duration = Duration::from_millis(2500);

/// A name of a layer, and what takes its place again and again.
struct Swap {
    at: PathBuf,
    other: PathBuf,
}

impl Swap {
    fn new(layer: &Path, name: &str) -> Self {
        let at = layer.join(name);
        let other = layer.join(format!("{name}-other"));
        Self { at, other }
    }
}

/// `d` and `g` of a layer, `d-other` and `g-other` that lead to the secret, and more of the kind.
fn fill(layer: &Path) -> Vec<Swap> {
    let secret = "../secret";
    fs::create_dir_all(layer.join("d/in")).unwrap();
    fs::write(layer.join("d/f"), "good").unwrap();
    fs::write(layer.join("d/in/f"), "good").unwrap();
    symlink(secret, layer.join("d-other")).unwrap();
    fs::write(layer.join("g"), "good").unwrap();
    symlink(format!("{secret}/f"), layer.join("g-other")).unwrap();
    fs::write(layer.join("p"), "good").unwrap();
    rustix::fs::mknodat(CWD, layer.join("p-other"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    fs::write(layer.join("k"), "good").unwrap();
    fs::create_dir(layer.join("k-other")).unwrap();
    fs::write(layer.join("k-other/f"), "good").unwrap();
    fs::create_dir(layer.join("deep")).unwrap();
    fs::create_dir(layer.join("deep/d")).unwrap();
    fs::write(layer.join("deep/d/f"), "good").unwrap();
    symlink(format!("../{secret}"), layer.join("deep/d-other")).unwrap();
    let names = ["d", "g", "p", "k", "deep/d"];
    names.map(|name| Swap::new(layer, name)).into()
}

/// Looks at everything that can be reached below `dir`, without following what it shows as symlinks.
fn read_all(dir: &Path, seen: &AtomicU64) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        assert_ne!(name, "only-there", "{}", dir.display());
        let path = dir.join(&name);
        look(&path, seen);
        if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
            read_all(&path, seen);
        }
    }
}

/// Reads and asks for whatever there is at a name.
fn look(path: &Path, seen: &AtomicU64) {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    if let Ok(file) = crate::process::open_file(path, flags, Mode::empty()) {
        let mut data = Vec::new();
        let _ = fs::File::from(file).read_to_end(&mut data);
        assert_ne!(data, SECRET.as_bytes(), "{}", path.display());
        seen.fetch_add(1, Ordering::Relaxed);
    }
    let _ = rustix::fs::lgetxattr(path, "user.secret", &mut [0; 64])
        .map(|_| panic!("an attribute of the secret at {}", path.display()));
    let _ = rustix::fs::statat(CWD, path, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
}

/// Changes things of all kinds.
fn change_all(mnt: &Path, round: u64) {
    let no_follow = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    for name in ["d/f", "g", "p", "k", "d/in/f", "deep/d/f", "k-other/f"] {
        let path = mnt.join(name);
        if let Ok(file) = crate::process::open_file(&path, no_follow, Mode::empty()) {
            let _ = rustix::io::write(file, b"changed");
        }
        let no_follow = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        let _ = rustix::fs::chmodat(CWD, &path, Mode::from_raw_mode(0o600), no_follow);
        let _ = rustix::fs::lsetxattr(&path, "user.changed", b"v", rustix::fs::XattrFlags::empty());
    }
    for dir in ["d", "deep/d", "k", "d-other"] {
        let new = mnt.join(dir).join(format!("new{round}"));
        // With a name that the secret has, too.
        let _ = fs::write(mnt.join(dir).join("only-here"), "x");
        let _ = fs::write(&new, "new");
        let _ = fs::remove_file(&new);
        let _ = fs::remove_file(mnt.join(dir).join("f"));
        let _ = fs::create_dir(mnt.join(dir).join("sub"));
        let _ = fs::remove_dir(mnt.join(dir).join("sub"));
    }
    let _ = fs::rename(mnt.join("deep/d"), mnt.join("deep/e"));
    let _ = fs::rename(mnt.join("deep/e"), mnt.join("deep/d"));
    let _ = fs::hard_link(mnt.join("g"), mnt.join("h"));
    let _ = fs::remove_file(mnt.join("h"));
}

fn race(options: &str, upper_too: bool) {
    let mut bare = Bare::new("/tmp");
    xattr::set(bare.secret().join("f"), "user.secret", b"s").unwrap();
    let mut swaps = fill(&bare.lower());
    if upper_too {
        swaps.extend(fill(&bare.upper()));
    }
    bare.mount(options, 60);
    let (mnt, seen, swapped) = (bare.mnt(), AtomicU64::new(0), AtomicU64::new(0));
    let end = AtomicBool::new(false);
    let start = Instant::now();
    thread::scope(|scope| {
        for swap in &swaps {
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    // An upper's may be gone, or in the place of the other, just now.
                    let exchange = RenameFlags::EXCHANGE;
                    let done = rustix::fs::renameat_with(CWD, &swap.at, CWD, &swap.other, exchange);
                    swapped.fetch_add(u64::from(done.is_ok()), Ordering::Relaxed);
                    thread::yield_now();
                }
            });
        }
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    while start.elapsed() < RACE {
                        read_all(&mnt, &seen);
                    }
                })
            })
            .collect();
        let mut round = 0;
        while start.elapsed() < RACE {
            change_all(&mnt, round);
            round += 1;
        }
        let results: Vec<_> = readers.into_iter().map(|r| r.join()).collect();
        end.store(true, Ordering::Relaxed);
        for result in results {
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
    assert!(swapped.into_inner() > 100, "the layer was hardly changed");
    assert!(seen.into_inner() > 100, "hardly anything could be read");
    bare.unmount();
    bare.assert_secret();
    assert_no_secret(&bare.upper());
    assert_no_secret(&bare.lower());
}

/// The secret was not copied either.
fn assert_no_secret(dir: &Path) {
    let outcome = crate::process::finish(
        std::process::Command::new("grep")
            .args(["-rlsF", "-D", "skip", SECRET])
            .arg(dir),
    );
    assert_eq!(outcome.stdout, "");
}

#[test]
fn a_lower_that_changes_while_it_is_looked_at() {
    race("", false);
}

#[test]
fn all_layers_change_while_they_are_looked_at() {
    race("", true);
}

#[test]
fn nothing_is_kept_and_all_is_looked_up_again() {
    race(",entry_timeout=0,attr_timeout=0,negative_timeout=0", true);
}

#[test]
fn with_records_and_redirects() {
    race(",whiteout=overlay,rename_dir=redirect,metacopy=on", true);
}
