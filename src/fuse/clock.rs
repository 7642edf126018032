//! How long requests take: measured only while somebody wants to know, as two looks at the clock cost
//! about as much as a short request.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::stats::{BUCKETS, KINDS, Op, bucket_of};

/// Slow requests that are kept.
const RECENT: usize = 256;
/// What counts as slow, until something else is asked for.
const SLOW: Duration = Duration::from_millis(10);

thread_local! {
    /// The request of this thread.
    static CURRENT: Cell<Option<Begun>> = const { Cell::new(None) };
}

/// A request that is being served.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    at: Instant,
    op: Option<Op>,
    node: u64,
    pid: u32,
    uid: u32,
}

/// A request that took long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slow {
    /// When it was answered.
    pub ended: SystemTime,
    pub took: Duration,
    pub op: Op,
    pub node: u64,
    /// The thread that asked, as the kernel gives it.
    pub pid: u32,
    pub uid: u32,
}

/// How often a kind of request took how long.
#[derive(Debug)]
pub(super) struct Histogram {
    pub buckets: [AtomicU64; BUCKETS],
    pub sum_ns: AtomicU64,
}

/// See the module text.
#[derive(Debug)]
pub(super) struct Clock {
    on: AtomicBool,
    /// Milliseconds since `begun` until which it is to be on.
    until: AtomicU64,
    /// Nanoseconds from which on a request is slow.
    slow: AtomicU64,
    begun: Instant,
    times: Box<[Histogram; KINDS]>,
    recent: Mutex<VecDeque<Slow>>,
}

/// Measures a request until it is dropped, or taken along to another thread.
#[derive(Debug)]
pub(super) struct Timed<'a>(&'a Clock);

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        self.0.end(CURRENT.take());
    }
}

impl Default for Clock {
    fn default() -> Self {
        let histogram = || Histogram {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            sum_ns: AtomicU64::new(0),
        };
        Self {
            on: AtomicBool::new(false),
            until: AtomicU64::new(0),
            slow: AtomicU64::new(u64::try_from(SLOW.as_nanos()).unwrap_or(u64::MAX)),
            begun: Instant::now(),
            times: Box::new(std::array::from_fn(|_| histogram())),
            recent: Mutex::default(),
        }
    }
}

impl Clock {
    /// True while requests are measured.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Since the mount is served by this process.
    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    fn age_ms(&self) -> u64 {
        u64::try_from(self.age().as_millis()).unwrap_or(u64::MAX)
    }

    /// Measures from now on, for so long at least; without end if that is `None`.
    pub fn start(&self, for_ms: Option<u64>) {
        let until = for_ms.map_or(u64::MAX, |ms| self.age_ms().saturating_add(ms));
        self.until.fetch_max(until, Ordering::Relaxed);
        self.on.store(true, Ordering::Relaxed);
    }

    /// Measures no longer. What was measured stays.
    pub fn stop(&self) {
        self.until.store(0, Ordering::Relaxed);
        self.on.store(false, Ordering::Relaxed);
    }

    /// True when it is on only for somebody who is looking.
    pub fn is_lent(&self) -> bool {
        self.is_on() && self.until.load(Ordering::Relaxed) != u64::MAX
    }

    /// From how much time on a request is slow.
    pub fn slow(&self) -> Duration {
        Duration::from_nanos(self.slow.load(Ordering::Relaxed))
    }

    /// Says what is slow from now on; what was kept as slow before goes.
    pub fn set_slow(&self, slow: Duration) {
        let slow = u64::try_from(slow.as_nanos()).unwrap_or(u64::MAX);
        if self.slow.swap(slow, Ordering::Relaxed) != slow {
            self.recent.lock().clear();
        }
    }

    /// Begins to measure a request on this thread, if that is wanted.
    pub fn begin(&self, node: u64, request: &fuser::Request) -> Option<Timed<'_>> {
        if !self.is_on() {
            return None;
        }
        CURRENT.set(Some(Begun {
            at: Instant::now(),
            op: None,
            node,
            pid: request.pid(),
            uid: request.uid(),
        }));
        Some(Timed(self))
    }

    /// Says what kind of request it is.
    pub fn name(&self, op: Op) {
        if self.is_on()
            && let Some(begun) = CURRENT.get()
        {
            CURRENT.set(Some(Begun {
                op: Some(op),
                ..begun
            }));
        }
    }

    /// The request of this thread, which another one goes on with: it ends there.
    pub fn hand_over(&self) -> Option<Begun> {
        if self.is_on() { CURRENT.take() } else { None }
    }

    /// A request was answered.
    pub fn end(&self, begun: Option<Begun>) {
        let Some(Begun {
            at,
            op: Some(op),
            node,
            pid,
            uid,
        }) = begun
        else {
            return;
        };
        let took = at.elapsed();
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let times = &self.times[op as usize];
        times.buckets[bucket_of(ns)].fetch_add(1, Ordering::Relaxed);
        times.sum_ns.fetch_add(ns, Ordering::Relaxed);
        if ns >= self.slow.load(Ordering::Relaxed) {
            let mut recent = self.recent.lock();
            if recent.len() >= RECENT {
                recent.pop_front();
            }
            recent.push_back(Slow {
                ended: SystemTime::now(),
                took,
                op,
                node,
                pid,
                uid,
            });
        }
        if self.age_ms() > self.until.load(Ordering::Relaxed) {
            // Whoever wanted to know has gone.
            self.on.store(false, Ordering::Relaxed);
        }
    }

    /// What was measured of a kind.
    pub fn of(&self, op: Op) -> &Histogram {
        &self.times[op as usize]
    }

    /// The slow requests, oldest first.
    pub fn recent(&self) -> Vec<Slow> {
        self.recent.lock().iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(ago: Duration) -> Option<Begun> {
        Some(Begun {
            at: Instant::now().checked_sub(ago).unwrap(),
            op: Some(Op::Read),
            node: 7,
            pid: 1,
            uid: 2,
        })
    }

    #[test]
    fn what_took_long_is_kept_and_all_is_counted() {
        let clock = Clock::default();
        clock.start(None);
        for _ in 0..RECENT + 9 {
            clock.end(begun(Duration::from_millis(20)));
        }
        clock.end(begun(Duration::ZERO));
        clock.end(None);
        assert_eq!(clock.recent().len(), RECENT);
        assert_eq!(clock.recent()[0].node, 7);
        let read = &clock.of(Op::Read).buckets;
        let all: u64 = read.iter().map(|n| n.load(Ordering::Relaxed)).sum();
        assert_eq!(all, RECENT as u64 + 10);
        clock.set_slow(Duration::from_secs(1));
        assert!(clock.recent().is_empty());
    }

    #[test]
    fn it_ends_when_nobody_looks_any_more() {
        let clock = Clock::default();
        clock.start(Some(0));
        assert!(clock.is_on() && clock.is_lent());
        std::thread::sleep(Duration::from_millis(2));
        clock.end(begun(Duration::ZERO));
        assert!(!clock.is_on());
        clock.start(None);
        clock.start(Some(0));
        assert!(clock.is_on() && !clock.is_lent());
        clock.stop();
        assert!(!clock.is_on());
    }
}
