//! What a frame promises: its bytes are fixed for ever, whatever was written is read back, and no
//! flipped bit goes unnoticed or costs more than it hit.

use super::*;
use proptest::prelude::*;

const SALT: u64 = 0x1122_3344_5566_7788;

/// A frame of two records, an empty one among them, computed by another program.
#[rustfmt::skip]
const RECORDS: [u8; 120] = [
    0x45, 0x56, 0x46, 0x52, 0x71, 0xb0, 0x6b, 0xdc, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
    0x29, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x28, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x40, 0x1e, 0x18, 0x24, 0x0a, 0x06, 0x00, 0x02, 0x00, 0x00, 0x00, 0x07, 0x00, 0x00, 0x00,
    0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x10, 0x0f, 0x0e, 0x0d, 0x0c, 0x0b, 0x0a, 0x09, 0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01,
    0x07, 0x00, 0x00, 0x00, 0x3a, 0x5d, 0x6e, 0xfc, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x76, 0xf6, 0xfa, 0x24,
    0x7b, 0x22, 0x61, 0x22, 0x3a, 0x31, 0x7d, 0x00,
];

/// A clean-stop marker, computed by another program.
#[rustfmt::skip]
const CLEAN_STOP: [u8; 64] = [
    0x45, 0x56, 0x46, 0x52, 0x9b, 0xff, 0xd4, 0xf1, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
    0x2b, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x2b, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x40, 0x1e, 0x18, 0x24, 0x0a, 0x06, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x03, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
];

fn golden() -> (Header, [(u128, &'static [u8]); 2]) {
    let header = Header {
        kind: Kind::Records,
        salt: SALT,
        base: 41,
        durable: 40,
        accepted_at_micros: 1_700_000_000_000_000,
        records: 2,
        payload_bytes: 7,
    };
    (header, [(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10, b"{\"a\":1}"), (0, b"")])
}

fn record<'a>(tag: u128, bytes: &'a [u8]) -> Record<'a> {
    Record { tag, crc: crc32fast::hash(bytes), bytes }
}

/// Zeros are everywhere; a segment read by such a frame would find its salt in all of them.
#[test]
fn a_frame_without_a_salt_is_none() {
    let mut bytes = Vec::new();
    encode(&mut bytes, &Header::void(0, 1..2, 0), [].into_iter());
    assert_eq!(peek(&bytes), None);
    bytes.clear();
    encode(&mut bytes, &Header::void(1, 1..2, 0), [].into_iter());
    assert!(peek(&bytes).is_some());
}

/// Whatever else is right about it: counting on from such an offset would not end well.
#[test]
fn a_frame_with_offsets_that_nobody_reaches_is_none() {
    let encoded = |header: Header, records: &[Record<'static>]| {
        let mut bytes = Vec::new();
        encode(&mut bytes, &header, records.iter().copied());
        bytes
    };
    let records = [record(1, b"a"), record(2, b"b")];
    let of_records = |base, durable| {
        let header = Header { base, durable, records: 2, payload_bytes: 2, ..golden().0 };
        peek(&encoded(header, &records))
    };
    let void = |base, end| peek(&encoded(Header::void(SALT, base..end, 0), &[]));
    assert!(of_records(OFFSETS_END - 2, OFFSETS_END).is_some() && void(5, OFFSETS_END).is_some());
    for far in [
        of_records(OFFSETS_END - 1, 0),
        of_records(u64::MAX - 3, 0),
        of_records(0, OFFSETS_END + 1),
        void(5, OFFSETS_END + 1),
        void(u64::MAX - 1, u64::MAX),
    ] {
        assert_eq!(far, None);
    }
}

/// A record's tag and bytes, if it validates.
type Checked = Option<(u128, Vec<u8>)>;

/// The records that validate, in order, or nothing when the header does not.
fn decode(bytes: &[u8]) -> Option<(Header, Vec<Checked>)> {
    let header = peek(bytes)?;
    if !check_prefix(&header, bytes) || header.frame_bytes() > bytes.len() as u64 {
        return None;
    }
    let mut at = header.prefix_bytes() as usize;
    let mut records = Vec::new();
    for (offset, entry) in header.offsets().zip(entries(&header, bytes)) {
        let payload = &bytes[at..at + entry.len as usize];
        at += entry.len as usize;
        let intact = check_record(&header, offset, &entry, payload);
        records.push(intact.then(|| (entry.tag, payload.to_vec())));
    }
    Some((header, records))
}

#[test]
fn the_bytes_of_a_frame_never_change() {
    let (header, records) = golden();
    let mut out = Vec::new();
    encode(&mut out, &header, records.iter().map(|(tag, bytes)| record(*tag, bytes)));
    assert_eq!(out, RECORDS);
    let (read, records_read) = decode(&RECORDS).expect("intact");
    assert_eq!(read, header);
    let expected: Vec<_> = records.iter().map(|(tag, bytes)| Some((*tag, bytes.to_vec()))).collect();
    assert_eq!(records_read, expected);
}

#[test]
fn the_bytes_of_a_marker_never_change() {
    let header =
        Header { kind: Kind::CleanStop, base: 43, durable: 43, records: 0, payload_bytes: 0, ..golden().0 };
    let mut out = Vec::new();
    encode(&mut out, &header, std::iter::empty());
    assert_eq!(out, CLEAN_STOP);
    assert_eq!(decode(&CLEAN_STOP), Some((header, vec![])));
}

#[test]
fn a_flipped_bit_costs_the_record_it_hit_or_is_told_by_the_header() {
    let (header, _) = golden();
    let prefix_bits = header.prefix_bytes() as usize * 8;
    let payload_bits = prefix_bits + header.payload_bytes as usize * 8;
    for bit in 0..RECORDS.len() * 8 {
        let mut bytes = RECORDS;
        bytes[bit / 8] ^= 1 << (bit % 8);
        let found = decode(&bytes);
        if bit < prefix_bits {
            assert_eq!(found, None, "bit {bit}");
        } else {
            let (_, records) = found.expect("the header is intact");
            let hit = (bit < payload_bits).then_some(0);
            for (at, record) in records.iter().enumerate() {
                assert_eq!(record.is_none(), hit == Some(at), "bit {bit}, record {at}");
            }
        }
    }
}

#[test]
fn nothing_zero_and_nothing_short_is_a_frame() {
    assert_eq!(peek(&[0; 4096]), None);
    for len in 0..RECORDS.len() {
        assert_eq!(decode(&RECORDS[..len]), None, "cut to {len} bytes");
    }
}

#[test]
fn a_header_that_claims_more_than_there_is_does_no_harm() {
    let mut bytes = RECORDS;
    bytes[40..48].copy_from_slice(&[0xff; 8]);
    let header = peek(&bytes).expect("its magic is there");
    assert!(!check_prefix(&header, &bytes));
}

#[test]
fn a_record_does_not_validate_at_another_offset_or_under_another_salt() {
    let (header, records) = golden();
    let entry = entries(&header, &RECORDS).next().expect("there are two");
    assert!(check_record(&header, 41, &entry, records[0].1));
    assert!(!check_record(&header, 42, &entry, records[0].1));
    assert!(!check_record(&Header { salt: SALT + 1, ..header }, 41, &entry, records[0].1));
}

proptest! {
    #[test]
    fn a_record_is_bound_by_the_checksum_of_salt_and_offset(crc: u32, salt: u64, offset: u64) {
        let key = [salt.to_le_bytes(), offset.to_le_bytes()].concat();
        prop_assert_eq!(bind(crc, salt, offset), crc ^ crc32fast::hash(&key));
    }

    #[test]
    fn what_is_written_is_read_back(
        salt in 1u64.., base in 0u64..1 << 60, durable in 0..=OFFSETS_END, accepted_at_micros: i64,
        records in prop::collection::vec((any::<u128>(), prop::collection::vec(any::<u8>(), 0..40)), 1..20),
    ) {
        let payload_bytes = records.iter().map(|(_, bytes)| bytes.len() as u32).sum();
        let count = records.len() as u32;
        let header = Header {
            kind: Kind::Records, salt, base, durable, accepted_at_micros, records: count, payload_bytes,
        };
        let mut out = vec![7; 24]; // a group already has frames in it
        encode(&mut out, &header, records.iter().map(|(tag, bytes)| record(*tag, bytes)));
        prop_assert_eq!(out.len() as u64, 24 + header.frame_bytes());
        prop_assert_eq!(out.len() % ALIGN, 0);
        let (read, back) = decode(&out[24..]).expect("intact");
        prop_assert_eq!(read, header);
        prop_assert_eq!(back, records.into_iter().map(Some).collect::<Vec<_>>());
    }

    #[test]
    fn rubbish_is_never_a_frame_and_never_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert_eq!(decode(&bytes), None);
        let magic = bytes.len().min(4);
        bytes[..magic].copy_from_slice(&MAGIC[..magic]);
        prop_assert_eq!(decode(&bytes), None);
    }
}
