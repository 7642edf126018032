//! Reading and writing through the daemon.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use fuser::{FileHandle, ReplyData, ReplyLseek, ReplyWrite};

use crate::sys::{Errno, Result};
use crate::union::{Caller, Union, Work};

use super::convert::errno;
use super::dropping::apart;
use super::filesystem::UnionFs;
use super::reply;

/// How often, and after what time, it is looked again whether what comes before has been written.
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
        let mut takes = self.union.work_to_change(write.id, true);
        if takes == Work::Quick {
            match write.run(&self.union, data) {
                Err(Errno::AGAIN) => {}
                Err(_) if write.whole => {}
                result => return reply::written(reply, result),
            }
            takes = Work::Long;
        }
        let data = data.to_vec();
        let (dropping, shared) = (Arc::clone(&self.dropping), Arc::clone(&self.union));
        self.as_long_as(takes, move |union| {
            if !write.finish(union, &data, reply) && write.whole {
                // What could not be stored must not be shown any longer as if it were.
                dropping.soon(&shared, write.id);
            }
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
        Ok(done)
    }

    /// Writes, after what comes before if that is under way, and answers. It may take long. False when
    /// it failed.
    pub fn finish(&self, union: &Union, data: &[u8], reply: ReplyWrite) -> bool {
        let result = self.wait(union, data);
        let is_done = result.is_ok();
        reply::written(reply, result);
        is_done
    }

    fn wait(&self, union: &Union, data: &[u8]) -> Result<usize> {
        for _ in 0..TRIES {
            match self.run(union, data) {
                Err(Errno::AGAIN) => std::thread::sleep(PAUSE),
                result => return result,
            }
        }
        // A hole in an append-only file.
        Err(Errno::PERM)
    }

    fn once(&self, union: &Union, offset: u64, data: &[u8]) -> Result<usize> {
        let (id, who) = (self.id, self.clear_for);
        match (self.opened, self.appends) {
            (false, _) => union.write_unopened(id, offset, data, who),
            (true, false) => union.write(id, offset, data, who),
            (true, true) => union.append(id, offset, data, who),
        }
    }
}
