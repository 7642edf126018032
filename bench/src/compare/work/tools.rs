//! Workloads of programs that people use.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Context;
use crate::compare::Result;
use crate::compare::data;

/// Starts of an interpreter, of a compiler.
const PYTHON_STARTS: usize = 10;
const GCC_STARTS: usize = 5;
const STATUSES: usize = 5;
/// The kernel has a listing whole only after it was read a second time: the first time it comes with attributes.
const WARMING: usize = 2;

/// Runs a program without looking at what it prints; an error is what it says on stderr.
fn quiet(command: &mut Command) -> Result<()> {
    let output = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().last().unwrap_or_default();
    Err(format!(
        "{}: {}: {last}",
        command.get_program().display(),
        output.status
    )
    .into())
}

/// What a program prints.
fn printed(command: &mut Command) -> Result<String> {
    let output = command.env("LC_ALL", "C").stdin(Stdio::null()).output()?;
    let name = command.get_program().display();
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{name}: {}", output.status).into()),
    }
}

fn ensure(condition: bool, otherwise: impl Into<String>) -> Result<()> {
    match condition {
        true => Ok(()),
        false => Err(otherwise.into().into()),
    }
}

/// Stats everything below; gives the files.
pub(crate) fn walk(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut pending = vec![dir.to_path_buf()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let metadata = fs::symlink_metadata(&path)?;
            if metadata.is_dir() {
                pending.push(path);
            } else if metadata.is_file() {
                files.push(path);
            }
        }
    }
    Ok(files)
}

/// A number of objects that the merged tree has at least.
fn least(context: &Context) -> usize {
    context.sizes.files + context.sizes.entries
}

fn find_command(context: &Context) -> Command {
    let mut find = Command::new("find");
    // The size makes it look at every file. Not -xdev: overlayfs has several device numbers.
    find.arg(&context.root).args(["-size", "-100000G"]);
    find
}

pub(super) fn find_checked(context: &Context) -> Result<()> {
    let found = printed(&mut find_command(context))?.lines().count();
    ensure(
        found > least(context),
        format!("find sees only {found} objects"),
    )
}

/// Until it is hot.
fn warm(context: &Context, run: fn(&Context) -> Result<f64>) -> Result<()> {
    for _ in 0..WARMING {
        run(context)?;
    }
    Ok(())
}

pub(super) fn find_warm(context: &Context) -> Result<()> {
    warm(context, find)?;
    find_checked(context)
}

pub(super) fn find(context: &Context) -> Result<f64> {
    quiet(&mut find_command(context))?;
    Ok(0.0)
}

fn du_command(context: &Context) -> Command {
    let mut du = Command::new("du");
    du.args(["-s", "--apparent-size", "-k"]).arg(&context.root);
    du
}

fn du_checked(context: &Context) -> Result<()> {
    let text = printed(&mut du_command(context))?;
    let kib: u64 = text.split_whitespace().next().unwrap_or_default().parse()?;
    ensure(
        kib > context.sizes.large / 1024,
        format!("du sees only {kib} KiB"),
    )
}

pub(super) fn du_warm(context: &Context) -> Result<()> {
    warm(context, du)?;
    du_checked(context)
}

pub(super) fn du(context: &Context) -> Result<f64> {
    quiet(&mut du_command(context))?;
    Ok(0.0)
}

fn status_command(context: &Context) -> Command {
    let mut git = data::git(&context.srv("repo"));
    git.args(["status", "--porcelain"]);
    git
}

pub(super) fn git_status_checked(context: &Context) -> Result<()> {
    let changed = printed(&mut status_command(context))?;
    ensure(changed.is_empty(), "git status sees changes")
}

pub(super) fn git_status_warm(context: &Context) -> Result<()> {
    warm(context, git_status)?;
    git_status_checked(context)
}

pub(super) fn git_statuses(context: &Context) -> Result<f64> {
    for _ in 0..STATUSES {
        git_status(context)?;
    }
    Ok(0.0)
}

pub(super) fn git_status(context: &Context) -> Result<f64> {
    quiet(&mut status_command(context))?;
    Ok(0.0)
}

fn ls_command(context: &Context) -> Command {
    let mut ls = Command::new("ls");
    ls.arg("-lR").arg(&context.root);
    ls
}

fn ls_checked(context: &Context) -> Result<()> {
    let lines = printed(&mut ls_command(context))?.lines().count();
    ensure(
        lines > least(context),
        format!("ls prints only {lines} lines"),
    )
}

pub(super) fn ls_warm(context: &Context) -> Result<()> {
    warm(context, ls)?;
    ls_checked(context)
}

pub(super) fn ls(context: &Context) -> Result<f64> {
    quiet(&mut ls_command(context))?;
    Ok(0.0)
}

pub(super) fn make_target(context: &Context) -> Result<()> {
    Ok(fs::create_dir(context.srv("untarred"))?)
}

pub(super) fn untar(context: &Context) -> Result<f64> {
    let mut tar = Command::new("tar");
    tar.args(["-xp", "--numeric-owner", "-f"]);
    tar.arg(context.layers.join("untar.tar"));
    quiet(tar.arg("-C").arg(context.srv("untarred")))?;
    Ok(0.0)
}

pub(super) fn check_untar(context: &Context) -> Result<()> {
    let mut list = Command::new("tar");
    list.arg("-tf").arg(context.layers.join("untar.tar"));
    let expected = printed(&mut list)?.lines().count();
    let mut find = Command::new("find");
    let found = printed(find.arg(context.srv("untarred")))?.lines().count();
    // The top directory may or may not be a member.
    ensure(
        found.abs_diff(expected) <= 1,
        format!("{found} objects of {expected}"),
    )
}

pub(super) fn walk_tree(context: &Context) -> Result<()> {
    walk(&context.srv("tree"))?;
    Ok(())
}

fn gone(path: &Path) -> Result<()> {
    ensure(
        fs::symlink_metadata(path).is_err(),
        "the tree is still there",
    )
}

fn remove(path: &Path) -> Result<f64> {
    quiet(Command::new("rm").arg("-rf").arg(path))?;
    Ok(0.0)
}

pub(super) fn remove_tree(context: &Context) -> Result<f64> {
    remove(&context.srv("tree"))
}

pub(super) fn check_tree_gone(context: &Context) -> Result<()> {
    gone(&context.srv("tree"))
}

pub(super) fn copy_tree(context: &Context) -> Result<f64> {
    let mut copy = Command::new("cp");
    quiet(
        copy.arg("-a")
            .arg(context.srv("tree"))
            .arg(context.srv("copy")),
    )?;
    Ok(0.0)
}

pub(super) fn copy_tree_first(context: &Context) -> Result<()> {
    copy_tree(context)?;
    Ok(())
}

pub(super) fn check_copy(context: &Context) -> Result<()> {
    let mut diff = Command::new("diff");
    diff.args(["-r", "--no-dereference"]);
    quiet(diff.arg(context.srv("tree")).arg(context.srv("copy")))
}

pub(super) fn remove_copy(context: &Context) -> Result<f64> {
    remove(&context.srv("copy"))
}

pub(super) fn check_copy_gone(context: &Context) -> Result<()> {
    gone(&context.srv("copy"))
}

pub(super) fn chmod(context: &Context) -> Result<f64> {
    quiet(
        Command::new("chmod")
            .args(["-R", "o-rwx"])
            .arg(context.srv("tree")),
    )?;
    Ok(0.0)
}

pub(super) fn check_chmod(context: &Context) -> Result<()> {
    for file in walk(&context.srv("tree"))? {
        let mode = fs::symlink_metadata(file)?.permissions().mode();
        ensure(mode & 0o007 == 0, "a file has its old mode")?;
    }
    Ok(())
}

const APPENDED: &[u8] = b"one more line\n";

pub(super) fn append(context: &Context) -> Result<f64> {
    for file in walk(&context.srv("tree"))? {
        let mut file = OpenOptions::new().append(true).open(file)?;
        file.write_all(APPENDED)?;
    }
    Ok(0.0)
}

pub(super) fn check_append(context: &Context) -> Result<()> {
    let files = walk(&context.srv("tree"))?;
    ensure(!files.is_empty(), "there is no tree")?;
    for file in files {
        ensure(
            fs::read(file)?.ends_with(APPENDED),
            "a file has no new line",
        )?;
    }
    Ok(())
}

pub(super) fn compile(context: &Context) -> Result<f64> {
    let mut make = Command::new("make");
    quiet(make.args(["-s", "-j2", "-C"]).arg(context.srv("project")))?;
    Ok(0.0)
}

pub(super) fn check_compile(context: &Context) -> Result<()> {
    quiet(&mut Command::new(context.srv("project/program")))
}

/// A program of the Debian root, in it.
fn in_root(context: &Context, words: &[&str]) -> Command {
    let mut chroot = Command::new("chroot");
    chroot
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    chroot.arg(&context.root).args(words);
    chroot
}

fn start_python(context: &Context) -> Result<()> {
    let program = "import argparse, asyncio, email, json, subprocess";
    quiet(&mut in_root(context, &["python3", "-B", "-c", program]))
}

pub(super) fn python_once(context: &Context) -> Result<()> {
    start_python(context)
}

pub(super) fn python(context: &Context) -> Result<f64> {
    for _ in 0..PYTHON_STARTS {
        start_python(context)?;
    }
    Ok(0.0)
}

const HELLO: &str = "#include <stdio.h>\nint main(void) { puts(\"hello\"); return 0; }\n";

fn start_gcc(context: &Context) -> Result<()> {
    let words = ["gcc", "-c", "/srv/hello.c", "-o", "/srv/hello.o"];
    quiet(&mut in_root(context, &words))
}

pub(super) fn gcc_once(context: &Context) -> Result<()> {
    fs::write(context.srv("hello.c"), HELLO)?;
    start_gcc(context)?;
    Ok(fs::remove_file(context.srv("hello.o"))?)
}

pub(super) fn gcc(context: &Context) -> Result<f64> {
    for _ in 0..GCC_STARTS {
        start_gcc(context)?;
    }
    Ok(0.0)
}

pub(super) fn check_gcc(context: &Context) -> Result<()> {
    let object = fs::read(context.srv("hello.o"))?;
    ensure(object.starts_with(b"\x7fELF"), "gcc made no object file")
}
