//! One workload on one mount: the process whose time is measured.
//!
//! It works in a mount namespace of its own, and, for an ordinary user, in a user namespace. It tells
//! the process that compares where it is, a line each, and waits for a line in return: `namespace` (its
//! ids can be mapped), `mounted CONNECTION DAEMON`, `ready` (set up), `timed`. At last it writes
//! `result ...`, or `failed REASON`.

use std::fs;
use std::io::{BufRead, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::sched::CloneFlags;
use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};

use super::Result;
use super::data::Sizes;
use super::peers::{Dirs, Kind, Mounted};
use super::stats::Measure;
use super::work::{self, Context};

/// What to do; written by [`super::round`].
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    /// The peer, as [`Kind::to_text`] writes it
    #[arg(long)]
    pub peer: String,
    /// The workload's name
    #[arg(long)]
    pub workload: String,
    /// Directory of the layers and what belongs to them
    #[arg(long)]
    pub layers: PathBuf,
    /// A fresh directory for the upper; for a plain directory, the one that holds the tree
    #[arg(long)]
    pub store: PathBuf,
    /// Small trees
    #[arg(long)]
    pub small: bool,
    /// In a user namespace
    #[arg(long)]
    pub rootless: bool,
}

/// Figures of one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Figures {
    /// Seconds, or bytes per second.
    pub value: f64,
    /// Seconds of processor time, of the client and all it started.
    pub client: f64,
    /// Of the daemon.
    pub daemon: f64,
    /// Most memory that the daemon had resident, in KiB.
    pub memory: u64,
}

impl Figures {
    pub(crate) fn to_line(self) -> String {
        let Self {
            value,
            client,
            daemon,
            memory,
        } = self;
        format!("result {value:e} {client:e} {daemon:e} {memory}")
    }

    pub(crate) fn from_line(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.strip_prefix("result ")?.split(' ').collect();
        match words[..] {
            [value, client, daemon, memory] => Some(Self {
                value: value.parse().ok()?,
                client: client.parse().ok()?,
                daemon: daemon.parse().ok()?,
                memory: memory.parse().ok()?,
            }),
            _ => None,
        }
    }
}

/// Runs one workload; a failure of it is an answer too.
pub(crate) fn run(args: &Args) -> Result<()> {
    let last = match measure(args) {
        Ok(figures) => figures.to_line(),
        Err(e) => format!("failed {}", e.to_string().replace('\n', " ")),
    };
    say(&last)
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// Tells where we are and waits until the other side has seen it.
fn step(line: &str) -> Result<()> {
    say(line)?;
    let mut answer = String::new();
    match std::io::stdin().lock().read_line(&mut answer)? {
        0 => Err("nobody listens".into()),
        _ => Ok(()),
    }
}

fn enter_namespaces(rootless: bool) -> Result<()> {
    if rootless {
        nix::sched::unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
        step("namespace")?;
        setgroups(&[])?;
        setgid(Gid::from_raw(0))?;
        setuid(Uid::from_raw(0))?;
    } else {
        nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
        step("namespace")?;
    }
    Ok(())
}

fn measure(args: &Args) -> Result<Figures> {
    enter_namespaces(args.rootless)?;
    let kind = Kind::from_text(&args.peer)?;
    let workload = work::find(&args.workload).ok_or("no such workload")?;
    let sizes = Sizes::new(args.small);
    let dirs = directories(args, &kind);
    match kind {
        // What it serves was mounted just now, while the layers of others are in memory.
        Kind::Mirror(_) => read_all(&args.store)?,
        // The layers are as warm for the first peer as for the last.
        _ if workload.cold => {
            work::tools::walk(&args.layers)?;
        }
        _ => {}
    }
    let mounted = Mounted::new(&kind, &dirs, args.rootless)?;
    let context = Context {
        root: dirs.mnt.clone(),
        layers: args.layers.clone(),
        sizes,
        plain: kind == Kind::Plain,
    };
    let daemon = mounted.daemon.as_ref().map(std::process::Child::id);
    let connection = rustix::fs::minor(fs::metadata(&context.root)?.dev());
    step(&format!("mounted {connection} {}", daemon.unwrap_or(0)))?;
    (workload.setup)(&context)?;
    rustix::fs::syncfs(fs::File::open(&args.store)?)?;
    step("ready")?;

    let used = (processor_time()?, DaemonTime::of(daemon)?);
    let start = Instant::now();
    let amount = (workload.run)(&context)?;
    let elapsed = start.elapsed();
    let client = processor_time()? - used.0;
    let daemon_used = DaemonTime::of(daemon)?.since(&used.1);
    step("timed")?;

    (workload.check)(&context).map_err(|e| format!("check: {e}"))?;
    let memory = daemon.map_or(Ok(0), peak_memory)?;
    mounted.end()?;
    Ok(Figures {
        value: match workload.measure {
            Measure::Time => elapsed.as_secs_f64(),
            Measure::Throughput => amount / elapsed.as_secs_f64(),
            Measure::Latency => amount,
        },
        client,
        daemon: daemon_used,
        memory,
    })
}

fn directories(args: &Args, kind: &Kind) -> Dirs {
    let lowers = super::store::lowers(&args.layers);
    let at = |name: &str| args.store.join(name);
    // What one directory has is in it from the start; a mount over itself would hide it, and be part of it.
    let beside = |name: &str| args.store.with_file_name(super::store::BESIDE).join(name);
    match kind {
        Kind::Mirror(_) => Dirs {
            lowers,
            upper: args.store.clone(),
            work: beside("work"),
            mnt: beside("mnt"),
        },
        _ => Dirs {
            lowers,
            upper: at("upper"),
            work: at("work"),
            mnt: match kind {
                Kind::Plain => args.store.clone(),
                _ => at("mnt"),
            },
        },
    }
}

/// Names and data of everything below `dir`, into the page cache.
fn read_all(dir: &Path) -> Result<()> {
    for file in work::tools::walk(dir)? {
        std::io::copy(&mut fs::File::open(&file)?, &mut std::io::sink())?;
    }
    Ok(())
}

/// Of this process and the children it waited for; the daemon is none of them yet.
fn processor_time() -> Result<f64> {
    let mut total = 0.0;
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let usage = getrusage(who)?;
        for time in [usage.user_time(), usage.system_time()] {
            #[allow(clippy::cast_precision_loss)] // Seconds and microseconds.
            let seconds = time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
            total += seconds;
        }
    }
    Ok(total)
}

const TICK: f64 = 0.01;

/// Processor time of a daemon by two clocks.
struct DaemonTime {
    /// Coarse, of all threads that ever were.
    ticks: f64,
    /// Exact, of the threads there are.
    exact: f64,
}

impl DaemonTime {
    #[allow(clippy::cast_precision_loss)] // Nanoseconds of seconds.
    fn of(pid: Option<u32>) -> Result<Self> {
        let mut exact = 0.0;
        let Some(pid) = pid else {
            return Ok(Self { ticks: 0.0, exact });
        };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let ticks = ticks(&stat).ok_or("/proc/PID/stat has no times")? as f64 * TICK;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may end meanwhile.
            let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            let first = text.split(' ').next().and_then(|n| n.parse::<u64>().ok());
            exact += first.unwrap_or(0) as f64 / 1e9;
        }
        Ok(Self { ticks, exact })
    }

    /// Seconds since `before`: the exact ones, unless threads with more than a few ticks are gone.
    fn since(&self, before: &Self) -> f64 {
        let (ticks, exact) = (self.ticks - before.ticks, self.exact - before.exact);
        match ticks > exact + 3.0 * TICK {
            true => ticks,
            false => exact.max(0.0),
        }
    }
}

/// utime + stime of a line of /proc/PID/stat; the name in it may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut words = rest.split(' ').skip(11);
    let user: u64 = words.next()?.parse().ok()?;
    let system: u64 = words.next()?.parse().ok()?;
    Some(user + system)
}

/// In KiB.
fn peak_memory(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.split_whitespace().next());
    Ok(kib.ok_or("no VmHWM in status")?.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_daemon_is_in_what_the_mirror_shows() {
        let args = Args {
            peer: String::new(),
            workload: String::new(),
            layers: "/b/layers".into(),
            store: "/b/run".into(),
            small: true,
            rootless: false,
        };
        let dirs = directories(&args, &Kind::Mirror("/bin/passthrough_hp".into()));
        assert_eq!(dirs.upper, args.store);
        assert!(!dirs.mnt.starts_with(&args.store) && !dirs.work.starts_with(&args.store));
        assert_eq!(directories(&args, &Kind::Plain).mnt, args.store);
        let ours = directories(&args, &Kind::Unionfs("/bin/unionfs".into(), None));
        assert!(ours.upper.starts_with(&args.store) && ours.upper != args.store);
    }

    #[test]
    fn figures_are_read_as_written() {
        let figures = Figures {
            value: 0.001_234,
            client: 1.5,
            daemon: 0.0,
            memory: 5120,
        };
        assert_eq!(Figures::from_line(&figures.to_line()), Some(figures));
        assert_eq!(Figures::from_line("failed: no"), None);
    }

    #[test]
    fn time_of_a_daemon() {
        let at = |ticks, exact| DaemonTime { ticks, exact };
        let exact = at(0.12, 0.119).since(&at(0.1, 0.101));
        assert!((exact - 0.018).abs() < 1e-9);
        // A thread has ended, and its exact time with it.
        let coarse = at(5.0, 0.3).since(&at(1.0, 0.2));
        assert!((coarse - 4.0).abs() < 1e-9);
    }

    #[test]
    fn processor_time_of_a_stat_line() {
        let line = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 12 30 5 6 20 0 1 0 100 1 1";
        assert_eq!(ticks(line), Some(42));
    }
}
