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
//! - there are more clients than these threads can serve ([`super::crowd`]).

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::crowd::{Advice, Crowd, Tally};
use super::linger::Luck;
use crate::sys;

/// How often the watcher looks.
const TICK: Duration = Duration::from_millis(1);
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
    seats: [Seat; MOST],
    waiting: Mutex<()>,
    called: Condvar,
    watcher_sleeps: AtomicBool,
    watching: Mutex<()>,
    awake: Condvar,
    closing: AtomicBool,
    connection: OnceLock<OwnedFd>,
    /// The thread whose request came last.
    client: AtomicU32,
}

/// What the watcher sees of a thread, apart from what other threads write.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Seat {
    /// Odd while it is at a request, another number for each.
    turn: AtomicU64,
    /// See [`Tally`].
    done: AtomicU64,
    met: AtomicU64,
    switched: AtomicU64,
}

/// A thread's place among the readers. The first thread that ends says that the session does.
#[derive(Debug)]
struct Reader {
    readers: Arc<Readers>,
    place: usize,
    luck: Luck,
    /// The request of which it did a part last.
    parted: u64,
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
    share: Share,
}

/// How much of a request a turn is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Share {
    /// All: the thread may wait afterwards.
    All,
    /// The first part of one that comes in parts, perhaps the only one.
    First,
    Further,
}

impl Readers {
    /// For a session of so many threads, which all read until it is watched.
    pub fn new(threads: usize) -> Arc<Self> {
        Arc::new(Self {
            most: threads.min(MOST),
            wanted: AtomicUsize::new(threads),
            reading: AtomicUsize::new(threads),
            known: AtomicUsize::new(0),
            seats: std::array::from_fn(|_| Seat::default()),
            waiting: Mutex::new(()),
            called: Condvar::new(),
            watcher_sleeps: AtomicBool::new(false),
            watching: Mutex::new(()),
            awake: Condvar::new(),
            closing: AtomicBool::new(false),
            connection: OnceLock::new(),
            client: AtomicU32::new(0),
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
        self.connection.get_or_init(|| connection);
        let readers = Arc::clone(self);
        let watcher = std::thread::Builder::new().name("watcher".into());
        watcher.spawn(move || readers.watch_until_the_end())?;
        self.wanted.store(1, Ordering::Release);
        Ok(())
    }

    /// Begins a request of this client on this thread; 0 is the kernel itself.
    pub fn turn(self: &Arc<Self>, client: u32) -> Option<Turn<'_>> {
        let turn = self.begin(None)?;
        if client != 0 && self.client.load(Ordering::Relaxed) != client {
            self.client.store(client, Ordering::Relaxed);
            turn.seat().switched.fetch_add(1, Ordering::Relaxed);
        }
        Some(turn)
    }

    /// Begins what may not be all of the request with this number: afterwards the thread does not wait.
    pub fn part_of_a_turn(self: &Arc<Self>, request: u64) -> Option<Turn<'_>> {
        self.begin(Some(request))
    }

    fn begin(self: &Arc<Self>, part_of: Option<u64>) -> Option<Turn<'_>> {
        if self.most < 2 {
            return None;
        }
        let (place, share) = READER.with_borrow_mut(|reader| {
            let reader = reader.get_or_insert_with(|| Reader {
                readers: Arc::clone(self),
                place: self.known.fetch_add(1, Ordering::Relaxed),
                luck: Luck::new(),
                parted: 0,
            });
            let share = match part_of {
                None => Share::All,
                Some(request) if request == reader.parted => Share::Further,
                Some(_) => Share::First,
            };
            reader.parted = part_of.unwrap_or(reader.parted);
            (reader.place, share)
        });
        // Either the watcher sees that the thread is busy, or the thread that the watcher sleeps.
        let seat = self.seats.get(place)?;
        seat.turn.fetch_add(1, Ordering::SeqCst);
        if self.watcher_sleeps.load(Ordering::SeqCst) {
            self.wake_watcher();
        }
        Some(Turn {
            readers: self,
            place,
            share,
        })
    }

    /// Looks for the next request after one, and notes whether it was there.
    fn look(&self, place: usize, is_sole: bool) {
        let Some(connection) = self.connection.get() else {
            return;
        };
        let seat = &self.seats[place];
        seat.done.fetch_add(1, Ordering::Relaxed);
        // A sole reader looks for longer.
        if sys::fd::is_readable(connection) {
            seat.met.fetch_add(1, Ordering::Relaxed);
        } else if is_sole {
            self.linger();
        }
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
        let seats = self.seats[..known].iter();
        seats.map(|seat| seat.turn.load(Ordering::SeqCst)).collect()
    }

    fn tally(&self) -> Tally {
        let known = self.known.load(Ordering::Acquire).min(MOST);
        let mut tally = Tally::default();
        for seat in &self.seats[..known] {
            tally.met += seat.met.load(Ordering::Relaxed);
            tally.switched += seat.switched.load(Ordering::Relaxed);
            tally.done += seat.done.load(Ordering::Relaxed);
        }
        tally
    }

    fn watch_until_the_end(&self) {
        let mut before = self.seen();
        let mut crowd = Crowd::new(self.tally());
        while !self.is_closing() {
            std::thread::sleep(TICK);
            let seen = self.seen();
            let is_stuck = |(place, turn): (usize, &u64)| {
                turn % 2 == 1 && before.get(place).is_some_and(|last| last == turn)
            };
            let stuck = seen.iter().enumerate().filter(|&at| is_stuck(at)).count();
            let is_idle = seen == before && seen.iter().all(|turn| turn % 2 == 0);
            let wanted = self.wanted.load(Ordering::Acquire);
            let should_be = if is_idle {
                1
            } else {
                self.reckon(wanted, stuck, &mut crowd)
            };
            if should_be != wanted {
                self.want(should_be);
                crowd = Crowd::new(self.tally());
            }
            if is_idle {
                self.sleep(&seen);
            }
            before = seen;
        }
    }

    /// How many shall read, when so many do and some of them are stuck. One that is not stuck always stays.
    fn reckon(&self, wanted: usize, stuck: usize, crowd: &mut Crowd) -> usize {
        if stuck >= wanted {
            return (wanted + 1).min(self.most);
        }
        match crowd.look(self.tally(), wanted) {
            Advice::More => (wanted + 1).min(self.most),
            Advice::Less if wanted > stuck + 1 => wanted - 1,
            Advice::Less | Advice::Stay => wanted,
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

impl Turn<'_> {
    fn seat(&self) -> &Seat {
        &self.readers.seats[self.place]
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let readers = self.readers;
        self.seat().turn.fetch_add(1, Ordering::Release);
        let reading = readers.reading.load(Ordering::Acquire);
        match self.share {
            Share::Further => {}
            // A sole one is followed by another request as any other. Of a batch, the looking costs it once.
            Share::First if reading == 1 => readers.linger(),
            Share::First => {}
            Share::All if reading > readers.wanted.load(Ordering::Acquire) && readers.leave() => {
                readers.wait();
            }
            Share::All => readers.look(self.place, reading == 1),
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
                    let _turn = readers.turn(1);
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
            move || drop(readers.turn(1))
        });
        turn.join().unwrap();
        drop(readers.turn(1));
        readers.closing.store(false, Ordering::SeqCst);
        readers.wanted.store(1, Ordering::Release);
        for n in [7, 7, 8] {
            drop(readers.part_of_a_turn(n));
        }
        assert_eq!(readers.reading.load(Ordering::Acquire), 2);
    }

    #[test]
    fn a_sole_reader_is_not_counted() {
        let readers = Readers::new(1);
        assert!(readers.turn(1).is_none());
    }

    #[test]
    fn a_crowd_brings_readers_and_quiet_takes_them_away() {
        let readers = Readers::new(4);
        let (seat, mut crowd) = (&readers.seats[0], Crowd::new(Tally::default()));
        readers.known.store(1, Ordering::Release);
        let mut reckon = |wanted, stuck, (met, switched)| {
            seat.done.fetch_add(100, Ordering::Relaxed);
            seat.met.fetch_add(met, Ordering::Relaxed);
            seat.switched.fetch_add(switched, Ordering::Relaxed);
            readers.reckon(wanted, stuck, &mut crowd)
        };
        let mut wanted = 1;
        for _ in 0..20 {
            wanted = reckon(wanted, 0, (95, 90));
        }
        assert_eq!(wanted, 4, "no more than there are");
        for stuck in [2, 1, 0] {
            for _ in 0..50 {
                wanted = reckon(wanted, stuck, (20, 5));
            }
            assert_eq!(wanted, stuck + 1, "one of them is not stuck");
        }
        assert_eq!(reckon(1, 1, (0, 0)), 2);
        assert_eq!(reckon(4, 4, (0, 0)), 4);
    }
}
