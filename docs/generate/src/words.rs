//! The option table as documents need it: in groups, with the parts of a text told apart.

use unionfs::options::table::{self, Peer, Row, Status, Takes};

/// Rows that belong together.
pub(crate) struct Group {
    pub(crate) title: &'static str,
    pub(crate) rows: Vec<&'static Row>,
}

/// Titles, with the peers that come first in the rows of the group.
const GROUPS: [(&str, &[Peer]); 7] = [
    ("Layers, and what is this program's own", &[Peer::Own]),
    ("Of every filesystem: mount(8) and fstab", &[Peer::Mount]),
    ("Of every FUSE filesystem: libfuse", &[Peer::Libfuse]),
    (
        "fuse-overlayfs",
        &[Peer::FuseOverlayfs1, Peer::FuseOverlayfs2],
    ),
    ("overlayfs of the kernel", &[Peer::Overlayfs]),
    ("unionfs-fuse", &[Peer::UnionfsFuse]),
    ("aufs", &[Peer::Aufs]),
];

/// All rows, by the peer that comes first in them.
pub(crate) fn groups() -> impl Iterator<Item = Group> {
    GROUPS.into_iter().map(|(title, peers)| Group {
        title,
        rows: table::rows()
            .filter(|row| row.peers.first().is_some_and(|peer| peers.contains(peer)))
            .collect(),
    })
}

/// The text with its full stop, which reasons of a refusal lack.
pub(crate) fn sentence(row: &Row) -> String {
    let stop = if row.text.ends_with('.') { "" } else { "." };
    format!("{}{stop}", row.text)
}

/// More names than these are listed without the value of each.
const MANY_NAMES: usize = 4;

/// The syntax of the value to be shown with each name of a row, and whether it may be missing.
pub(crate) fn shown_value(row: &Row) -> Option<(&'static str, bool)> {
    value(row).filter(|_| row.names.len() <= MANY_NAMES)
}

/// What stands after the name of an option: its syntax, and whether it may be missing.
fn value(row: &Row) -> Option<(&'static str, bool)> {
    match row.takes {
        Takes::Nothing => None,
        Takes::Value(syntax) => Some((syntax, false)),
        Takes::Maybe(syntax) => Some((syntax, true)),
    }
}

/// Whose users write the option, for people.
pub(crate) fn users(row: &Row) -> String {
    let both = [Peer::FuseOverlayfs1, Peer::FuseOverlayfs2];
    let is_both = both.iter().all(|peer| row.peers.contains(peer));
    let mut names = Vec::new();
    for peer in row.peers {
        let name = if is_both && both.contains(peer) {
            "fuse-overlayfs"
        } else {
            peer.name()
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(", ")
}

/// A piece of a row's text.
pub(crate) enum Piece<'a> {
    Prose(&'a str),
    /// What stood between backticks.
    Code(&'a str),
}

/// Parts prose from what is literal.
pub(crate) fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let parts = text.split('`').enumerate();
    parts
        .filter(|(_, part)| !part.is_empty())
        .map(|(index, part)| match index % 2 {
            0 => Piece::Prose(part),
            _ => Piece::Code(part),
        })
}

/// The first sentence without its full stop: what a completion shows beside a word.
pub(crate) fn summary(row: &Row) -> String {
    let text = sentence(row).replace('`', "");
    let end = [". ", ": ", "; "].iter().filter_map(|end| text.find(end));
    let end = end.min().unwrap_or(text.len());
    text[..end].trim_end_matches('.').to_owned()
}

/// What can stand in a value, as far as a shell can know it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One of these.
    Choice(Vec<&'static str>),
    /// A directory.
    Directory,
    /// Directories with colons between them.
    Directories,
    /// Directories, each with a permission.
    Branches,
    /// Any file.
    File,
    /// Only the user knows.
    Free,
}

/// The kind of value that a syntax of the table means.
pub(crate) fn kind(syntax: &'static str) -> Kind {
    if syntax.contains("BRANCH") || syntax.contains("PERM") {
        return Kind::Branches;
    }
    match syntax {
        "DIR" => Kind::Directory,
        "FILE" => Kind::File,
        _ if syntax.starts_with("DIR[:") => Kind::Directories,
        _ if syntax.contains('|') => {
            let literal = |word: &&str| {
                word.bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
            };
            Kind::Choice(syntax.split('|').filter(literal).collect())
        }
        _ => Kind::Free,
    }
}

/// A word that a completion offers.
pub(crate) struct Offer {
    pub(crate) name: &'static str,
    /// With a value after it; `true`: it may be missing.
    pub(crate) value: Option<(Kind, bool)>,
    pub(crate) summary: String,
}

/// The options that have an effect. Others are known when typed, but not worth being offered.
pub(crate) fn offers() -> Vec<Offer> {
    let rows = table::rows().filter(|row| row.status == Status::Supported);
    rows.flat_map(|row| {
        let whole = row.names.iter().filter(|name| !name.ends_with('*'));
        whole.map(|name| Offer {
            name,
            value: value(row).map(|(syntax, optional)| (kind(syntax), optional)),
            summary: summary(row),
        })
    })
    .collect()
}

/// Every known option of which a shell can complete the value, one line for each kind.
pub(crate) fn kinds() -> Vec<(Kind, Vec<&'static str>)> {
    let mut kinds: Vec<(Kind, Vec<&str>)> = Vec::new();
    for row in table::rows() {
        let Some((syntax, _)) = value(row) else {
            continue;
        };
        let of_row = kind(syntax);
        let names = row.names.iter().filter(|name| !name.ends_with('*'));
        match kinds.iter_mut().find(|(kind, _)| *kind == of_row) {
            _ if of_row == Kind::Free => {}
            Some((_, all)) => all.extend(names),
            None => kinds.push((of_row, names.copied().collect())),
        }
    }
    kinds
}

/// aufs's options, which may have a colon in the place of the `=`.
pub(crate) const WITH_COLON: [&str; 8] = [
    "br", "dirs", "add", "ins", "append", "prepend", "del", "mod",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_with_a_colon_are_those_of_the_parser() {
        let names = table::rows().flat_map(|row| row.names);
        // A pattern takes a colon as it takes anything.
        for name in names.filter(|name| !name.ends_with('*')) {
            let text = format!("lowerdir=/l,{name}:/l=ro");
            // Where the colon is none of the grammar, the field is a word that nobody knows.
            let parsed = unionfs::options::parse(&[text.into()]);
            let is_unknown = parsed.is_ok_and(|options| !options.ignored.is_empty());
            assert_eq!(is_unknown, !WITH_COLON.contains(name), "{name}");
        }
    }
}
