//! The lock on the data directory: one daemon at a time.
//!
//! Two advisory locks are taken, because either alone can be got around by an honest mistake: one on
//! the directory itself, which holds although somebody removed `lock`, and one on the file `lock`,
//! which holds on file systems that do not lock directories and says which process has it. Both go
//! with the process, however it ends, so a stale `lock` file never keeps a daemon out.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use super::{Error, snapshot};

/// Held as long as the daemon runs, or a command that changes its files.
#[derive(Debug)]
pub struct Lock {
    _directory: File,
    _file: File,
}

impl Lock {
    /// Takes the lock on an existing directory, or says who has it.
    pub fn take(dir: &Path) -> Result<Lock, Error> {
        snapshot::refuse_incomplete(dir)?;
        let path = dir.join("lock");
        let failed = |error: io::Error| Error::DataDir { dir: dir.to_owned(), reason: error.to_string() };
        let directory = File::open(dir).map_err(failed)?;
        match directory.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let pid = File::open(&path).ok().and_then(|mut file| holder(&mut file));
                return Err(Error::InUse { dir: dir.to_owned(), pid });
            }
            // A file system that cannot lock a directory; the file below is locked all the same.
            Err(TryLockError::Error(error)) => {
                tracing::warn!(dir = %dir.display(), %error, "cannot lock the data directory itself");
            }
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let pid = holder(&mut file);
                return Err(Error::InUse { dir: dir.to_owned(), pid });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // For people and messages only; on a full disk the lock holds without it.
        let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        if let Err(error) = written {
            tracing::debug!(%error, "the lock file does not say which process holds it");
        }
        Ok(Lock { _directory: directory, _file: file })
    }
}

/// The process id in a lock file.
fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_with_the_holder_named_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path()).unwrap();
        let refused = Lock::take(dir.path());
        assert!(matches!(refused, Err(Error::InUse { pid: Some(pid), .. }) if pid == std::process::id()));
        drop(first);
        Lock::take(dir.path()).unwrap();
    }

    #[test]
    fn the_lock_holds_although_its_file_was_removed() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Lock::take(dir.path()).unwrap();
        std::fs::remove_file(dir.path().join("lock")).unwrap();
        assert!(matches!(Lock::take(dir.path()), Err(Error::InUse { pid: None, .. })));
    }

    #[test]
    fn what_an_earlier_process_left_in_the_file_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("lock"), "999999999999999 rubbish").unwrap();
        let _lock = Lock::take(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join("lock")).unwrap();
        assert_eq!(text, format!("{}\n", std::process::id()));
    }
}
