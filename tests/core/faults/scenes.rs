//! What is done while something fails: each kind of change, on each kind of object.

use rustix::fs::FileType;
use unionfs::options::ownership::Records;
use unionfs::options::{Options, RenameDir};

use crate::ops::{Action, Do, Object, SetTo};
use crate::tree::Names;

/// One change, and what comes before it.
pub struct Scene {
    /// Done and settled before; the union is mounted anew afterwards.
    pub before: Vec<Do>,
    /// Opened in the same mount as the change.
    pub open: Vec<Do>,
    pub change: Do,
    pub set: fn(&mut Options),
}

pub fn path(text: &str) -> Names {
    text.split('/')
        .map(|name| name.as_bytes().to_vec())
        .collect()
}

fn create(name: &str) -> Do {
    Do::Create {
        path: path(name),
        mode: 0o640,
        exclusive: false,
        data: Vec::new(),
    }
}

fn mkdir(name: &str) -> Do {
    Do::Mkdir {
        path: path(name),
        mode: 0o750,
    }
}

fn mknod(name: &str, kind: FileType, rdev: u64) -> Do {
    Do::Mknod {
        path: path(name),
        kind,
        mode: 0o600,
        rdev,
    }
}

fn fifo(name: &str) -> Do {
    mknod(name, FileType::Fifo, 0)
}

fn make_link(name: &str) -> Do {
    Do::Symlink {
        path: path(name),
        target: b"somewhere".to_vec(),
    }
}

fn unlink(name: &str) -> Do {
    Do::Unlink { path: path(name) }
}

fn rmdir(name: &str) -> Do {
    Do::Rmdir { path: path(name) }
}

fn rename(from: &str, to: &str) -> Do {
    with_flags(from, to, 0)
}

const NOREPLACE: u32 = 1;
const EXCHANGE: u32 = 2;
const WHITEOUT: u32 = 4;

fn with_flags(from: &str, to: &str, flags: u32) -> Do {
    Do::Rename {
        from: path(from),
        to: path(to),
        flags,
    }
}

fn link(from: &str, to: &str) -> Do {
    Do::Link {
        from: Object::Path(path(from)),
        to: path(to),
    }
}

fn on(name: &str, action: Action) -> Do {
    Do::On {
        object: Object::Path(path(name)),
        action,
    }
}

fn on_open(action: Action) -> Do {
    Do::On {
        object: Object::Kept(0),
        action,
    }
}

fn keep(name: &str) -> Do {
    Do::Keep { path: path(name) }
}

fn write() -> Action {
    Action::Write {
        offset: 2,
        data: b"NEW".to_vec(),
    }
}

fn chmod() -> Action {
    Action::Chmod { mode: 0o604 }
}

fn own() -> Action {
    Action::Chown {
        uid: Some(2000),
        gid: Some(2001),
    }
}

fn times() -> Action {
    Action::Times {
        atime: SetTo::At((7, 8)),
        mtime: SetTo::At((900_000_000, 9)),
    }
}

fn set_attr() -> Action {
    Action::SetXattr {
        attr: "user.b",
        value: b"2".to_vec(),
        flags: 0,
    }
}

fn drop_attr() -> Action {
    Action::RemoveXattr { attr: "user.a" }
}

fn cut(size: u64) -> Action {
    Action::Cut { size }
}

fn cut_open(size: u64) -> Action {
    Action::Truncate { size }
}

fn allocate() -> Action {
    Action::Allocate {
        mode: 0,
        offset: 0,
        len: 30_000,
    }
}

fn plainly(_: &mut Options) {}

fn metacopy(options: &mut Options) {
    options.metacopy = true;
}

fn redirect(options: &mut Options) {
    options.rename_dir = RenameDir::Redirect;
}

fn exdev(options: &mut Options) {
    options.rename_dir = RenameDir::Exdev;
}

fn records(options: &mut Options) {
    options.ownership.records = Records::User;
}

fn separate(options: &mut Options) {
    options.separate_whiteouts = true;
    options.always_opaque = true;
}

/// All scenes; they are told from each other by their place.
pub fn all() -> Vec<Scene> {
    let mut scenes = Vec::new();
    let mut add = |set: fn(&mut Options), before: Vec<Do>, change: Do| {
        scenes.push(Scene {
            before,
            open: Vec::new(),
            change,
            set,
        });
    };
    making(&mut add);
    removing(&mut add);
    renaming(&mut add);
    renaming_directories(&mut add);
    changing(&mut add);
    linked(&mut add);
    data_elsewhere(&mut add);
    for (name, change) in [
        ("f", unlink("f")),
        ("d", rename("d", "moved")),
        ("e", rmdir("e")),
        ("f", rename("g", "f")),
        ("a", unlink("a")),
        ("p", on_open(write())),
    ] {
        scenes.push(Scene {
            before: vec![],
            open: vec![keep(name)],
            change,
            set: plainly,
        });
    }
    scenes.extend(unlinked());
    scenes
}

type Add<'a> = &'a mut dyn FnMut(fn(&mut Options), Vec<Do>, Do);

fn making(add: Add<'_>) {
    for make in [create, mkdir, fifo, make_link] {
        for set in [plainly as fn(&mut Options), records] {
            add(set, vec![], make("n"));
            add(set, vec![], make("d/sub/n"));
            add(set, vec![unlink("f")], make("f"));
            add(set, vec![unlink("w/x"), rmdir("w")], make("w"));
        }
        add(separate, vec![unlink("d/x")], make("d/x"));
        add(plainly, vec![mkdir("n")], make("n/n"));
    }
    add(
        plainly,
        vec![],
        mknod("n", FileType::CharacterDevice, libc::makedev(1, 5)),
    );
    for old in ["f", "s", "fifo", "set-id"] {
        add(plainly, vec![], link(old, "d/n"));
        add(plainly, vec![unlink("g")], link(old, "g"));
    }
    add(plainly, vec![create("n")], link("n", "d/n"));
}

fn removing(add: Add<'_>) {
    for set in [plainly as fn(&mut Options), records, separate] {
        add(set, vec![], unlink("f"));
        add(set, vec![], rmdir("e"));
        add(set, vec![on("f", write())], unlink("f"));
        add(set, vec![unlink("w/x")], rmdir("w"));
    }
    add(plainly, vec![], unlink("d/sub/y"));
    add(plainly, vec![], unlink("s"));
    add(plainly, vec![create("n")], unlink("n"));
    add(plainly, vec![create("n"), link("n", "d/n")], unlink("n"));
    add(plainly, vec![unlink("f"), create("f")], unlink("f"));
    add(plainly, vec![mkdir("n")], rmdir("n"));
    add(plainly, vec![on("e", chmod())], rmdir("e"));
    add(plainly, vec![rmdir("e"), mkdir("e")], rmdir("e"));
    let empty_merged = ["m/0", "m/1", "m/sub/0", "m/sub/1"].map(unlink);
    let mut before = empty_merged.to_vec();
    add(plainly, before.clone(), rmdir("m/sub"));
    before.push(rmdir("m/sub"));
    add(plainly, before, rmdir("m"));
}

fn renaming(add: Add<'_>) {
    for set in [plainly as fn(&mut Options), records] {
        add(set, vec![], rename("f", "n"));
        add(set, vec![], rename("f", "g"));
        add(set, vec![], rename("f", "d/x"));
        add(set, vec![], with_flags("f", "d/x", EXCHANGE));
    }
    add(plainly, vec![], rename("s", "d/n"));
    add(plainly, vec![], rename("fifo", "n"));
    add(plainly, vec![], with_flags("f", "n", NOREPLACE));
    add(plainly, vec![], with_flags("f", "n", WHITEOUT));
    add(plainly, vec![create("n")], with_flags("n", "n2", WHITEOUT));
    add(plainly, vec![create("n")], rename("n", "n2"));
    add(plainly, vec![create("n")], rename("n", "f"));
    add(plainly, vec![create("n"), create("n2")], rename("n", "n2"));
    add(plainly, vec![unlink("g")], rename("f", "g"));
    add(plainly, vec![unlink("f"), create("f")], rename("f", "n"));
    add(plainly, vec![], with_flags("f", "s", EXCHANGE));
    add(plainly, vec![create("n")], with_flags("n", "f", EXCHANGE));
    add(separate, vec![], rename("f", "g"));
}

fn renaming_directories(add: Add<'_>) {
    for set in [plainly as fn(&mut Options), redirect, records] {
        add(set, vec![], rename("d", "n"));
        add(set, vec![], rename("m", "n"));
        add(
            set,
            vec![on("m/0", write()), unlink("m/1")],
            rename("m", "n"),
        );
        add(set, vec![], rename("m", "e"));
        add(set, vec![], rename("m", "d/n"));
        add(set, vec![unlink("w/x"), rmdir("w")], rename("m", "w"));
        add(set, vec![unlink("w/x")], rename("m", "w"));
        add(set, vec![], with_flags("m", "d/sub", EXCHANGE));
        add(set, vec![], with_flags("d", "f", EXCHANGE));
        add(set, vec![rename("m", "n")], rename("n", "m"));
        add(set, vec![rename("m", "n")], rename("n", "d/m"));
        add(set, vec![], with_flags("d", "n", WHITEOUT));
    }
    for set in [plainly as fn(&mut Options), exdev] {
        add(set, vec![mkdir("n"), create("n/f")], rename("n", "n2"));
        add(set, vec![mkdir("n"), create("n/f")], rename("n", "e"));
        add(set, vec![mkdir("n"), unlink("w/x")], rename("n", "w"));
        add(set, vec![mkdir("n"), on("e", chmod())], rename("n", "e"));
    }
}

fn changing(add: Add<'_>) {
    let set_times = || Action::Times {
        atime: SetTo::Omit,
        mtime: SetTo::Now,
    };
    for set in [plainly as fn(&mut Options), records] {
        for action in [
            write(),
            chmod(),
            own(),
            times(),
            set_attr(),
            drop_attr(),
            cut(0),
            cut(3),
            cut(100),
            cut_open(3),
            Action::OpenTruncate,
            allocate(),
        ] {
            add(set, vec![], on("f", action.clone()));
            add(set, vec![chmod_of("f")], on("f", action));
        }
        for action in [
            chmod(),
            own(),
            times(),
            set_attr(),
            drop_attr(),
            set_times(),
        ] {
            add(set, vec![], on("d", action));
        }
    }
    // The size stays, the time does not.
    let old = vec![create("n"), on("n", times())];
    add(plainly, old, on("n", cut_open(0)));
    for name in ["set-id", "d/sub/y"] {
        for action in [write(), own(), cut(3), Action::OpenTruncate] {
            add(plainly, vec![], on(name, action));
        }
    }
    add(plainly, vec![chmod_of("set-id")], on("set-id", own()));
    for name in ["fifo", "socket", "null"] {
        add(plainly, vec![], on(name, chmod()));
        add(plainly, vec![], on(name, own()));
    }
    add(plainly, vec![], on("s", own()));
    add(plainly, vec![], on("s", times()));
    add(
        plainly,
        vec![chmod_of("f")],
        on("f", Action::Sync { data_only: false }),
    );
    add(
        plainly,
        vec![chmod_of("f")],
        on("f", Action::Sync { data_only: true }),
    );
    add(
        plainly,
        vec![],
        Do::CopyRange {
            from: Object::Path(path("g")),
            from_offset: 0,
            to: Object::Path(path("f")),
            to_offset: 1,
            len: 4,
        },
    );
}

fn chmod_of(name: &str) -> Do {
    on(name, Action::Chmod { mode: 0o755 })
}

/// Files of several names in a lower.
fn linked(add: Add<'_>) {
    let w = |name| on(name, write());
    for (before, change) in [
        (vec![], on("a", chmod())),
        (vec![], w("a")),
        (vec![], unlink("b")),
        (vec![], link("a", "d/n")),
        (vec![], rename("a", "n")),
        (vec![], rename("f", "b")),
        (vec![], with_flags("f", "d/c", EXCHANGE)),
        (vec![unlink("b")], on("a", chmod())),
        (vec![unlink("p")], unlink("q")),
        (vec![unlink("p")], rename("f", "q")),
        (vec![w("a")], unlink("a")),
        (vec![w("a")], unlink("d/c")),
        (vec![w("a")], rename("d/c", "n")),
        (vec![w("a")], rename("f", "d/c")),
        (vec![w("a")], link("b", "d/n")),
        (vec![w("p"), unlink("p")], unlink("q")),
        (vec![w("p"), unlink("p")], rename("f", "q")),
        (vec![w("p"), unlink("q")], create("q")),
        (vec![w("a")], Do::Flush),
        (vec![w("a"), w("p"), unlink("p")], Do::Flush),
        (vec![], rename("d", "moved")),
        (vec![w("a")], rename("d", "moved")),
        (vec![], on("s1", own())),
        (vec![on("s1", own())], unlink("s2")),
    ] {
        add(plainly, before.clone(), change.clone());
        add(redirect, before, change);
    }
}

/// Files whose data stay in a lower.
fn data_elsewhere(add: Add<'_>) {
    for action in [chmod(), own(), times(), set_attr(), cut(100), write()] {
        add(metacopy, vec![], on("large", action));
    }
    for action in [
        write(),
        cut(100),
        cut(0),
        cut(50_000),
        cut_open(100),
        Action::OpenTruncate,
        own(),
        allocate(),
    ] {
        add(metacopy, vec![on("large", chmod())], on("large", action));
    }
    for change in [
        rename("large", "n"),
        rename("large", "d/sub/n"),
        link("large", "n"),
        unlink("large"),
        rename("f", "large"),
        with_flags("large", "f", EXCHANGE),
    ] {
        add(metacopy, vec![], change.clone());
        add(metacopy, vec![on("large", chmod())], change);
    }
    add(metacopy, vec![on("d/large", chmod())], rename("d", "n"));
    let both = |options: &mut Options| {
        metacopy(options);
        redirect(options);
    };
    add(both, vec![on("d/large", chmod())], rename("d", "n"));
}

/// Objects without a name, which are gone when they are closed.
fn unlinked() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for (name, gone, action) in [
        ("f", unlink("f"), write()),
        ("f", unlink("f"), chmod()),
        ("a", unlink("a"), write()),
        ("e", rmdir("e"), chmod()),
    ] {
        scenes.push(Scene {
            before: vec![],
            open: vec![keep(name), gone],
            change: on_open(action),
            set: plainly,
        });
    }
    // The last of several names, of a file that is in the upper.
    scenes.push(Scene {
        before: vec![on("p", write()), unlink("p")],
        open: vec![keep("q")],
        change: unlink("q"),
        set: plainly,
    });
    scenes
}
