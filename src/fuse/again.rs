//! Requests that the kernel sends again because the process that had read them ended.
//!
//! That process may have done what they ask for. The kernel keeps the directories of such a request
//! locked from its own look at the names until the answer, so nobody else can have made or taken
//! away what is there or gone now: what stands in the way of doing it again was done by it.

use std::time::{Duration, Instant};

use fuser::{ReplyEmpty, ReplyEntry, ReplyIoctl, Request};

use crate::sys::handover::RESENT;
use crate::sys::{Errno, Result};
use crate::union::journal::{self, Exchanging};
use crate::union::{Entry, Make, Union};

use super::convert::{caller, errno};
use super::filesystem::UnionFs;
use super::reply;
use crate::stats::Op;

/// True for a request that was sent before.
pub(super) fn is_resent(req: &Request) -> bool {
    req.unique().0 & RESENT != 0
}

/// An object that was to be made: the one that is there.
pub(super) fn made(
    union: &Union, resent: bool, parent: u64, name: &[u8], result: Result<Entry>,
) -> Result<Entry> {
    match result {
        Err(Errno::EXIST) if resent => union.lookup(parent, name)?.ok_or(Errno::IO),
        result => result,
    }
}

/// What was to go or to change is so already: `done` is what doing it again gives.
pub(super) fn settled(resent: bool, done: Errno, result: Result<()>) -> Result<()> {
    match result {
        Err(e) if resent && e == done => Ok(()),
        result => result,
    }
}

/// An attribute that was to be new: if it has the value, it was set before.
pub(super) fn was_set(
    union: &Union, resent: bool, (id, attr, value): (u64, &[u8], &[u8]), result: Result<()>,
) -> Result<()> {
    let is_set = || union.getxattr(id, attr).is_ok_and(|there| there == value);
    let done = resent && result == Err(Errno::EXIST) && is_set();
    settled(done, Errno::EXIST, result)
}

/// How often an upgrade that is under way is looked after, and for how long.
const LOOK: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(60);

impl UnionFs {
    /// Makes an object, unless that was done before.
    pub(super) fn make(
        &self, req: &Request, parent: u64, name: &[u8], make: Make<'_>, umask: u32,
    ) -> Result<Entry> {
        let result = self.union.make(parent, name, make, caller(req), umask);
        let made = made(&self.union, is_resent(req), parent, name, result);
        self.policy.settle_made(&self.union, parent, made)
    }

    /// Has two names change places, unless that was done before.
    pub(super) fn exchange(
        &self, req: &Request, from: (u64, &[u8]), to: (u64, &[u8]), flags: u32, reply: ReplyEmpty,
    ) {
        let noted = journal::active().map(|j| j.begin_exchange(req.unique().0 & !RESENT));
        if noted.as_ref().is_some_and(Exchanging::is_done) {
            return reply.ok();
        }
        let (from, to) = ((from.0, from.1.to_vec()), (to.0, to.1.to_vec()));
        let policy = self.policy;
        // What changes places may have to be copied up.
        self.aside(move |union| {
            let exchange = || union.rename(from.0, &from.1, to.0, &to.1, flags);
            let result = match &noted {
                Some(noted) => noted.run(exchange),
                None => exchange(),
            };
            reply::empty(reply, policy.settle(union, &[from.0, to.0], result));
            // Only now: until the answer is out, the request may come again.
            drop(noted);
        });
    }

    /// Makes a link, unless that was done before.
    pub(super) fn make_link(
        &self, req: &Request, id: u64, parent: u64, name: &[u8], reply: ReplyEntry,
    ) {
        let name = name.to_vec();
        let (policy, resent) = (self.policy, is_resent(req));
        let takes = self.on(Op::Link).work_to_change(id, false);
        self.as_long_as(takes, move |union| {
            let linked = union.link(id, parent, &name);
            let made = made(union, resent, parent, &name, linked);
            reply::entry(reply, policy.settle_made(union, parent, made), policy);
        });
    }

    /// Has another program serve the mount: this process is ended then, and the request answered by
    /// the next one.
    pub(super) fn upgrade(&self, resent: bool, path: &[u8], reply: ReplyIoctl) {
        let Some(journal) = journal::active() else {
            return reply.error(errno(Errno::OPNOTSUPP));
        };
        if !resent || journal.is_upgrade_lost() {
            return match journal.upgrade(path, resent) {
                // Dropped, it would answer by itself.
                Ok(()) => std::mem::forget(reply),
                Err(e) => reply.error(errno(e)),
            };
        }
        let path = path.to_vec();
        self.aside(move |_| {
            let end = Instant::now() + PATIENCE;
            let result = loop {
                match journal.upgraded() {
                    None if Instant::now() < end => std::thread::sleep(LOOK),
                    None => break Err(Errno::TIMEDOUT),
                    Some(result) => break result,
                }
            };
            match result {
                Ok(()) => reply.ioctl(0, &path),
                Err(e) => reply.error(errno(e)),
            }
        });
    }
}
