//! Ways in for fuzz targets: what reads names, attributes and archives that others made. Only with the
//! feature `fuzzing`. Each function panics when something is not as it has to be.

use std::io::Cursor;

use crate::layer::elsewhere::{Redirect, is_metacopy_record};
use crate::layer::name::{self, NAME_MAX, Name};
use crate::layer::{origin, plink, record};
use crate::tools::{pax, tar_reader};

/// A name of a directory entry.
///
/// # Panics
/// When a whiteout does not hide what it is the whiteout of, or a name that is none is taken.
pub fn name(bytes: &[u8]) {
    let hidden = name::hidden_by(bytes);
    if Name::new(bytes).is_err() {
        assert!(
            !(1..=NAME_MAX).contains(&bytes.len()) || bytes.iter().any(|b| b"/\0.".contains(b))
        );
        return;
    }
    assert!((1..=NAME_MAX).contains(&bytes.len()) && !bytes.iter().any(|b| b"/\0".contains(b)));
    assert_eq!(Name::creatable(bytes).is_err(), bytes.starts_with(b".wh."));
    if let Some(hidden) = hidden {
        assert!(Name::creatable(hidden).is_ok() && name::is_reserved(bytes));
        assert_eq!(name::whiteout_of(hidden).as_deref(), Some(bytes));
    }
    match name::whiteout_of(bytes) {
        Some(marker) => {
            assert!(Name::new(&marker).is_ok_and(Name::is_reserved));
            let is_hidden = name::hidden_by(&marker) == Some(bytes);
            assert_eq!(is_hidden, !name::is_reserved(bytes));
        }
        None => assert!(bytes.len() > NAME_MAX - 4),
    }
    if let Some((number, upper)) = plink::parse_name(bytes) {
        assert_eq!(*plink::entry_name(number, upper), *bytes);
    }
}

/// A value of an attribute, or a target of a symlink, that is a record of one of the forms.
///
/// # Panics
/// When a record leads out of a layer, or means something else after it is written again.
pub fn record(value: &[u8]) {
    let is_safe = |part: &[u8]| Name::creatable(part).is_ok();
    match Redirect::parse(value) {
        Some(Redirect::Sibling(sibling)) => assert!(is_safe(&sibling) && *sibling == *value),
        Some(Redirect::Path(path)) => {
            assert!(!path.is_empty() && path.iter().all(|part| is_safe(part)));
            let mut again = Vec::new();
            for part in &path {
                again.push(b'/');
                again.extend_from_slice(part);
            }
            assert_eq!(again, value);
        }
        None => {}
    }
    if is_metacopy_record(value) {
        assert!(value.is_empty() || (value[0] == 0 && usize::from(value[1]) == value.len()));
    }
    if let Some(found) = record::Record::parse(value) {
        assert!(found.mode <= 0o7777);
        assert_eq!(record::Record::parse(found.text().as_bytes()), Some(found));
    }
    if let Some((found, rest)) = plink::Record::parse(value) {
        assert!(value.ends_with(rest));
        let text = found.text();
        let again = plink::Record::parse(text.as_bytes());
        assert_eq!(again.map(|(record, _)| record), Some(found));
    }
    if let Some((number, own)) = value.split_first_chunk::<8>() {
        let own = own.first_chunk().map_or(0, |own| u64::from_le_bytes(*own));
        let found = origin::parse(value, own);
        assert!(found.is_none_or(|found| found == u64::from_le_bytes(*number) && found > 1));
        assert_eq!(origin::parse(value, own.wrapping_add(1)), None);
    }
}

/// What stands before an entry of an archive: PAX records.
///
/// # Panics
/// When a record is more than what was given, or a time means something else after it is written again.
pub fn pax(data: &[u8]) {
    let records = pax::parse(data).unwrap_or_default();
    let sum: usize = records
        .iter()
        .map(|(key, value)| key.len() + value.len() + 3)
        .sum();
    assert!(sum <= data.len());
    for text in records.iter().map(|(_, value)| *value).chain([data]) {
        if let Some((seconds, nanoseconds)) = pax::parse_time(text) {
            assert!(nanoseconds < 1_000_000_000);
            let again = pax::time(seconds, nanoseconds);
            assert_eq!(
                pax::parse_time(again.as_bytes()),
                Some((seconds, nanoseconds))
            );
        }
    }
}

/// A layer archive, read to its end.
///
/// # Panics
/// When more data come out than went in, or outside of the object that they are of.
pub fn archive(data: &[u8]) {
    let mut reader = tar_reader::Reader::new(Cursor::new(data));
    let mut sum = 0;
    while let Ok(Some(entry)) = reader.next() {
        let read = reader.data(&entry, |start, piece| {
            sum += piece.len();
            let end = start.checked_add(piece.len() as u64);
            assert!(end.is_some_and(|end| end <= entry.size));
            Ok(())
        });
        if read.is_err() {
            break;
        }
    }
    assert!(sum <= data.len());
}
