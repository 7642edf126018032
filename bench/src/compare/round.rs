//! Rounds: each workload on each peer by a client process, in an order that rotates.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::client::Figures;
use super::peers::Peer;
use super::stats::Measure;
use super::store::{FIRST_ID, IDS, Store};
use super::trace::{self, Counts, Tracer};
use super::work::Workload;
use super::{Args, Result, machine};

/// What is known of one workload on one peer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell {
    pub figures: Vec<Figures>,
    /// Requests of one run.
    pub requests: Option<Counts>,
    /// Why there are no figures.
    pub failure: Option<String>,
}

/// By workload, and by peer.
pub(crate) type Results = BTreeMap<(&'static str, String), Cell>;

/// Runs that may be disturbed before one counts all the same.
const ATTEMPTS: usize = 5;

/// Runs clients.
pub(crate) struct Runner {
    store: Store,
    tracer: Option<Tracer>,
    program: PathBuf,
    /// Of what a plain directory starts from, once it was needed.
    template: Option<PathBuf>,
    limit: Duration,
    rounds: usize,
    small: bool,
    rootless: bool,
}

impl Runner {
    pub(crate) fn new(store: Store, args: &Args) -> Result<Self> {
        let program = store.program("bench", &std::env::current_exe()?)?;
        let tracer = match args.no_counts {
            true => None,
            false => match Tracer::new(&store.path("tracing")) {
                Ok(tracer) => Some(tracer),
                Err(e) => {
                    eprintln!("requests are not counted: {e}");
                    None
                }
            },
        };
        Ok(Self {
            store,
            tracer,
            program,
            template: None,
            limit: Duration::from_secs(args.limit),
            rounds: args.rounds,
            small: args.small,
            rootless: args.rootless,
        })
    }

    /// Everything, workload after workload in each round.
    pub(crate) fn all(
        &mut self, peers: &[Peer], workloads: &[&'static Workload],
    ) -> Result<Results> {
        let mut results = Results::new();
        for round in 0..self.rounds {
            for (n, workload) in workloads.iter().enumerate() {
                for at in 0..peers.len() {
                    let peer = &peers[(at + round + n) % peers.len()];
                    let cell = results
                        .entry((workload.name, peer.name.clone()))
                        .or_default();
                    self.timed(peer, workload, round, cell)?;
                }
            }
        }
        if self.tracer.is_some() {
            for workload in workloads {
                for peer in peers.iter().filter(|p| p.kind.is_fuse()) {
                    let cell = results
                        .entry((workload.name, peer.name.clone()))
                        .or_default();
                    if !cell.figures.is_empty() && cell.failure.is_none() {
                        cell.requests = self.counted(peer, workload)?;
                    }
                }
            }
        }
        Ok(results)
    }

    fn timed(
        &mut self, peer: &Peer, workload: &Workload, round: usize, cell: &mut Cell,
    ) -> Result<()> {
        // Nothing is copied up in one directory.
        let senseless = peer.kind.is_one_directory() && workload.measure == Measure::Latency;
        if senseless || cell.failure.is_some() {
            return Ok(());
        }
        match self.one(peer, workload, false)? {
            Ok((figures, _)) => {
                println!(
                    "round {} {:18} {:24} {:12.6} client {:.3} s daemon {:.3} s {} KiB",
                    round + 1,
                    workload.name,
                    peer.name,
                    figures.value,
                    figures.client,
                    figures.daemon,
                    figures.memory
                );
                cell.figures.push(figures);
            }
            Err(reason) => {
                println!(
                    "round {} {:18} {:24} {reason}",
                    round + 1,
                    workload.name,
                    peer.name
                );
                cell.failure = Some(reason);
            }
        }
        Ok(())
    }

    fn counted(&mut self, peer: &Peer, workload: &Workload) -> Result<Option<Counts>> {
        Ok(match self.one(peer, workload, true)? {
            Ok((_, counts)) => {
                let text = counts.as_ref().map(trace::line).unwrap_or_default();
                println!("counted {:18} {:24} {text}", workload.name, peer.name);
                counts
            }
            Err(reason) => {
                println!("counting {:18} {:24} {reason}", workload.name, peer.name);
                None
            }
        })
    }

    /// One run that nobody disturbed by dropping the kernel's caches, or the last of a few. The outer error
    /// ends everything, the inner one is the peer's.
    #[allow(clippy::type_complexity)] // An answer or the reason why there is none.
    fn one(
        &mut self, peer: &Peer, workload: &Workload, count: bool,
    ) -> Result<std::result::Result<(Figures, Option<Counts>), String>> {
        let mut attempt = 1;
        loop {
            let before = machine::caches_dropped();
            let answer = self.attempt(peer, workload, count)?;
            if machine::caches_dropped() == before || attempt == ATTEMPTS {
                return Ok(answer);
            }
            attempt += 1;
        }
    }

    /// One run on a fresh filesystem.
    #[allow(clippy::type_complexity)] // As above.
    fn attempt(
        &mut self, peer: &Peer, workload: &Workload, count: bool,
    ) -> Result<std::result::Result<(Figures, Option<Counts>), String>> {
        let store = match peer.kind {
            _ if peer.kind.is_one_directory() => {
                let template = self.template()?;
                self.store.plain(&template, workload.changes)?
            }
            _ => self.store.fresh()?,
        };
        let mut client = Client::start(self, peer, workload, store)?;
        let tracer = self.tracer.as_ref().filter(|_| count);
        let answer = client.converse(tracer).map_err(|e| e.to_string());
        client.end();
        self.store.discard()?;
        Ok(answer)
    }

    fn template(&mut self) -> Result<PathBuf> {
        if let Some(template) = &self.template {
            return Ok(template.clone());
        }
        let made = self.store.make_template()?;
        self.template = Some(made.clone());
        Ok(made)
    }
}

/// A client process and what it says.
struct Client {
    process: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    daemon: Option<u32>,
    deadline: Instant,
    rootless: bool,
}

impl Client {
    fn start(runner: &Runner, peer: &Peer, workload: &Workload, store: PathBuf) -> Result<Self> {
        let mut command = Command::new(&runner.program);
        command.arg("client").args(["--peer", &peer.kind.to_text()]);
        command.args(["--workload", workload.name]);
        command.arg("--layers").arg(runner.store.path("layers"));
        command.arg("--store").arg(store);
        command.args(runner.small.then_some("--small"));
        if runner.rootless {
            command.arg("--rootless").uid(FIRST_ID).gid(FIRST_ID);
        }
        command.current_dir("/");
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("client: {e}"))?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            return Err("client without pipes".into());
        };
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output)
                .lines()
                .map_while(std::io::Result::ok)
            {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            process,
            input,
            lines,
            daemon: None,
            deadline: Instant::now() + runner.limit,
            rootless: runner.rootless,
        })
    }

    /// Answers what the client says until it has a result.
    fn converse(&mut self, tracer: Option<&Tracer>) -> Result<(Figures, Option<Counts>)> {
        let mut counts = None;
        loop {
            let line = match self.lines.recv_timeout(self.deadline - Instant::now()) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => return Err("timed out".into()),
                Err(RecvTimeoutError::Disconnected) => return Err("the client died".into()),
            };
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["namespace"] if self.rootless => self.map_ids()?,
                ["mounted", connection, daemon] => {
                    self.daemon = daemon.parse().ok().filter(|pid| *pid != 0);
                    if let Some(tracer) = tracer {
                        tracer.watch(connection.parse()?)?;
                    }
                }
                ["ready"] => {
                    if let Some(tracer) = tracer {
                        tracer.clear()?;
                    }
                }
                ["timed"] => counts = tracer.map(Tracer::stop).transpose()?,
                ["failed", ..] => return Err(line["failed ".len()..].into()),
                _ => {
                    if let Some(figures) = Figures::from_line(&line) {
                        return Ok((figures, counts));
                    }
                }
            }
            self.input.write_all(b"go\n")?;
        }
    }

    fn map_ids(&self) -> Result<()> {
        let pid = self.process.id();
        for map in ["gid_map", "uid_map"] {
            std::fs::write(format!("/proc/{pid}/{map}"), format!("0 {FIRST_ID} {IDS}"))?;
        }
        Ok(())
    }

    /// Waits for its end, which comes by force when its time is over.
    fn end(mut self) {
        let start = Instant::now();
        while !matches!(self.process.try_wait(), Ok(Some(_))) {
            if Instant::now() > self.deadline || start.elapsed() > Duration::from_secs(15) {
                // The daemon first: whoever waits for it gets an error.
                if let Some(pid) = self.daemon {
                    let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
                }
                let _ = self.process.kill();
                let _ = self.process.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
