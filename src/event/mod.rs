//! What an event is: a CloudEvent (specification 1.0.2), kept as the text of its JSON form.
//!
//! An event travels through the whole house as the bytes of one JSON object in the CloudEvents
//! JSON format ("structured" form), beginning with `{` and ending with `}`. A structured event that
//! needs no change is kept exactly as its sender spelled it; every other form is rendered into it
//! once, on acceptance. So nothing behind the HTTP edge parses an event again to move it.
//!
//! * this file: batches of event texts on their way in ([`NewBatch`]) and out ([`StoredBatch`]);
//! * [`cloudevent`]: what a valid CloudEvent is, reading one and rendering one;
//! * `spelling`: reading one in the spelling nearly every sender uses;
//! * `line`: the archive's line; `time`: [`Micros`] and RFC 3339; `trace`: where a trace stands.
//!
//! Pure code: no I/O, no thread of its own, and no clock but [`Micros::now`]. Bad input is an error
//! value, never a panic.

pub mod cloudevent;
mod line;
mod spelling;
mod time;
mod trace;

use bytes::Bytes;

pub use cloudevent::{Attributes, dedupe_tag};
pub use line::{REPLAY, Stamp, stamp, write_archive_line, write_replayed};
pub use time::Micros;
pub use trace::{PARENT as TRACE_PARENT, STATE as TRACE_STATE, Trace};

/// The events of one request, validated and ready to be appended, all or nothing.
///
/// Two arenas hold the texts, so that a batch of ten thousand costs no allocation per event: `body`
/// is the request as received, `rendered` takes events that had to be written anew.
#[derive(Debug, Default, Clone)]
pub struct NewBatch {
    body: Bytes,
    rendered: Vec<u8>,
    events: Vec<NewEvent>,
}

#[derive(Debug, Clone, Copy)]
struct NewEvent {
    arena: Arena,
    start: u32,
    len: u32,
    tag: u128,
    crc: u32,
}

/// One event of a [`NewBatch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewRecord<'a> {
    /// Its dedupe tag.
    pub tag: u128,
    /// CRC-32 of `text`, taken when it was added and still in the cache.
    pub crc: u32,
    /// The CloudEvent's JSON text.
    pub text: &'a [u8],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arena {
    Body,
    Rendered,
}

impl NewBatch {
    /// An empty batch over the bytes of a request body.
    pub fn over(body: Bytes) -> Self {
        Self { body, rendered: Vec::new(), events: Vec::new() }
    }

    /// Adds an event whose text stands in the body as `range`, unchanged.
    ///
    /// `range` must lie in the body and hold a JSON object from brace to brace.
    pub fn push_verbatim(&mut self, range: std::ops::Range<usize>, tag: u128) {
        debug_assert!(range.end <= self.body.len());
        self.events.push(NewEvent {
            arena: Arena::Body,
            start: range.start as u32,
            len: (range.end - range.start) as u32,
            tag,
            crc: crc32fast::hash(&self.body[range]),
        });
    }

    /// Adds an event by writing its text; `write` appends exactly one JSON object to the buffer.
    /// Returns the text's length.
    pub fn push_rendered(&mut self, tag: u128, write: impl FnOnce(&mut Vec<u8>)) -> usize {
        let start = self.rendered.len();
        write(&mut self.rendered);
        let len = self.rendered.len() - start;
        self.events.push(NewEvent {
            arena: Arena::Rendered,
            start: start as u32,
            len: len as u32,
            tag,
            crc: crc32fast::hash(&self.rendered[start..]),
        });
        len
    }

    /// How many events the batch holds.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether the batch holds no event.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Sum of the lengths of all event texts, in bytes.
    pub fn text_bytes(&self) -> usize {
        self.events.iter().map(|e| e.len as usize).sum()
    }

    /// The event at a position in the request.
    ///
    /// # Panics
    /// When `index` is not below [`NewBatch::len`].
    pub fn get(&self, index: usize) -> NewRecord<'_> {
        let e = &self.events[index];
        let arena = match e.arena {
            Arena::Body => &self.body[..],
            Arena::Rendered => &self.rendered[..],
        };
        NewRecord {
            tag: e.tag,
            crc: e.crc,
            text: &arena[e.start as usize..e.start as usize + e.len as usize],
        }
    }

    /// Each event's dedupe tag and text, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u128, &[u8])> {
        (0..self.len()).map(|index| self.get(index)).map(|record| (record.tag, record.text))
    }
}

/// A run of stored events on its way to a sink: ascending offsets, one buffer.
#[derive(Debug, Clone, Default)]
pub struct StoredBatch {
    buffer: Bytes,
    spans: Vec<StoredSpan>,
}

#[derive(Debug, Clone, Copy)]
struct StoredSpan {
    offset: u64,
    accepted_at: Micros,
    start: u32,
    len: u32,
}

/// One stored event, borrowed from its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredEvent<'a> {
    /// Its offset in the event log.
    pub offset: u64,
    /// When it was accepted.
    pub accepted_at: Micros,
    /// The CloudEvent's JSON text as accepted, from brace to brace. May hold line breaks between
    /// its tokens where the sender wrote some.
    pub json: &'a [u8],
}

impl StoredBatch {
    /// An empty batch over `buffer`, which holds the texts.
    pub fn over(buffer: Bytes) -> Self {
        Self { buffer, spans: Vec::new() }
    }

    /// Adds the event whose text is `range` of the buffer. Offsets must ascend; gaps are allowed
    /// where offsets are void.
    pub fn push(&mut self, offset: u64, accepted_at: Micros, range: std::ops::Range<usize>) {
        debug_assert!(range.end <= self.buffer.len());
        debug_assert!(self.spans.last().is_none_or(|last| last.offset < offset));
        self.spans.push(StoredSpan {
            offset,
            accepted_at,
            start: range.start as u32,
            len: (range.end - range.start) as u32,
        });
    }

    /// How many events the batch holds.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether the batch holds no event.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The events at these positions, which ascend, over the same buffer.
    ///
    /// # Panics
    /// When a position is not below [`StoredBatch::len`].
    pub fn part(&self, positions: impl IntoIterator<Item = usize>) -> StoredBatch {
        let spans = positions.into_iter().map(|at| self.spans[at]).collect();
        StoredBatch { buffer: self.buffer.clone(), spans }
    }

    /// The events in offset order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = StoredEvent<'_>> + DoubleEndedIterator {
        self.spans.iter().map(|s| StoredEvent {
            offset: s.offset,
            accepted_at: s.accepted_at,
            json: &self.buffer[s.start as usize..s.start as usize + s.len as usize],
        })
    }
}
