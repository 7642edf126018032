//! Nodes that were open when the last server of a supervised mount ended.
//!
//! Which of its opens live still nobody knows, so such a node is taken for open until the kernel forgets
//! it, and its names lead to another one from the next open on.

use crate::union::Union;

use super::{Node, Passthrough};

impl Passthrough {
    /// Takes in a node that was open when the last server ended.
    pub(super) fn inherit(&self, union: &Union, id: u64) {
        let Ok(source) = union.source(id) else {
            return;
        };
        let node = Node {
            opens: 1,
            inherited: true,
            ..Node::new(source, None)
        };
        self.nodes.insert(id, node);
        // Who has it open may have mapped it. It cannot fail: the node is known.
        let _ = union.mapper_opened(id);
    }

    /// It has given some back: what was open when the last server ended may be no more.
    pub(in crate::fuse) fn forgotten(&self, union: &Union, id: u64) {
        if self.inherits {
            let is_gone = |node: &Node| node.inherited && union.source(id).is_err();
            drop(self.nodes.remove_if(&id, |_, node| is_gone(node)));
        }
    }
}
