//! Threads for work that takes long. There are as many as are needed at a time; those that find nothing
//! to do for a while end, and without any the work is done by who brings it.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::union::{Union, Work};

use super::filesystem::UnionFs;

/// Threads at a time, at most.
const MOST: usize = 500;
/// How long a thread waits for more to do.
const IDLE: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

/// See the module text.
pub(super) struct Pool {
    state: Mutex<State>,
    more: Condvar,
    most: usize,
    idle: Duration,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    threads: usize,
    /// Those that wait, also for their turn to take what they were called for.
    idle: usize,
}

impl Pool {
    /// Without threads so far.
    pub fn new() -> Arc<Self> {
        Self::of(MOST, IDLE)
    }

    fn of(most: usize, idle: Duration) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            more: Condvar::new(),
            most,
            idle,
        })
    }

    /// Has a thread do this soon, in the order in which it is told.
    pub fn run(self: &Arc<Self>, job: impl FnOnce() + Send + 'static) {
        let mut state = self.state.lock();
        state.queue.push_back(Box::new(job));
        if state.idle >= state.queue.len() {
            self.more.notify_one();
            return;
        }
        if state.threads < self.most {
            // Counted before it begins, so that there are never too many.
            state.threads += 1;
            let is_started = MutexGuard::unlocked(&mut state, || self.start());
            if !is_started {
                state.threads -= 1;
            }
        }
        if state.threads > 0 {
            // Those that are busy now come to it.
            return;
        }
        while let Some(job) = state.queue.pop_front() {
            MutexGuard::unlocked(&mut state, job);
        }
    }

    fn start(self: &Arc<Self>) -> bool {
        let pool = Arc::clone(self);
        let thread = std::thread::Builder::new().name("slow".into());
        thread.spawn(move || pool.serve()).is_ok()
    }

    fn serve(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                // A panic has been told by then, and must not take the count of threads along.
                let work = || drop(catch_unwind(AssertUnwindSafe(job)));
                MutexGuard::unlocked(&mut state, work);
                continue;
            }
            state.idle += 1;
            let waited = self.more.wait_for(&mut state, self.idle);
            state.idle -= 1;
            if waited.timed_out() && state.queue.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

impl UnionFs {
    /// Runs work in the pool.
    pub(super) fn aside(&self, work: impl FnOnce(&Union) + Send + 'static) {
        let desk = Arc::clone(&self.desk);
        let begun = desk.clock.hand_over();
        self.pool.run(move || {
            work(&desk.union);
            desk.clock.end(begun);
        });
    }

    /// The same, here or there as the case is. Short work is done here as long as enough others read
    /// requests: handing it over takes longer than many a copy.
    pub(super) fn as_long_as(&self, takes: Work, work: impl FnOnce(&Union) + Send + 'static) {
        match takes {
            Work::Quick => work(&self.union),
            Work::Short => match self.spare.take() {
                Some(_spare) => work(&self.union),
                None => self.aside(work),
            },
            Work::Long => self.aside(work),
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let threads = self.state.lock().threads;
        f.debug_struct("Pool").field("threads", &threads).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    #[test]
    fn all_that_is_asked_for_is_done_at_once_and_the_threads_go() {
        let pool = Pool::of(50, Duration::from_millis(1));
        for _ in 0..3 {
            let all = Arc::new(Barrier::new(51));
            for _ in 0..50 {
                let all = Arc::clone(&all);
                pool.run(move || {
                    all.wait();
                });
            }
            all.wait();
        }
        while pool.state.lock().threads > 0 {
            thread::yield_now();
        }
    }

    #[test]
    fn what_is_too_much_for_the_threads_waits_for_them() {
        let pool = Pool::of(2, Duration::from_millis(1));
        let (sender, receiver) = channel();
        for n in 0..1000 {
            let sender = sender.clone();
            pool.run(move || sender.send(n).unwrap());
            assert!(pool.state.lock().threads <= 2);
        }
        drop(sender);
        let mut done: Vec<u32> = receiver.iter().collect();
        done.sort_unstable();
        assert!(done.into_iter().eq(0..1000));
    }

    #[test]
    fn without_threads_it_is_done_here() {
        let (sender, receiver) = channel();
        Pool::of(0, IDLE).run(move || sender.send(thread::current().id()).unwrap());
        assert_eq!(receiver.recv(), Ok(thread::current().id()));
    }
}
