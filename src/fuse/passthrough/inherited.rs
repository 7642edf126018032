//! Nodes that were open when the last server of a supervised mount ended.
//!
//! Which of its opens live still nobody knows, so such a node is taken for open until the kernel forgets
//! it. It is opened by the same file as before, whose id is noted: an open of which the last server's
//! answer was lost gets the same answer once more.

use std::collections::HashSet;
use std::os::fd::OwnedFd;

use crate::sys::handover;
use crate::union::Union;
use crate::union::journal::OpenFile;

use super::{Node, Passthrough};

impl Passthrough {
    /// Takes in a node that was open when the last server ended.
    pub(super) fn inherit(&self, union: &Union, id: u64, by: OpenFile) {
        let Ok(source) = union.source(id) else {
            return;
        };
        // The data may have come to the upper since.
        let is_there = by.written == union.is_written(source);
        let node = Node {
            opens: 1,
            left: by.id,
            inherited: true,
            ..Node::new(is_there.then_some(source), None)
        };
        self.nodes.insert(id, node);
        // Who has it open may have mapped it. It cannot fail: the node is known.
        let _ = union.mapper_opened(id);
    }

    /// Goes on with a connection that the last server had.
    pub(in crate::fuse) fn goes_on(&self, connection: OwnedFd) {
        // There is one in the life of a server.
        let _ = self.connection.set(connection);
    }

    /// The ids of files of nodes that were open when the last server ended, and may be. Lets go of those
    /// whose object is gone: it may have been forgotten by another of its nodes.
    pub(in crate::fuse) fn inherited(&self, union: &Union) -> HashSet<u32> {
        let nodes = || self.nodes.iter().filter(|node| node.inherited);
        let nodes_now: Vec<u64> = nodes().map(|node| *node.key()).collect();
        for id in nodes_now {
            self.forgotten(union, id);
        }
        let id = |node: &Node| {
            node.left
                .or(node.backing.as_ref().map(|file| file.number()))
        };
        nodes().filter_map(|node| id(&node)).collect()
    }

    /// It has given some back: what was open when the last server ended may be no more.
    pub(in crate::fuse) fn forgotten(&self, union: &Union, id: u64) {
        if self.inherits {
            let is_gone = |node: &Node| node.inherited && union.source(id).is_err();
            let gone = self.nodes.remove_if(&id, |_, node| is_gone(node));
            let left = gone.and_then(|(_, node)| node.left);
            if let (Some(left), Some(connection)) = (left, self.connection.get()) {
                // It may be closed already.
                let _ = handover::close_file(connection, left);
            }
        }
    }
}
