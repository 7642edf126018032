//! Workloads on one tree of five layers, on every peer in turn, each time on a fresh mount.

pub(crate) mod client;
mod data;
mod debian;
mod floor;
mod machine;
mod peers;
mod report;
mod round;
mod stats;
mod store;
mod svg;
mod trace;
mod work;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::MsFlags;
use nix::sched::CloneFlags;

use data::Sizes;
use peers::{Kind, Peer};
use round::Runner;
use store::Store;
use work::Workload;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What stands before `name=path` words when there is no name.
const OURS: &str = "unionfs";

/// Options of a comparison.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Only these: plain, overlayfs, mirror, fuse-overlayfs, unionfs-fuse, unionfs, or a name from --unionfs
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// A fuse-overlayfs to measure, beside or instead of the one in PATH; may be given again
    #[arg(long, value_name = "PATH")]
    fuse_overlayfs: Vec<PathBuf>,
    /// libfuse's example passthrough_hp, to show one directory: what FUSE takes without a union
    #[arg(long, value_name = "PATH")]
    mirror: Option<PathBuf>,
    /// The unionfs-fuse to measure, instead of the one in PATH
    #[arg(long, value_name = "PATH")]
    unionfs_fuse: Option<PathBuf>,
    /// A build of ours [default: unionfs beside this program]; may be given again
    #[arg(long, value_name = "[NAME=]PATH")]
    unionfs: Vec<String>,
    /// Values of open= that ours is measured with, and after each + another option, as in auto+volatile; auto gives
    /// no open=
    #[arg(long, value_delimiter = ',', default_value = "auto")]
    policy: Vec<String>,
    /// As an ordinary user, in a user namespace
    #[arg(long)]
    rootless: bool,
    /// Timed runs of each workload on each peer; medians count
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only these; `list` prints them
    #[arg(long, value_delimiter = ',')]
    workloads: Vec<String>,
    /// Small trees without a Debian root: a look whether all works, not a measurement
    #[arg(long)]
    small: bool,
    /// No extra round in which requests are counted
    #[arg(long)]
    no_counts: bool,
    /// Seconds for one run of one workload
    #[arg(long, default_value_t = 180)]
    limit: u64,
    /// Where PERFORMANCE.md and its pictures are written; `none` for nowhere
    #[arg(long, default_value = "docs")]
    out: PathBuf,
}

/// Compares, prints the table and writes it.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.workloads == ["list"] {
        for workload in work::ALL {
            println!("{:18} {}", workload.name, workload.title);
        }
        return Ok(());
    }
    let workloads = chosen(args)?;
    // Mounts of ours are nobody else's, and go with this process.
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).map_err(|e| format!("needs root: {e}"))?;
    let none: Option<&str> = None;
    nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let mut store = Store::new(args.rootless)?;
    let peers = peers(args, &store)?;
    let sizes = Sizes::new(args.small);
    let tar = match args.small {
        true => None,
        false => Some(debian::root()?),
    };
    println!("making the layers");
    store.make_layers(tar.as_deref(), &sizes)?;
    let mut machine = machine::notes(&peers);
    machine.push(("command".to_owned(), command_line(std::env::args().skip(1))));
    let mut runner = Runner::new(store, args)?;
    let results = runner.all(&peers, &workloads)?;
    let report = report::Report {
        rootless: args.rootless,
        rounds: args.rounds,
        machine,
        peers: peers.iter().map(|p| p.name.clone()).collect(),
        workloads,
        results,
    };
    println!("{}", report.markdown());
    match args.out.as_os_str() == "none" {
        true => Ok(()),
        false => report.write(&args.out),
    }
}

fn chosen(args: &Args) -> Result<Vec<&'static Workload>> {
    let all = work::ALL.iter().filter(|w| !(args.small && w.debian));
    if args.workloads.is_empty() {
        return Ok(all.collect());
    }
    for name in &args.workloads {
        work::find(name).ok_or_else(|| format!("no workload {name}; --workloads list"))?;
    }
    Ok(all
        .filter(|w| args.workloads.iter().any(|n| n == w.name))
        .collect())
}

/// How this program was called, as one would call it again.
fn command_line(args: impl Iterator<Item = String>) -> String {
    let words: Vec<String> = args.map(|arg| shown(&arg)).collect();
    format!(
        "cargo build --release && cargo run --release -p bench -- {}",
        words.join(" ")
    )
}

/// An argument for a document: where programs are on this machine is nobody's business.
fn shown(arg: &str) -> String {
    let (name, value) = match arg.split_once('=') {
        Some((name, value)) => (format!("{name}="), value),
        None => (String::new(), arg),
    };
    let text = match value.rsplit_once('/') {
        Some((_, file)) => format!("{name}PATH/{file}"),
        None => arg.to_owned(),
    };
    match text.contains(' ') {
        true => format!("'{text}'"),
        false => text,
    }
}

/// All peers there are, or the ones asked for. Programs are copied to where an ordinary user reaches them.
fn peers(args: &Args, store: &Store) -> Result<Vec<Peer>> {
    let mut all = vec![
        peer("plain", Kind::Plain),
        peer("overlayfs", Kind::Overlayfs),
    ];
    if let Some(program) = &args.mirror {
        let program = store.program(floor::MIRROR, program)?;
        all.push(peer(floor::MIRROR, Kind::Mirror(program)));
    }
    let given = args.fuse_overlayfs.iter().cloned();
    for (n, program) in in_path("fuse-overlayfs")
        .into_iter()
        .chain(given)
        .enumerate()
    {
        let kind = Kind::FuseOverlayfs(store.program(&format!("fuse-overlayfs-{n}"), &program)?);
        let version = peers::version(&kind);
        let number = version.split(' ').next_back().unwrap_or_default();
        all.push(peer(&format!("fuse-overlayfs {number}"), kind));
    }
    let program = args
        .unionfs_fuse
        .clone()
        .or_else(|| in_path("unionfs-fuse"));
    if let Some(program) = program.filter(|_| !args.rootless) {
        let kind = Kind::UnionfsFuse(store.program("unionfs-fuse", &program)?);
        all.push(peer("unionfs-fuse", kind));
    }
    for (name, program) in ours(args)? {
        let program = store.program(&name, &program)?;
        for policy in &args.policy {
            let (name, options) = policy_of(&name, policy);
            all.push(peer(&name, Kind::Unionfs(program.clone(), options)));
        }
    }
    // A name stands for all versions and policies of it.
    let wanted = |peer: &Peer| {
        let first = peer.name.split(' ').next().unwrap_or_default();
        args.peers.is_empty() || args.peers.iter().any(|n| *n == peer.name || *n == first)
    };
    for name in &args.peers {
        let first = |p: &Peer| p.name == *name || p.name.split(' ').next() == Some(name);
        if !all.iter().any(first) {
            let names: Vec<_> = all.iter().map(|p| p.name.as_str()).collect();
            return Err(format!("no peer {name} among {}", names.join(", ")).into());
        }
    }
    all.retain(wanted);
    Ok(all)
}

fn peer(name: &str, kind: Kind) -> Peer {
    Peer {
        name: name.to_owned(),
        kind,
    }
}

fn ours(args: &Args) -> Result<Vec<(String, PathBuf)>> {
    if args.unionfs.is_empty() {
        let beside = std::env::current_exe()?.with_file_name("unionfs");
        if !beside.exists() {
            return Err(format!("{}: cargo build --release first", beside.display()).into());
        }
        return Ok(vec![(OURS.to_owned(), beside)]);
    }
    let named = |text: &String| match text.split_once('=') {
        Some((name, path)) => (name.to_owned(), path.into()),
        None => (OURS.to_owned(), text.into()),
    };
    Ok(args.unionfs.iter().map(named).collect())
}

/// The name of one of ours with a policy, and the mount options of that.
fn policy_of(name: &str, policy: &str) -> (String, Option<String>) {
    let mut words = policy.split('+');
    let open = words.next().filter(|open| *open != "auto");
    let others: Vec<&str> = words.collect();
    let name = [name].into_iter().chain(open).chain(others.iter().copied());
    let options = open.map(|open| format!("open={open}")).into_iter();
    let options: Vec<String> = options
        .chain(others.iter().map(|&o| o.to_owned()))
        .collect();
    (
        name.collect::<Vec<_>>().join(" "),
        Some(options.join(",")).filter(|options| !options.is_empty()),
    )
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|p| p.is_file())
}

/// Runs a program that has to succeed; what it says on stderr is the error.
fn command(command: &mut Command) -> Result<()> {
    let name = |path: &std::ffi::OsStr| Path::new(path).display().to_string();
    let output = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|e| format!("{}: {e}", name(command.get_program())))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().last().unwrap_or_default().to_owned();
    Err(format!("{}: {}: {last}", name(command.get_program()), output.status).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_names_and_options() {
        let some = |text: &str| Some(text.to_owned());
        for (policy, name, options) in [
            ("auto", "ours", None),
            ("none", "ours none", some("open=none")),
            ("auto+volatile", "ours volatile", some("volatile")),
            (
                "none+volatile+metacopy=on",
                "ours none volatile metacopy=on",
                some("open=none,volatile,metacopy=on"),
            ),
        ] {
            assert_eq!(policy_of("ours", policy), (name.to_owned(), options));
        }
    }

    #[test]
    fn commands_without_places() {
        let args = [
            "--unionfs",
            "old=/a/b/unionfs",
            "--peers",
            "fuse-overlayfs 2.0.0,plain",
            "--out",
            "docs",
        ];
        let line = command_line(args.into_iter().map(str::to_owned));
        assert!(line.ends_with(
            "-p bench -- --unionfs old=PATH/unionfs --peers 'fuse-overlayfs 2.0.0,plain' --out docs"
        ));
        assert_eq!(shown("/x/fuse-overlayfs"), "PATH/fuse-overlayfs");
    }
}
