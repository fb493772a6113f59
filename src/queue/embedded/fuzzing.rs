//! What must hold for any bytes where a record of the ledger, of the failure table or of its index should be:
//! for the fuzz target `ledger_reader` and the test that replays its corpus. Only a build with the feature
//! `fuzzing` has it; nothing of it is for use.
//!
//! Pure code on the caller's thread. It panics when a property does not hold.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::log::{Chunk, ReadRecord};

use super::codec::{self, Findings, IndexMark, Indexed, Record};
use super::ledger::{Memory, replay};

/// Bytes of the length before each record in what [`ledger`] reads.
const LENGTH_BYTES: usize = 2;

/// A record that can be read is written as the very same bytes, whichever it is.
pub fn record(bytes: &[u8]) {
    is_canonical::<Record>(bytes);
    is_canonical::<Indexed>(bytes);
    is_canonical::<IndexMark>(bytes);
    if let Ok((record, text)) = codec::decode_row(bytes) {
        assert_eq!(codec::encode_row(&record, text).as_deref(), Ok(bytes), "{record:?} has other bytes");
    }
}

fn is_canonical<T: Serialize + DeserializeOwned + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(record) = codec::decode::<T>(bytes) {
        assert_eq!(codec::encode(&record).as_deref(), Ok(bytes), "{record:?} has other bytes");
    }
}

/// A ledger of any records, each with its length before it (two bytes): those that cannot be read are
/// counted and nothing else; a snapshot of what the others say is remembered as the same, whatever stood
/// before it; and what a snapshot that is cut short says counts like records without one.
pub fn ledger(bytes: &[u8]) {
    let records = split(bytes);
    let readable: Vec<&[u8]> =
        records.iter().copied().filter(|bytes| codec::decode::<Record>(bytes).is_ok()).collect();
    let (memory, left_out) = remember(&records);
    assert_eq!(left_out, (records.len() - readable.len()) as u64, "another number is left out");
    assert_eq!(remember(&readable), (memory.clone(), 0), "what cannot be read changes what is remembered");
    if memory.is_blank {
        return;
    }
    let snapshot = snapshot(&memory);
    let compacted: Vec<&[u8]> = snapshot.iter().map(Vec::as_slice).collect();
    assert_eq!(remember(&compacted), (memory.clone(), 0), "a snapshot says something else");
    let after: Vec<&[u8]> = readable.iter().chain(&compacted).copied().collect();
    assert_eq!(remember(&after), (memory.clone(), 0), "a snapshot does not replace what stood before it");
    let cut: Vec<&[u8]> = readable.iter().chain(&compacted[..compacted.len() - 1]).copied().collect();
    assert_eq!(remember(&cut), (memory, 0), "a snapshot without its end changes what is remembered");
}

fn split(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut records = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        records.push(&rest[..length]);
        bytes = &rest[length..];
    }
    records
}

/// What a ledger of these records is remembered as, and how many are left out.
fn remember(records: &[&[u8]]) -> (Memory, u64) {
    let mut places = Vec::with_capacity(records.len());
    let mut start = 0;
    for (offset, record) in (0..).zip(records) {
        let len = record.len() as u32;
        places.push(ReadRecord { offset, accepted_at_micros: 0, tag: 0, start, len });
        start += len;
    }
    let range = 0..records.len() as u64;
    let whole = Chunk { range, buffer: Bytes::from(records.concat()), records: places, ..Chunk::default() };
    let mut chunks = [whole].into_iter();
    replay(|_, _| Ok(chunks.next().unwrap_or_default())).expect("memory can be read")
}

/// The records that say what is remembered.
fn snapshot(memory: &Memory) -> Vec<Vec<u8>> {
    let Memory { checkpoints, paused, dropped, voids, damaged_ranges, durable_end, is_blank: _ } = memory;
    let checkpoints = checkpoints.values().cloned().map(Record::Checkpoint);
    let paused = paused.iter().map(|(sink, paused)| Record::Paused { sink: sink.clone(), paused: *paused });
    let dropped = dropped.values().cloned().map(Record::Dropped);
    let findings = Record::Findings(Findings {
        durable_end: *durable_end,
        voids: voids.iter().map(|range| (range.start, range.end)).collect(),
        damaged_ranges: *damaged_ranges,
    });
    let inner: Vec<Record> = checkpoints.chain(paused).chain(dropped).chain([findings]).collect();
    let end = Record::SnapshotEnd { records: inner.len() as u64 };
    let all = [Record::SnapshotBegin].into_iter().chain(inner).chain([end]);
    // One that is too large for a record stands in none of the input.
    all.filter_map(|record| codec::encode(&record).ok()).collect()
}
