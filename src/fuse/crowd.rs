//! Whether the threads that read requests are too few, by what they saw between two looks.
//!
//! Requests that come from several clients in turn, mostly with the next one there when one is answered, are more
//! than the threads can serve. A client's own next request is there too when it runs on our processor, and what
//! the kernel sends besides, such as the release of a file; so that alone says nothing.

/// Of so many requests it can be told.
const ENOUGH: u64 = 8;
/// One more thread after so many looks in turn at which it was crowded.
const CROWDED: i32 = 2;
/// One less after so many at which it was quiet.
const QUIET: i32 = -6;

/// What the threads saw together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    /// Requests after which the next one was looked for, ...
    pub done: u64,
    /// ... and after which that was there.
    pub met: u64,
    /// Requests of another client than the one before.
    pub switched: u64,
}

impl Tally {
    fn since(self, before: Self) -> Self {
        Self {
            done: self.done.saturating_sub(before.done),
            met: self.met.saturating_sub(before.met),
            switched: self.switched.saturating_sub(before.switched),
        }
    }
}

/// What is to be done about it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Advice {
    More,
    Less,
    Stay,
}

/// How it has been in the last looks.
#[derive(Debug)]
pub(super) struct Crowd {
    /// Looks in turn: above 0 crowded, below 0 quiet.
    looks: i32,
    counted: Tally,
}

impl Crowd {
    /// Counts from here.
    pub fn new(counted: Tally) -> Self {
        Self { looks: 0, counted }
    }

    /// One more look, while so many threads read.
    pub fn look(&mut self, now: Tally, readers: usize) -> Advice {
        let since = now.since(self.counted);
        if since.done < ENOUGH {
            return Advice::Stay;
        }
        self.counted = now;
        // In sixteenths of the requests after which the next one has to be there for one reader more, and below
        // which one is too many. The second gains most; each further one takes a processor from the clients, and
        // is only worth that when hardly any request finds a reader free. With two, even a seldom queue is served
        // better than by one, so only the lack of a second client takes the second away.
        let (left, idle) = match readers {
            1 => (8, 0),
            2 => (12, 0),
            _ => (12, 4),
        };
        let is_one_client = since.switched * 8 < since.done;
        self.looks = if is_one_client || since.met * 16 < since.done * idle {
            self.looks.min(0) - 1
        } else if since.switched * 4 >= since.done && since.met * 16 >= since.done * left {
            self.looks.max(0) + 1
        } else {
            0
        };
        let advice = match self.looks {
            CROWDED.. => Advice::More,
            ..=QUIET => Advice::Less,
            _ => return Advice::Stay,
        };
        self.looks = 0;
        advice
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Looks(Crowd, Tally);

    impl Looks {
        fn new() -> Self {
            Self(Crowd::new(Tally::default()), Tally::default())
        }

        /// What is advised at so many looks, each after a hundred requests.
        fn advice(
            &mut self, looks: u32, (met, switched): (u64, u64), readers: usize,
        ) -> Vec<Advice> {
            let mut look = || {
                self.1.done += 100;
                self.1.met += met;
                self.1.switched += switched;
                self.0.look(self.1, readers)
            };
            let all = (0..looks).map(|_| look());
            all.filter(|advice| *advice != Advice::Stay).collect()
        }
    }

    #[test]
    fn one_client_is_no_crowd_even_if_its_next_request_is_always_there() {
        let mut looks = Looks::new();
        assert!(!looks.advice(1000, (100, 5), 1).contains(&Advice::More));
        assert!(looks.advice(12, (100, 5), 3).contains(&Advice::Less));
    }

    #[test]
    fn several_clients_are_one_when_they_wait() {
        let mut looks = Looks::new();
        assert_eq!(looks.advice(1000, (20, 90), 1), []);
        assert_eq!(looks.advice(2, (60, 90), 1), [Advice::More]);
        // Now and then is not enough.
        for _ in 0..1000 {
            assert_eq!(looks.advice(1, (100, 90), 1), []);
            assert_eq!(looks.advice(1, (20, 90), 1), []);
        }
    }

    #[test]
    fn as_many_as_are_needed_stay() {
        let mut looks = Looks::new();
        assert_eq!(looks.advice(1000, (10, 90), 2), []);
        assert_eq!(looks.advice(1000, (40, 90), 3), []);
        assert_eq!(looks.advice(6, (10, 90), 3), [Advice::Less]);
    }

    #[test]
    fn of_few_requests_nothing_is_said() {
        let mut crowd = Crowd::new(Tally::default());
        for n in 1..ENOUGH {
            let now = Tally {
                done: n,
                met: n,
                switched: n,
            };
            assert_eq!(crowd.look(now, 1), Advice::Stay);
            assert_eq!(crowd.looks, 0);
        }
    }
}
