//! Walking the frames of one segment and telling what is intact, damaged, torn or stale.
//!
//! Reads through a [`Window`] and decides nothing that needs more than one segment: recovery,
//! readers and inspection do, with E, the highest offset known durable. Blocks the calling thread.
//! Bytes are never trusted: a frame counts when its checksum, salt, offsets and lengths agree, and
//! one found by searching counts only when each of its records does too.

use std::io;
use std::ops::Range;

use bytes::Bytes;
use memchr::memmem;

use super::frame::{self, Entry, HEADER_BYTES, Header, Kind, MAGIC};
use super::mend;
use super::segment::DATA_START;
use super::window::Window;
use crate::planted::{self, Mistake};

/// Where in a frame header the salt stands.
const SALT_AT: u64 = 8;
/// Candidates for a frame of another salt that are looked at before nobody cares any more.
const STALE_TRIES: usize = 256;

/// What is skipped at once where nothing was written.
const ZEROS: [u8; 512] = [0; 512];

/// What the next frame must carry to belong here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Expect {
    /// The salt of this use of the file.
    pub salt: u64,
    /// The offset that comes next; a frame below it is a copy of something.
    pub next: u64,
    /// No record of this segment has this offset or a higher one.
    pub end: u64,
}

impl Expect {
    fn fits(&self, header: &Header) -> bool {
        (header.salt == self.salt || planted::made(Mistake::StaleBytesTrusted))
            && header.base >= self.next
            && header.next_offset() <= self.end
            && header.durable <= header.base
            && (header.kind != Kind::Void || header.next_offset() > header.base)
            && (header.kind == Kind::Records || header.payload_bytes == 0)
    }
}

/// A frame whose header and table hold.
#[derive(Debug, Clone)]
pub(super) struct FrameAt {
    /// Where it begins.
    pub position: u64,
    /// Its header.
    pub header: Header,
    /// Header and table, mended if they had to be.
    pub prefix: Bytes,
    /// One byte of header or table was wrong and has been put right in `prefix`.
    pub mended: bool,
}

/// One record of a frame: where it is and what it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RecordAt {
    pub offset: u64,
    pub position: u64,
    pub entry: Entry,
}

impl RecordAt {
    pub fn bytes(&self) -> Range<u64> {
        self.position..self.position + self.entry.len as u64
    }
}

impl FrameAt {
    /// Where the next frame begins.
    pub fn end(&self) -> u64 {
        self.position + self.header.frame_bytes()
    }

    /// The frame's records with their places.
    pub fn records(&self) -> impl Iterator<Item = RecordAt> + '_ {
        let mut position = self.position + self.header.prefix_bytes();
        let entries = frame::entries(&self.header, &self.prefix);
        entries.zip(self.header.base..).map(move |(entry, offset)| {
            let record = RecordAt { offset, position, entry };
            position += entry.len as u64;
            record
        })
    }

    /// Whether every record holds.
    pub fn is_whole(&self, window: &mut Window) -> io::Result<bool> {
        Ok(self.damaged_records(window)?.is_empty())
    }

    /// The records whose bytes are not the ones they were written with.
    pub fn damaged_records(&self, window: &mut Window) -> io::Result<Vec<RecordAt>> {
        let mut damaged = Vec::new();
        for record in self.records() {
            let bytes = window.get(record.position, record.entry.len as usize)?;
            if !frame::check_record(&self.header, record.offset, &record.entry, bytes) {
                damaged.push(record);
            }
        }
        Ok(damaged)
    }
}

/// The frame at `position`, by its header and table alone; `None` when none that belongs here stands
/// there.
pub(super) fn frame_at(window: &mut Window, position: u64, expect: &Expect) -> io::Result<Option<FrameAt>> {
    let Some(header) = frame::peek(window.get(position, HEADER_BYTES)?) else { return Ok(None) };
    if !expect.fits(&header) || header.prefix_bytes() > window.limit().saturating_sub(position) {
        return Ok(None);
    }
    let prefix = window.share(position, header.prefix_bytes() as usize)?;
    let holds = frame::check_prefix(&header, &prefix);
    Ok(holds.then_some(FrameAt { position, header, prefix, mended: false }))
}

/// Like [`frame_at`], where a frame is known to belong: one wrong byte of its header or table is
/// put right, if then every record holds.
pub(super) fn frame_at_or_mended(
    window: &mut Window,
    position: u64,
    expect: &Expect,
) -> io::Result<Option<FrameAt>> {
    if let Some(frame) = frame_at(window, position, expect)? {
        return Ok(Some(frame));
    }
    // One wrong byte spoils the magic or the salt, never both.
    let salt = expect.salt.to_le_bytes();
    let head = window.share(position, HEADER_BYTES)?;
    if head.len() < HEADER_BYTES || (head[..4] != MAGIC && head[8..16] != salt) {
        return Ok(None);
    }
    let room = window.limit() - position;
    let records = u32::from_le_bytes([head[40], head[41], head[42], head[43]]) as u64;
    // The number of records may be what is wrong; its higher bytes then claim too much to be read.
    let claimed = HEADER_BYTES as u64 + frame::ENTRY_BYTES as u64 * records.max(0xffff);
    let bytes = window.share(position, claimed.min(room) as usize)?;
    let plausible = |header: &Header| expect.fits(header) && header.frame_bytes() <= room;
    let Some((header, prefix)) = mend::mend(&bytes, plausible) else { return Ok(None) };
    let frame = FrameAt { position, header, prefix: prefix.into(), mended: true };
    Ok(frame.is_whole(window)?.then_some(frame))
}

/// Bytes in which no frame stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Gap {
    /// The bytes, up to the next frame or the end of the file.
    pub bytes: Range<u64>,
    /// The offsets that should have been there; at the tail empty.
    pub offsets: Range<u64>,
    /// How many of the bytes are not zero.
    pub non_zero: u64,
    /// The position after the last byte that is not zero.
    pub non_zero_end: u64,
    /// Something carries this segment's salt: a frame was begun here.
    pub own: bool,
    /// A frame of another salt stands here: what is left of an earlier use of the file.
    pub stale: bool,
}

impl Gap {
    /// Whether somebody wrote here in this use of the file, as far as can be told.
    pub fn was_written(&self) -> bool {
        self.own || (self.non_zero > 0 && !self.stale)
    }
}

/// Searches for the next frame that holds in every byte, since none stands at `position`. Any position
/// counts, so that inserted or removed bytes cost no more than they hit; for the same reason the
/// search begins at `from`, within the frame before. Returns the gap, too.
pub(super) fn search(
    window: &mut Window,
    from: u64,
    position: u64,
    expect: &Expect,
) -> io::Result<(Gap, Option<FrameAt>)> {
    let salt = expect.salt.to_le_bytes();
    let finder = memmem::Finder::new(&salt);
    let mut gap = Gap::default();
    let mut found = None;
    debug_assert_ne!(expect.salt, 0, "no segment has this salt, and zeros are everywhere");
    // What is read is looked at while it is at hand: the end of a segment is most of what an opening reads.
    let mut looked = position;
    gap.non_zero_end = position;
    let mut tries = STALE_TRIES;
    let mut at = from;
    while found.is_none() {
        let bytes = window.rest(at, HEADER_BYTES)?;
        let end = at + bytes.len() as u64;
        if let Some(hit) = finder.find(bytes) {
            let hit = at + hit as u64;
            gap.own |= hit >= position;
            at = hit + 1;
            if hit >= from + SALT_AT
                && let Some(frame) = frame_at(window, hit - SALT_AT, expect)?
                && frame.is_whole(window)?
            {
                found = Some(frame);
            }
        } else if end >= window.limit() {
            break;
        } else {
            // A frame that begins before this point would have shown its whole salt.
            at = end.saturating_sub(SALT_AT + salt.len() as u64 - 1).max(at + 1);
            look_at(window, &mut gap, looked..at, expect.salt, &mut tries)?;
            looked = looked.max(at);
        }
    }
    let to = found.as_ref().map_or(window.limit().max(position), |frame| frame.position);
    gap.bytes = position.min(to)..to;
    if let Some(frame) = &found {
        gap.offsets = expect.next..frame.header.base;
    }
    look_at(window, &mut gap, looked..to, expect.salt, &mut tries)?;
    Ok((gap, found))
}

/// Looks at a part of a gap: how much of it is written, and whether by an earlier use.
fn look_at(
    window: &mut Window,
    gap: &mut Gap,
    part: Range<u64>,
    salt: u64,
    stale_tries: &mut usize,
) -> io::Result<()> {
    let mut at = part.start;
    while at < part.end {
        let rest = window.rest(at, 1)?;
        let bytes = &rest[..rest.len().min((part.end - at) as usize)];
        if bytes.is_empty() {
            break; // the file was cut while it was read
        }
        for (block, begin) in bytes.chunks(ZEROS.len()).zip((at..).step_by(ZEROS.len())) {
            if block == &ZEROS[..block.len()] {
                continue; // nearly all of them, and this is the fast way to see it
            }
            gap.non_zero += non_zero(block);
            let last = block.iter().rposition(|byte| *byte != 0).unwrap_or_default();
            gap.non_zero_end = begin + last as u64 + 1;
        }
        let next = at + bytes.len() as u64;
        if !gap.stale && *stale_tries > 0 {
            let hits: Vec<u64> =
                memmem::find_iter(bytes, &MAGIC).take(*stale_tries).map(|hit| at + hit as u64).collect();
            for hit in hits {
                *stale_tries -= 1;
                gap.stale = is_stale_frame(window, hit, salt)?;
                if gap.stale {
                    break;
                }
            }
        }
        at = next;
    }
    Ok(())
}

/// How many bytes are not zero; summed up in single bytes, sixteen and more at a time.
fn non_zero(block: &[u8]) -> u64 {
    let short = block.chunks(usize::from(u8::MAX));
    short.map(|bytes| u64::from(bytes.iter().map(|byte| u8::from(*byte != 0)).sum::<u8>())).sum()
}

/// Whether the header and table of a frame of another salt stand at `position`.
fn is_stale_frame(window: &mut Window, position: u64, salt: u64) -> io::Result<bool> {
    let Some(header) = frame::peek(window.get(position, HEADER_BYTES)?) else { return Ok(false) };
    if header.salt == salt || header.prefix_bytes() > window.limit().saturating_sub(position) {
        return Ok(false);
    }
    Ok(frame::check_prefix(&header, window.get(position, header.prefix_bytes() as usize)?))
}

/// The salt of the first whole frame whose offsets lie in `offsets`: what a segment that has lost
/// both copies of its header is read by.
pub(super) fn salt_by_frames(window: &mut Window, offsets: Range<u64>) -> io::Result<Option<u64>> {
    let mut at = DATA_START;
    loop {
        let bytes = window.rest(at, HEADER_BYTES)?;
        let len = bytes.len() as u64;
        let Some(hit) = memmem::find(bytes, &MAGIC) else {
            if at + len >= window.limit() {
                return Ok(None);
            }
            at += (len - (MAGIC.len() as u64 - 1)).max(1);
            continue;
        };
        let position = at + hit as u64;
        if let Some(header) = frame::peek(window.get(position, HEADER_BYTES)?) {
            let expect = Expect { salt: header.salt, next: offsets.start, end: offsets.end };
            if let Some(frame) = frame_at(window, position, &expect)?
                && frame.is_whole(window)?
            {
                return Ok(Some(header.salt));
            }
        }
        at = position + 1;
    }
}

/// What a walk meets, in order.
#[derive(Debug)]
pub(super) enum Item {
    /// A frame, and those of its records that are damaged (looked at only by a verifying walk).
    Frame(FrameAt, Vec<RecordAt>),
    /// Bytes without a frame before the next one, or offsets missing between two frames.
    Gap(Gap),
    /// What follows the last frame; the last item.
    Tail(Gap),
}

/// A walk over the frames of one segment.
#[derive(Debug)]
pub(super) struct Walk {
    /// What it reads through.
    pub window: Window,
    expect: Expect,
    position: u64,
    /// Where the records of the last frame begin: what follows may, should they have shrunk.
    records: u64,
    verify: bool,
    found: Option<FrameAt>,
    done: bool,
}

impl Walk {
    /// A walk from `position`, where `expect.next` should stand. `verify` looks at every record.
    pub fn new(window: Window, position: u64, expect: Expect, verify: bool) -> Self {
        Self { window, expect, position, records: position, verify, found: None, done: false }
    }

    /// The next item.
    pub fn next(&mut self) -> io::Result<Option<Item>> {
        if self.done {
            return Ok(None);
        }
        if let Some(frame) = self.found.take() {
            return self.pass(frame).map(Some);
        }
        if self.expect.next >= self.expect.end {
            return Ok(Some(self.finish(Gap { bytes: self.position..self.position, ..Gap::default() })));
        }
        match frame_at_or_mended(&mut self.window, self.position, &self.expect)? {
            Some(frame) if frame.header.base == self.expect.next => self.pass(frame).map(Some),
            Some(frame) => {
                let at = self.position;
                let offsets = self.expect.next..frame.header.base;
                self.found = Some(frame);
                Ok(Some(Item::Gap(Gap { bytes: at..at, offsets, non_zero_end: at, ..Gap::default() })))
            }
            None => {
                let (gap, frame) = search(&mut self.window, self.records, self.position, &self.expect)?;
                match frame {
                    Some(frame) => {
                        self.found = Some(frame);
                        Ok(Some(Item::Gap(gap)))
                    }
                    None => Ok(Some(self.finish(gap))),
                }
            }
        }
    }

    fn pass(&mut self, frame: FrameAt) -> io::Result<Item> {
        let damaged = if self.verify { frame.damaged_records(&mut self.window)? } else { Vec::new() };
        self.expect.next = frame.header.next_offset();
        self.position = frame.end();
        self.records = frame.position + frame.header.prefix_bytes();
        Ok(Item::Frame(frame, damaged))
    }

    fn finish(&mut self, gap: Gap) -> Item {
        self.done = true;
        Item::Tail(gap)
    }
}

/// A range of bytes that cannot be read as what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Loss {
    /// The bytes.
    pub bytes: Range<u64>,
    /// The offsets lost with them; empty when nothing was.
    pub lost: Range<u64>,
    /// What is wrong, for people.
    pub reason: &'static str,
}

pub(super) const DAMAGED_RECORD: &str = "a record does not match its checksum";
pub(super) const DAMAGED_FRAMES: &str = "no intact frame where one was written";
pub(super) const MISSING_FRAMES: &str = "frames are missing between two intact ones";
pub(super) const UNREADABLE: &str = "the segment's file is gone or cannot be opened";
pub(super) const LOST_HEADER: &str = "a copy of the segment's header is damaged";
pub(super) const ENDS_EARLY: &str = "the segment ends before the next one begins";
pub(super) const MENDED_FRAME: &str = "one byte of a frame's header was wrong and is put right in reading";

/// A gap judged by E (rules R3 and R4): what of its offsets is lost, and what is void.
pub(super) fn judge(offsets: &Range<u64>, durable: u64) -> (Range<u64>, Range<u64>) {
    let parting = durable.clamp(offsets.start, offsets.end);
    (offsets.start..parting, parting..offsets.end)
}

/// One segment, looked at in every byte.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Scan {
    /// The offset after the last frame that counts.
    pub end: u64,
    /// The position after it.
    pub position: u64,
    /// E: given, or told by the frames.
    pub durable: u64,
    /// The last frame is the mark of an orderly stop.
    pub clean: bool,
    /// Damage to what was durable. What is missing at the end, up to E, is not in here.
    pub losses: Vec<Loss>,
    /// Offsets without a record that nobody was promised.
    pub voids: Vec<Range<u64>>,
    /// What follows the last frame that counts.
    pub tail: Gap,
    /// Frames that count, markers included.
    pub frames: u64,
    /// Their intact records.
    pub records: u64,
}

/// A frame with damaged records, remembered until E is known.
#[derive(Debug)]
struct Doubtful {
    frame: Range<u64>,
    offsets: Range<u64>,
    damaged: Vec<RecordAt>,
}

/// Scans a whole segment. `durable` is E as known from elsewhere; for a sealed segment both it and
/// `expect.end` are the base of the next one.
pub(super) fn scan(window: Window, expect: Expect, durable: u64) -> io::Result<Scan> {
    let mut walk = Walk::new(window, DATA_START, expect, true);
    let mut scan = Scan { end: expect.next, position: DATA_START, durable, ..Scan::default() };
    let mut gaps = Vec::new();
    let mut doubtful: Vec<Doubtful> = Vec::new();
    let mut mended: Vec<FrameAt> = Vec::new();
    while let Some(item) = walk.next()? {
        match item {
            Item::Gap(gap) => gaps.push(gap),
            Item::Tail(gap) => scan.tail = gap,
            Item::Frame(frame, damaged) => {
                scan.durable = scan.durable.max(frame.header.durable);
                // A torn marker can be mended, too; nothing may be written behind it.
                scan.clean = frame.header.kind == Kind::CleanStop && !frame.mended;
                scan.frames += 1;
                scan.records += frame.header.records as u64 - damaged.len() as u64;
                if frame.mended {
                    mended.push(frame.clone());
                }
                if frame.header.kind == Kind::Void {
                    scan.voids.push(frame.header.base..frame.header.next_offset());
                }
                if damaged.is_empty() {
                    (scan.end, scan.position) = (frame.header.next_offset(), frame.end());
                } else {
                    let (frame, offsets) = (frame.position..frame.end(), frame.header.offsets());
                    doubtful.push(Doubtful { frame, offsets, damaged });
                }
            }
        }
    }
    if scan.clean {
        scan.durable = scan.durable.max(scan.end);
    }
    for frame in mended {
        // A marker that nothing durable follows may have been torn by a power loss: no damage.
        if frame.header.records > 0 || frame.header.base < scan.durable {
            let bytes = frame.position..frame.position + frame.header.prefix_bytes();
            let lost = frame.header.base..frame.header.base;
            scan.losses.push(Loss { bytes, lost, reason: MENDED_FRAME });
        }
    }
    settle(&mut scan, gaps, doubtful);
    Ok(scan)
}

/// Judges, now that E is known. A frame with damaged records below E lost these records; at or
/// above E it was never whole, and an append counts whole or not at all.
fn settle(scan: &mut Scan, gaps: Vec<Gap>, doubtful: Vec<Doubtful>) {
    for frame in doubtful {
        if frame.offsets.start < scan.durable {
            scan.losses.extend(frame.damaged.iter().map(|record| Loss {
                bytes: record.bytes(),
                lost: record.offset..record.offset + 1,
                reason: DAMAGED_RECORD,
            }));
            if frame.offsets.end > scan.end {
                (scan.end, scan.position) = (frame.offsets.end, frame.frame.end);
            }
        } else {
            scan.frames -= 1;
            scan.records -= (frame.offsets.end - frame.offsets.start) - frame.damaged.len() as u64;
            if frame.offsets.end <= scan.end {
                scan.voids.push(frame.offsets);
            } else if !scan.tail.own || frame.frame.start < scan.tail.bytes.start {
                scan.tail.non_zero += frame.frame.end - frame.frame.start;
                scan.tail.bytes.start = scan.tail.bytes.start.min(frame.frame.start);
                scan.tail.non_zero_end = scan.tail.non_zero_end.max(frame.frame.end);
                scan.tail.own = true;
            }
        }
    }
    for gap in gaps.into_iter().filter(|gap| gap.offsets.end <= scan.end) {
        let (lost, void) = judge(&gap.offsets, scan.durable);
        if !lost.is_empty() {
            let reason = if gap.bytes.is_empty() { MISSING_FRAMES } else { DAMAGED_FRAMES };
            scan.losses.push(Loss { bytes: gap.bytes, lost, reason });
        } else if void.is_empty() && gap.non_zero > 0 {
            // Bytes were inserted between two frames that follow each other.
            scan.losses.push(Loss { bytes: gap.bytes, lost, reason: DAMAGED_FRAMES });
        }
        if !void.is_empty() {
            scan.voids.push(void);
        }
    }
    scan.losses.sort_by_key(|loss| loss.bytes.start);
    scan.voids.sort_by_key(|void| void.start);
}
