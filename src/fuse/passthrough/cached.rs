//! Small files of lowers that are read and looked at again and again: headers, modules, configuration.
//!
//! After each read of a file that is passed through, the kernel asks for its attributes once more, as the
//! access time may have changed. Of what it read through us it keeps them, with the data. That
//! costs one READ and memory for another copy, so it is done for small files that were looked at since they
//! were opened, from the next open on that finds nothing open. A file whose data come to the upper is
//! passed through again as soon as nothing has it open.

use crate::sys::stat::FileKind;
use crate::union::{Attr, Union};

use super::Passthrough;

/// The largest file that is cached, in bytes: most headers and modules, and less than most libraries, whose
/// memory mounts shall share. It comes by one READ.
const MOST: u64 = 64 << 10;

/// Whether data of a node are cached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Cached {
    #[default]
    No,
    /// When it is opened next.
    Soon,
    Yes,
}

impl Passthrough {
    /// The kernel has asked for the attributes of a node.
    pub(in crate::fuse) fn looked_at(&self, union: &Union, id: u64, attr: &Attr) {
        if attr.stat.size > MOST || attr.stat.kind() != FileKind::Regular {
            return;
        }
        if let Some(mut node) = self.nodes.get_mut(&id)
            && node.cached == Cached::No
            && node.backing.is_some()
            && node.source.is_some_and(|source| !union.is_written(source))
            // Else the kernel would have to be told of each change of the data.
            && !union.may_change()
        {
            node.cached = Cached::Soon;
        }
    }

    /// Has the next open of a node be answered so, if nothing has it open.
    pub(super) fn begin_caching(&self, id: u64) {
        let unused = match self.nodes.get_mut(&id) {
            Some(mut node) if node.opens == 0 && node.cached == Cached::Soon => {
                node.cached = Cached::Yes;
                node.backing.take()
            }
            // Another open was faster.
            _ => None,
        };
        // Not under the lock: dropping it is a system call.
        drop(unused);
    }
}
