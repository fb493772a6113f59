//! The single owner of the active segment: encodes frames into a group, writes and syncs it.
//!
//! No thread of its own: the committer calls it, and blocks in it for one write and one sync a
//! group. A failed write, sync or rename of the active segment latches the log: the group's
//! appends are not acknowledged, and every later call fails.
//!
//! # Rolling
//!
//! When a frame does not fit, what is pending is committed, so that the segment is complete and
//! durable; then a spare is taken and the group begins with its header block. The next commit writes
//! header and frames with one call into the file under its spare name, syncs it, renames it to
//! `<base>.seg`, syncs the directory, and only then does the catalog, and with it any reader and
//! any 202, learn of it. The crash states of this order are told in `stock.rs`.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::catalog::{MARKER_BYTES, Resume, Shared, Spare};
use super::frame::{self, Header, Kind, Record, frame_bytes};
use super::segment::{self, Segment, SegmentHeader, segment_name};
use super::{AppendError, Entropy, LogError, NoRoom};
use crate::disk::{Access, DiskFile};
use crate::planted::{self, Mistake};

/// The group's buffer is kept between groups up to this size.
const KEEP_GROUP_BYTES: usize = 4 << 20;
/// After so many smaller groups in a row a larger buffer is given back.
const SMALL_GROUPS: u32 = 256;

/// Appends frames and makes them durable.
pub struct Writer {
    shared: Arc<Shared>,
    entropy: Entropy,
    /// The next record's offset, appended but uncommitted ones counted.
    next_offset: u64,
    /// Encoded and not yet written; goes to `active.position`. Empty when there is no active segment.
    group: Vec<u8>,
    /// Base of the first frame in `group`.
    group_base: u64,
    /// Groups in a row that would have fitted into `KEEP_GROUP_BYTES`.
    small_groups: u32,
    /// Accept time of the last append; markers carry it.
    last_micros: i64,
    active: Option<Active>,
}

/// The segment being written.
struct Active {
    file: Arc<dyn DiskFile>,
    header: SegmentHeader,
    /// Everything before it is durable; the group goes here.
    position: u64,
    /// The highest `durable` that header and frames tell.
    told_durable: u64,
    /// The last frame is the mark of a clean stop.
    is_marked_clean: bool,
    stage: Stage,
}

/// Whether the active segment is known to anybody yet.
enum Stage {
    /// Still under its spare name; its header is in the group.
    Unnamed { path: PathBuf, allocated: u64 },
    /// In the catalog.
    Live(Arc<Segment>),
}

impl Active {
    fn path(&self) -> &PathBuf {
        match &self.stage {
            Stage::Unnamed { path, .. } => path,
            Stage::Live(segment) => &segment.path,
        }
    }

    /// Bytes left for frames behind `pending` bytes of group, the place of the last marker kept free.
    fn room(&self, pending: usize) -> u64 {
        self.header.size.saturating_sub(self.position + pending as u64 + MARKER_BYTES)
    }
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        entropy: Entropy,
        next_offset: u64,
        resume: Option<Resume>,
    ) -> Self {
        let newest = shared.state().segments.back().cloned();
        let active = resume.zip(newest).map(|(resume, segment)| {
            segment.attach(&resume.file);
            segment.set_durable_position(resume.position);
            Active {
                file: resume.file,
                header: segment.header,
                position: resume.position,
                told_durable: if resume.is_marked_clean { next_offset } else { segment.header.durable },
                is_marked_clean: resume.is_marked_clean,
                stage: Stage::Live(segment),
            }
        });
        let writer = Self {
            shared,
            entropy,
            next_offset,
            group: Vec::new(),
            group_base: next_offset,
            small_groups: 0,
            last_micros: 0,
            active,
        };
        writer.publish_next();
        writer
    }

    /// Encodes one frame into the group and returns its first record's offset. No I/O unless the
    /// active segment is full. Durable only after [`Writer::commit`].
    ///
    /// Without records it does nothing. After an error nothing of this append is in the group; what
    /// was appended before still is, or has been committed.
    pub fn append<'a>(
        &mut self,
        accepted_at_micros: i64,
        records: impl ExactSizeIterator<Item = Record<'a>> + Clone,
    ) -> Result<u64, AppendError> {
        self.shared.check()?;
        let count = records.len() as u64;
        if count == 0 {
            return Ok(self.next_offset);
        }
        let payload_bytes: u64 = records.clone().map(|record| record.bytes.len() as u64).sum();
        let bytes = frame_bytes(count, payload_bytes);
        let limit_bytes = self.shared.largest_frame();
        if bytes > limit_bytes {
            return Err(AppendError::TooLarge { bytes, limit_bytes });
        }
        if self.room() < bytes {
            self.roll(accepted_at_micros)?;
        }
        let active = self.active.as_mut().expect("a segment with room was found or begun");
        if self.group.is_empty() {
            self.group_base = self.next_offset;
        }
        let header = Header {
            kind: Kind::Records,
            salt: active.header.salt,
            base: self.next_offset,
            durable: self.shared.durable_end(),
            accepted_at_micros,
            records: count as u32,
            payload_bytes: payload_bytes as u32,
        };
        frame::encode(&mut self.group, &header, records);
        active.told_durable = active.told_durable.max(header.durable);
        active.is_marked_clean = false;
        self.last_micros = accepted_at_micros;
        self.next_offset += count;
        self.publish_next();
        Ok(header.base)
    }

    /// Writes and syncs everything appended since the last commit, with one call each; returns the
    /// durable end.
    pub fn commit(&mut self) -> Result<u64, LogError> {
        self.shared.check()?;
        let Some(active) = self.active.as_mut().filter(|_| !self.group.is_empty()) else {
            return Ok(self.shared.durable_end());
        };
        let written = active.file.write_all_at(&self.group, active.position);
        written.map_err(|e| self.shared.fail(LogError::io("writing", active.path(), &e)))?;
        let mut synced = active.file.sync_data();
        if synced.is_err() && planted::made(Mistake::SyncRetried) {
            synced = active.file.sync_data();
        }
        synced.map_err(|e| self.shared.fail(LogError::io("syncing", active.path(), &e)))?;
        let end = active.position + self.group.len() as u64;
        match &active.stage {
            Stage::Live(segment) => segment.note(self.group_base, active.position),
            Stage::Unnamed { path, allocated } => {
                let segment = name_segment(&self.shared, path, active.header, *allocated, end)
                    .map_err(|error| self.shared.fail(error))?;
                segment.attach(&active.file);
                active.stage = Stage::Live(Arc::clone(&segment));
                self.shared.push_segment(segment);
            }
        }
        active.position = end;
        if let Stage::Live(segment) = &active.stage {
            segment.set_durable_position(end);
        }
        self.empty_group();
        self.shared.publish_durable(self.next_offset);
        Ok(self.next_offset)
    }

    /// Records, while the log idles, that everything is durable: one small synced frame, unless a
    /// frame tells so already or the segment has no room for it.
    pub fn mark_idle(&mut self) -> Result<(), LogError> {
        self.commit()?;
        self.group = Vec::new(); // who idles holds no memory
        let is_needed = self.active.as_ref().is_some_and(|active| active.told_durable < self.next_offset);
        if is_needed && self.room() >= MARKER_BYTES {
            self.mark(Kind::Idle);
            self.commit()?;
        }
        Ok(())
    }

    /// Commits and leaves the mark of an orderly stop.
    pub fn close(mut self) -> Result<(), LogError> {
        self.commit()?;
        let Some(active) = &self.active else { return Ok(()) };
        // Every segment keeps room for one; it is used up only where the mark already stands.
        if !active.is_marked_clean && active.position + MARKER_BYTES <= active.header.size {
            self.mark(Kind::CleanStop);
            self.commit()?;
        }
        Ok(())
    }

    /// For recovery: says that the offsets from the next one up to `next` hold nothing. Never goes back.
    pub(super) fn skip_to(&mut self, next: u64, now_micros: i64) -> Result<(), AppendError> {
        self.shared.check()?;
        if next <= self.next_offset {
            return Ok(());
        }
        if self.room() < MARKER_BYTES {
            self.roll(now_micros)?;
        }
        let void = self.next_offset..next;
        self.push_marker(|salt, durable| Header::void(salt, void, durable));
        self.next_offset = next;
        self.publish_next();
        Ok(())
    }

    /// For recovery without a spare: the next record gets this offset, everything below is durable
    /// in segments that take nothing more.
    pub(super) fn go_on_at(&mut self, next: u64) {
        debug_assert!(self.active.is_none() && next >= self.next_offset);
        self.next_offset = next;
        self.publish_next();
        self.shared.publish_durable(next);
    }

    /// For recovery: makes what was appended durable, in a new segment in any case.
    pub(super) fn begin(&mut self, now_micros: i64) -> Result<(), AppendError> {
        if self.active.is_none() {
            self.roll(now_micros)?;
        }
        self.commit()?;
        self.group = Vec::new(); // what was written anew may have been much
        Ok(())
    }

    /// Bytes of frames the active segment still takes.
    fn room(&self) -> u64 {
        self.active.as_ref().map_or(0, |active| active.room(self.group.len()))
    }

    fn publish_next(&self) {
        self.shared.publish_next(self.next_offset, self.room());
    }

    /// Puts a mark into the group. The caller has seen that it fits.
    fn mark(&mut self, kind: Kind) {
        let (base, accepted_at_micros) = (self.next_offset, self.last_micros);
        self.push_marker(|salt, durable| Header {
            kind,
            salt,
            base,
            durable,
            accepted_at_micros,
            records: 0,
            payload_bytes: 0,
        });
        self.publish_next();
    }

    /// Puts a frame without records into the group, given the salt and what is durable.
    fn push_marker(&mut self, header: impl FnOnce(u64, u64) -> Header) {
        let Some(active) = self.active.as_mut() else { return };
        let header = header(active.header.salt, self.shared.durable_end());
        if self.group.is_empty() {
            self.group_base = header.base;
        }
        frame::encode(&mut self.group, &header, std::iter::empty());
        active.told_durable = active.told_durable.max(header.durable);
        active.is_marked_clean = header.kind == Kind::CleanStop;
    }

    /// Leaves the active segment, complete and durable, and begins the next one in a spare.
    fn roll(&mut self, created_micros: i64) -> Result<(), AppendError> {
        self.commit()?;
        let spare = self.shared.take_spare()?;
        if let Some(path) = self.in_the_way(&spare) {
            self.shared.put_spare(spare);
            let reason = format!("{} is in the way of the next segment; move it elsewhere", path.display());
            return Err(NoRoom::Disk(reason).into());
        }
        let header = SegmentHeader {
            stream: self.shared.options.stream,
            base: self.next_offset,
            salt: (self.entropy)().max(1), // zero is what an unwritten header would have
            size: spare.size,
            created_micros,
            durable: self.shared.durable_end(),
        };
        segment::encode_header(&mut self.group, &header);
        self.group_base = self.next_offset; // the group is no longer empty, so nobody else sets it
        self.active = Some(Active {
            file: spare.file,
            header,
            position: 0,
            told_durable: header.durable,
            is_marked_clean: false,
            stage: Stage::Unnamed { path: spare.path, allocated: spare.allocated },
        });
        self.publish_next();
        Ok(())
    }

    /// A foreign file under the next segment's name, found before anything relies on the name.
    fn in_the_way(&self, spare: &Spare) -> Option<PathBuf> {
        let path = self.shared.options.dir.join(segment_name(self.next_offset));
        if spare.path == path || self.shared.newest_base() == Some(self.next_offset) {
            return None;
        }
        match self.shared.disk.open(&path, Access::Read) {
            Ok(_) => Some(path),
            Err(e) if e.kind() == io::ErrorKind::IsADirectory => Some(path),
            Err(_) => None, // nothing there; what else may be wrong the rename will tell
        }
    }

    fn empty_group(&mut self) {
        if self.group.len() > KEEP_GROUP_BYTES {
            self.small_groups = 0;
        } else {
            self.small_groups = self.small_groups.saturating_add(1);
        }
        self.group.clear();
        if self.small_groups >= SMALL_GROUPS {
            self.group.shrink_to(KEEP_GROUP_BYTES);
        }
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pending_bytes = self.group.len();
        f.debug_struct("Writer")
            .field("next_offset", &self.next_offset)
            .field("pending_bytes", &pending_bytes)
            .finish_non_exhaustive()
    }
}

/// Gives a written and synced spare the name of the segment it has become, durably. Over a newest
/// segment of the same base, all of whose frames recovery has written anew, it is put in one step.
fn name_segment(
    shared: &Shared,
    spare_path: &PathBuf,
    header: SegmentHeader,
    allocated: u64,
    durable_position: u64,
) -> Result<Arc<Segment>, LogError> {
    let dir = &shared.options.dir;
    let path = dir.join(segment_name(header.base));
    if *spare_path != path {
        let named = if shared.newest_base() == Some(header.base) {
            shared.disk.replace(spare_path, &path)
        } else {
            shared.disk.rename(spare_path, &path)
        };
        named.map_err(|e| LogError::io("renaming", spare_path, &e))?;
    }
    shared.disk.sync_dir(dir).map_err(|e| LogError::io("syncing directory", dir, &e))?;
    Ok(Arc::new(Segment::new(header, path, allocated, durable_position)))
}

#[cfg(test)]
pub(in crate::log) mod tests;
