//! How data travel between the kernel and the layers: chosen once for a mount. All that depends on
//! it asks here.
//!
//! - Passthrough: the kernel reads and writes the layers' files itself.
//! - No open: the kernel opens files without asking us, and may write back late. Copy-up comes with
//!   the first change then, instead of with an open for writing.
//! - Cached: each open is asked for and pages are kept; writes come to us at once.

use fuser::{FopenFlags, InitFlags};

use crate::options::{DataPath, Options};

use super::data::Sync;

/// The way of data; see the module text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Through the kernel alone.
    Passthrough,
    /// Through us, without opens.
    NoOpen {
        /// The kernel keeps what is written for a while.
        writeback: bool,
    },
    /// Through us, with opens.
    Cached {
        /// The page cache is left out.
        direct: bool,
    },
}

/// A choice with its reason.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// What was chosen.
    pub way: Way,
    /// Why, for the log.
    pub why: String,
    /// It is not what was asked for.
    pub falls_short: bool,
}

impl Choice {
    /// What `options` ask for, as far as it can be had. `privileged` says whether the daemon is root
    /// of the machine; `probe` tries passthrough and is called only where that may be the choice.
    pub fn new(
        options: &Options, privileged: bool, probe: impl FnOnce() -> Result<(), String>,
    ) -> Self {
        let (no_open, cached) = (
            Way::NoOpen {
                writeback: !options.write_through,
            },
            Way::Cached {
                direct: options.direct_io,
            },
        );
        let choice = |way, why: &str, falls_short| Self {
            way,
            why: why.to_owned(),
            falls_short,
        };
        // Without an open there is no reply that could leave the page cache out.
        if options.direct_io {
            let asked = !matches!(options.open, DataPath::Auto | DataPath::Cached);
            return choice(cached, "direct_io is asked for", asked);
        }
        match options.open {
            DataPath::NoOpen => choice(no_open, "asked for", false),
            DataPath::Cached => choice(cached, "asked for", false),
            DataPath::Passthrough => match probe() {
                Ok(()) => choice(Way::Passthrough, "asked for", false),
                Err(why) => choice(no_open, &format!("no passthrough: {why}"), true),
            },
            DataPath::Auto if !privileged => choice(no_open, "not root of the machine", false),
            DataPath::Auto => match probe() {
                Ok(()) => choice(Way::Passthrough, "it can be had", false),
                Err(why) => choice(cached, &format!("no passthrough: {why}"), false),
            },
        }
    }

    /// Tells the log.
    pub fn tell(&self) {
        let (way, why) = (self.way.name(), &self.why);
        if self.falls_short {
            tracing::warn!("open={way}: {why}");
        } else {
            tracing::info!("open={way}: {why}");
        }
    }
}

impl Way {
    /// As the option has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Passthrough => "passthrough",
            Self::NoOpen { writeback: true } => "none",
            Self::NoOpen { writeback: false } => "none,writeback=0",
            Self::Cached { direct: false } => "cached",
            Self::Cached { direct: true } => "cached,direct_io",
        }
    }

    /// True when the kernel asks us for each open of a file. Otherwise the first OPEN is answered
    /// ENOSYS, no other comes, nor any RELEASE, not even for a file that is created.
    pub fn has_opens(self) -> bool {
        !matches!(self, Self::NoOpen { .. })
    }

    /// True when the kernel keeps what is written for a while, and with it size and times of files.
    pub fn keeps_writes(self) -> bool {
        self == Self::NoOpen { writeback: true }
    }

    /// What is to be flushed with a write to the open number `open` of a file, by its flags. Wherever the
    /// kernel has pages of the file, or its own descriptor, it follows such a write by an FSYNC itself.
    pub fn sync_of(self, flags: i32, open: u64) -> Option<Sync> {
        let is_ours = self == Self::Cached { direct: true } && flags & libc::O_DSYNC != 0;
        // O_SYNC is O_DSYNC and one bit more.
        is_ours.then_some(Sync {
            open,
            data_only: flags & libc::O_SYNC != libc::O_SYNC,
        })
    }

    /// True for what is to be negotiated only in some ways of data and is not in this one.
    pub fn leaves_out(self, flag: InitFlags) -> bool {
        match flag {
            InitFlags::FUSE_PASSTHROUGH => self != Self::Passthrough,
            InitFlags::FUSE_WRITEBACK_CACHE => !self.keeps_writes(),
            // Without an open that carries it, the truncation would be lost.
            InitFlags::FUSE_ATOMIC_O_TRUNC => !self.has_opens(),
            _ => false,
        }
    }

    /// The flags of a file that is opened through us.
    pub fn open_flags(self) -> FopenFlags {
        match self {
            Self::Cached { direct: true } => FopenFlags::FOPEN_DIRECT_IO,
            // Only we change the file, so what the kernel has cached stays true.
            _ => FopenFlags::FOPEN_KEEP_CACHE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_OPEN: Way = Way::NoOpen { writeback: true };
    const CACHED: Way = Way::Cached { direct: false };

    fn choose(open: DataPath, privileged: bool, probed: Result<(), &str>) -> (Way, bool) {
        let options = Options {
            open,
            ..Options::default()
        };
        let choice = Choice::new(&options, privileged, || probed.map_err(str::to_owned));
        (choice.way, choice.falls_short)
    }

    #[test]
    fn what_can_be_had_is_chosen() {
        use DataPath::{Auto, Cached, NoOpen, Passthrough};
        let no = Err("reason");
        assert_eq!(choose(Auto, true, Ok(())), (Way::Passthrough, false));
        assert_eq!(choose(Auto, true, no), (CACHED, false));
        assert_eq!(choose(Auto, false, Ok(())), (NO_OPEN, false));
        assert_eq!(choose(Passthrough, true, Ok(())), (Way::Passthrough, false));
        assert_eq!(choose(Passthrough, false, no), (NO_OPEN, true));
        for privileged in [false, true] {
            assert_eq!(choose(NoOpen, privileged, Ok(())), (NO_OPEN, false));
            assert_eq!(choose(Cached, privileged, Ok(())), (CACHED, false));
        }
    }

    #[test]
    fn passthrough_and_writeback_are_never_negotiated_together() {
        let both = [InitFlags::FUSE_PASSTHROUGH, InitFlags::FUSE_WRITEBACK_CACHE];
        for way in [Way::Passthrough, NO_OPEN, CACHED] {
            assert!(both.into_iter().any(|flag| way.leaves_out(flag)), "{way:?}");
        }
    }
}
