//! Counting the requests of a mount.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use parking_lot::RwLockReadGuard;
use unionfs::stats::{self, Op};

use crate::process::{CACHES, held_by_a_fork, wait_for, waiting};
use crate::support::Mount;

/// How many requests of each kind.
type Requests = BTreeMap<Op, u64>;

/// Sees the requests of a mount. It keeps the root directory open, so that looking sends none, and
/// has nobody drop the kernel's caches meanwhile, as then it would ask for what it knew.
pub struct Counter {
    root: File,
    at: PathBuf,
    connection: u32,
    _cached: RwLockReadGuard<'static, ()>,
}

impl Counter {
    pub fn new(m: &Mount) -> Self {
        Self {
            root: File::open(m.path()).unwrap(),
            at: m.path().to_owned(),
            connection: m.connection(),
            // A test may have several, and a writer that waits must not part them.
            _cached: CACHES.read_recursive(),
        }
    }

    /// What `work` sends, in words, but for FORGET, which comes when it likes.
    pub fn of(&self, work: impl FnOnce()) -> String {
        let before = self.settled();
        work();
        in_words(&since(&before, self.settled()))
    }

    /// What came until now, with what nobody waits for, as a RELEASE: it is queued by who closes last.
    fn settled(&self) -> Requests {
        let quiet = || !held_by_a_fork(&self.at) && waiting(self.connection) == 0;
        wait_for(Duration::from_secs(10), || quiet().then_some(())).unwrap_or_else(|| {
            let held = held_by_a_fork(&self.at);
            let waiting = waiting(self.connection);
            panic!("requests come for ever: {waiting} are waiting, held by a fork: {held}");
        });
        stats::requests(&self.root).unwrap().into_iter().collect()
    }
}

fn since(before: &Requests, mut now: Requests) -> Requests {
    now.remove(&Op::Forget);
    now.iter_mut().for_each(|(op, n)| *n -= before[op]);
    now.retain(|_, n| *n > 0);
    now
}

/// In words: the kinds in the order of their numbers, `*N` where there are several.
fn in_words(requests: &Requests) -> String {
    let word = |(op, n): (&Op, &u64)| match n {
        1 => format!("{op:?}"),
        n => format!("{op:?}*{n}"),
    };
    requests.iter().map(word).collect::<Vec<_>>().join(" ")
}
