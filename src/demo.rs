//! `unionfs demo`: a small stack of layers, mounted, changed, and shown as it was and as it is.

mod child;
mod screen;
mod stack;
mod tree;

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::daemon::Failure;
use screen::Screen;
use stack::Stack;
use tree::Tree;

/// Shows the demonstration on stdout. Everything is in a temporary directory, which is gone
/// afterwards, whatever happens.
///
/// # Errors
/// When it cannot mount, or something was not as it should be.
pub fn run() -> Result<(), Failure> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // Only a mark, looked at between steps: what was built must be taken down.
        signal_hook::flag::register(signal, Arc::clone(&interrupted)).map_err(Failure::new)?;
    }
    let stack = Stack::build().map_err(|e| failed("build the layers", &e))?;
    let outcome = show(&stack, &interrupted);
    let cleaned = stack
        .remove()
        .map_err(|e| failed("remove the temporary directory", &e));
    match (outcome, cleaned) {
        (Err(first), Err(second)) => Err(Failure::new(format_args!("{first}; {second}"))),
        (outcome, cleaned) => outcome.and(cleaned),
    }
}

fn failed(what: &str, error: &io::Error) -> Failure {
    Failure::new(format_args!("demo: cannot {what}: {error}"))
}

/// One change and what to say about it.
struct Step {
    title: &'static str,
    /// What a user would have typed, with `M` for the mountpoint.
    command: &'static str,
    comment: &'static str,
    change: fn(&Path) -> io::Result<()>,
}

const STEPS: [Step; 3] = [
    Step {
        title: "Copy-up",
        command: "echo 'changed' >> M/etc/motd",
        comment: "A lower is never written: the file is copied to the upper, then changed there.",
        change: |root| {
            fs::OpenOptions::new()
                .append(true)
                .open(root.join("etc/motd"))?
                .write_all(b"changed\n")
        },
    },
    Step {
        title: "Whiteout",
        command: "rm M/share/guide.txt",
        comment: "A lower cannot lose a file: a marker in the upper hides it instead.",
        change: |root| fs::remove_file(root.join("share/guide.txt")),
    },
    Step {
        title: "Opaque directory",
        command: "rm -r M/games; mkdir M/games; echo 'new' > M/games/tetris",
        comment: "The new directory must not show what lies below it, so it is marked opaque.",
        change: |root| {
            let games = root.join("games");
            fs::remove_dir_all(&games)?;
            fs::create_dir(&games)?;
            fs::write(games.join("tetris"), "new\n")
        },
    },
];

fn show(stack: &Stack, interrupted: &AtomicBool) -> Result<(), Failure> {
    let screen = &mut Screen::new();
    introduce(stack, screen).map_err(|e| failed("show the layers", &e))?;
    let (mut mount, how) = child::mount(stack, interrupted)?;
    let outcome = change(stack, &how, screen, interrupted);
    let unmounted = mount.unmount();
    outcome?;
    unmounted?;
    check_lowers(stack)?;
    finish(screen).map_err(|e| failed("write to the screen", &e))
}

fn introduce(stack: &Stack, screen: &mut Screen) -> io::Result<()> {
    screen.title("The layers")?;
    screen.text("Three directories. Lowers are only read; the upper takes all changes.")?;
    let columns = [
        ("upper (writable)", Tree::read(&stack.upper())?.marked()),
        ("lower 1 (on top)", Tree::read(&stack.lower(1))?.marked()),
        ("lower 2 (bottom)", Tree::read(&stack.lower(2))?.marked()),
    ];
    screen.columns(&columns)
}

fn change(
    stack: &Stack, how: &str, screen: &mut Screen, interrupted: &AtomicBool,
) -> Result<(), Failure> {
    let merged = stack.mountpoint();
    let cannot_show = |e: io::Error| failed("show the mount", &e);
    let sources = stack.sources();
    let mut view = Tree::read(&merged).map_err(cannot_show)?;
    let mut upper = Tree::read(&stack.upper()).map_err(cannot_show)?;
    let first = (|| {
        screen.title("Merging")?;
        screen.command("unionfs -o lowerdir=LOWER1:LOWER2,upperdir=UPPER M")?;
        screen.text(how)?;
        screen.text("Directories of the same name are merged; of files the top one is seen.")?;
        screen.columns(&[("M, the merged view", view.with_notes(&sources))])
    })();
    first.map_err(cannot_show)?;
    for (number, step) in STEPS.iter().enumerate() {
        if interrupted.load(Ordering::Relaxed) {
            return Err(Failure::new("demo: interrupted"));
        }
        (step.change)(&merged).map_err(|error| {
            Failure::new(format_args!("demo: {} failed: {error}", step.command))
        })?;
        let new_view = Tree::read(&merged).map_err(cannot_show)?;
        let new_upper = Tree::read(&stack.upper()).map_err(cannot_show)?;
        let shown = (|| {
            screen.title(step.title)?;
            screen.command(step.command)?;
            screen.text(step.comment)?;
            screen.columns(&[
                ("M before", view.plain()),
                ("M after", new_view.compared(&view)),
            ])?;
            screen.columns(&[
                ("upper before", upper.plain()),
                ("upper after", new_upper.marked_against(&upper, &view)),
            ])
        })();
        shown.map_err(cannot_show)?;
        stack.check(number, &new_view)?;
        (view, upper) = (new_view, new_upper);
    }
    Ok(())
}

fn check_lowers(stack: &Stack) -> Result<(), Failure> {
    match stack.lowers_unchanged() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::new(
            "demo: a lower was changed, which must never happen",
        )),
        Err(error) => Err(failed("read the lowers again", &error)),
    }
}

fn finish(screen: &mut Screen) -> io::Result<()> {
    screen.title("The end")?;
    screen
        .text("Unmounted. Both lowers are byte for byte what they were; all changes are in the")?;
    screen.text("upper. Mounted again over the same layers, M would look as it did last.")?;
    screen.text("The temporary directory is removed.")
}
