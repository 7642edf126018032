//! Reading and writing through the daemon.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry as Slot;
use fuser::{FileHandle, ReplyData, ReplyLseek, ReplyWrite};

use crate::sys::{Errno, Result};
use crate::union::{Caller, Union, Work};

use super::convert::errno;
use super::dropping::apart;
use super::filesystem::UnionFs;
use super::reply;

/// How often, and after what time, it is looked again whether what comes before has been written, if
/// nothing is being written at all.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(20);

thread_local! {
    /// Read buffer of this thread, as large as its largest read so far (1 MiB at most).
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Answers a read of `size` bytes.
pub(super) fn read(union: &Union, id: u64, offset: u64, size: usize, reply: ReplyData) {
    // What is wrong with the file, reading says too. A file that was cut meanwhile gives the reader EIO.
    if let Ok(Some(map)) = union.mapped(id, size) {
        return reply.data(map.bytes(offset, size));
    }
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        match union.read(id, offset, &mut buffer[..size]) {
            Ok(n) => reply.data(&buffer[..n]),
            Err(e) => reply.error(errno(e)),
        }
    });
}

impl UnionFs {
    /// Writes here if that is quick, else aside.
    pub(super) fn write_data(&self, write: Write, data: &[u8], reply: ReplyWrite) {
        let mut takes = match write.sync {
            Some(_) => Work::Long,
            None => self.union.work_to_change(write.id, true),
        };
        if takes == Work::Quick {
            let written = {
                let _begun = (!write.opened).then(|| self.writing.begin(write.id));
                write.run(&self.union, data)
            };
            match written {
                Err(Errno::AGAIN) => {}
                Err(_) if write.whole => {}
                result => return reply::written(reply, result),
            }
            takes = Work::Long;
        }
        let data = data.to_vec();
        let (dropping, desk) = (Arc::clone(&self.dropping), Arc::clone(&self.desk));
        let writing = Arc::clone(&self.writing);
        self.as_long_as(takes, move |union| {
            let result = write.wait(union, &writing, &data);
            if result.is_err() && write.whole {
                // What could not be stored must not be shown any longer as if it were.
                let end = write.offset + data.len() as u64;
                dropping.soon(&desk, write.id, end);
            }
            reply::written(reply, result);
        });
    }

    /// Where the next data, or the next hole, are.
    #[allow(clippy::cast_possible_wrap)] // no file is that large
    pub(super) fn seek(&self, id: u64, fh: FileHandle, offset: u64, hole: bool, reply: ReplyLseek) {
        let keeps_writes = self.policy.way.keeps_writes();
        let old = self.old_file(id, fh);
        let union = Arc::clone(&self.union);
        let work = move || {
            if keeps_writes {
                // The kernel asks without sending what it keeps; that would be taken for a hole.
                union.write_back(id);
            }
            match union.seek_data(id, old.as_deref(), offset, hole) {
                Ok(position) => reply.offset(position as i64),
                Err(e) => reply.error(errno(e)),
            }
        };
        if keeps_writes {
            apart(work, |work| self.aside(|_| work()));
        } else {
            work();
        }
    }
}

/// How many writes are being done, by node.
#[derive(Debug, Default)]
pub(super) struct Writing(DashMap<u64, usize>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Begun<'a>(&'a Writing, u64);

impl Writing {
    fn begin(&self, id: u64) -> Begun<'_> {
        *self.0.entry(id).or_default() += 1;
        Begun(self, id)
    }

    fn any(&self, id: u64) -> bool {
        self.0.contains_key(&id)
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if let Slot::Occupied(mut slot) = self.0.0.entry(self.1) {
            *slot.get_mut() -= 1;
            if *slot.get() == 0 {
                slot.remove();
            }
        }
    }
}

/// A write request without its data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    pub id: u64,
    pub offset: u64,
    /// Who may not keep set-id bits by writing.
    pub clear_for: Option<Caller>,
    /// These are pages of the kernel's cache, of which it takes a short write for a whole one.
    pub whole: bool,
    /// The file was opened for writing before.
    pub opened: bool,
    /// It was opened to append to it.
    pub appends: bool,
    /// It may have been done before, by a process that ended before it could say so.
    pub resent: bool,
    /// It is not done before it is on disk.
    pub sync: Option<Sync>,
}

/// What O_SYNC or O_DSYNC asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sync {
    /// The number of the open.
    pub open: u64,
    pub data_only: bool,
}

impl Write {
    /// Writes.
    pub fn run(&self, union: &Union, data: &[u8]) -> Result<usize> {
        let mut done = self.once(union, self.offset, data)?;
        while self.whole && done < data.len() {
            // Now comes the error that made it short.
            match self.once(union, self.offset + done as u64, &data[done..])? {
                0 => return Err(Errno::IO),
                more => done += more,
            }
        }
        if let Some(Sync { open, data_only }) = self.sync {
            union.fsync(self.id, open, data_only)?;
        }
        Ok(done)
    }

    /// Writes, after what comes before if that is under way. It may take long.
    pub fn wait(&self, union: &Union, writing: &Writing, data: &[u8]) -> Result<usize> {
        let mut tries = 0;
        while tries < TRIES {
            let written = {
                let _begun = writing.begin(self.id);
                self.run(union, data)
            };
            match written {
                Err(Errno::AGAIN) => std::thread::sleep(PAUSE),
                result => return result,
            }
            // A disk may take its time with what comes before.
            tries += u32::from(!writing.any(self.id));
        }
        // A hole in an append-only file.
        Err(Errno::PERM)
    }

    fn once(&self, union: &Union, offset: u64, data: &[u8]) -> Result<usize> {
        let (id, who) = (self.id, self.clear_for);
        match (self.opened, self.appends) {
            (true, true) if self.resent => union.append_again(id, offset, data, who),
            // Of an append-only file it may stand there.
            _ if self.resent => union.write_unopened(id, offset, data, who),
            (false, _) => union.write_unopened(id, offset, data, who),
            (true, false) => union.write(id, offset, data, who),
            (true, true) => union.append(id, offset, data, who),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Writing;

    #[test]
    fn writes_under_way_are_counted_by_node() {
        let writing = Writing::default();
        let (one, two, other) = (writing.begin(1), writing.begin(1), writing.begin(2));
        drop(one);
        assert!(writing.any(1) && writing.any(2));
        drop(two);
        assert!(!writing.any(1) && writing.any(2));
        drop(other);
        assert!(writing.0.is_empty());
    }
}
