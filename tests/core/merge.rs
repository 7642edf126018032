//! The expected merged tree, computed from the description of the layers by the rules of the format.
//! Written without a look at the library, so that a misunderstanding shows as a difference.

use std::collections::BTreeSet;

use crate::model::{Dir, Marks, Meta, Node, Slot};

/// Attributes that are records of union filesystems and never shown.
const PRIVATE: [&str; 5] = [
    "trusted.overlay.",
    "user.overlay.",
    "user.fuseoverlayfs.",
    "trusted.unionfs.",
    "user.unionfs.",
];

/// The merged root of `layers`, top first.
pub fn merge(layers: &[&Dir]) -> Dir {
    let opaque = layers.iter().position(|dir| dir.marks.is_opaque());
    let visible = opaque.map_or(layers, |at| &layers[..=at]);
    merge_dirs(visible)
}

/// Merges directories none of which but the last is opaque.
fn merge_dirs(parts: &[&Dir]) -> Dir {
    let names: BTreeSet<&[u8]> = parts
        .iter()
        .flat_map(|dir| dir.slots.keys().map(Vec::as_slice))
        .collect();
    let mut merged = Dir {
        meta: shown(&parts[0].meta),
        marks: Marks::default(),
        ..Dir::default()
    };
    for name in names {
        if let Some(node) = merge_name(parts, name) {
            let slot = Slot {
                real: Some(node),
                ..Slot::default()
            };
            merged.slots.insert(name.to_vec(), slot);
        }
    }
    merged
}

fn merge_name(parts: &[&Dir], name: &[u8]) -> Option<Node> {
    let mut dirs: Vec<&Dir> = Vec::new();
    for part in parts {
        let Some(slot) = part.slots.get(name) else {
            continue;
        };
        // A whiteout file for a name that leaves no room for its prefix cannot exist.
        let beside = slot.beside && name.len() <= 251;
        match &slot.real {
            Some(Node::Dir(dir)) => {
                dirs.push(dir);
                // The real entry wins over the whiteout beside it, and is opaque.
                if dir.marks.is_opaque() || beside {
                    break;
                }
            }
            // What is not a directory ends the merge, and is seen only when on top.
            Some(node) if dirs.is_empty() => return Some(leaf(node)),
            Some(_) => break,
            None if beside || slot.at_name.is_some() => break,
            None => {}
        }
    }
    (!dirs.is_empty()).then(|| Node::Dir(merge_dirs(&dirs)))
}

fn leaf(node: &Node) -> Node {
    let mut node = node.clone();
    let meta = node.meta_mut();
    *meta = shown(meta);
    node
}

fn shown(meta: &Meta) -> Meta {
    let mut meta = meta.clone();
    let private = |attr: &str| PRIVATE.iter().any(|prefix| attr.starts_with(prefix));
    meta.xattrs.retain(|attr, _| !private(attr));
    meta
}
