//! `unionfs upgrade`: the program that is asked serves the mount from then on.
//!
//! It is executed with the arguments of the one before, and told in a file without a name which
//! descriptors it goes on with. First by a new server: only when that serves does the process that
//! keeps the mount become the new program too. So one that refuses, fails or is none of ours costs
//! the mount nothing but the time: the program before serves on.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::MemfdFlags;

use super::Failure;
use crate::sys::ioctl::{CONTROL_WORDS, UPGRADE, control_with};
use crate::sys::{Errno, handover};

/// Holds the number of the file that says what is passed on.
const VARIABLE: &str = "UNIONFS_KEPT";

/// The program that was to serve ended before it did.
pub(super) const REFUSED: Errno = Errno::PROTO;

/// Has this program serve the mount at `mountpoint`.
///
/// # Errors
/// When it is none of ours, was not mounted with `supervise`, or this program cannot be executed or
/// does not begin to serve. Then the one before serves on.
pub fn upgrade(mountpoint: &Path) -> Result<(), Failure> {
    let fail = |reason: &dyn std::fmt::Display| {
        Failure::new(format_args!("upgrade {}: {reason}", mountpoint.display()))
    };
    let program = std::env::current_exe().map_err(|error| fail(&error))?;
    let mut path = program.into_os_string().into_vec();
    path.push(0);
    if path.len() > CONTROL_WORDS * 8 {
        return Err(fail(&"the path of this program is too long"));
    }
    let mut words = [0; CONTROL_WORDS];
    for (word, bytes) in words.iter_mut().zip(path.chunks(8)) {
        let mut whole = [0; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_ne_bytes(whole);
    }
    let root = File::open(mountpoint).map_err(|error| fail(&error))?;
    match control_with(&root, UPGRADE, words) {
        Ok(_) => Ok(()),
        Err(Errno::OPNOTSUPP) => Err(fail(&"it was not mounted with the option supervise")),
        Err(Errno::NOTTY) => Err(fail(&"not the root of a union")),
        Err(REFUSED) => Err(fail(
            &"this program could not go on with it (the log says why); the one before serves on",
        )),
        Err(errno) => Err(fail(&io::Error::from(errno))),
    }
}

/// What is passed on, as lines of words.
#[derive(Debug, Default)]
pub(super) struct Kept {
    text: Vec<u8>,
}

impl Kept {
    /// Adds a line: what it is, a number, and a descriptor to be passed on.
    pub fn add(&mut self, what: &str, number: (u64, u64), fd: impl AsFd) -> io::Result<()> {
        let fd = handover::pass_on(fd)?;
        writeln!(self.text, "{what} {} {} {fd}", number.0, number.1)
    }

    /// Adds a line with a name, which may hold any byte but NUL.
    pub fn add_name(&mut self, what: &str, name: &OsStr) -> io::Result<()> {
        let bytes = name.as_bytes().iter();
        let name: String = bytes.map(|byte| format!("{byte:02x}")).collect();
        writeln!(self.text, "{what} {name}")
    }

    /// Executes `program` with the arguments of this one. Returns only if that fails.
    pub fn execute(self, program: &Path) -> io::Error {
        let executed = || -> io::Result<io::Error> {
            let file = rustix::fs::memfd_create(c"unionfs-kept", MemfdFlags::empty())?;
            let number = handover::pass_on(&file)?;
            File::from(file.try_clone()?).write_all(&self.text)?;
            let mut args = std::env::args_os();
            let name = args.next().unwrap_or_else(|| OsString::from("unionfs"));
            let mut command = Command::new(program);
            command
                .arg0(name)
                .args(args)
                .env(VARIABLE, number.to_string());
            Ok(command.exec())
        };
        executed().unwrap_or_else(|error| error)
    }
}

/// A line of what was passed on.
#[derive(Debug)]
pub(super) enum Line {
    /// What it is, two numbers, and the descriptor.
    Descriptor(String, (u64, u64), OwnedFd),
    /// What it is, and a name.
    Name(String, PathBuf),
}

/// What the program that executed this one has passed on; `None` when there is nothing. To be
/// called before anything is opened.
pub(super) fn inherited() -> Option<io::Result<Vec<Line>>> {
    let number = std::env::var(VARIABLE).ok()?.parse().ok()?;
    Some(read(number))
}

fn read(number: i32) -> io::Result<Vec<Line>> {
    let mut file = File::from(handover::take_over(number)?);
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let line = |line: &str| -> io::Result<Line> {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            [what, name] => {
                let bytes = (0..name.len() / 2).map(|n| name.get(2 * n..2 * n + 2));
                let bytes = bytes.map(|hex| u8::from_str_radix(hex?, 16).ok());
                let bytes: Option<Vec<u8>> = bytes.collect();
                let name = OsString::from_vec(bytes.ok_or_else(malformed)?);
                Ok(Line::Name((*what).to_owned(), name.into()))
            }
            [what, first, second, fd] => {
                let number = |word: &str| word.parse::<u64>().map_err(|_| malformed());
                let fd = fd.parse().map_err(|_| malformed())?;
                let numbers = (number(first)?, number(second)?);
                let fd = handover::take_over(fd)?;
                Ok(Line::Descriptor((*what).to_owned(), numbers, fd))
            }
            _ => Err(malformed()),
        }
    };
    text.lines().map(line).collect()
}
