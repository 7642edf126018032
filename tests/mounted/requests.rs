//! Counting the requests of a mount.

use std::collections::BTreeMap;
use std::fs::File;
use std::thread;
use std::time::Duration;

use unionfs::stats::{self, Op};

use crate::support::Mount;

/// How many requests of each kind.
type Requests = BTreeMap<Op, u64>;

/// Sees the requests of a mount. It keeps the root directory open, so that looking sends none.
pub struct Counter(File);

impl Counter {
    pub fn new(m: &Mount) -> Self {
        Self(File::open(m.path()).unwrap())
    }

    fn now(&self) -> Requests {
        stats::requests(&self.0).unwrap().into_iter().collect()
    }

    /// What `work` sends, in words, but for FORGET, which comes when it likes.
    ///
    /// Who closes a file does not wait for its RELEASE: if it is not what is `expected`, it is looked
    /// again for a while.
    pub fn of(&self, expected: &str, work: impl FnOnce()) -> String {
        let before = self.settled();
        work();
        let mut sent = String::new();
        for _ in 0..100 {
            sent = in_words(&since(&before, self.settled()));
            if sent == expected {
                break;
            }
        }
        sent
    }

    fn settled(&self) -> Requests {
        let mut last = self.now();
        for _ in 0..1000 {
            thread::sleep(Duration::from_millis(5));
            let now = self.now();
            if now == last {
                break;
            }
            last = now;
        }
        last
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
