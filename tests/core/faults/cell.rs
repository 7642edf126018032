//! One change that meets one fault.

use std::cell::Cell as Flag;
use std::collections::BTreeMap;
use std::path::Path;

use rustix::fs::FileType;
use rustix::io::Errno;
use tempfile::TempDir;
use unionfs::faults::{self, Fault};
use unionfs::options::{Options, WhiteoutForm};

use super::layers;
use super::scenes::Scene;
use crate::invariants::{Raw, differences, kept_difference};
use crate::ops::{Do, ROOT, Result, Side, describe};
use crate::plain::{Plain, Users};
use crate::tree::{self, Names, Seen, Tree, show};
use crate::union_side::UnionSide;

/// A scene, and what it looks like on a plain directory.
pub struct Play<'a> {
    scene: &'a Scene,
    pub name: String,
    base: TempDir,
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
        layers::write_lowers(&top, &bottom);
        layers::write_plain(&plain);
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
            form,
            warm,
            old,
            new,
            wanted,
            uppers: Flag::new(0),
        }
    }

    /// A new upper, and the options of its union.
    pub fn new_upper(&self) -> (u32, Options) {
        let number = self.uppers.get();
        self.uppers.set(number + 1);
        let options = options(self.scene, self.form, self.base.path(), number);
        let upper = options.upper.as_ref().unwrap();
        make_dir(upper);
        tree::set_times(upper, layers::LONG_AGO);
        (number, options)
    }

    /// Does all that comes before the change on a new upper.
    pub fn prepare(&self) -> Run<'_> {
        self.begin(self.new_upper().1)
    }

    /// The same on an upper of [`Self::new_upper`].
    pub fn begin(&self, options: Options) -> Run<'_> {
        let mut run = self.found(begin(self.scene, options));
        if self.warm {
            let tree = run.side.scan(1000);
            let both = self.old.tree.iter();
            let both = both.map(|(path, seen)| (seen.ino, tree[path].ino));
            run.numbers = both.collect();
        }
        run
    }

    /// A union of which nothing is known.
    pub fn found(&self, side: UnionSide) -> Run<'_> {
        Run {
            play: self,
            side,
            numbers: BTreeMap::new(),
        }
    }

    /// The directory of the layers.
    pub fn base(&self) -> &Path {
        self.base.path()
    }

    pub fn check_lowers(&self) {
        self.raw.check_unchanged();
    }
}

/// The options of a union over the layers in `base`, with the upper `number`.
pub fn options(scene: &Scene, form: WhiteoutForm, base: &Path, number: u32) -> Options {
    let lowers = ["top", "bottom"].map(|name| base.join(name).into());
    let mut options = Options {
        lowers: lowers.to_vec(),
        upper: Some(base.join(format!("upper{number}"))),
        whiteout: form,
        ..Options::default()
    };
    (scene.set)(&mut options);
    options
}

/// Does what comes before the change of a scene, up to the mount in which it is made.
pub fn begin(scene: &Scene, options: Options) -> UnionSide {
    let run = |side: &mut UnionSide, what: &Do| {
        side.run(ROOT, what)
            .unwrap_or_else(|e| panic!("{}: {e}", text(what)));
    };
    let mut side = UnionSide::new(options);
    scene.before.iter().for_each(|what| run(&mut side, what));
    if !scene.before.is_empty() {
        side.close();
        side.reopen();
    }
    scene.open.iter().for_each(|what| run(&mut side, what));
    side
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
    /// Times of directories, and of files to which their data come in place: neither can be changed and
    /// get its times back in one step.
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

    /// Has another process know the inode numbers of before the change.
    pub fn write_numbers(&self, file: &Path) {
        let lines = self
            .numbers
            .iter()
            .map(|(plain, own)| format!("{plain} {own}\n"));
        std::fs::write(file, lines.collect::<String>()).unwrap();
    }

    pub fn read_numbers(&mut self, file: &Path) {
        let text = std::fs::read_to_string(file).unwrap();
        let numbers = text.lines().map(|line| {
            let (plain, own) = line.split_once(' ').unwrap();
            (plain.parse().unwrap(), own.parse().unwrap())
        });
        self.numbers = numbers.collect();
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

    /// What is wrong with `tree` if it should be the one of before or, with `done`, of after the change.
    fn wrong(&self, tree: &Tree, done: bool, lax: Lax) -> Option<String> {
        let state = if done { &self.play.new } else { &self.play.old };
        let mut texts = Vec::new();
        if !self.is_same(&state.tree, tree, lax) {
            let mut tree = tree.clone();
            for (path, seen) in &mut tree {
                if let Some(wanted) = state.tree.get(path).filter(|w| self.may_differ(w, lax)) {
                    seen.mtime = wanted.mtime;
                }
            }
            texts = differences(&state.tree, &tree);
        }
        for (at, id) in self.side.kept.iter().enumerate() {
            match self.side.look(*id) {
                Ok(seen) => texts.extend(kept_difference(at, &state.kept[at], &seen)),
                Err(e) => texts.push(format!("kept#{at} cannot be read: {e}")),
            }
        }
        for (path, seen) in tree {
            let plain = state.tree.get(path).map(|wanted| wanted.ino);
            let before = plain.and_then(|ino| self.numbers.get(&ino));
            if before.is_some_and(|&ino| ino != seen.ino) {
                texts.push(format!("{} has another number", show(path)));
            }
        }
        (!texts.is_empty()).then(|| texts.join("\n  "))
    }

    /// True for an object whose time need not be right.
    fn may_differ(&self, wanted: &Seen, lax: Lax) -> bool {
        let in_place = self.side.options.metacopy && wanted.kind == FileType::RegularFile;
        lax == Lax::Times && (wanted.kind == FileType::Directory || in_place)
    }

    /// A quick look, which finds most trees to be what they should be.
    fn is_same(&self, wanted: &Tree, got: &Tree, lax: Lax) -> bool {
        let mut numbers = BTreeMap::new();
        let is_same = |((path, wanted), (got_path, got)): ((&Names, &Seen), (&Names, &Seen))| {
            let mut other = got.clone();
            (other.ino, other.mtime) = (wanted.ino, wanted.mtime);
            let number = *numbers.entry(wanted.ino).or_insert(got.ino);
            let in_time = got.mtime == wanted.mtime || self.may_differ(wanted, lax);
            path == got_path && other == *wanted && number == got.ino && in_time
        };
        wanted.len() == got.len() && wanted.iter().zip(got).all(is_same)
    }

    fn check_listings(&self) -> std::result::Result<(), String> {
        let wrong = |e| format!("a listing that is kept is not right: {e}");
        self.side.union().check_known_names().map_err(wrong)?;
        Ok(())
    }

    /// The tree must be the one of before, or with `done` the one of afterwards.
    pub fn expect(&mut self, done: bool, lax: Lax) -> std::result::Result<(), String> {
        let state = if done { "new" } else { "old" };
        let tree = self.side.scan(1000);
        if let Some(wrong) = self.wrong(&tree, done, lax) {
            return Err(format!("not the {state} state:\n  {wrong}"));
        }
        self.check_listings()
    }

    /// It must be one of both; returns whether the change was made.
    pub fn expect_either(&mut self, lax: Lax) -> std::result::Result<bool, String> {
        let tree = self.side.scan(1000);
        self.check_listings()?;
        let Some(not_old) = self.wrong(&tree, false, lax) else {
            // Some changes show in nothing.
            return Ok(false);
        };
        match self.wrong(&tree, true, lax) {
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
        leftovers(&mut self.side)
    }

    /// Names in the upper, those of users and others; numbers in names differ from upper to upper.
    pub fn names_in_upper(&self) -> Vec<Names> {
        let upper = self.side.options.upper.as_ref().unwrap();
        let tree = tree::scan(upper);
        let is_link = |path: &&Names| path.len() > 1 && path[0] == b".wh..wh.plnk";
        tree.keys().filter(|path| !is_link(path)).cloned().collect()
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

/// What is in the upper of a new mount beside what users see, and what keeps it so.
pub fn leftovers(side: &mut UnionSide) -> std::result::Result<(), String> {
    let names = |dir: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(dir).into_iter().flatten();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.collect()
    };
    let upper = side.options.upper.clone().unwrap();
    let work = side.options.work.as_ref().map(|work| work.join("work"));
    for dir in work.into_iter().chain([upper.join(".wh..wh.orph")]) {
        let left = names(&dir);
        if !left.is_empty() {
            return Err(format!("leftovers: {left:?}"));
        }
    }
    let links = names(&upper.join(".wh..wh.plnk"));
    if links.is_empty() {
        return Ok(());
    }
    let tree = side.scan(1000);
    for entry in links {
        let number = entry.split('.').next().unwrap_or_default().parse::<u64>();
        if !tree.values().any(|seen| Ok(seen.ino) == number) {
            return Err(format!("a pseudo-link of no name: {entry}"));
        }
    }
    Ok(())
}
