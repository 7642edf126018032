//! Objects of the upper that have contents in a lower get them for their own.

use std::sync::Arc;

use crate::layer::name::Name;
use crate::sys::{Errno, Result};

use super::Union;
use super::complete::Completion;
use super::copy_up::Need;
use super::lookup::dir_of;

/// What is changed meanwhile is looked at again so often.
const TRIES: usize = 8;

impl Union {
    /// Brings all of the directory `name` of `parent` into the upper, which then hides what lowers have
    /// of it.
    ///
    /// # Errors
    /// What copying gives; the union shows the same as before in any case.
    pub fn settle_dir(&self, parent: u64, name: &[u8]) -> Result<()> {
        let parent = self.inodes.get(parent)?;
        let name = Name::new(name)?;
        self.ensure_upper(&parent, Need::All)?;
        let known = self.lookup_known(&parent, name)?.ok_or(Errno::NOENT)?;
        self.ensure_upper(&known.inode, Need::All)?;
        let inode = Arc::clone(&known.inode);
        let mut completion = Completion::new(self, &parent, name, known);
        for _ in 0..TRIES {
            completion.prepare()?;
            let _tree = self.tree.write();
            let names = dir_of(&parent)?.write_names();
            match completion.publish() {
                Err(Errno::AGAIN) => drop(names),
                Err(e) => return Err(e),
                Ok(mut published) => {
                    let dir = self.dir_fd(&parent, 0)?;
                    published.set_opaque(&dir, name.bytes())?;
                    let merged = completion.commit(published);
                    self.clear_whiteouts(&merged);
                    dir_of(&parent)?.forget_names();
                    dir_of(&inode)?.forget_names();
                    return Ok(());
                }
            }
        }
        Err(Errno::BUSY)
    }

    /// Copies the data of the file `name` of `parent` into the upper, if it has the file without them.
    ///
    /// # Errors
    /// What copying gives; the file is as before then.
    pub fn settle_file(&self, parent: u64, name: &[u8]) -> Result<()> {
        let parent = self.inodes.get(parent)?;
        let name = Name::new(name)?;
        let known = self.lookup_known(&parent, name)?.ok_or(Errno::NOENT)?;
        self.own_data(&known.inode, Need::All)
    }
}
