//! Reading and writing through the daemon.

use std::cell::RefCell;
use std::time::Duration;

use fuser::{ReplyData, ReplyWrite};

use crate::sys::{Errno, Result};
use crate::union::{Caller, Union};

use super::convert::errno;
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

    /// Writes, after what comes before if that is under way, and answers. It may take long.
    pub fn finish(&self, union: &Union, data: &[u8], reply: ReplyWrite) {
        let result = self.wait(union, data);
        let failed = result.is_err();
        reply::written(reply, result);
        if failed && self.whole {
            // What could not be stored must not be shown any longer as if it were.
            union.write_back(self.id);
        }
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
        if self.opened {
            union.write(self.id, offset, data, self.clear_for)
        } else {
            union.write_unopened(self.id, offset, data, self.clear_for)
        }
    }
}
