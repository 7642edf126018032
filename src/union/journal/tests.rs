//! What a reader finds when the writer ends after any of its stores.

use std::sync::Arc;

use super::*;
use crate::sys::{FileKind, shared};
use crate::union::inode::Inode;
use crate::union::journal::read::Noted;

fn journal() -> Journal {
    let memory = shared::memory().unwrap();
    let words = shared::map(&memory).unwrap();
    words[head::END].store(FIRST as u64, Ordering::Release);
    again(words)
}

/// The next server's view of the same memory.
fn again(words: &'static [AtomicU64]) -> Journal {
    let (keeper, _) = handover::channel().unwrap();
    let journal = Journal {
        words,
        free: Mutex::default(),
        keeper,
        stuck: AtomicBool::new(false),
    };
    journal.words[head::SERVERS].fetch_add(1, Ordering::AcqRel);
    journal.find_free();
    journal
}

fn new(id: u64, alias: Option<Alias>) -> NewInode {
    NewInode {
        id,
        serial: id + 100,
        ino: id,
        key: id,
        layer: 3,
        kind: FileKind::Fifo,
        by_name: true,
        plinked: false,
        alias,
        stack: None,
        lower: None,
        subdirs: None,
        noted: (Cell::default(), 1),
    }
}

fn alias(name: &[u8]) -> Alias {
    Alias {
        parent: Arc::new(Inode::new(new(77, None))),
        name: name.into(),
    }
}

fn names(noted: &Noted) -> Vec<&[u8]> {
    let mut names: Vec<&[u8]> = noted.names.iter().map(|(_, name)| &**name).collect();
    names.sort_unstable();
    names
}

#[test]
fn a_node_is_read_as_it_was_noted() {
    let journal = journal();
    let long = [b'n'; 255];
    for (id, name) in [
        (1, &b"x"[..]),
        (2, &long),
        (3, &long[..47]),
        (4, &long[..48]),
    ] {
        let cell = journal.add(&new(id, Some(alias(name))));
        journal.refer(cell, id);
        let nodes = again(journal.words).nodes();
        let noted = &nodes[&id];
        assert_eq!(
            (noted.serial, noted.ino, noted.refs),
            (id + 100, id, 1 + id)
        );
        assert_eq!(
            (noted.kind, noted.layer, noted.by_name),
            (FileKind::Fifo, 3, true)
        );
        assert_eq!(noted.names, [(77, name.to_vec())]);
    }
}

#[test]
fn a_name_of_any_length_leaves_its_neighbour_alone() {
    let journal = journal();
    for length in 1..=255 {
        let name = vec![b'n'; length];
        let id = 2 * length as u64;
        let cell = journal.add(&new(id, Some(alias(&name))));
        journal.refer(cell, 1);
        let next = journal.add(&new(id + 1, Some(alias(b"next"))));
        journal.refer(next, 1);
        let nodes = again(journal.words).nodes();
        assert_eq!(nodes[&id].names, [(77, name)], "{length}");
        assert_eq!(nodes[&(id + 1)].names, [(77, b"next".to_vec())], "{length}");
        journal.remove(cell);
        journal.remove(next);
    }
}

#[test]
fn names_come_and_go() {
    let journal = journal();
    let [a, b, c] = [&b"a"[..], b"b", &[b'c'; 200]].map(alias);
    let cell = journal.add(&new(9, Some(a.clone())));
    let noted = |wanted: &[&[u8]]| {
        let nodes = again(journal.words).nodes();
        assert_eq!(names(&nodes[&9]), wanted);
    };
    journal.note_names(cell, &[&a, &b]);
    noted(&[b"a", b"b"]);
    journal.note_names(cell, &[&c]);
    noted(&[&[b'c'; 200]]);
    journal.note_names(cell, &[]);
    noted(&[]);
    assert!(!again(journal.words).nodes()[&9].unlinked);
    journal.set_unlinked(cell);
    assert!(again(journal.words).nodes()[&9].unlinked);
    journal.note_names(cell, &[&c, &b, &a]);
    noted(&[b"a", b"b", &[b'c'; 200]]);
}

#[test]
fn room_is_used_again() {
    let journal = journal();
    let fill = || -> Vec<Cell> {
        let names = (0_usize..100).map(|n| vec![b'x'; 1 + n * 2]);
        names
            .zip(1..)
            .map(|(name, id)| journal.add(&new(id, Some(alias(&name)))))
            .collect()
    };
    let end = || journal.words[head::END].load(Ordering::Acquire);
    let cells = fill();
    let first = end();
    cells.into_iter().for_each(|cell| journal.remove(cell));
    assert!(again(journal.words).nodes().is_empty());
    fill();
    assert_eq!(end(), first);
    // The next server, too, knows what is free.
    let next = again(journal.words);
    for noted in next.nodes().into_values() {
        next.remove(noted.cell);
    }
    for (id, length) in (1..).zip(0_usize..100) {
        next.add(&new(id, Some(alias(&vec![b'y'; 1 + length * 2]))));
    }
    assert_eq!(end(), first);
}

/// A kill stops the writer after any of its stores. Up to the last word of a change all stores are to
/// records that nothing leads to.
#[test]
fn nothing_counts_before_its_last_word() {
    let journal = journal();
    let cell = journal.add(&new(5, Some(alias(b"old"))));
    let second = journal.add(&new(6, Some(alias(b"other"))));
    // A new node without its first word is none.
    journal.store(second.0, node::TAG, 1);
    assert_eq!(again(journal.words).nodes().len(), 1);
    journal.store(second.0, node::TAG, LIVE);
    // A new name that nothing leads to yet, and an old one that nothing leads to any more.
    let name = journal.add_name(&alias(b"new")).unwrap();
    assert_eq!(names(&again(journal.words).nodes()[&5]), [b"old"]);
    journal.set_name(cell.0, 0, name);
    let next = again(journal.words);
    assert_eq!(names(&next.nodes()[&5]), [b"new"]);
    assert_eq!(names(&next.nodes()[&6]), [b"other"]);
    // The record of the old name is free in the next server's eyes.
    let end = journal.words[head::END].load(Ordering::Acquire);
    next.add_name(&alias(b"reuse")).unwrap();
    assert_eq!(journal.words[head::END].load(Ordering::Acquire), end);
    assert_eq!(names(&next.nodes()[&5]), [b"new"]);
}

#[test]
fn of_two_nodes_with_one_id_the_later_counts() {
    let journal = journal();
    journal.add(&new(5, Some(alias(b"first"))));
    let mut later = new(5, Some(alias(b"second")));
    later.serial += 1;
    journal.add(&later);
    let next = again(journal.words);
    assert_eq!(names(&next.nodes()[&5]), [b"second"]);
    assert_eq!(next.nodes().len(), 1);
}

#[test]
fn a_rename_is_noted_while_it_lasts() {
    let journal = journal();
    assert_eq!(journal.unfinished_rename(), None);
    let long = vec![b'l'; 255];
    let renaming = journal.rename((1, b"from"), (2, &long), true);
    let swap = again(journal.words).unfinished_rename().unwrap();
    assert_eq!(swap.from, (1, b"from".to_vec()));
    assert_eq!((swap.to, swap.exchange), ((2, long), true));
    drop(renaming);
    assert_eq!(again(journal.words).unfinished_rename(), None);
}

#[test]
fn a_cell_is_of_one_node_only() {
    let journal = journal();
    let cell = journal.add(&new(5, None));
    let number = u64::from(cell.0);
    assert!(is_live(journal.words, number, 105));
    assert!(!is_live(journal.words, number, 106));
    assert!(!is_live(journal.words, u64::MAX, 105));
    journal.remove(cell);
    assert!(!is_live(journal.words, number, 105));
}

#[test]
fn an_exchange_is_known_until_it_is_answered() {
    let journal = journal();
    for request in (2..200).step_by(2) {
        let noted = journal.begin_exchange(request);
        assert!(!noted.is_done());
        // Killed here, it is to be done again; killed later, it is not.
        assert!(!again(journal.words).begin_exchange(request).is_done());
        let noted = journal.begin_exchange(request);
        noted.run(|| {
            assert_eq!(journal.exchanging(), request);
            journal.was_exchanged(request);
        });
        assert_eq!(journal.exchanging(), 0);
        std::mem::forget(noted);
        let next = again(journal.words);
        let other = next.begin_exchange(request + 1000);
        assert!(!other.is_done());
        let same = next.begin_exchange(request);
        assert!(same.is_done());
        drop((same, other));
        assert!(!next.begin_exchange(request).is_done(), "answered");
    }
}

/// Requests that were answered just when their servers ended leave their words: there is room all the
/// same for those that come later.
#[test]
fn exchanges_that_never_come_again_make_room() {
    let journal = journal();
    for request in (2..100).step_by(2) {
        let noted = journal.begin_exchange(request);
        journal.was_exchanged(request);
        std::mem::forget(noted);
        let known = journal.begin_exchange(request);
        assert!(known.is_done());
        std::mem::forget(known);
    }
}

#[test]
fn numbers_do_not_come_twice() {
    let journal = journal();
    let first = journal.first_open();
    let mut new = new(5, None);
    new.serial = 5000;
    let cell = journal.add(&new);
    journal.note_fresh(1 << 63 | 7);
    journal.remove(cell);
    for (index, device) in [70, 50, 60].into_iter().enumerate() {
        journal.note_device(index, device);
    }
    let next = again(journal.words);
    assert!(next.next_serial() > 5000);
    assert!(next.first_open() > first + u64::from(u32::MAX));
    assert_eq!(next.last_fresh(), 1 << 63 | 7);
    // Those that are loaded are noted once more.
    next.note_device(0, 70);
    assert_eq!(again(journal.words).devices(), [70, 50, 60]);
    for index in 0..5000 {
        next.note_device(index, 1);
    }
    assert!(again(journal.words).devices().len() < 1024);
    assert!(again(journal.words).nodes().is_empty());
}

#[test]
fn one_upgrade_at_a_time() {
    let journal = journal();
    let (keeper, other) = handover::channel().unwrap();
    let journal = Journal { keeper, ..journal };
    assert_eq!(journal.upgrade(b"/first\0", false), Ok(()));
    assert_eq!(journal.upgrade(b"/second\0", false), Err(Errno::BUSY));
    assert_eq!(program(journal.words), b"/first");
    // The same request, of a server that ended before it had passed that on.
    assert_eq!(journal.upgrade(b"/first\0", true), Ok(()));
    begin_upgrade(journal.words);
    assert_eq!(journal.upgrade(b"/second\0", false), Err(Errno::BUSY));
    end_upgrade(journal.words, Err(Errno::NOEXEC));
    assert_eq!(journal.upgraded(), Some(Err(Errno::NOEXEC)));
    assert_eq!(journal.upgrade(b"/second\0", false), Ok(()));
    // Nobody keeps the mount any more: that is no upgrade under way.
    end_upgrade(journal.words, Ok(()));
    begin_upgrade(journal.words);
    end_upgrade(journal.words, Ok(()));
    drop(other);
    assert!(journal.upgrade(b"/third\0", false).is_err());
    assert!(journal.upgraded().is_some());
}

#[test]
fn by_what_a_node_is_open_is_noted() {
    let journal = journal();
    let cell = journal.add(&new(1, None));
    let further = journal.add_further(2, 101);
    let by = |id, written| Some(OpenFile { id, written });
    let all = [
        by(Some(u32::MAX), true),
        by(Some(7), false),
        by(None, true),
        None,
    ];
    for open in all {
        journal.set_open(cell, open);
        journal.set_open(further, open);
        let next = again(journal.words);
        let nodes = next.nodes();
        let noted = &nodes[&1];
        assert_eq!((noted.open, noted.layer, noted.by_name), (open, 3, true));
        assert_eq!(noted.kind, FileKind::Fifo);
        assert_eq!(next.further()[0].open, open);
    }
}
