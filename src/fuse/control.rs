//! Ioctls: those of files, and those by which programs of ours talk to the daemon.

use std::sync::Arc;

use fuser::{ReplyIoctl, Request};

use crate::stats::Op;
use crate::sys::{Errno, caller, cred, ioctl};
use crate::union::ROOT;

use super::again::is_resent;
use super::convert::errno;
use super::filesystem::UnionFs;

impl UnionFs {
    /// Answers an ioctl.
    pub(super) fn asked(
        &self, req: &Request, id: u64, command: u32, input: &[u8], out_size: u32, reply: ReplyIoctl,
    ) {
        // What counts must not be counted.
        let counts = id == ROOT && command == ioctl::REQUESTS;
        if !counts && !self.on(Op::Ioctl).is_control(id, command) {
            let result = self.union.ioctl(id, command, input, out_size as usize);
            if let Some(table) = &self.passthrough {
                table.flags_changed(&self.union, id);
            }
            return match result {
                Ok(data) => reply.ioctl(0, &data),
                Err(e) => reply.error(errno(e)),
            };
        }
        if ![0, cred::own_uid()].contains(&req.uid()) {
            return reply.error(errno(Errno::PERM));
        }
        if counts {
            return reply.ioctl(0, &self.desk.counts.bytes());
        }
        // The rest tells of what is outside the mount, or runs a program there.
        if !caller::is_outside_containers(req.pid()) {
            return reply.error(errno(Errno::PERM));
        }
        if command == ioctl::UPGRADE {
            return self.upgrade(is_resent(req), input, reply);
        }
        let input = input.to_vec();
        if command == ioctl::TELL {
            let desk = Arc::clone(&self.desk);
            return self.aside(move |_| match desk.tell(&input) {
                Ok(data) => reply.ioctl(0, &data),
                Err(e) => reply.error(errno(e)),
            });
        }
        self.aside(move |union| match union.control(command, &input) {
            Ok(data) => reply.ioctl(0, &data),
            Err(e) => reply.error(errno(e)),
        });
    }
}
