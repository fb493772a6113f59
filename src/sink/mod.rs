//! Sinks: how a batch of events is delivered to one place.
//!
//! A sink knows its target and nothing about offsets' bookkeeping, retries or other sinks. Adding
//! one is one file here and one line in the registry.
//!
//! Each sink instance is owned by one worker thread and called by it alone; `deliver` may block, but
//! what blocks the thread cannot be timed out: waiting belongs into the future.
//! A sink that panics loses its batch's outcome, not the daemon: the claim returns.
//!
//! A program around the daemon brings its own through `daemon::Builder`.

mod blame;
pub mod exec;
pub mod json_file;
pub mod stdout;
#[cfg(test)]
mod tests;
pub mod webhook;

use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{SinkConfig, SinkKind};
use crate::disk::Disk;
use crate::event::StoredBatch;

/// Delivers batches of events to one place.
pub trait Sink: Send {
    /// Delivers `batch`, in order where the sink needs order.
    ///
    /// When this returns [`Delivery`], what it calls delivered is durable at the target, as far as
    /// the target can promise that. Dropping the future (a timeout) means nothing is known. A sink
    /// that was timed out or has panicked is called again; where single events may be parked, first
    /// with parts of the same batch, until those are found that do it.
    ///
    /// Only a sink that keeps order is called without any event: a token may move past offsets that
    /// hold nothing for it.
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliverFuture<'a>;

    /// Called once after the last delivery of an orderly stop; a failure is only logged, because
    /// everything delivered was durable already.
    fn close(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

/// What [`Sink::deliver`] returns.
pub type DeliverFuture<'a> = Pin<Box<dyn Future<Output = Result<Delivery, Unavailable>> + Send + 'a>>;

/// Events to deliver, and the offsets between them that hold no event.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// The events, ascending.
    pub events: StoredBatch,
    /// Offsets inside this batch's range that hold nothing for this sink: nothing was ever accepted
    /// there, damage took it, or the sink's filter does not match it. Ascending, disjoint.
    pub voids: Vec<Range<u64>>,
}

/// The answer to one batch.
#[derive(Debug, Clone, Default)]
pub struct Delivery {
    /// What became of each event.
    pub outcomes: Outcomes,
    /// Where the sink stands now; stored in the same ledger record as the checkpoint and handed
    /// back on open. Only of use to a sink that keeps order. At most [`MAX_TOKEN_BYTES`].
    pub token: Option<Vec<u8>>,
}

/// The largest resume token a sink may hand back, in bytes.
pub const MAX_TOKEN_BYTES: usize = 4096;

/// What became of the events of a batch.
#[derive(Debug, Clone, Default)]
pub enum Outcomes {
    /// Every one was delivered.
    #[default]
    AllDelivered,
    /// One outcome an event, in batch order.
    Each(Vec<Outcome>),
}

/// What became of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is at the target.
    Delivered,
    /// It failed and may succeed later.
    Retry {
        /// Why, for the failure table.
        reason: String,
        /// How long the target asked to be left alone with it.
        retry_after: Option<Duration>,
    },
    /// It will never succeed.
    Reject {
        /// Why, for the failure table.
        reason: String,
    },
}

/// The target as a whole does not work at the moment; no event is to blame and no attempt is used.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{reason}")]
pub struct Unavailable {
    /// Why, for logs and `/v1/status`.
    pub reason: String,
    /// How long the target asked to be left alone.
    pub retry_after: Option<Duration>,
}

/// A sink could not be opened or closed.
#[derive(Debug, thiserror::Error)]
#[error("sink `{sink}`: {reason}")]
pub struct SinkError {
    /// The sink's configured name.
    pub sink: String,
    /// What went wrong and what to do about it.
    pub reason: String,
}

/// Where a sink stood when it was last checkpointed.
#[derive(Debug, Clone, Default)]
pub struct Resume {
    /// The token of the last durable checkpoint, if there was one.
    pub token: Option<Vec<u8>>,
    /// The offset of the first event the sink will be given.
    pub next_offset: u64,
}

/// What a sink keeps on this machine's disk, copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopiedFiles {
    /// Files in the copy.
    pub files: u64,
    /// Bytes that had to be copied; the others have a second name only.
    pub bytes: u64,
}

/// What of a sink belongs into a copy of its data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// Nothing: it keeps no files.
    Nothing,
    /// Files in the data directory, which were copied.
    Copied(CopiedFiles),
    /// Files outside of the data directory, which were not.
    Elsewhere(PathBuf),
}

/// Copies what a sink keeps in the data directory `from` into `to`, as its checkpoint speaks of it. The
/// sink may go on meanwhile. Blocks on the disk.
pub fn copy_files(
    disk: &dyn Disk,
    config: &SinkConfig,
    from: &Path,
    to: &Path,
    resume: &Resume,
) -> io::Result<Kept> {
    let Some(json_file::Options { tree, .. }) = json_file::Options::of(config, from) else {
        return Ok(Kept::Nothing);
    };
    match tree.root.strip_prefix(from) {
        Ok(inside) => Ok(Kept::Copied(json_file::copy_to(disk, &tree, &to.join(inside), resume)?)),
        Err(_) => Ok(Kept::Elsewhere(tree.root)),
    }
}

/// Opens the sink that `config` describes, where its last checkpoint left it. The registry: a new
/// sink is one line here.
///
/// Blocks on the disk. An unavailable target is no error here: the sink opens, and its deliveries
/// say so until the target is back.
pub fn open(
    config: &SinkConfig,
    data_dir: &Path,
    disk: Arc<dyn Disk>,
    resume: Resume,
) -> Result<Box<dyn Sink>, SinkError> {
    match &config.kind {
        SinkKind::JsonFile { .. } => {
            let options = json_file::Options::of(config, data_dir).ok_or_else(|| SinkError {
                sink: config.name.clone(),
                reason: "it is no archive".to_owned(),
            })?;
            Ok(Box::new(json_file::JsonFile::open(disk, options, resume)?.in_background()))
        }
        SinkKind::Stdout => Ok(Box::new(stdout::Stdout::new())),
        SinkKind::Webhook(webhook) => Ok(Box::new(webhook::Webhook::open(config, webhook)?)),
        SinkKind::Exec(exec) => Ok(Box::new(exec::Exec::new(config, exec))),
        SinkKind::Embedded { .. } => Err(SinkError {
            sink: config.name.clone(),
            reason: "a sink of this kind exists only in the program that brings it along".to_owned(),
        }),
    }
}
