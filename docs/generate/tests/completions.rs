//! The completions, in the shells that they are for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // It is a test.

use std::path::Path;
use std::process::{Command, Stdio};

fn completion(name: &str) -> String {
    let path = docs_generate::directory().join("completions").join(name);
    path.to_str().unwrap().to_owned()
}

/// Some directories and files to be found, in a directory of their own.
fn place() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    for name in ["lower1/inner", "lower2", "upper", "with blank"] {
        std::fs::create_dir_all(place.path().join(name)).unwrap();
    }
    std::fs::write(place.path().join("file.log"), "").unwrap();
    place
}

/// What a shell prints, line by line, sorted.
fn printed(shell: &str, args: &[&str], place: &Path) -> Vec<String> {
    let mut command = Command::new("timeout");
    command.args(["60", shell]).args(args).current_dir(place);
    command.env("LC_ALL", "C.UTF-8").env("HOME", place);
    let output = command.stdin(Stdio::null()).output().unwrap();
    // `timeout` says it when the shell is missing: tests/setup.sh installs it.
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && errors.is_empty(),
        "{shell} {args:?}: {errors}"
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Parts a line as readline does, and calls the completion as bash does.
const BASH: &str = r#"
source "$1"
COMP_LINE=$2 COMP_POINT=${#2} COMP_WORDS=() rest=$2
while [[ -n $rest ]]; do
    rest=${rest#"${rest%%[! ]*}"}
    if [[ $rest == [=:]* ]]; then word=${rest%%[!=:]*}
    elif [[ $rest == [\"\']* ]]; then word=$rest
    else word=${rest%%[ =:]*}; fi
    COMP_WORDS+=("$word")
    rest=${rest#"$word"}
done
[[ $2 != *[\ =:] ]] || COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_unionfs unionfs "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"
((${#COMPREPLY[@]} == 0)) || printf '%s\n' "${COMPREPLY[@]}"
"#;

fn bash(line: &str) -> Vec<String> {
    let place = place();
    let script = completion("unionfs.bash");
    printed("bash", &["-c", BASH, "bash", &script, line], place.path())
}

#[test]
fn bash_completes_options() {
    assert_eq!(bash("unionfs -o wh"), ["whiteout="]);
    assert_eq!(bash("unionfs -o ro,wh"), ["ro,whiteout="]);
    assert_eq!(bash("unionfs /m -f -owh"), ["-owhiteout="]);
    assert_eq!(bash("unionfs -o whiteout="), ["aufs", "overlay"]);
    assert_eq!(bash("unionfs -o lowerdir=/l,whiteout=ov"), ["overlay"]);
    assert_eq!(bash("unionfs -o lowerdir=/l,vol"), ["/l,volatile"]);
    assert!(bash("unionfs -o ").contains(&"lowerdir=".to_owned()));
    // Without effect, and refused: known, but not offered.
    assert_eq!(bash("unionfs -o rdc"), [""; 0]);
    assert_eq!(bash("unionfs -o redirect_dir=n"), ["nofollow"]);
}

#[test]
fn bash_completes_directories_in_options() {
    assert_eq!(bash("unionfs -o lowerdir=low"), ["lower1/", "lower2/"]);
    assert_eq!(
        bash("unionfs -o lowerdir=lower2:lower1/"),
        ["lower1/inner/"]
    );
    assert_eq!(
        bash("unionfs -o ro,upperdir="),
        ["lower1/", "lower2/", "upper/"]
    );
    assert_eq!(bash("unionfs -o br:up"), ["upper/"]);
    assert_eq!(
        bash("unionfs -o br:upper=r"),
        ["ro", "ro+wh", "rr", "rr+wh", "rw"]
    );
    assert_eq!(bash("unionfs -o br:upper=rw:low"), ["lower1/", "lower2/"]);
    assert_eq!(bash("unionfs -o log_file=f"), ["file.log"]);
    let quoted = bash("unionfs -o \"ro,lowerdir=lower2:low");
    assert_eq!(
        quoted,
        ["ro,lowerdir=lower2:lower1/", "ro,lowerdir=lower2:lower2/"]
    );
}

#[test]
fn bash_completes_words_and_operands() {
    assert_eq!(bash("unionfs um"), ["umount"]);
    assert_eq!(bash("unionfs w"), ["with blank"]);
    assert_eq!(bash("unionfs umount up"), ["upper"]);
    assert_eq!(bash("unionfs --slo"), ["--sloppy"]);
    assert_eq!(bash("unionfs -o ro low"), ["lower1", "lower2"]);
    let first = bash("unionfs ");
    assert!(first.contains(&"demo".to_owned()) && first.contains(&"upper".to_owned()));
}

#[test]
fn bash_completes_what_belongs_to_a_word() {
    assert_eq!(
        bash("unionfs convert --to "),
        [
            "aufs",
            "fuse-overlayfs",
            "overlay",
            "unionfs-fuse",
            "unionfs-fuse-1.0"
        ]
    );
    assert_eq!(bash("unionfs check --r"), ["--repair"]);
    assert_eq!(
        bash("unionfs diff --"),
        ["--help", "--json", "--oci", "--tar"]
    );
    assert_eq!(bash("unionfs diff --tar f"), ["file.log"]);
    assert_eq!(bash("unionfs apply f"), ["file.log"]);
    assert_eq!(bash("unionfs plink "), ["flush", "list"]);
    assert_eq!(bash("unionfs plink list up"), ["upper"]);
    assert_eq!(bash("unionfs diff -o lowerdir=low"), ["lower1/", "lower2/"]);
}

#[test]
fn fish_completes_what_belongs_to_a_word() {
    assert_eq!(
        fish("unionfs convert --to "),
        [
            "aufs",
            "fuse-overlayfs",
            "overlay",
            "unionfs-fuse",
            "unionfs-fuse-1.0"
        ]
    );
    assert_eq!(fish("unionfs check --rep"), ["--repair"]);
    assert!(fish("unionfs plink ").contains(&"flush".to_owned()));
}

#[test]
fn shells_read_the_scripts() {
    let place = place();
    printed("bash", &["-n", &completion("unionfs.bash")], place.path());
    printed("zsh", &["-f", "-n", &completion("_unionfs")], place.path());
    printed(
        "fish",
        &["-N", "-n", &completion("unionfs.fish")],
        place.path(),
    );
}

fn fish(line: &str) -> Vec<String> {
    let place = place();
    let script = format!(
        "source {}; complete -C {line:?}",
        completion("unionfs.fish")
    );
    let lines = printed("fish", &["-N", "-c", &script], place.path());
    let word = |line: String| line.split('\t').next().unwrap_or_default().to_owned();
    lines.into_iter().map(word).collect()
}

#[test]
fn fish_completes() {
    assert_eq!(fish("unionfs -o wh"), ["whiteout="]);
    assert_eq!(fish("unionfs -o ro,wh"), ["ro,whiteout="]);
    assert_eq!(fish("unionfs -o ro,whiteout=o"), ["ro,whiteout=overlay"]);
    assert_eq!(
        fish("unionfs -o lowerdir=low"),
        ["lowerdir=lower1/", "lowerdir=lower2/"]
    );
    assert_eq!(
        fish("unionfs -o ro,lowerdir=lower2:low"),
        ["ro,lowerdir=lower2:lower1/", "ro,lowerdir=lower2:lower2/"]
    );
    assert_eq!(fish("unionfs -o br:upper=rw"), ["br:upper=rw"]);
    assert_eq!(fish("unionfs -o log_file=f"), ["log_file=file.log"]);
    assert_eq!(fish("unionfs um"), ["umount"]);
    assert_eq!(fish("unionfs umount up"), ["upper/"]);
    assert_eq!(fish("unionfs --slo"), ["--sloppy"]);
}

/// Types a line and the tabulator into an interactive zsh, and has it print the line.
const ZSH: &str = r#"
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "PS1=; fpath=($1 \$fpath); autoload -Uz compinit; compinit -D -u; setopt nobeep
bindkey '^I' complete-word
show () { zle -I; print -r -- \"<<\$BUFFER>>\"; BUFFER= }; zle -N show; bindkey '^N' show
print RE''ADY"
zpty -r -m shell out '*READY*'
zpty -w -n shell "$2"$'\t\x0e'
zpty -r -m shell out '*<<*>>*'
out=${out##*<<}
print -r -- ${out%%>>*}
"#;

fn zsh(line: &str) -> Vec<String> {
    let place = place();
    let scripts = docs_generate::directory().join("completions");
    let scripts = scripts.to_str().unwrap();
    printed(
        "zsh",
        &["-f", "-c", ZSH, "zsh", scripts, line],
        place.path(),
    )
}

#[test]
fn zsh_completes() {
    assert_eq!(zsh("unionfs -o ro,wh"), ["unionfs -o ro,whiteout="]);
    assert_eq!(
        zsh("unionfs -o ro,whiteout=o"),
        ["unionfs -o ro,whiteout=overlay,"]
    );
    assert_eq!(
        zsh("unionfs -o ro,lowerdir=lower1:up"),
        ["unionfs -o ro,lowerdir=lower1:upper:"]
    );
    assert_eq!(
        zsh("unionfs -o br=upper=rw:low"),
        ["unionfs -o br=upper=rw:lower"]
    );
    assert_eq!(
        zsh("unionfs -o upperdir=upp"),
        ["unionfs -o upperdir=upper/"]
    );
    assert_eq!(zsh("unionfs um"), ["unionfs umount "]);
    assert_eq!(zsh("unionfs --slo"), ["unionfs --sloppy "]);
}
