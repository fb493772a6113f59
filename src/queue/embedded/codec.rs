//! The records of the ledger, of the failure table and of its index, and their bytes. Pure; the only module
//! that names bincode.
//!
//! ```text
//! record   0  1  version of the encoding: 1
//!          1  …  bincode 1.3.3, little-endian, fixed-width integers, 64-bit lengths
//!          …  …  in the failure table, behind a row: the event's text, to the end
//! ```
//!
//! bincode is no longer maintained (its 3.0.0 is an empty tombstone), so its format is frozen here
//! by golden bytes, and nothing outside this module would notice another encoding. Variants are
//! numbered by position: new ones go to the end, none is ever removed.
//!
//! Decoding trusts nothing: a length that lies, a version from the future or bytes left over are an
//! error value, and the caller goes on without the record.

use bincode::Options;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

const VERSION: u8 = 1;
/// The most bytes a record may take; bounds what a damaged length can make us allocate.
pub const MAX_RECORD_BYTES: u64 = 64 * 1024;

/// One record of the ledger. Each is absolute: the last one about a thing is the truth about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// Where a sink stands.
    Checkpoint(Checkpoint),
    /// Whether an operator paused a sink.
    Paused {
        /// The sink's configured name.
        sink: String,
        /// Whether it is paused.
        paused: bool,
    },
    /// What an opening of the event log, or a read from it, found out about offsets.
    Findings(Findings),
    /// A snapshot of everything begins: until its end, records add to the snapshot.
    SnapshotBegin,
    /// The snapshot is whole and replaces everything before it.
    SnapshotEnd {
        /// How many records stand between its begin and this.
        records: u64,
    },
    /// Which events a sink has dropped.
    Dropped(Dropped),
}

/// Which events a sink has dropped, as far as the event log holds them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Its configured name.
    pub sink: String,
    /// The checkpoint that this goes with counts so many dropped events.
    pub counted: u64,
    /// Of what is finished below, and not in a range, nobody knows whether it was dropped.
    pub unsure_below: u64,
    /// The dropped offsets, ascending, end exclusive.
    pub ranges: Vec<(u64, u64)>,
}

/// Where a sink stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Its configured name.
    pub sink: String,
    /// It is done with everything below.
    pub acked: u64,
    /// Ranges it is done with above, ascending, end exclusive.
    pub finished: Vec<(u64, u64)>,
    /// Events delivered so far.
    pub delivered: u64,
    /// Events dropped by policy so far.
    pub dropped: u64,
    /// Events that the sink's filter did not match so far.
    pub skipped: u64,
    /// What the sink wants handed back on open.
    pub token: Option<Vec<u8>>,
    /// The event log's durable end when this was written.
    pub durable_end: u64,
    /// Rows it has in the failure table.
    pub rows: u64,
    /// All numbers above hold what the failure table's log says below this place of it. What it says
    /// at or above is news.
    pub rows_end: u64,
    /// The sink is configured: nothing that it has not finished is freed.
    pub is_configured: bool,
}

/// One record of the failure table's log; they hold in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RowRecord {
    /// An event is parked. Its text follows.
    Parked(Row),
    /// A row that is there is told again, so that its older record may go. Its text follows.
    Kept(Row),
    /// A row changed.
    Changed(Change),
    /// A row is gone.
    Gone {
        /// The sink's configured name.
        sink: String,
        /// The event's offset.
        offset: u64,
        /// What became of it.
        end: End,
    },
}

/// A row of the failure table, without the event's text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The sink's configured name.
    pub sink: String,
    /// The event's offset.
    pub offset: u64,
    /// Given up.
    pub is_dead: bool,
    /// Attempts made.
    pub attempts: u32,
    /// When it is tried again, microseconds since the Unix epoch.
    pub due_at: i64,
    /// When it failed first.
    pub first_failed_at: i64,
    /// When it failed last.
    pub last_failed_at: i64,
    /// Why it failed last.
    pub reason: String,
    /// When the event was accepted.
    pub accepted_at: i64,
}

/// How a row changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The sink's configured name.
    pub sink: String,
    /// The event's offset.
    pub offset: u64,
    /// Given up.
    pub is_dead: bool,
    /// Attempts made.
    pub attempts: u32,
    /// When it is tried again.
    pub due_at: i64,
    /// When and why it failed, unless somebody redrove it.
    pub failure: Option<(i64, String)>,
}

/// What became of an event that was in the failure table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// It is at the target.
    Delivered,
    /// Dropped by policy, or by an operator.
    Dropped,
    /// The sink's filter does not match it any more.
    Skipped,
}

/// What is known about offsets without an event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// The event log's durable end.
    pub durable_end: u64,
    /// Ranges that hold no event, lost ones included; end exclusive.
    pub voids: Vec<(u64, u64)>,
    /// Damaged ranges found since the data directory was made.
    pub damaged_ranges: u64,
}

/// What the index keeps of a row: where its records are, how it stands, and what filters ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Indexed {
    /// Place of the record with its event.
    pub place: u64,
    /// Place of the record with its last failure.
    pub told: u64,
    /// Given up.
    pub is_dead: bool,
    /// Attempts made.
    pub attempts: u32,
    /// When it is tried again, microseconds since the Unix epoch.
    pub due_at: i64,
    /// Length of the record with its event.
    pub bytes: u32,
    /// When it failed last.
    pub last_failed_at: i64,
    /// Why it failed last.
    pub reason: String,
    /// The event's `type`, unless it is long.
    pub kind: Option<String>,
}

/// How far the index is, and what it must hold to be believed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexMark {
    /// It holds what the failure table's log says below this place.
    pub applied: u64,
    /// Place and digest of the last record it has read: whether this is still the same log.
    pub anchor: Option<(u64, u128)>,
    /// Rows in it.
    pub rows: u64,
    /// Sum of the digests of its blocks of rows.
    pub sum: u128,
}

/// A record cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer version of this program.
    #[error("it has format version {0}, and this program knows {VERSION}; use a newer program")]
    Version(u8),
    /// Not what its version says.
    #[error("it cannot be decoded: {0}")]
    Malformed(String),
}

fn options() -> impl Options {
    bincode::DefaultOptions::new().with_fixint_encoding().with_little_endian().with_limit(MAX_RECORD_BYTES)
}

/// A record's bytes. An error means a record larger than [`MAX_RECORD_BYTES`], which its bounded
/// parts do not allow.
pub fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>, String> {
    let mut bytes = vec![VERSION];
    options().serialize_into(&mut bytes, record).map_err(|e| e.to_string())?;
    Ok(bytes)
}

/// The bytes of a record of the failure table, `text` behind it.
pub fn encode_row(record: &RowRecord, text: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = encode(record)?;
    bytes.extend_from_slice(text);
    Ok(bytes)
}

/// The record of the failure table with these bytes, and the text behind it; empty where none belongs.
pub fn decode_row(bytes: &[u8]) -> Result<(RowRecord, &[u8]), DecodeError> {
    let mut rest = match bytes.split_first() {
        Some((&VERSION, rest)) => rest,
        Some((&version, _)) => return Err(DecodeError::Version(version)),
        None => return Err(DecodeError::Malformed("it is empty".to_owned())),
    };
    let record = options()
        .allow_trailing_bytes()
        .deserialize_from(&mut rest)
        .map_err(|e| DecodeError::Malformed(e.to_string()))?;
    match &record {
        RowRecord::Changed(_) | RowRecord::Gone { .. } if !rest.is_empty() => {
            Err(DecodeError::Malformed("bytes are left over".to_owned()))
        }
        _ => Ok((record, rest)),
    }
}

/// The record with these bytes.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => {
            options().deserialize(rest).map_err(|e| DecodeError::Malformed(e.to_string()))
        }
        Some((&version, _)) => Err(DecodeError::Version(version)),
        None => Err(DecodeError::Malformed("it is empty".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Record> {
        vec![
            Record::Checkpoint(Checkpoint {
                sink: "ab".to_owned(),
                acked: 5,
                finished: vec![(7, 9)],
                delivered: 6,
                dropped: 1,
                skipped: 2,
                token: Some(vec![0xaa]),
                durable_end: 10,
                rows: 3,
                rows_end: 4,
                is_configured: true,
            }),
            Record::Paused { sink: "c".to_owned(), paused: true },
            Record::Findings(Findings { durable_end: 3, voids: vec![(1, 2)], damaged_ranges: 1 }),
            Record::SnapshotBegin,
            Record::SnapshotEnd { records: 2 },
            Record::Dropped(Dropped {
                sink: "d".to_owned(),
                counted: 3,
                unsure_below: 4,
                ranges: vec![(5, 7)],
            }),
        ]
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn the_bytes_of_every_record_stay_what_they_are() {
        let golden = [
            concat!(
                "01",
                "00000000",
                "0200000000000000",
                "6162",
                "0500000000000000",
                "0100000000000000",
                "0700000000000000",
                "0900000000000000",
                "0600000000000000",
                "0100000000000000",
                "0200000000000000",
                "01",
                "0100000000000000",
                "aa",
                "0a00000000000000",
                "0300000000000000",
                "0400000000000000",
                "01"
            ),
            concat!("01", "01000000", "0100000000000000", "63", "01"),
            concat!(
                "01",
                "02000000",
                "0300000000000000",
                "0100000000000000",
                "0100000000000000",
                "0200000000000000",
                "0100000000000000"
            ),
            concat!("01", "03000000"),
            concat!("01", "04000000", "0200000000000000"),
            concat!(
                "01",
                "05000000",
                "0100000000000000",
                "64",
                "0300000000000000",
                "0400000000000000",
                "0100000000000000",
                "0500000000000000",
                "0700000000000000"
            ),
        ];
        for (record, golden) in samples().iter().zip(golden) {
            let bytes = encode(record).unwrap();
            assert_eq!(hex(&bytes), golden, "{record:?}");
            assert_eq!(&decode::<Record>(&bytes).unwrap(), record);
        }
    }

    #[test]
    fn the_bytes_of_the_index_stay_what_they_are() {
        let entry = Indexed {
            place: 1,
            told: 2,
            is_dead: true,
            attempts: 3,
            due_at: 4,
            bytes: 5,
            last_failed_at: 6,
            reason: "r".to_owned(),
            kind: Some("k".to_owned()),
        };
        let golden = concat!(
            "01",
            "0100000000000000",
            "0200000000000000",
            "01",
            "03000000",
            "0400000000000000",
            "05000000",
            "0600000000000000",
            "0100000000000000",
            "72",
            "01",
            "0100000000000000",
            "6b"
        );
        let bytes = encode(&entry).unwrap();
        assert_eq!(hex(&bytes), golden);
        assert_eq!(decode::<Indexed>(&bytes).unwrap(), entry);
        let mark = IndexMark { applied: 1, anchor: Some((2, 3)), rows: 4, sum: 5 };
        let wide = |number: u8| format!("{number:02x}{}", "00".repeat(15));
        let golden = format!(
            "01{}01{}{}{}{}",
            "0100000000000000",
            "0200000000000000",
            wide(3),
            "0400000000000000",
            wide(5)
        );
        let bytes = encode(&mark).unwrap();
        assert_eq!(hex(&bytes), golden);
        assert_eq!(decode::<IndexMark>(&bytes).unwrap(), mark);
    }

    fn row_samples() -> Vec<(RowRecord, &'static [u8])> {
        let row = Row {
            sink: "ab".to_owned(),
            offset: 5,
            is_dead: true,
            attempts: 2,
            due_at: 3,
            first_failed_at: 4,
            last_failed_at: 6,
            reason: "r".to_owned(),
            accepted_at: 7,
        };
        let change = Change {
            sink: "c".to_owned(),
            offset: 5,
            is_dead: false,
            attempts: 2,
            due_at: 3,
            failure: Some((8, "s".to_owned())),
        };
        vec![
            (RowRecord::Parked(row.clone()), b"{}"),
            (RowRecord::Kept(row), b"{ }"),
            (RowRecord::Changed(change), b""),
            (RowRecord::Gone { sink: "c".to_owned(), offset: 5, end: End::Skipped }, b""),
        ]
    }

    #[test]
    fn the_bytes_of_every_row_record_stay_what_they_are() {
        let row = concat!(
            "0200000000000000",
            "6162",
            "0500000000000000",
            "01",
            "02000000",
            "0300000000000000",
            "0400000000000000",
            "0600000000000000",
            "0100000000000000",
            "72",
            "0700000000000000"
        );
        let change = concat!(
            "0100000000000000",
            "63",
            "0500000000000000",
            "00",
            "02000000",
            "0300000000000000",
            "01",
            "0800000000000000",
            "0100000000000000",
            "73"
        );
        let golden = [
            format!("0100000000{row}7b7d"),
            format!("0101000000{row}7b207d"),
            format!("0102000000{change}"),
            format!("01030000000100000000000000630500000000000000{}", "02000000"),
        ];
        for ((record, text), golden) in row_samples().iter().zip(golden) {
            let bytes = encode_row(record, text).unwrap();
            assert_eq!(hex(&bytes), golden, "{record:?}");
            assert_eq!(decode_row(&bytes).unwrap(), (record.clone(), *text));
            let head = bytes.len() - text.len();
            for end in 0..head {
                assert!(decode_row(&bytes[..end]).is_err(), "{record:?} cut at {end}");
            }
        }
        let (gone, _) = row_samples().pop().unwrap();
        let longer = encode_row(&gone, b"x").unwrap();
        assert!(decode_row(&longer).is_err(), "text where none belongs");
    }

    #[test]
    fn nothing_but_a_whole_record_decodes() {
        for record in samples() {
            let bytes = encode(&record).unwrap();
            for end in 0..bytes.len() {
                assert!(decode::<Record>(&bytes[..end]).is_err(), "{record:?} cut at {end}");
            }
            let longer = [&bytes[..], &[0]].concat();
            assert!(decode::<Record>(&longer).is_err(), "a byte too many");
        }
        assert!(matches!(decode::<Record>(&[2, 3, 0, 0, 0]), Err(DecodeError::Version(2))));
    }

    #[test]
    fn a_length_that_lies_allocates_nothing() {
        let mut bytes = encode(&Record::Paused { sink: "c".to_owned(), paused: true }).unwrap();
        bytes[5..13].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(decode::<Record>(&bytes), Err(DecodeError::Malformed(_))));
    }
}
