//! One change that meets one fault.

use std::cell::Cell as Flag;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use rustix::io::Errno;
use tempfile::TempDir;
use unionfs::faults::{self, Fault};
use unionfs::options::{Options, WhiteoutForm};

use super::scenes::{self, Scene};
use crate::invariants::{Raw, differences, kept_difference};
use crate::ops::{Do, ROOT, Result, Side, describe};
use crate::plain::{Plain, Users};
use crate::tree::{self, Seen, Tree, show};
use crate::union_side::UnionSide;

/// A scene, and what it looks like on a plain directory.
pub struct Play<'a> {
    scene: &'a Scene,
    pub name: String,
    base: TempDir,
    lowers: Vec<PathBuf>,
    raw: Raw,
    form: WhiteoutForm,
    /// All names are known when the change begins.
    warm: bool,
    old: State,
    new: State,
    /// What the change gives.
    wanted: Result,
    uppers: Flag<u32>,
}

/// What users see.
struct State {
    tree: Tree,
    kept: Vec<Seen>,
}

/// How a run ended.
pub struct Ended {
    /// Calls that changed something, in their order.
    pub calls: Vec<&'static str>,
    pub result: Result,
}

/// An upper at work.
pub struct Run<'a> {
    play: &'a Play<'a>,
    pub side: UnionSide,
    /// Inode numbers before the change, by those of the plain directory.
    numbers: BTreeMap<u64, u64>,
}

impl<'a> Play<'a> {
    /// Makes the layers in a directory of `place`.
    pub fn new(scene: &'a Scene, form: WhiteoutForm, warm: bool, place: &Path) -> Self {
        let base = tempfile::tempdir_in(place).unwrap();
        let new = |name: &str| {
            let path = base.path().join(name);
            make_dir(&path);
            path
        };
        let (top, bottom, plain) = (new("top"), new("bottom"), new("plain"));
        scenes::write_lowers(&top, &bottom);
        scenes::write_plain(&plain);
        let mut oracle = Plain::new(&plain, Users::Unchecked);
        for what in &scene.before {
            oracle
                .run(ROOT, what)
                .unwrap_or_else(|e| panic!("{what:?}: {e}"));
        }
        for what in &scene.open {
            oracle
                .run(ROOT, what)
                .unwrap_or_else(|e| panic!("{what:?}: {e}"));
        }
        let old = State::of(&plain, &oracle);
        let wanted = oracle.run(ROOT, &without_whiteout(&scene.change));
        let new = State::of(&plain, &oracle);
        let lowers = vec![top, bottom];
        let steps: Vec<String> = scene.before.iter().chain(&scene.open).map(text).collect();
        Self {
            name: format!(
                "{} after [{}] {form:?} warm={warm}",
                text(&scene.change),
                steps.join("; ")
            ),
            scene,
            raw: Raw::of(&lowers),
            base,
            lowers,
            form,
            warm,
            old,
            new,
            wanted,
            uppers: Flag::new(0),
        }
    }

    /// The options of a union with the upper `number`.
    pub fn options(&self, number: u32) -> Options {
        let upper = self.base.path().join(format!("upper{number}"));
        let mut options = Options {
            lowers: self.lowers.iter().cloned().map(Into::into).collect(),
            upper: Some(upper),
            whiteout: self.form,
            ..Options::default()
        };
        (self.scene.set)(&mut options);
        options
    }

    /// Does all that comes before the change on a new upper.
    pub fn prepare(&self) -> Run<'_> {
        let number = self.uppers.get();
        self.uppers.set(number + 1);
        let options = self.options(number);
        let upper = options.upper.as_ref().unwrap();
        make_dir(upper);
        tree::set_times(upper, scenes::LONG_AGO);
        let mut side = UnionSide::new(options);
        for what in &self.scene.before {
            side.run(ROOT, what)
                .unwrap_or_else(|e| panic!("{}: {what:?}: {e}", self.name));
        }
        if !self.scene.before.is_empty() {
            side.close();
            side.reopen();
        }
        self.open(side)
    }

    /// Does what belongs to the mount of the change.
    pub fn open(&self, mut side: UnionSide) -> Run<'_> {
        for what in &self.scene.open {
            side.run(ROOT, what)
                .unwrap_or_else(|e| panic!("{}: {what:?}: {e}", self.name));
        }
        let mut numbers = BTreeMap::new();
        if self.warm {
            let tree = side.scan(1000);
            let both = self
                .old
                .tree
                .iter()
                .map(|(path, seen)| (seen.ino, tree[path].ino));
            numbers = both.collect();
        }
        Run {
            play: self,
            side,
            numbers,
        }
    }

    pub fn check_lowers(&self) {
        self.raw.check_unchanged();
    }
}

impl State {
    fn of(root: &Path, oracle: &Plain) -> Self {
        use std::os::fd::AsRawFd;
        let look = |file: &std::fs::File| {
            tree::look_through(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())))
        };
        Self {
            tree: tree::scan(root),
            kept: oracle.kept.iter().map(look).collect(),
        }
    }
}

/// Makes a directory, whatever umask the last operation has left to this thread.
fn make_dir(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir(path).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn text(what: &Do) -> String {
    describe(ROOT, what).replace(" by 0:0 umask 22", "")
}

/// The whiteout that a rename leaves shows as nothing in a union.
fn without_whiteout(what: &Do) -> Do {
    match what {
        Do::Rename { from, to, flags } => Do::Rename {
            from: from.clone(),
            to: to.clone(),
            flags: flags & !4,
        },
        other => other.clone(),
    }
}

/// What need not be equal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lax {
    /// All must be.
    Nothing,
    /// Times of directories: a directory cannot be changed and get its times back in one step.
    Times,
}

impl Run<'_> {
    /// Makes the change, with a fault. What is left of it when the process would have ended is final.
    pub fn change(&mut self, fault: Option<(u32, Fault)>) -> Ended {
        faults::watch(fault);
        let result = self.side.run(ROOT, &self.play.scene.change);
        if matches!(fault, Some((_, Fault::End))) {
            // Whatever it would tidy up has no effect any more.
            self.side.union = None;
        }
        Ended {
            calls: faults::unwatch(),
            result,
        }
    }

    /// The mount of afterwards, when this one ended without a word.
    pub fn after_crash(&mut self) {
        self.side.refs.clear();
        self.side.kept.clear();
        self.side.reopen();
    }

    pub fn remount(&mut self) {
        self.close();
        self.side.reopen();
    }

    /// Ends the mount. A temporary that could not be removed may be left for the next one.
    pub fn close(&mut self) {
        self.side.kept.clear();
        self.side.forget();
        let known = self.side.union().inode_count();
        assert_eq!(known, 1, "inodes remain after all was forgotten");
        self.side.union = None;
    }

    /// What is wrong if this should be the tree of before or, with `done`, of after the change.
    fn wrong(&mut self, done: bool, lax: Lax) -> Option<String> {
        let state = if done { &self.play.new } else { &self.play.old };
        let mut tree = self.side.scan(1000);
        if lax == Lax::Times {
            for (path, seen) in &mut tree {
                let wanted = state
                    .tree
                    .get(path)
                    .filter(|w| w.kind == FileType::Directory);
                if let Some(wanted) = wanted {
                    seen.mtime = wanted.mtime;
                }
            }
        }
        let mut texts = differences(&state.tree, &tree);
        for (at, id) in self.side.kept.clone().into_iter().enumerate() {
            match self.side.look(id) {
                Ok(seen) => texts.extend(kept_difference(at, &state.kept[at], &seen)),
                Err(e) => texts.push(format!("kept#{at} cannot be read: {e}")),
            }
        }
        for (path, seen) in &tree {
            let plain = state.tree.get(path).map(|wanted| wanted.ino);
            let before = plain.and_then(|ino| self.numbers.get(&ino));
            if before.is_some_and(|&ino| ino != seen.ino) {
                texts.push(format!("{} has another number", show(path)));
            }
        }
        if let Err(e) = self.side.union().check_known_names() {
            texts.push(format!("a listing that is kept is not right: {e}"));
        }
        (!texts.is_empty()).then(|| texts.join("\n  "))
    }

    /// The tree must be the one of before, or with `done` the one of afterwards.
    pub fn expect(&mut self, done: bool, lax: Lax) -> std::result::Result<(), String> {
        let state = if done { "new" } else { "old" };
        match self.wrong(done, lax) {
            None => Ok(()),
            Some(wrong) => Err(format!("not the {state} state:\n  {wrong}")),
        }
    }

    /// It must be one of both; returns whether the change was made.
    pub fn expect_either(&mut self, lax: Lax) -> std::result::Result<bool, String> {
        let Some(not_old) = self.wrong(false, lax) else {
            // Some changes show in nothing.
            return Ok(false);
        };
        match self.wrong(true, lax) {
            None => Ok(true),
            Some(not_new) => Err(format!(
                "not the old state:\n  {not_old}\nnor the new one:\n  {not_new}"
            )),
        }
    }

    /// The change without a fault must do what it does on a plain directory.
    pub fn try_again(&mut self) -> std::result::Result<(), String> {
        let got = self.change(None).result;
        if got != self.play.wanted {
            return Err(format!("the second try: {got:?}"));
        }
        Ok(())
    }

    /// Whether this result is the one of a plain directory.
    pub fn is_wanted(&self, result: &Result) -> bool {
        *result == self.play.wanted
    }

    /// Nothing but what users see, and what keeps it so, may be in the upper of a new mount.
    pub fn check_leftovers(&mut self) -> std::result::Result<(), String> {
        let upper = self.side.options.upper.clone().unwrap();
        let names = |dir: &str| -> Vec<String> {
            let entries = std::fs::read_dir(upper.join(dir)).into_iter().flatten();
            let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
            names.collect()
        };
        let orphans = names(".wh..wh.orph");
        if !orphans.is_empty() {
            return Err(format!("leftovers: {orphans:?}"));
        }
        let tree = self.side.scan(1000);
        for entry in names(".wh..wh.plnk") {
            let number = entry.split('.').next().unwrap_or_default().parse::<u64>();
            if !tree.values().any(|seen| Ok(seen.ino) == number) {
                return Err(format!("a pseudo-link of no name: {entry}"));
            }
        }
        Ok(())
    }

    /// True for what is done for each name by itself, and tells only whether all was.
    pub fn is_flush(&self) -> bool {
        matches!(self.play.scene.change, Do::Flush)
    }

    /// True when nothing is left of the change once all is closed.
    pub fn is_of_open(&self) -> bool {
        !self.play.scene.open.is_empty()
    }

    /// The errno in a result.
    pub fn errno(result: &Result) -> Option<Errno> {
        result.as_ref().err().copied()
    }
}
