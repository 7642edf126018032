//! Large reads of lowers, which are answered from the file as memory.

use std::fs;
use std::os::unix::fs::FileExt;

use rustix::fs::Advice;

use crate::support::{Layers, Stack};

const MIB: usize = 1 << 20;

fn with_big(size: usize) -> (Layers, Vec<u8>) {
    let layers = Stack::new().lower(["x"]).build();
    let data: Vec<u8> = (0..size).map(|at| (at * 7 % 253) as u8).collect();
    fs::write(layers.lowers[0].join("big"), &data).unwrap();
    (layers, data)
}

/// Reads in pieces, past what the kernel has.
fn again(file: &fs::File, pieces: usize) -> Result<Vec<u8>, std::io::Error> {
    rustix::fs::fadvise(file, 0, None, Advice::DontNeed).unwrap();
    let mut all = vec![0; file.metadata().unwrap().len() as usize];
    for (n, part) in all.chunks_mut(pieces).enumerate() {
        file.read_exact_at(part, (n * pieces) as u64)?;
    }
    Ok(all)
}

#[test]
fn all_of_it_is_read_by_many() {
    let (layers, data) = with_big(5 * MIB + 4321);
    let m = layers.mount_with("open=none");
    std::thread::scope(|scope| {
        for pieces in [MIB, 77_777, 300_000, 4096] {
            let (m, data) = (&m, &data);
            scope.spawn(move || {
                let file = fs::File::open(m.p("big")).unwrap();
                for _ in 0..5 {
                    assert!(again(&file, pieces).unwrap() == *data);
                }
            });
        }
    });
}

/// What is copied up meanwhile is read from the upper, by all descriptors.
#[test]
fn copied_up_while_it_is_read() {
    let (layers, mut data) = with_big(3 * MIB);
    let m = layers.mount_with("open=none");
    let reader = fs::File::open(m.p("big")).unwrap();
    assert!(again(&reader, MIB).unwrap() == data);
    let writer = fs::OpenOptions::new().write(true).open(m.p("big")).unwrap();
    writer.write_all_at(b"changed", 2_000_000).unwrap();
    writer.sync_all().unwrap();
    data[2_000_000..2_000_007].copy_from_slice(b"changed");
    assert!(again(&reader, MIB).unwrap() == data);
}

/// A lower that is cut behind the union's back is neither a crash, nor does anybody wait for ever.
#[test]
fn cut_behind_our_back() {
    let (layers, data) = with_big(4 * MIB);
    // Not one of those that must not change.
    let other = layers.scratch().join("other");
    fs::create_dir(&other).unwrap();
    let lower = other.join("cut");
    fs::write(&lower, &data).unwrap();
    let m = layers.mount_with(&format!("open=none,lowerdir+={}", other.display()));
    let reader = fs::File::open(m.p("cut")).unwrap();
    assert!(again(&reader, MIB).unwrap() == data);
    let cut = fs::OpenOptions::new().write(true).open(&lower).unwrap();
    cut.set_len(MIB as u64).unwrap();
    // The request for what is gone fails; the kernel tries the pages one by one, which are read and
    // not mapped, and takes what is missing at their end for a hole.
    let read = again(&reader, MIB).unwrap();
    assert!(read[..MIB] == data[..MIB] && read[MIB..].iter().all(|&b| b == 0));
    // Others are served, and it is as well once it is whole again.
    assert_eq!(fs::read(m.p("x")).unwrap(), b"x");
    cut.write_all_at(&data, 0).unwrap();
    assert!(again(&reader, MIB).unwrap() == data);
}
