//! The daemon, from lock to drain.
//!
//! Runs on the main thread.

use crate::config::Config;

/// Why the daemon ended other than by an orderly stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has the data directory.
    #[error("the data directory {dir} is in use by another eventflow process{}", .pid.map_or(String::new(), |pid| format!(" (pid {pid})")))]
    InUse {
        /// The directory.
        dir: String,
        /// The other process, if it said.
        pid: Option<u32>,
    },
    /// A write or sync failed, or there was no room to start.
    #[error("storage failed: {0}")]
    StorageFailed(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// Runs the daemon until a signal stops it.
pub fn serve(_config: Config) -> Result<(), Error> {
    Err(Error::Failed("the daemon is not wired yet".to_owned()))
}
