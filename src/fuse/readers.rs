//! How many threads read requests at a time: one, until that is not enough.
//!
//! The kernel wakes the threads that wait for requests in turn, so with several of them each request
//! of one client meets another thread, on another processor, with cold caches: measured with four
//! threads instead of one, a client waits more than twice as long. The others therefore wait here,
//! after a request of theirs was answered. A watcher looks every millisecond, while there is
//! anything to do, and lets one more read when
//!
//! - all that read have been at the same request since it last looked: they may be waiting for a
//!   slow disk, and whoever has nothing to do with that shall not wait too;
//! - there is mostly a request that nobody has read while all are at one: there are more clients
//!   than these threads can serve.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::linger::Luck;
use crate::sys;

/// How often the watcher looks.
const TICK: Duration = Duration::from_millis(1);
/// One more reads when the looks at which a request was left, less [`QUIET`] for each other, are so many.
const CROWDED: u32 = 24;
/// Where counting begins again after a change; one less reads when it comes to 0.
const AFRESH: u32 = 12;
/// What a look counts at which none was left. What the kernel sends besides, such as the release of a
/// file while its former user goes on, is no second client.
const QUIET: u32 = 3;
/// Threads at most, as `threads=` takes them.
const MOST: usize = 64;

thread_local! {
    /// Which of the readers this thread is.
    static READER: RefCell<Option<Reader>> = const { RefCell::new(None) };
}

/// See the module text.
#[derive(Debug)]
pub(super) struct Readers {
    most: usize,
    /// How many shall read.
    wanted: AtomicUsize,
    /// How many read or are at a request.
    reading: AtomicUsize,
    known: AtomicUsize,
    /// By thread: odd while it is at a request, another number for each.
    turns: [AtomicU64; MOST],
    waiting: Mutex<()>,
    called: Condvar,
    watcher_sleeps: AtomicBool,
    watching: Mutex<()>,
    awake: Condvar,
    closing: AtomicBool,
    connection: OnceLock<OwnedFd>,
}

/// A thread's place among the readers. The first thread that ends says that the session does.
#[derive(Debug)]
struct Reader {
    readers: Arc<Readers>,
    place: usize,
    luck: Luck,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.readers.close();
    }
}

/// A request being served; when dropped, after the reply, the thread may have to wait.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    readers: &'a Readers,
    place: usize,
    /// The thread may wait afterwards.
    is_all: bool,
}

impl Readers {
    /// For a session of so many threads, which all read until it is watched.
    pub fn new(threads: usize) -> Arc<Self> {
        Arc::new(Self {
            most: threads.min(MOST),
            wanted: AtomicUsize::new(threads),
            reading: AtomicUsize::new(threads),
            known: AtomicUsize::new(0),
            turns: std::array::from_fn(|_| AtomicU64::new(0)),
            waiting: Mutex::new(()),
            called: Condvar::new(),
            watcher_sleeps: AtomicBool::new(false),
            watching: Mutex::new(()),
            awake: Condvar::new(),
            closing: AtomicBool::new(false),
            connection: OnceLock::new(),
        })
    }

    /// Starts the watcher of a session on this connection.
    ///
    /// # Errors
    /// When there can be no further thread or descriptor. Then all threads go on reading.
    pub fn watch(self: &Arc<Self>, connection: &impl AsFd) -> std::io::Result<()> {
        if self.most < 2 {
            return Ok(());
        }
        let connection = connection.as_fd().try_clone_to_owned()?;
        let connection = self.connection.get_or_init(|| connection).try_clone()?;
        let readers = Arc::clone(self);
        let watcher = std::thread::Builder::new().name("watcher".into());
        watcher.spawn(move || readers.watch_until_the_end(&connection))?;
        self.wanted.store(1, Ordering::Release);
        Ok(())
    }

    /// Begins a request on this thread.
    pub fn turn(self: &Arc<Self>) -> Option<Turn<'_>> {
        self.begin(true)
    }

    /// Begins what is not all of a request: afterwards the thread does not wait.
    pub fn part_of_a_turn(self: &Arc<Self>) -> Option<Turn<'_>> {
        self.begin(false)
    }

    fn begin(self: &Arc<Self>, is_all: bool) -> Option<Turn<'_>> {
        if self.most < 2 {
            return None;
        }
        let place = READER.with_borrow_mut(|reader| {
            let reader = reader.get_or_insert_with(|| Reader {
                readers: Arc::clone(self),
                place: self.known.fetch_add(1, Ordering::Relaxed),
                luck: Luck::new(),
            });
            reader.place
        });
        // Either the watcher sees that the thread is busy, or the thread that the watcher sleeps.
        self.turns.get(place)?.fetch_add(1, Ordering::SeqCst);
        if self.watcher_sleeps.load(Ordering::SeqCst) {
            self.wake_watcher();
        }
        Some(Turn {
            readers: self,
            place,
            is_all,
        })
    }

    /// A sole reader that sleeps keeps its client waiting.
    fn linger(&self) {
        let Some(connection) = self.connection.get() else {
            return;
        };
        READER.with_borrow_mut(|reader| {
            if let Some(reader) = reader {
                reader.luck.linger(connection);
            }
        });
    }

    fn wake_watcher(&self) {
        let _watching = self.watching.lock();
        self.watcher_sleeps.store(false, Ordering::SeqCst);
        self.awake.notify_one();
    }

    fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        drop(self.waiting.lock());
        self.called.notify_all();
        self.wake_watcher();
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// Takes the place of a reader that is missing.
    fn join(&self) -> bool {
        let more = |n: usize| (n < self.wanted.load(Ordering::Acquire)).then_some(n + 1);
        self.change_reading(more)
    }

    /// Gives up the place of a reader when there are too many. Not before all have a place here: who
    /// has none would end with the session without a word.
    fn leave(&self) -> bool {
        if self.known.load(Ordering::Acquire) < self.most {
            return false;
        }
        let less = |n: usize| (n > self.wanted.load(Ordering::Acquire)).then(|| n - 1);
        self.change_reading(less)
    }

    fn change_reading(&self, change: impl FnMut(usize) -> Option<usize>) -> bool {
        let reading = &self.reading;
        reading
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, change)
            .is_ok()
    }

    /// Waits until one more shall read.
    fn wait(&self) {
        let mut waiting = self.waiting.lock();
        while !self.is_closing() && !self.join() {
            self.called.wait(&mut waiting);
        }
    }

    fn want(&self, count: usize) {
        let before = self.wanted.swap(count, Ordering::AcqRel);
        if count > before {
            drop(self.waiting.lock());
            self.called.notify_one();
        }
    }

    fn seen(&self) -> Vec<u64> {
        let known = self.known.load(Ordering::Acquire).min(MOST);
        let turns = self.turns[..known].iter();
        turns.map(|turn| turn.load(Ordering::SeqCst)).collect()
    }

    fn watch_until_the_end(&self, connection: &OwnedFd) {
        let mut before = self.seen();
        let mut crowd = 0;
        while !self.is_closing() {
            std::thread::sleep(TICK);
            let seen = self.seen();
            let is_stuck = |(place, turn): (usize, &u64)| {
                turn % 2 == 1 && before.get(place).is_some_and(|last| last == turn)
            };
            let stuck = seen.iter().enumerate().filter(|&at| is_stuck(at)).count();
            let wanted = self.wanted.load(Ordering::Acquire);
            if stuck >= wanted && wanted < self.most {
                self.want(wanted + 1);
                crowd = AFRESH;
            } else {
                // What a sole client asks for waits too, but not beside what it asked for before.
                let busy = seen.iter().filter(|&turn| turn % 2 == 1).count();
                let is_left = busy >= wanted && sys::fd::is_readable(connection);
                crowd = self.weigh((wanted, stuck), crowd, is_left);
            }
            if seen == before && seen.iter().all(|turn| turn % 2 == 0) {
                self.want(1);
                self.sleep(&seen);
            }
            before = seen;
        }
    }

    /// One more reads, or one less, as it has been crowded; returns by how much it is now. One that is
    /// not stuck always stays.
    fn weigh(&self, (wanted, stuck): (usize, usize), crowd: u32, is_left: bool) -> u32 {
        match (is_left, crowd) {
            (true, CROWDED) if wanted < self.most => {
                self.want(wanted + 1);
                AFRESH
            }
            (true, _) => (crowd + 1).min(CROWDED),
            (false, 0) if wanted > stuck + 1 => {
                self.want(wanted - 1);
                AFRESH
            }
            (false, _) => crowd.saturating_sub(QUIET),
        }
    }

    /// Sleeps until there is a request, unless there has been one since.
    fn sleep(&self, seen: &[u64]) {
        let mut watching = self.watching.lock();
        self.watcher_sleeps.store(true, Ordering::SeqCst);
        if self.seen() != seen || self.is_closing() {
            self.watcher_sleeps.store(false, Ordering::SeqCst);
        }
        while self.watcher_sleeps.load(Ordering::SeqCst) {
            self.awake.wait(&mut watching);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let readers = self.readers;
        readers.turns[self.place].fetch_add(1, Ordering::Release);
        if !self.is_all {
            return;
        }
        let reading = readers.reading.load(Ordering::Acquire);
        if reading > readers.wanted.load(Ordering::Acquire) && readers.leave() {
            readers.wait();
        } else if reading == 1 {
            readers.linger();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Readers that serve what comes through a channel, each until it is closed.
    fn serve(readers: &Arc<Readers>, threads: usize) -> mpsc::SyncSender<mpsc::Receiver<()>> {
        let (sender, receiver) = mpsc::sync_channel::<mpsc::Receiver<()>>(0);
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..threads {
            let (readers, receiver) = (Arc::clone(readers), Arc::clone(&receiver));
            std::thread::spawn(move || {
                loop {
                    let request = receiver.lock().recv();
                    let Ok(request) = request else { return };
                    let _turn = readers.turn();
                    let _ = request.recv();
                }
            });
        }
        sender
    }

    fn request() -> (mpsc::Sender<()>, mpsc::Receiver<()>) {
        mpsc::channel()
    }

    #[test]
    fn one_reads_until_it_is_stuck_and_all_end_with_the_session() {
        let readers = Readers::new(3);
        let (connection, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        readers.watch(&connection).unwrap();
        let sender = serve(&readers, 3);
        let ask = || {
            let (done, served) = request();
            sender.send(served).unwrap();
            done
        };
        // Each has had a turn when all are at one.
        drop((ask(), ask(), ask()));
        while readers.reading.load(Ordering::Acquire) > 1 {
            drop(ask());
        }
        // One after the other is stuck, and the next one is there all the same.
        let stuck = (ask(), ask(), ask());
        assert_eq!(readers.reading.load(Ordering::Acquire), 3);
        drop(stuck);
        drop(sender);
        while Arc::strong_count(&readers) > 1 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn nobody_waits_within_a_request() {
        let readers = Readers::new(2);
        let turn = std::thread::spawn({
            let readers = Arc::clone(&readers);
            move || drop(readers.turn())
        });
        turn.join().unwrap();
        drop(readers.turn());
        readers.closing.store(false, Ordering::SeqCst);
        readers.wanted.store(1, Ordering::Release);
        for _ in 0..2 {
            drop(readers.part_of_a_turn());
        }
        assert_eq!(readers.reading.load(Ordering::Acquire), 2);
    }

    #[test]
    fn a_sole_reader_is_not_counted() {
        let readers = Readers::new(1);
        assert!(readers.turn().is_none());
    }

    #[test]
    fn a_crowd_brings_readers_and_quiet_takes_them_away() {
        let readers = Readers::new(4);
        readers.wanted.store(1, Ordering::Release);
        let mut crowd = 0;
        let weigh = |crowd, is_left, stuck| {
            let wanted = readers.wanted.load(Ordering::Acquire);
            readers.weigh((wanted, stuck), crowd, is_left)
        };
        for _ in 0..1000 {
            crowd = weigh(crowd, true, 0);
            crowd = weigh(crowd, false, 0);
        }
        assert_eq!(readers.wanted.load(Ordering::Acquire), 1);
        for _ in 0..1000 {
            crowd = weigh(crowd, true, 0);
        }
        assert_eq!(readers.wanted.load(Ordering::Acquire), 4);
        for stuck in [2, 1, 0] {
            for _ in 0..1000 {
                crowd = weigh(crowd, false, stuck);
            }
            let left = readers.wanted.load(Ordering::Acquire);
            assert_eq!(left, stuck + 1, "one of them is not stuck");
        }
        assert_eq!(readers.wanted.load(Ordering::Acquire), 1);
    }
}
