//! The codec of one frame: pure, no I/O.
//!
//! Layout and reasons are in the parent module's specification. Encoding appends to a caller's
//! buffer; decoding borrows from a caller's bytes and trusts nothing in them.

use std::ops::Range;

use crate::planted::{self, Mistake};

/// Frames begin on multiples of this many bytes, so that a search after damage has few candidates.
pub const ALIGN: usize = 8;
/// Bytes of a frame header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of one table entry.
pub const ENTRY_BYTES: usize = 24;
/// No offset gets here: a million events a second take 290,000 years. So offsets can be added up, and
/// a header that claims more is none.
pub(super) const OFFSETS_END: u64 = 1 << 63;
/// First bytes of every frame.
pub(super) const MAGIC: [u8; 4] = *b"EVFR";

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Records of one append.
    Records,
    /// No records: carries `durable` forward while the log idles.
    Idle,
    /// No records: the writer stopped cleanly after everything before it was synced.
    CleanStop,
    /// No records: the offsets from `base` up to [`Header::next_offset`] hold nothing. Nobody was promised
    /// anything, or they were lost and a repair has said so. Without it a gap between two intact frames
    /// would look like a removed frame.
    Void,
}

impl Kind {
    fn code(self) -> u32 {
        match self {
            Kind::Records => 1,
            Kind::Idle => 2,
            Kind::CleanStop => 3,
            Kind::Void => 4,
        }
    }

    fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Kind::Records),
            2 => Some(Kind::Idle),
            3 => Some(Kind::CleanStop),
            4 => Some(Kind::Void),
            _ => None,
        }
    }
}

/// The fields of a frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the frame is for.
    pub kind: Kind,
    /// The incarnation of the segment file the frame was written for.
    pub salt: u64,
    /// Offset of the first record; for a frame without records, the next offset.
    pub base: u64,
    /// Every offset below this one was synced when the frame was written.
    pub durable: u64,
    /// When the append was accepted, in microseconds since the Unix epoch. A void frame keeps the
    /// offset after the void here.
    pub accepted_at_micros: i64,
    /// How many records follow.
    pub records: u32,
    /// Sum of the lengths of all records, in bytes.
    pub payload_bytes: u32,
}

impl Header {
    /// Bytes the whole frame takes, padding included.
    pub fn frame_bytes(&self) -> u64 {
        frame_bytes(self.records as u64, self.payload_bytes as u64)
    }

    /// Bytes of header and table, which one checksum covers.
    pub fn prefix_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + ENTRY_BYTES as u64 * self.records as u64
    }

    /// A frame that says that `void` holds nothing.
    pub fn void(salt: u64, void: Range<u64>, durable: u64) -> Self {
        Self {
            kind: Kind::Void,
            salt,
            base: void.start,
            durable,
            accepted_at_micros: void.end as i64,
            records: 0,
            payload_bytes: 0,
        }
    }

    /// The offset of whatever follows the frame.
    pub fn next_offset(&self) -> u64 {
        match self.kind {
            Kind::Void => (self.accepted_at_micros as u64).max(self.base),
            Kind::Records | Kind::Idle | Kind::CleanStop => self.offsets().end,
        }
    }

    /// The offsets of the frame's records.
    pub fn offsets(&self) -> Range<u64> {
        self.base..self.base.saturating_add(self.records as u64)
    }
}

/// Bytes a frame of `records` records and `payload_bytes` bytes takes, padding included.
pub fn frame_bytes(records: u64, payload_bytes: u64) -> u64 {
    let bytes = HEADER_BYTES as u64 + ENTRY_BYTES as u64 * records + payload_bytes;
    bytes.next_multiple_of(ALIGN as u64)
}

/// One record to be written: opaque bytes, an opaque tag, and the checksum of the bytes.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Sixteen bytes the log's owner may use; kept in the frame's table, readable without payload.
    pub tag: u128,
    /// `crc32fast::hash(bytes)`, computed by whoever has the bytes in cache.
    pub crc: u32,
    /// The record itself.
    pub bytes: &'a [u8],
}

/// One entry of a frame's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The tag the record was written with.
    pub tag: u128,
    /// Length of the record in bytes.
    pub len: u32,
    /// The record's checksum, bound to salt and offset.
    pub crc: u32,
}

/// Binds a record's checksum to the file's incarnation and to its offset, so that a stale or
/// misplaced record never validates. CRC-32 of nothing is 0; the mask keeps even an empty record's
/// stored checksum away from a constant.
fn bind(crc: u32, salt: u64, offset: u64) -> u32 {
    crc ^ !(after_8(after_8(!0, salt), offset))
}

/// The CRC-32 register after eight more bytes, a table each: `crc32fast` is made for long input and
/// takes longer for sixteen bytes than for the event they belong to.
fn after_8(register: u32, bytes: u64) -> u32 {
    let bytes = (bytes ^ u64::from(register)).to_le_bytes();
    bytes.iter().zip(AFTER.iter().rev()).fold(0, |sum, (byte, table)| sum ^ table[*byte as usize])
}

/// What a byte becomes in the register (`AFTER[0]`), and with that many more zero bytes behind it.
static AFTER: [[u32; 256]; 8] = {
    const POLYNOMIAL: u32 = 0xEDB8_8320;
    let mut tables = [[0; 256]; 8];
    let mut at = 0;
    while at < 8 * 256 {
        let (zeros, byte) = (at / 256, at % 256);
        tables[zeros][byte] = if zeros > 0 {
            let before: u32 = tables[zeros - 1][byte];
            (before >> 8) ^ tables[0][(before & 0xff) as usize]
        } else {
            let (mut register, mut bit) = (byte as u32, 0);
            while bit < 8 {
                register = (register >> 1) ^ ((register & 1) * POLYNOMIAL);
                bit += 1;
            }
            register
        };
        at += 1;
    }
    tables
};

/// Appends one frame to `out`.
///
/// `header.records` and `header.payload_bytes` must agree with `records`; `out` must be aligned to
/// [`ALIGN`] relative to the segment.
pub fn encode<'a>(
    out: &mut Vec<u8>,
    header: &Header,
    records: impl ExactSizeIterator<Item = Record<'a>> + Clone,
) {
    debug_assert_eq!(records.len(), header.records as usize);
    let start = out.len();
    out.reserve(header.frame_bytes() as usize);
    let mut fixed = [0u8; HEADER_BYTES]; // the checksum comes below; the reserved bytes stay zero
    fixed[..4].copy_from_slice(&MAGIC);
    fixed[8..16].copy_from_slice(&header.salt.to_le_bytes());
    fixed[16..24].copy_from_slice(&header.base.to_le_bytes());
    fixed[24..32].copy_from_slice(&header.durable.to_le_bytes());
    fixed[32..40].copy_from_slice(&header.accepted_at_micros.to_le_bytes());
    fixed[40..44].copy_from_slice(&header.records.to_le_bytes());
    fixed[44..48].copy_from_slice(&header.payload_bytes.to_le_bytes());
    fixed[48..52].copy_from_slice(&header.kind.code().to_le_bytes());
    out.extend_from_slice(&fixed);
    for (offset, record) in (header.base..).zip(records.clone()) {
        let mut entry = [0u8; ENTRY_BYTES];
        entry[..16].copy_from_slice(&record.tag.to_le_bytes());
        entry[16..20].copy_from_slice(&(record.bytes.len() as u32).to_le_bytes());
        entry[20..].copy_from_slice(&bind(record.crc, header.salt, offset).to_le_bytes());
        out.extend_from_slice(&entry);
    }
    let crc = crc32fast::hash(&out[start + 8..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    for record in records {
        out.extend_from_slice(record.bytes);
    }
    debug_assert_eq!(out.len() - start, (header.prefix_bytes() + header.payload_bytes as u64) as usize);
    out.resize(start + header.frame_bytes() as usize, 0);
}

/// Reads the header fields at the start of `bytes` without believing them: only the magic, the kind,
/// the reserved bytes, the size of the offsets and that there is a salt have been looked at. `None` when no
/// header can stand here.
///
/// The lengths are a claim until [`check_prefix`] says so.
pub fn peek(bytes: &[u8]) -> Option<Header> {
    let header = bytes.first_chunk::<HEADER_BYTES>()?;
    if header[..4] != MAGIC || header[52..] != [0; 12] {
        return None;
    }
    let header = Header {
        salt: u64_at(header, 8),
        base: u64_at(header, 16),
        durable: u64_at(header, 24),
        accepted_at_micros: u64_at(header, 32) as i64,
        records: u32_at(header, 40),
        payload_bytes: u32_at(header, 44),
        kind: Kind::from_code(u32_at(header, 48))?,
    };
    let is_possible = header.next_offset().max(header.durable) <= OFFSETS_END && header.salt != 0;
    is_possible.then_some(header)
}

/// Whether header and table, `bytes[..header.prefix_bytes()]`, hold together: checksum, counts, and
/// the sum of the entries' lengths. `false` also when `bytes` is too short.
pub fn check_prefix(header: &Header, bytes: &[u8]) -> bool {
    let Some(prefix) = bytes.get(..header.prefix_bytes() as usize) else { return false };
    let sum: u64 = entries(header, prefix).map(|entry| entry.len as u64).sum();
    u32_at(prefix, 4) == crc32fast::hash(&prefix[8..])
        && sum == header.payload_bytes as u64
        && (header.kind == Kind::Records) == (header.records > 0)
}

/// The table's entries. `prefix` holds at least [`Header::prefix_bytes`] bytes.
pub fn entries<'a>(header: &Header, prefix: &'a [u8]) -> impl ExactSizeIterator<Item = Entry> + 'a {
    entries_from(header, prefix, 0)
}

/// The table's entries from the `first` one on, without passing those before it.
pub fn entries_from<'a>(
    header: &Header,
    prefix: &'a [u8],
    first: usize,
) -> impl ExactSizeIterator<Item = Entry> + 'a {
    let end = header.prefix_bytes() as usize;
    let start = (HEADER_BYTES + ENTRY_BYTES * first).min(end);
    prefix[start..end].chunks_exact(ENTRY_BYTES).map(|entry| Entry {
        tag: u128::from_le_bytes(*entry.first_chunk().expect("an entry has 24 bytes")),
        len: u32_at(entry, 16),
        crc: u32_at(entry, 20),
    })
}

/// Whether a record's bytes are the ones its table entry was written for.
pub fn check_record(header: &Header, offset: u64, entry: &Entry, bytes: &[u8]) -> bool {
    let holds = || bind(crc32fast::hash(bytes), header.salt, offset) == entry.crc;
    entry.len as usize == bytes.len() && (holds() || planted::made(Mistake::NoChecksum))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("the caller checked the length"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("the caller checked the length"))
}

#[cfg(test)]
mod tests;
