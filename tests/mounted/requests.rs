//! Counting the requests of a mount.

use std::collections::BTreeMap;
use std::fs::File;
use std::thread;
use std::time::Duration;

use unionfs::stats::{self, Op};

use crate::support::Mount;

/// How many requests of each kind.
pub type Requests = BTreeMap<Op, u64>;

/// Sees the requests of a mount. It keeps the root directory open, so that looking sends none.
pub struct Counter(File);

impl Counter {
    pub fn new(m: &Mount) -> Self {
        Self(File::open(m.path()).unwrap())
    }

    fn now(&self) -> Requests {
        stats::requests(&self.0).unwrap().into_iter().collect()
    }

    /// What `work` sends, but for FORGET, which comes when it likes.
    ///
    /// RELEASE is not waited for by who closes a file: so counting ends when nothing more has come
    /// for a while.
    pub fn of(&self, work: impl FnOnce()) -> Requests {
        let before = self.settled();
        work();
        let mut after = self.settled();
        after.remove(&Op::Forget);
        after.iter_mut().for_each(|(op, n)| *n -= before[op]);
        after.retain(|_, n| *n > 0);
        after
    }

    fn settled(&self) -> Requests {
        let mut last = self.now();
        for _ in 0..1000 {
            thread::sleep(Duration::from_millis(3));
            let now = self.now();
            if now == last {
                break;
            }
            last = now;
        }
        last
    }
}

/// In words: the kinds in the order of their numbers, `*N` where there are several.
pub fn in_words(requests: &Requests) -> String {
    let word = |(op, n): (&Op, &u64)| match n {
        1 => format!("{op:?}"),
        n => format!("{op:?}*{n}"),
    };
    requests.iter().map(word).collect::<Vec<_>>().join(" ")
}
