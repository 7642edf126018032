//! Commits that are cut off: at every call the union shows what it showed, and the same command goes on
//! to the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::FileType;
use rustix::io::Errno;
use unionfs::cli::Commit;
use unionfs::faults::{self, Fault};
use unionfs::options::{Lower, Options, WhiteoutForm};
use unionfs::tools;

use super::scenes::{self, Scene};
use super::{FORMS, MEMORY, layers, prepare};
use crate::invariants::differences;
use crate::ops::{ROOT, Side};
use crate::tree::{self, NOT_COUNTED, Tree};
use crate::union_side::UnionSide;

/// How the layers of a scene are committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Into the only lower, on the same filesystem.
    Alone,
    /// The same with the upper on another filesystem.
    Far,
    /// Into the upper one of two lowers.
    Layered,
}

/// A filesystem in memory for as long as this lives.
struct Far(tempfile::TempDir);

impl Far {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(MEMORY).unwrap();
        let mut mount = Command::new("mount");
        let mount = mount.args(["-t", "tmpfs", "none"]).arg(dir.path());
        assert!(mount.status().unwrap().success());
        Self(dir)
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

/// The layers of one scene, written anew for each cell.
struct Stage<'a> {
    scene: &'a Scene,
    way: Way,
    form: WhiteoutForm,
    base: PathBuf,
    far: PathBuf,
}

impl Stage<'_> {
    fn lowers(&self) -> Vec<PathBuf> {
        let names: &[&str] = match self.way {
            Way::Alone | Way::Far => &["plain"],
            Way::Layered => &["top", "bottom"],
        };
        names.iter().map(|name| self.base.join(name)).collect()
    }

    fn upper(&self) -> PathBuf {
        match self.way {
            Way::Far => self.far.join("upper"),
            _ => self.base.join("upper"),
        }
    }

    fn options(&self) -> Options {
        let lower = |path: &PathBuf| Lower::from(path.clone());
        let mut options = Options {
            lowers: self.lowers().iter().map(lower).collect(),
            upper: Some(self.upper()),
            whiteout: self.form,
            ..Options::default()
        };
        (self.scene.set)(&mut options);
        options
    }

    /// Writes the layers and makes the changes; what the union shows then.
    fn build(&self) -> Tree {
        for dir in self.lowers().iter().chain([&self.upper()]) {
            let _ = fs::remove_dir_all(dir);
            fs::create_dir(dir).unwrap();
        }
        match &*self.lowers() {
            [plain] => layers::write_plain(plain),
            [top, bottom] => layers::write_lowers(top, bottom),
            _ => unreachable!(),
        }
        tree::set_times(&self.upper(), layers::LONG_AGO);
        let mut side = UnionSide::new(self.options());
        for what in self.scene.before.iter().chain([&self.scene.change]) {
            // Some changes are to be refused.
            let _ = side.run(ROOT, what);
        }
        side.forget();
        side.union = None;
        self.shown()
    }

    fn shown(&self) -> Tree {
        let mut options = self.options();
        // A mount that writes sweeps away what says that all was copied.
        options.read_only = self.way == Way::Far;
        let mut side = UnionSide::new(options);
        let tree = side.scan(1000);
        side.forget();
        tree
    }

    fn commit(&self, fault: Option<(u32, Fault)>) -> (Result<(), String>, Vec<&'static str>) {
        let lowers = self.lowers();
        let what = Commit {
            upper: self.upper(),
            lower: lowers[0].clone(),
            below: lowers[1..].to_vec(),
            json: false,
        };
        faults::watch(fault);
        let result = tools::commit(&what, &mut std::io::sink());
        (result.map_err(|e| e.to_string()), faults::unwatch())
    }

    /// Compares what shows now with what did. Names of one file are counted, and seen to be of one,
    /// when all is done; on another filesystem before that only where they are in one layer. The root's
    /// times cannot be kept while something goes from it.
    fn check(&self, before: &Tree, done: bool) -> Result<(), String> {
        let after = match (done, self.way) {
            (true, Way::Alone | Way::Far) => tree::scan(&self.lowers()[0]),
            _ => self.shown(),
        };
        let lax = |tree: &Tree, other: &Tree| {
            let mut tree = tree.clone();
            for (at, (names, seen)) in tree.iter_mut().enumerate() {
                let is_dir = seen.kind == FileType::Directory;
                if !done || is_dir || self.way == Way::Layered {
                    seen.nlink = NOT_COUNTED;
                }
                if !done && self.way == Way::Far {
                    seen.ino = at as u64;
                }
                let in_place = self.options().metacopy && seen.kind == FileType::RegularFile;
                if names.is_empty() || is_dir && self.leans() || in_place {
                    seen.mtime = other.get(names).map_or(seen.mtime, |other| other.mtime);
                }
            }
            tree
        };
        let (expected, got) = (lax(before, before), lax(&after, before));
        match &*differences(&expected, &got) {
            [] => Ok(()),
            texts => Err(texts.join("\n  ")),
        }
    }

    /// The upper is made to stand alone first, as if by a user's change: a crash may cost times of
    /// directories, and of files to which their data come in place.
    fn leans(&self) -> bool {
        let options = self.options();
        options.metacopy || options.rename_dir != Options::default().rename_dir || self.has_links()
    }

    fn has_links(&self) -> bool {
        let text = format!("{:?} {:?}", self.scene.before, self.scene.change);
        ["[97]", "[98]", "[99]", "[112]", "[113]"]
            .iter()
            .any(|name| text.contains(name))
    }

    fn is_clean(&self) -> Result<(), String> {
        let left = |dir: &Path| fs::read_dir(dir).unwrap().next().is_some();
        if left(&self.upper()) {
            return Err("something is left in the upper".to_owned());
        }
        match self.lowers()[0].join(".wh..wh.orph").exists() {
            true => Err("temporaries are left in the lower".to_owned()),
            false => Ok(()),
        }
    }

    /// One commit that meets a fault.
    fn cell(&self, fault: (u32, Fault)) -> Result<(), String> {
        let before = self.build();
        let (result, _) = self.commit(Some(fault));
        self.check(&before, false)
            .map_err(|e| format!("cut off ({result:?}):\n  {e}"))?;
        let (result, _) = self.commit(None);
        result.map_err(|e| format!("the second try: {e}"))?;
        self.check(&before, true)
            .map_err(|e| format!("at the end:\n  {e}"))?;
        self.is_clean()
    }
}

/// What a commit does not take.
const REFUSED: &str = "override_stat";

fn commits(way: Way) {
    prepare();
    let base = tempfile::tempdir_in(MEMORY).unwrap();
    let far = Far::new();
    let only = std::env::var("UNIONFS_FAULTS_SCENE").unwrap_or_default();
    let (mut cells, mut scenes, mut broken) = (0, 0, Vec::new());
    for (index, scene) in scenes::all().iter().enumerate() {
        // The ways take turns: calls are about the same.
        let all = std::env::var_os("UNIONFS_FAULTS_ALL").is_some();
        if !scene.open.is_empty() || !all && index % 3 != way as usize {
            continue;
        }
        let stage = Stage {
            scene,
            way,
            form: FORMS[index / 3 % 2],
            base: base.path().to_owned(),
            far: far.0.path().to_owned(),
        };
        let name = format!(
            "{:?} after {:?} {:?}",
            scene.change, scene.before, stage.form
        );
        if !name.contains(&only) {
            continue;
        }
        let before = stage.build();
        let (result, calls) = stage.commit(None);
        match result {
            Err(e) if e.contains(REFUSED) => continue,
            Err(e) => {
                broken.push(format!("{name}: {e}"));
                continue;
            }
            Ok(()) => {}
        }
        if let Err(e) = stage.check(&before, true).and_then(|()| stage.is_clean()) {
            broken.push(format!("{name} without a fault: {e}"));
            continue;
        }
        scenes += 1;
        for (number, call) in calls.iter().enumerate() {
            let point = 2 * u32::try_from(number).unwrap();
            for fault in [Fault::End, Fault::Fail(Errno::IO)] {
                // Every other point, and an answer of an error at some of them.
                let every = if fault == Fault::End { 2 } else { 8 };
                if !all && !(number + index).is_multiple_of(every) {
                    continue;
                }
                cells += 1;
                if let Err(e) = stage.cell((point, fault)) {
                    broken.push(format!("{name} {fault:?} before {call} ({number}): {e}"));
                }
            }
        }
    }
    eprintln!("commits, {way:?}: {scenes} scenes, {cells} cells");
    assert!(
        !only.is_empty() || scenes > 50 && cells > 1000,
        "{scenes} scenes, {cells} cells"
    );
    let shown: Vec<&str> = broken.iter().take(8).map(String::as_str).collect();
    assert!(
        broken.is_empty(),
        "{} broken:\n{}",
        broken.len(),
        shown.join("\n\n")
    );
}

#[test]
fn commits_alone() {
    commits(Way::Alone);
}

#[test]
fn commits_far() {
    commits(Way::Far);
}

#[test]
fn commits_layered() {
    commits(Way::Layered);
}
