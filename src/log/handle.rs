//! The handle to an open log that everybody may hold, and how recovery makes one.
//!
//! No thread of its own: each call works on the caller's thread, without I/O. Once the log has failed
//! the watermarks stand still and [`Log::failed`] says why.

use std::sync::Arc;

use super::catalog::{Inventory, Place, Shared};
use super::quarantine;
use super::scan::Loss;
use super::segment::Segment;
use super::{Damage, Entropy, NoRoom, Options, Reader, Stock, Writer};
use crate::disk::Disk;

/// A handle to an open log: watermarks, readers, release. Cheap to clone, usable from any thread.
#[derive(Debug, Clone)]
pub struct Log {
    shared: Arc<Shared>,
}

/// What a log takes on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes of all segments and spares, as `du` shows them.
    pub bytes: u64,
    /// Bytes they may take.
    pub budget_bytes: u64,
    /// Segments that hold unreleased records, the active one included.
    pub segments: u64,
    /// Spares ready to be used.
    pub spares: u64,
    /// Bytes of frames that fit without another segment being prepared.
    pub room_bytes: u64,
}

impl Log {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The oldest offset held; everything below was released.
    pub fn first_offset(&self) -> u64 {
        self.shared.first_offset()
    }

    /// Everything below this offset is durable and may be read. Cheap: one atomic load.
    pub fn durable_end(&self) -> u64 {
        self.shared.durable_end()
    }

    /// The offset the next record gets. May be ahead of the durable end while a commit is under way.
    pub fn next_offset(&self) -> u64 {
        self.shared.next_offset()
    }

    /// Resolves once the durable end is beyond `offset`, or the log has failed. Cancel-safe.
    pub async fn wait_beyond(&self, offset: u64) {
        self.shared.wait_beyond(offset).await;
    }

    /// A reader that begins at `from`.
    pub fn reader(&self, from: u64) -> Reader {
        Reader::new(self.clone(), from)
    }

    /// Gives up every segment that lies wholly below `offset`; the stock takes the files back. The
    /// newest segment always stays: its base is what keeps offsets from starting again.
    ///
    /// Whoever calls this has made durable, elsewhere, that nobody needs these records.
    pub fn release_below(&self, offset: u64) {
        self.shared.release_below(offset);
    }

    /// What the log takes on disk now.
    pub fn usage(&self) -> Usage {
        let state = self.shared.state();
        Usage {
            bytes: state.bytes,
            budget_bytes: self.shared.options.budget_bytes,
            segments: state.segments.len() as u64,
            spares: state.spares.len() as u64,
            room_bytes: self.shared.room_bytes(),
        }
    }

    /// Whether frames of about `frame_bytes` in sum could be appended now. Cheap enough to ask for
    /// every request; only an append decides. Says nothing about the latch.
    pub fn room_for(&self, frame_bytes: u64) -> Result<(), NoRoom> {
        if frame_bytes <= self.shared.room_bytes() {
            return Ok(());
        }
        Err(self.shared.state().shortage.clone().unwrap_or(NoRoom::Preparing))
    }

    /// Why the log takes nothing any more, once it has failed.
    pub fn failed(&self) -> Option<String> {
        self.shared.failure().map(str::to_owned)
    }

    /// Makes [`Stock::run`](super::Stock::run) return.
    pub fn stop_stock(&self) {
        self.shared.state().stock_stops = true;
        self.shared.stock_work.notify_all();
    }

    /// The base of the newest segment: everything below it lies in segments that take nothing more.
    pub fn sealed_end(&self) -> u64 {
        self.shared.state().segments.back().map_or(0, |newest| newest.base())
    }

    /// Where the oldest segment ends, when it takes nothing more: what may be given up next.
    pub fn oldest_end(&self) -> Option<u64> {
        self.shared.state().segments.get(1).map(|second| second.base())
    }

    /// The largest frame, header and table included, that an append may make.
    pub fn max_frame_bytes(&self) -> u64 {
        self.shared.largest_frame()
    }

    /// The segment that holds `offset`, for readers.
    pub(super) fn locate(&self, offset: u64) -> Place {
        let state = self.shared.state();
        let after = state.segments.partition_point(|segment| segment.base() <= offset);
        match after.checked_sub(1) {
            Some(at) => Place::In {
                segment: Arc::clone(&state.segments[at]),
                end: state.segments.get(after).map(|next| next.base()),
            },
            None if offset < self.first_offset() => Place::Released { first_offset: self.first_offset() },
            None => Place::NotYet,
        }
    }

    /// Tells of a loss and sets its bytes aside, unless that was done before. Where the copy fails
    /// the segment's file is never used again.
    pub(super) fn tell(&self, segment: &Segment, loss: &Loss) -> Option<Damage> {
        if !self.shared.learn(segment.base(), &loss.bytes, &loss.lost) {
            return None;
        }
        let (damage, kept) =
            quarantine::tell(self.disk(), self.options(), &segment.path, segment.salt(), loss);
        if !kept {
            segment.keep();
        }
        Some(damage)
    }

    pub(super) fn disk(&self) -> &dyn Disk {
        &*self.shared.disk
    }

    pub(super) fn options(&self) -> &Options {
        &self.shared.options
    }
}

/// Makes the parts of an open log out of what recovery found.
///
/// To begin a new segment recovery then calls `Stock::step` until `Log::usage` shows a spare or
/// the step has nothing more to give, appends what it rewrites (`Writer::append`, with
/// `Writer::skip_to` across void offsets) and calls `Writer::begin`, which commits. Without a spare
/// it begins none; the writer rolls by itself once there is one.
pub(super) fn assemble(
    disk: Arc<dyn Disk>,
    options: Options,
    entropy: Entropy,
    mut inventory: Inventory,
) -> (Log, Writer, Stock) {
    let shared = Arc::new(Shared::new(disk, options, &mut inventory));
    let stock = Stock::new(Arc::clone(&shared), inventory.spares, inventory.next_spare_number);
    let writer = Writer::new(Arc::clone(&shared), entropy, inventory.next_offset, inventory.resume);
    (Log::new(shared), writer, stock)
}
