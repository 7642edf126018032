//! The trees that are worked on: what is in the layers beside a Debian root.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Result;

/// How much of everything there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Files of 4 KiB that are opened, created, removed.
    pub files: usize,
    /// Entries of the one large directory.
    pub entries: usize,
    /// Bytes of the file that is read.
    pub large: u64,
    /// Bytes of the file that is copied up.
    pub huge: u64,
    /// Bytes written in small pieces, and in large ones.
    pub written: (u64, u64),
    /// C files and headers of the project that is compiled.
    pub project: (usize, usize),
    /// Files of the tree that is copied and removed, when there is no Debian root to take it from.
    pub tree: usize,
}

const MIB: u64 = 1 << 20;
/// Small files stand this many to a directory.
const PER_DIR: usize = 100;
pub(crate) const FILE_SIZE: usize = 4096;

impl Sizes {
    pub(crate) fn new(small: bool) -> Self {
        match small {
            true => Self {
                files: 200,
                entries: 500,
                large: 4 * MIB,
                huge: 64 * MIB,
                written: (MIB, 4 * MIB),
                project: (3, 5),
                tree: 100,
            },
            false => Self {
                files: 5000,
                entries: 20_000,
                large: 256 * MIB,
                huge: 1024 * MIB,
                written: (64 * MIB, 256 * MIB),
                project: (60, 120),
                tree: 4000,
            },
        }
    }

    /// Paths of the small files, below `dir`.
    pub(crate) fn small_files(&self, dir: &Path) -> Vec<PathBuf> {
        let path = |n: usize| dir.join(format!("d{:03}/file-{n:05}", n / PER_DIR));
        (0..self.files).map(path).collect()
    }

    /// Names that are not there, in the directories of the small files.
    pub(crate) fn missing_files(&self, dir: &Path) -> Vec<PathBuf> {
        let path = |n: usize| dir.join(format!("d{:03}/missing-{n:05}", n / PER_DIR));
        (0..self.files).map(path).collect()
    }

    /// The directories of the small files.
    pub(crate) fn small_dirs(&self, dir: &Path) -> Vec<PathBuf> {
        let count = self.files.div_ceil(PER_DIR);
        (0..count).map(|n| dir.join(format!("d{n:03}"))).collect()
    }
}

/// Writes `bytes` of something that is no hole and does not compress to nothing.
pub(crate) fn fill(file: &mut File, bytes: u64, piece: usize) -> Result<()> {
    let block = block(piece);
    let mut left = bytes;
    while left > 0 {
        let now = usize::try_from(left.min(piece as u64))?;
        file.write_all(&block[..now])?;
        left -= now as u64;
    }
    Ok(())
}

/// So many bytes.
pub(crate) fn block(bytes: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut block = Vec::with_capacity(bytes + 8);
    while block.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        block.extend_from_slice(&state.to_le_bytes());
    }
    block.truncate(bytes);
    block
}

/// Small files in directories.
pub(crate) fn make_small(dir: &Path, sizes: &Sizes) -> Result<()> {
    for dir in sizes.small_dirs(dir) {
        fs::create_dir_all(dir)?;
    }
    let content = block(FILE_SIZE);
    for path in sizes.small_files(dir) {
        fs::write(path, &content)?;
    }
    Ok(())
}

/// What the workloads need, into `srv` of the layers; the last one is on top.
pub(crate) fn make(layers: &[PathBuf], sizes: &Sizes, debian: bool) -> Result<()> {
    let top = |name: &str| layers[layers.len() - 1].join("srv").join(name);
    for layer in layers {
        fs::create_dir_all(layer.join("srv/tree"))?;
    }
    make_small(&layers[1].join("srv/small"), sizes)?;
    let many = layers[2].join("srv/many");
    fs::create_dir_all(&many)?;
    for n in 0..sizes.entries {
        File::create(many.join(format!("entry-number-{n:06}")))?;
    }
    fill(&mut File::create(top("large"))?, sizes.large, 1 << 20)?;
    fill(&mut File::create(top("huge"))?, sizes.huge, 1 << 20)?;
    make_tree(layers, sizes, debian)?;
    make_project(&top("project"), sizes)?;
    make_repository(layers, &top("repo"))
}

/// A tree of which three layers have parts.
fn make_tree(layers: &[PathBuf], sizes: &Sizes, debian: bool) -> Result<()> {
    if debian {
        for (layer, from) in [(1, "usr/include"), (2, "usr/lib/python3.11")] {
            let to = layers[layer].join("srv/tree");
            super::command(
                Command::new("cp")
                    .arg("-a")
                    .arg(layers[layer].join(from))
                    .arg(to),
            )?;
        }
        return Ok(());
    }
    let few = Sizes {
        files: sizes.tree / 2,
        ..*sizes
    };
    make_small(&layers[1].join("srv/tree/one"), &few)?;
    make_small(&layers[2].join("srv/tree/two"), &few)
}

/// C files, each of which includes all headers.
fn make_project(dir: &Path, sizes: &Sizes) -> Result<()> {
    let (sources, headers) = sizes.project;
    fs::create_dir_all(dir.join("include"))?;
    let mut includes = String::new();
    for n in 0..headers {
        let text = format!(
            "#ifndef H{n}\n#define H{n}\n#include <stddef.h>\nstruct s{n} {{ int a; long b[{}]; }};\n\
             static inline long f{n}(struct s{n} *s) {{ return s->a + s->b[0] + {n}; }}\n#endif\n",
            n + 1
        );
        fs::write(dir.join(format!("include/part{n}.h")), text)?;
        includes.push_str(&format!("#include \"part{n}.h\"\n"));
    }
    let mut objects = String::new();
    for n in 0..sources {
        let part = n % headers;
        let text =
            format!("{includes}long g{n}(struct s{part} *s) {{ return f{part}(s) * {n}; }}\n");
        fs::write(dir.join(format!("unit{n}.c")), text)?;
        objects.push_str(&format!(" unit{n}.o"));
    }
    fs::write(dir.join("main.c"), "int main(void) { return 0; }\n")?;
    let makefile = format!(
        "CFLAGS = -O1 -Iinclude\nOBJECTS = main.o{objects}\n\
         program: $(OBJECTS)\n\t$(CC) -o $@ $(OBJECTS)\n"
    );
    fs::write(dir.join("Makefile"), makefile)?;
    Ok(())
}

/// A git repository of everything in the tree.
fn make_repository(layers: &[PathBuf], repository: &Path) -> Result<()> {
    fs::create_dir_all(repository)?;
    for layer in &layers[1..3] {
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(layer.join("srv/tree/.")).arg(repository);
        super::command(&mut copy)?;
    }
    // A file that is not older than the index would be read again by each status.
    let mut age = Command::new("find");
    age.arg(repository)
        .args(["-exec", "touch", "-h", "-d", "2001-02-03", "{}", "+"]);
    super::command(&mut age)?;
    for args in [
        &["init", "-q", "-b", "trunk"][..],
        &["add", "-A", "-f"],
        &["commit", "-q", "-m", "all"],
        &["gc", "-q"],
    ] {
        super::command(git(repository).args(args))?;
    }
    Ok(())
}

/// git in a repository that may belong to anybody, on whatever device and under whatever inode numbers.
pub(crate) fn git(repository: &Path) -> Command {
    let mut git = Command::new("git");
    git.env("GIT_OPTIONAL_LOCKS", "0")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("HOME", "/nonexistent");
    for setting in [
        "safe.directory=*",
        "core.checkStat=minimal",
        "core.trustctime=false",
        "core.autocrlf=false",
        "user.name=Bench",
        "user.email=bench@localhost",
    ] {
        git.args(["-c", setting]);
    }
    git.arg("-C").arg(repository);
    git
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_their_size_and_no_zeros() {
        assert_eq!(block(4096).len(), 4096);
        assert_eq!(block(5).len(), 5);
        assert!(block(4096).chunks(64).all(|c| c.iter().any(|b| *b != 0)));
    }

    #[test]
    fn small_files_are_in_their_directories() {
        let sizes = Sizes::new(true);
        let dirs = sizes.small_dirs(Path::new("x"));
        let files = sizes.small_files(Path::new("x"));
        assert_eq!(files.len(), sizes.files);
        assert!(files.iter().all(|f| dirs.iter().any(|d| f.starts_with(d))));
    }
}
