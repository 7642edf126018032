//! How many requests each operation on data sends where the kernel reads and writes files itself.
//! Counts are those of Linux 6.18; what has to do with names alone is in `budgets`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::requests::Counter;
use crate::support::{Mount, Stack};

struct Counted {
    // Dropped first: it keeps the mount busy.
    counter: Counter,
    m: Mount,
    wrong: Vec<String>,
}

impl Counted {
    fn new() -> Self {
        let files = ["f", "g", "t", "busy", "mode"];
        let files = files.map(|name| format!("d/{name}=text"));
        let m = Stack::new()
            .lower(files.into_iter().chain(["warm=1".to_owned()]))
            .mount_with("open=passthrough");
        let counter = Counter::new(&m);
        // What a connection learns once is learned, and the upper has its directory.
        fs::read_dir(m.path()).unwrap().for_each(drop);
        fs::write(m.p("warm"), "2").unwrap();
        fs::write(m.p("d/warm"), "1").unwrap();
        fs::read(m.p("d/warm")).unwrap();
        Self {
            counter,
            m,
            wrong: Vec::new(),
        }
    }

    /// Expects what `work` in the directory sends, with the question for the directory's attributes
    /// that follows a change of it.
    fn sends(&mut self, what: &str, expected: &str, work: impl FnOnce(&Path)) {
        let dir = self.m.p("d");
        fs::metadata(&dir).unwrap();
        let sent = self.counter.of(|| {
            work(&dir);
            fs::metadata(&dir).unwrap();
        });
        if sent != expected {
            self.wrong
                .push(format!("{what}: {sent}, expected {expected}"));
        }
    }

    fn know(&self, name: &str) {
        self.m.stat(&format!("d/{name}")).unwrap();
    }
}

fn stat(path: impl AsRef<Path>) {
    rustix::fs::lstat(path.as_ref()).unwrap();
}

fn read(path: &Path) {
    let file = crate::process::open_file(path, OFlags::RDONLY, Mode::empty()).unwrap();
    assert!(rustix::io::read(file, &mut [0; 100]).unwrap() > 0);
}

fn write(path: &Path, how: OFlags) {
    let file = crate::process::open_file(path, how, Mode::from_raw_mode(0o644)).unwrap();
    for _ in 0..100 {
        assert_eq!(rustix::io::write(&file, b"text"), Ok(4));
    }
}

#[test]
fn data() {
    // Where the kernel dropped something of its caches meanwhile, more is sent; so what is wrong must be
    // wrong each time.
    let mut wrong = Vec::new();
    for _ in 0..6 {
        wrong = check();
        if wrong.is_empty() {
            break;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn check() -> Vec<String> {
    let mut c = Counted::new();
    let plain = OFlags::WRONLY;
    c.sends("open-read-close, first", "Lookup Open Release", |d| {
        read(&d.join("f"));
    });
    c.sends("open-read-close, again", "Open Release", |d| {
        read(&d.join("f"));
    });
    c.sends("stat after reading", "Getattr", |d| stat(d.join("f")));
    c.sends("stat again", "", |d| stat(d.join("f")));
    // It was looked at after it was read: from now on the kernel keeps its data, and then its attributes.
    c.sends("open-read-close, kept", "Open Read Release", |d| {
        read(&d.join("f"));
    });
    c.sends("stat after that", "Getattr", |d| stat(d.join("f")));
    c.sends("open-read-close and stat", "Open Release", |d| {
        read(&d.join("f"));
        stat(d.join("f"));
    });
    let new = "Lookup Getattr Release Getxattr Create";
    c.sends("create, write, close", new, |d| {
        write(&d.join("new"), plain | OFlags::CREATE);
    });
    c.sends("stat of it", "Getattr", |d| stat(d.join("new")));
    // For reading, too: it may be mapped, but not while it is empty.
    c.sends("create for reading, too", new, |d| {
        write(&d.join("both"), OFlags::RDWR | OFlags::CREATE);
    });
    c.sends("stat of that", "Getattr", |d| stat(d.join("both")));
    c.sends("unlink of it", "Getattr Unlink", |d| {
        fs::remove_file(d.join("both")).unwrap();
    });
    // After new attributes the kernel asks for capabilities once.
    c.sends("write again", "Open Release Getxattr", |d| {
        write(&d.join("new"), plain);
    });
    c.know("g");
    c.sends("write, first", "Open Release Getxattr", |d| {
        write(&d.join("g"), plain);
    });
    c.sends("append", "Open Release", |d| {
        write(&d.join("g"), plain | OFlags::APPEND);
    });
    c.know("t");
    let cut = "Open Release Getxattr*2";
    c.sends("replace", cut, |d| {
        write(&d.join("t"), plain | OFlags::TRUNC);
    });
    c.know("busy");
    // The old node, its name again, the new one. Attributes of neither are kept.
    let busy = c.m.open("d/busy", OFlags::RDONLY).unwrap();
    let switched = "Lookup*3 Getattr Open*2 Release Getxattr";
    c.sends("write while open", switched, |d| {
        write(&d.join("busy"), plain);
    });
    drop(busy);
    c.know("mode");
    c.sends("set-id", "Setattr", |d| {
        fs::set_permissions(d.join("mode"), Permissions::from_mode(0o4755)).unwrap();
    });
    // Who may keep the bits is for the daemon to say.
    c.sends("write with set-id", "Getattr Open Write*100 Release", |d| {
        write(&d.join("mode"), plain);
    });
    std::mem::take(&mut c.wrong)
}
