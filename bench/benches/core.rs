//! The core without a mount: what a request costs before FUSE adds its share. Needs root.
//!
//! `cargo bench -p bench`

#![allow(missing_docs)] // Of criterion's making.
#![allow(clippy::expect_used)] // A bench that cannot run stops.

use std::fs;
use std::path::Path;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use unionfs::mount::open_union;
use unionfs::options::Options;
use unionfs::union::{Caller, OpenMode, ROOT, Union};

const BY_ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 0,
};
const LAYERS: [usize; 3] = [1, 10, 100];
/// Files of each directory that is looked into.
const FILES: usize = 1000;
const TO_WRITE: OpenMode = OpenMode {
    append: false,
    write: true,
    truncate: false,
};

/// A union of `layers` lowers, all of which have a part of the directory `dir`. The files are in the lowest.
fn union(base: &Path, layers: usize) -> Union {
    let mut lowers = Vec::new();
    for n in 0..layers {
        let lower = base.join(format!("lower-{n}"));
        fs::create_dir_all(lower.join("dir")).expect("mkdir");
        lowers.push(lower.into());
    }
    let lowest = base.join(format!("lower-{}", layers - 1)).join("dir");
    for n in 0..FILES {
        fs::write(lowest.join(name(n)), [b'x'; 4096]).expect("write");
    }
    let upper = base.join("upper");
    fs::create_dir_all(&upper).expect("mkdir");
    let options = Options {
        lowers,
        upper: Some(upper),
        ..Options::default()
    };
    open_union(&options).expect("a union")
}

fn name(n: usize) -> String {
    format!("file-{n:05}")
}

/// In memory: a disk would be measured instead, above all by the flush before a copy is published.
fn temporary() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").expect("a temporary directory")
}

fn dir(union: &Union) -> u64 {
    let found = union.lookup(ROOT, b"dir").expect("lookup");
    found.expect("the directory").id
}

/// The node of a name; one reference is taken.
fn node(union: &Union, dir: u64, name: &str) -> u64 {
    let found = union.lookup(dir, name.as_bytes()).expect("lookup");
    found.expect("a file").id
}

fn lookups(c: &mut Criterion) {
    let mut group = c.benchmark_group("lookup");
    for layers in LAYERS {
        let base = temporary();
        let union = union(base.path(), layers);
        let dir = dir(&union);
        let names: Vec<String> = (0..FILES).map(name).collect();
        let mut at = 0;
        group.bench_function(BenchmarkId::new("first", layers), |b| {
            b.iter(|| {
                at = (at + 1) % FILES;
                let id = node(&union, dir, &names[at]);
                union.forget(id, 1);
            });
        });
        let known = node(&union, dir, &names[0]);
        group.bench_function(BenchmarkId::new("known", layers), |b| {
            b.iter(|| {
                let id = node(&union, dir, &names[0]);
                assert_eq!(id, known);
                union.forget(id, 1);
            });
        });
        group.bench_function(BenchmarkId::new("missing", layers), |b| {
            b.iter(|| {
                at += 1;
                let found = union.lookup(dir, format!("no-{at}").as_bytes());
                assert!(found.expect("lookup").is_none());
            });
        });
    }
    group.finish();
}

fn attributes(c: &mut Criterion) {
    let base = temporary();
    let union = union(base.path(), 10);
    let dir = dir(&union);
    let file = node(&union, dir, &name(0));
    c.bench_function("getattr/file", |b| {
        b.iter(|| union.getattr(file).expect("getattr"));
    });
    c.bench_function("getattr/directory", |b| {
        b.iter(|| union.getattr(dir).expect("getattr"));
    });
}

fn listings(c: &mut Criterion) {
    let mut group = c.benchmark_group("readdir");
    group.throughput(Throughput::Elements(FILES as u64));
    for layers in LAYERS {
        let base = temporary();
        let union = union(base.path(), layers);
        let dir = dir(&union);
        group.bench_function(BenchmarkId::from_parameter(layers), |b| {
            b.iter(|| {
                let mut entries = 0;
                let mut from = 0;
                loop {
                    let before = entries;
                    let list = union.readdir(dir, from, |entry| {
                        (from, entries) = (entry.next, entries + 1);
                        true
                    });
                    list.expect("readdir");
                    if entries == before {
                        break;
                    }
                }
                assert_eq!(entries, FILES + 2);
            });
        });
    }
    group.finish();
}

fn changes(c: &mut Criterion) {
    let base = temporary();
    let union = union(base.path(), 10);
    let dir = dir(&union);
    let mut at = 0;
    c.bench_function("create and unlink", |b| {
        b.iter(|| {
            at += 1;
            let new = format!("new-{at}");
            let mode = libc::S_IFREG | 0o644;
            let made = union.create(dir, new.as_bytes(), mode, true, BY_ROOT, 0);
            let id = made.expect("create").id;
            union.unlink(dir, new.as_bytes()).expect("unlink");
            union.forget(id, 1);
        });
    });
}

/// Of 4 KiB. Each union has so many files to copy, so there is a new one now and then.
fn copies(c: &mut Criterion) {
    c.bench_function("copy-up of 1000 files of 4 KiB", |b| {
        b.iter_batched(
            || {
                let base = temporary();
                let union = union(base.path(), 1);
                let dir = dir(&union);
                let ids: Vec<u64> = (0..FILES).map(|n| node(&union, dir, &name(n))).collect();
                (base, union, ids)
            },
            |(base, union, ids)| {
                for id in ids {
                    union.open(id, TO_WRITE, BY_ROOT).expect("copy-up");
                }
                (base, union)
            },
            BatchSize::PerIteration,
        );
    });
}

criterion_group! {
    name = core;
    config = Criterion::default().sample_size(20);
    targets = lookups, attributes, listings, changes, copies
}
criterion_main!(core);
