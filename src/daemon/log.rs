//! Where the log goes: stderr in the foreground, syslog or a file otherwise.
//!
//! A thread that serves the mount must never wait for its log: the syslog daemon may be writing
//! to a file on this very mount, and the log file may be on it. So messages for syslog and files
//! go through a bounded queue to a thread of their own, and are dropped when it is full.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::Failure;
use crate::options::Options;

/// How many messages may wait for the writing thread.
const QUEUE_LEN: usize = 1024;

/// How long the end of the process waits for the last messages.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// How long one message may wait for a syslog daemon that does not read.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

const SYSLOG_SOCKET: &str = "/dev/log";

/// What is logged when neither `log=` nor `RUST_LOG` says otherwise.
const DEFAULT_FILTER: &str = "warn";

/// Which messages are logged.
pub(super) struct Filter {
    filter: EnvFilter,
    /// A `RUST_LOG` that nobody can read; worth a warning, not a failure: it may be meant for
    /// another program.
    bad_environment: Option<String>,
}

/// Reads the filter from the options, or else from `RUST_LOG`.
pub(super) fn filter(options: &Options) -> Result<Filter, Failure> {
    if let Some(text) = &options.log {
        let filter = EnvFilter::builder()
            .parse(text)
            .map_err(|error| Failure::new(format!("option log: '{text}': {error}")))?;
        return Ok(Filter {
            filter,
            bad_environment: None,
        });
    }
    let environment = std::env::var("RUST_LOG").unwrap_or_default();
    let text = if environment.is_empty() {
        DEFAULT_FILTER
    } else {
        &environment
    };
    match EnvFilter::builder().parse(text) {
        Ok(filter) => Ok(Filter {
            filter,
            bad_environment: None,
        }),
        Err(error) => Ok(Filter {
            filter: EnvFilter::new(DEFAULT_FILTER),
            bad_environment: Some(error.to_string()),
        }),
    }
}

/// The log of this process. Dropping it writes out what still waits.
pub(super) struct Log {
    queue: Option<Queue>,
    waiting: Option<(Receiver<Record>, Sink)>,
}

/// Turns logging on. No thread is made yet, see [`Log::start`].
pub(super) fn init(filter: Filter, options: &Options, foreground: bool) -> Result<Log, Failure> {
    let sink = match (&options.log_file, foreground) {
        (Some(path), _) => Some(Sink::File(open(path)?)),
        (None, true) => None,
        (None, false) => Some(Sink::Syslog(Syslog::new(SYSLOG_SOCKET.into()))),
    };
    let format = tracing_subscriber::fmt().with_env_filter(filter.filter);
    let (log, outcome) = match sink {
        None => {
            let colours = io::stderr().is_terminal();
            let log = Log {
                queue: None,
                waiting: None,
            };
            (
                log,
                format.with_writer(io::stderr).with_ansi(colours).try_init(),
            )
        }
        Some(sink) => {
            let (sender, receiver) = mpsc::sync_channel(QUEUE_LEN);
            let queue = Queue(sender);
            let format = format.with_writer(queue.clone()).with_ansi(false);
            let outcome = match sink {
                Sink::File(_) => format.try_init(),
                // syslog adds the time, and knows the level from the message's priority.
                Sink::Syslog(_) => format.without_time().with_level(false).try_init(),
            };
            (
                Log {
                    queue: Some(queue),
                    waiting: Some((receiver, sink)),
                },
                outcome,
            )
        }
    };
    outcome.map_err(|error| Failure::new(format!("cannot turn logging on: {error}")))?;
    if let Some(error) = filter.bad_environment {
        tracing::warn!("RUST_LOG is not a log filter: {error}");
    }
    Ok(log)
}

fn open(path: &Path) -> Result<File, Failure> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(|error| Failure::new(format!("option log_file: {}: {error}", path.display())))
}

impl Log {
    /// Starts the writing thread; until then messages wait in the queue.
    pub(super) fn start(&mut self) -> io::Result<()> {
        if let Some((receiver, mut sink)) = self.waiting.take() {
            thread::Builder::new()
                .name("log".to_owned())
                .spawn(move || {
                    while let Ok(record) = receiver.recv() {
                        sink.take(record);
                    }
                })?;
        }
        Ok(())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Some((receiver, mut sink)) = self.waiting.take() {
            receiver.try_iter().for_each(|record| sink.take(record));
            return;
        }
        let Some(queue) = &self.queue else { return };
        let (done, wait) = mpsc::sync_channel(1);
        if queue.0.try_send(Record::Flush(done)).is_ok() {
            // Late or lost messages are no reason to keep the process.
            let _ = wait.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

enum Record {
    Line(Level, Vec<u8>),
    Flush(SyncSender<()>),
}

/// The way to the writing thread.
#[derive(Clone)]
struct Queue(SyncSender<Record>);

impl<'a> MakeWriter<'a> for Queue {
    type Writer = QueueWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        QueueWriter {
            queue: self,
            level: Level::INFO,
        }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Self::Writer {
        QueueWriter {
            queue: self,
            level: *meta.level(),
        }
    }
}

/// Takes one message, which `tracing_subscriber::fmt` writes in one call.
struct QueueWriter<'a> {
    queue: &'a Queue,
    level: Level,
}

impl Write for QueueWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // A full queue drops the message: see the module's comment.
        let _ = self
            .queue
            .0
            .try_send(Record::Line(self.level, line.to_vec()));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Sink {
    File(File),
    Syslog(Syslog),
}

impl Sink {
    fn take(&mut self, record: Record) {
        match (record, self) {
            // A log that cannot be written has nowhere to say so.
            (Record::Line(_, line), Self::File(file)) => drop(file.write_all(&line)),
            (Record::Line(level, line), Self::Syslog(syslog)) => syslog.send(level, &line),
            // The waiting side may have given up.
            (Record::Flush(done), _) => drop(done.try_send(())),
        }
    }
}

/// A client of the local syslog daemon (RFC 3164, the form of `/dev/log`). A machine without one
/// costs a failed `connect` per message.
struct Syslog {
    path: PathBuf,
    socket: Option<UnixDatagram>,
}

impl Syslog {
    const fn new(path: PathBuf) -> Self {
        Self { path, socket: None }
    }

    fn send(&mut self, level: Level, line: &[u8]) {
        let message = syslog_message(level, line);
        if let Some(socket) = &self.socket
            && socket.send(&message).is_ok()
        {
            return;
        }
        // The daemon was started late, or again. When it is not there the message is lost.
        self.socket = self.connect().ok();
        if let Some(socket) = &self.socket {
            let _ = socket.send(&message);
        }
    }

    fn connect(&self) -> io::Result<UnixDatagram> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(&self.path)?;
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        Ok(socket)
    }
}

/// `<PRIORITY>unionfs[PID]: TEXT`; the receiver adds time and host.
fn syslog_message(level: Level, line: &[u8]) -> Vec<u8> {
    const DAEMON: u8 = 3 << 3;
    let severity = match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    };
    let mut message = format!("<{}>unionfs[{}]: ", DAEMON | severity, std::process::id());
    message.push_str(
        &String::from_utf8_lossy(line)
            .trim_ascii()
            .replace('\n', " "),
    );
    message.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(log: Option<&str>) -> Options {
        Options {
            log: log.map(str::to_owned),
            ..Options::default()
        }
    }

    #[test]
    fn filters_are_levels_or_directives() {
        for text in ["debug", "unionfs=debug,fuser=info", "off"] {
            assert!(filter(&options(Some(text))).is_ok(), "{text}");
        }
        let error = filter(&options(Some("unionfs=loud")))
            .err()
            .unwrap()
            .to_string();
        assert!(error.starts_with("option log: 'unionfs=loud': "), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }

    #[test]
    fn messages_carry_priority_and_stay_on_one_line() {
        let pid = std::process::id();
        let message = syslog_message(Level::WARN, b"one\ntwo\n");
        assert_eq!(
            String::from_utf8(message).unwrap(),
            format!("<28>unionfs[{pid}]: one two")
        );
        assert!(syslog_message(Level::ERROR, b"x").starts_with(b"<27>"));
        assert!(syslog_message(Level::TRACE, b"x").starts_with(b"<31>"));
    }

    #[test]
    fn a_syslog_daemon_that_comes_late_or_again_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut syslog = Syslog::new(path.clone());
        syslog.send(Level::ERROR, b"nobody listens");
        let mut buffer = [0; 200];
        for text in ["first", "again"] {
            let daemon = UnixDatagram::bind(&path).unwrap();
            daemon
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            syslog.send(Level::ERROR, text.as_bytes());
            let len = daemon.recv(&mut buffer).unwrap();
            let received = String::from_utf8_lossy(&buffer[..len]).into_owned();
            assert!(received.ends_with(&format!(": {text}")), "{received}");
            drop(daemon);
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_full_queue_drops_and_never_waits() {
        let (sender, receiver) = mpsc::sync_channel(2);
        let queue = Queue(sender);
        for _ in 0..5 {
            assert_eq!(queue.make_writer().write(b"line\n").unwrap(), 5);
        }
        assert_eq!(receiver.try_iter().count(), 2);
    }

    #[test]
    fn what_waits_is_written_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        for start in [false, true] {
            let path = dir.path().join(format!("log-{start}"));
            let (sender, receiver) = mpsc::sync_channel(8);
            let queue = Queue(sender);
            let sink = Sink::File(open(&path).unwrap());
            let mut log = Log {
                queue: Some(queue.clone()),
                waiting: Some((receiver, sink)),
            };
            queue.make_writer().write_all(b"early\n").unwrap();
            if start {
                log.start().unwrap();
            }
            queue.make_writer().write_all(b"late\n").unwrap();
            drop(log);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "early\nlate\n");
        }
    }

    #[test]
    fn a_log_file_that_cannot_be_opened_is_named() {
        let error = open(Path::new("/nonexistent/log")).unwrap_err().to_string();
        assert!(
            error.starts_with("option log_file: /nonexistent/log: No such file"),
            "{error}"
        );
    }
}
