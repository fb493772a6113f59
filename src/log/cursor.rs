//! Reading the records of one segment from any offset on, frame by frame, in large chunks.
//!
//! Shared by readers of an open log and by the offline reader. Knows one file, where its offsets end
//! and E; blocks in `pread`. What cannot be read becomes a loss or a void in what it hands out, never
//! an error; only the system's own errors are.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::frame::{self, HEADER_BYTES, Kind};
use super::reader::ReadRecord;
use super::scan::{
    DAMAGED_FRAMES, DAMAGED_RECORD, ENDS_EARLY, Expect, FrameAt, Loss, MENDED_FRAME, MISSING_FRAMES,
    frame_at_or_mended, judge, search,
};
use super::window::Window;
use crate::disk::DiskFile;

/// What one read has gathered.
#[derive(Debug, Default)]
pub(super) struct Piece {
    pub buffer: Bytes,
    pub records: Vec<ReadRecord>,
    pub voids: Vec<Range<u64>>,
    pub losses: Vec<Loss>,
}

/// How much one read may gather. A first record is always taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measure {
    pub records: usize,
    pub bytes: usize,
}

/// Where reading ends for now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Offsets at or above are not read.
    pub until: u64,
    /// Bytes at or beyond are not read.
    pub limit: u64,
    /// E. Below it what is missing is lost, above it void.
    pub durable: u64,
}

/// A position within one segment.
#[derive(Debug)]
pub(super) struct Cursor {
    window: Window,
    salt: u64,
    base: u64,
    /// The next offset to hand out.
    next: u64,
    /// Where the frame being read, or the next one, begins.
    position: u64,
    /// Where the records of the frame before begin.
    records: u64,
    inside: Option<Inside>,
}

/// A frame of records of which some were handed out.
#[derive(Debug)]
struct Inside {
    frame: FrameAt,
    /// Index of the next record.
    index: usize,
    /// Where its bytes begin.
    at: u64,
}

/// What comes next in a segment.
enum Next {
    /// Records, in `Cursor::inside`.
    Records,
    /// Offsets passed without a record, or only a marker.
    Passed,
    /// The window would have to move, which it may not while a piece has records from it.
    MustMove,
}

impl Cursor {
    /// A cursor at offset `next` of a segment. The frame at `position` holds `next` or comes before
    /// the one that does.
    pub fn new(file: Arc<dyn DiskFile>, salt: u64, base: u64, next: u64, position: u64) -> Self {
        Self { window: Window::new(file, 0, 0), salt, base, next, position, records: position, inside: None }
    }

    /// Bytes read at a time from now on.
    pub fn set_chunk(&mut self, chunk: usize) {
        self.window.set_chunk(chunk);
    }

    /// The next offset it hands out.
    pub fn next_offset(&self) -> u64 {
        self.next
    }

    /// An offset and the position of the frame it begins, for finding it again.
    pub fn place(&self) -> Option<(u64, u64)> {
        self.inside.as_ref().map(|inside| (inside.frame.header.base, inside.frame.position))
    }

    /// Gathers records into `piece` until a bound, the measure, or the end of what one read brings.
    pub fn read(&mut self, bounds: Bounds, measure: Measure, piece: &mut Piece) -> io::Result<()> {
        self.window.set_limit(bounds.limit);
        let mut bytes_left = measure.bytes;
        while self.next < bounds.until && piece.records.len() < measure.records {
            if self.inside.is_none() {
                match self.advance(bounds, piece, true)? {
                    Next::Records => {}
                    Next::Passed => continue,
                    Next::MustMove => break,
                }
            }
            if !self.take_records(measure.records, bounds.until, &mut bytes_left, piece)? {
                break;
            }
        }
        Ok(())
    }

    /// Gathers offsets and tags without looking at any record.
    pub fn read_tags(
        &mut self,
        bounds: Bounds,
        max_records: usize,
        tags: &mut Vec<(u64, u128)>,
    ) -> io::Result<usize> {
        self.window.set_limit(bounds.limit);
        let mut ignored = Piece::default();
        let mut taken = 0;
        while self.next < bounds.until && taken < max_records {
            if self.inside.is_none() && !matches!(self.advance(bounds, &mut ignored, false)?, Next::Records) {
                continue;
            }
            let Some(inside) = self.inside.take() else { continue };
            let first = inside.index;
            for (offset, entry) in (inside.frame.header.base..bounds.until)
                .zip(frame::entries(&inside.frame.header, &inside.frame.prefix))
                .skip(first)
            {
                tags.push((offset, entry.tag));
                taken += 1;
            }
            self.leave(&inside.frame);
            self.next = self.next.min(bounds.until);
        }
        Ok(taken)
    }

    /// Moves on to the next frame with records, or past something without.
    fn advance(&mut self, bounds: Bounds, piece: &mut Piece, may_hold: bool) -> io::Result<Next> {
        let has_records = may_hold && !piece.records.is_empty();
        if has_records && !self.frame_is_at_hand()? {
            return Ok(Next::MustMove);
        }
        let expect = Expect { salt: self.salt, next: self.base, end: u64::MAX };
        let found = frame_at_or_mended(&mut self.window, self.position, &expect)?;
        let frame = match found {
            Some(frame) => frame,
            None if has_records => return Ok(Next::MustMove),
            None => return self.pass_gap(bounds, piece),
        };
        if frame.header.base >= bounds.until {
            // Beyond the end, after a gap or as a leftover that a later segment holds anew.
            self.miss(self.position..self.position, bounds.until, bounds, piece, ENDS_EARLY);
            return Ok(Next::Passed);
        }
        if frame.header.base > self.next {
            self.miss(self.position..self.position, frame.header.base, bounds, piece, MISSING_FRAMES);
        }
        self.enter(frame, bounds, piece)
    }

    /// Whether the next header and table can be looked at without moving the window.
    fn frame_is_at_hand(&mut self) -> io::Result<bool> {
        if !self.window.holds(self.position, HEADER_BYTES) {
            return Ok(false);
        }
        let header = frame::peek(self.window.get(self.position, HEADER_BYTES)?);
        Ok(header.is_some_and(|header| {
            let whole = header.prefix_bytes().min(self.window.limit().saturating_sub(self.position));
            self.window.holds(self.position, whole as usize)
        }))
    }

    /// Takes a frame up: its records, or what it says without any.
    fn enter(&mut self, frame: FrameAt, bounds: Bounds, piece: &mut Piece) -> io::Result<Next> {
        let header = frame.header;
        if frame.mended && header.next_offset() > self.next {
            let bytes = frame.position..frame.position + header.prefix_bytes();
            piece.losses.push(Loss { bytes, lost: header.base..header.base, reason: MENDED_FRAME });
        }
        if header.kind != Kind::Records || header.offsets().end <= self.next {
            let to = header.next_offset().min(bounds.until);
            if header.kind == Kind::Void && to > self.next {
                piece.voids.push(self.next..to);
                self.next = to;
            }
            self.pass(&frame);
            return Ok(Next::Passed);
        }
        if header.base >= bounds.durable && !frame.is_whole(&mut self.window)? {
            // Never known durable and not whole: an append counts whole or not at all.
            let to = header.offsets().end.min(bounds.until);
            piece.voids.push(self.next..to);
            self.next = to;
            self.pass(&frame);
            return Ok(Next::Passed);
        }
        let index = (self.next - header.base) as usize;
        let before: u64 =
            frame::entries(&header, &frame.prefix).take(index).map(|entry| entry.len as u64).sum();
        let at = frame.position + header.prefix_bytes() + before;
        self.inside = Some(Inside { frame, index, at });
        Ok(Next::Records)
    }

    /// No frame stands at the position: finds the next one, or gives the rest up.
    fn pass_gap(&mut self, bounds: Bounds, piece: &mut Piece) -> io::Result<Next> {
        let expect = Expect { salt: self.salt, next: self.base, end: u64::MAX };
        let (gap, frame) = search(&mut self.window, self.records, self.position, &expect)?;
        match frame {
            Some(frame) if frame.header.base < bounds.until => {
                let to = frame.header.base.max(self.next);
                // Zeros without an offset missing are what is left beside a void written in place.
                if to > self.next || gap.non_zero > 0 {
                    self.miss(gap.bytes, to, bounds, piece, DAMAGED_FRAMES);
                }
                self.position = frame.position;
            }
            _ => {
                let reason = if gap.non_zero > 0 { DAMAGED_FRAMES } else { ENDS_EARLY };
                let bytes = gap.bytes.start..gap.non_zero_end.max(gap.bytes.start);
                self.miss(bytes, bounds.until, bounds, piece, reason);
            }
        }
        Ok(Next::Passed)
    }

    /// Passes offsets that have no record: lost below E, void from there on.
    fn miss(&mut self, bytes: Range<u64>, to: u64, bounds: Bounds, piece: &mut Piece, reason: &'static str) {
        let to = to.max(self.next);
        let (lost, void) = judge(&(self.next..to), bounds.durable);
        if !lost.is_empty() || (void.is_empty() && !bytes.is_empty()) {
            piece.losses.push(Loss { bytes, lost: lost.clone(), reason });
        }
        for range in [lost, void] {
            if !range.is_empty() {
                piece.voids.push(range);
            }
        }
        self.next = to;
    }

    /// Takes records of the frame inside which the cursor is, below `until`: what a file of another log says
    /// beyond it, another segment holds. `false` when the read ends here.
    fn take_records(
        &mut self,
        max: usize,
        until: u64,
        bytes_left: &mut usize,
        piece: &mut Piece,
    ) -> io::Result<bool> {
        let Some(mut inside) = self.inside.take() else { return Ok(true) };
        let frame = inside.frame.clone();
        let mut goes_on = true;
        let entries = frame::entries_from(&frame.header, &frame.prefix, inside.index);
        for (offset, entry) in (self.next..until).zip(entries) {
            let len = entry.len as usize;
            let has_records = !piece.records.is_empty();
            let too_much = piece.records.len() >= max || (len > *bytes_left && has_records);
            if too_much || (has_records && !self.window.holds(inside.at, len)) {
                goes_on = false;
                break;
            }
            let bytes = self.window.get(inside.at, len)?;
            if frame::check_record(&frame.header, offset, &entry, bytes) {
                let (buffer, start) = self.window.buffer(inside.at);
                if !has_records {
                    piece.buffer = buffer;
                }
                piece.records.push(ReadRecord {
                    offset,
                    accepted_at_micros: frame.header.accepted_at_micros,
                    tag: entry.tag,
                    start: start as u32,
                    len: entry.len,
                });
                *bytes_left = bytes_left.saturating_sub(len);
            } else {
                let bytes = inside.at..inside.at + len as u64;
                piece.losses.push(Loss { bytes, lost: offset..offset + 1, reason: DAMAGED_RECORD });
                piece.voids.push(offset..offset + 1);
            }
            inside.index += 1;
            inside.at += len as u64;
            self.next = offset + 1;
        }
        if self.next >= frame.header.offsets().end {
            self.leave(&frame);
        } else {
            self.inside = Some(inside);
        }
        Ok(goes_on)
    }

    fn leave(&mut self, frame: &FrameAt) {
        self.next = frame.header.offsets().end;
        self.pass(frame);
        self.inside = None;
    }

    fn pass(&mut self, frame: &FrameAt) {
        self.records = frame.position + frame.header.prefix_bytes();
        self.position = frame.end();
    }
}
