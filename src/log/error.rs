//! What the log tells its caller when something does not work.
//!
//! Pure data. Each message says what to do next, because it ends in a problem document, in a log
//! line or on a terminal.

use std::io;
use std::path::{Path, PathBuf};

/// Why the log cannot go on. After one of these from a [`Writer`](super::Writer) the log is latched.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// An operation on one of the log's files failed.
    #[error("{action} {} failed: {reason}; check the disk, then start again", path.display())]
    Io {
        /// What was tried, as a verb: "syncing".
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        reason: String,
        /// The kind the system gave.
        kind: io::ErrorKind,
    },
    /// A segment was written by a program whose format this one does not know; this log is left as it is.
    #[error(
        "{} has version {version} of the segment format, which this eventflow does not know; start the version that wrote \
         it, or one as new", path.display()
    )]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// What it says its version is.
        version: char,
    },
    /// The log failed earlier and takes nothing any more.
    #[error("the log has failed ({0}); stop the process and start it again, it recovers from the disk")]
    Failed(String),
}

impl LogError {
    /// An I/O failure with the file it happened on.
    pub(super) fn io(action: &'static str, path: &Path, source: &io::Error) -> Self {
        LogError::Io { action, path: path.to_owned(), reason: source.to_string(), kind: source.kind() }
    }
}

/// Why there is no room for a frame now. Nothing of it was stored; later there may be room again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// The budget is used up by segments that still hold unreleased records.
    #[error("the log's budget is used up; it frees itself as its records are released")]
    Budget,
    /// The disk, or the process's descriptors, do not allow another segment.
    #[error("no further segment can be prepared: {0}; it is tried again by itself")]
    Disk(String),
    /// The next segment is not ready yet; it will be in a moment.
    #[error("the next segment is still being prepared; try again in a moment")]
    Preparing,
}

/// Why an append was not taken. Nothing of it was stored.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// There is no room now.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The frame is larger than a segment can ever hold.
    #[error("the records take {bytes} bytes in the log and at most {limit_bytes} fit; send fewer at once")]
    TooLarge {
        /// What the frame would take.
        bytes: u64,
        /// The most a frame may take.
        limit_bytes: u64,
    },
    /// The log has failed for good.
    #[error(transparent)]
    Failed(#[from] LogError),
}

/// Why a read gave nothing. None of these is damage: damage is part of a chunk.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The log let the position go; what is left begins at `first_offset`.
    #[error("these records were released; the log now begins at offset {first_offset}")]
    Released {
        /// The oldest offset the log still holds.
        first_offset: u64,
    },
    /// The system could not read; trying again may work.
    #[error("reading {} at byte {position} failed: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Where in it.
        position: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The log failed earlier.
    #[error("the log has failed ({0}); stop the process and start it again")]
    Failed(String),
}
