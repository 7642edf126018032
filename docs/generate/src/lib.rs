//! Documents made from the option table and the command line of `unionfs`, so that neither can
//! differ from what the program does.
//!
//! The prose is in `templates/`; a name between `@` there is replaced by what this crate writes.
//! clap's own generators are not used: completions by clap_complete end at `-o`, and offer the names
//! of operands as words.

mod bash;
mod command_line;
mod fish;
mod man;
mod markdown;
mod words;
mod zsh;

use std::path::{Path, PathBuf};

/// Where the documents are.
#[must_use]
pub fn directory() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// All documents: the path below [`directory`], and the text.
#[must_use]
pub fn documents() -> [(&'static str, String); 6] {
    [
        ("OPTIONS.md", markdown::options()),
        ("unionfs.8", man::unionfs()),
        ("mount.unionfs.8", man::mount_unionfs()),
        ("completions/unionfs.bash", bash::completion()),
        ("completions/_unionfs", zsh::completion()),
        ("completions/unionfs.fish", fish::completion()),
    ]
}

/// Puts each text in the place of its name; the name stands between `@`.
fn fill(template: &str, texts: &[(&str, String)]) -> String {
    let mut filled = template.to_owned();
    for (name, text) in texts {
        let mark = format!("@{name}@");
        debug_assert!(filled.contains(&mark), "no {mark} in the template");
        filled = filled.replace(&mark, text.trim_end());
    }
    filled
}
