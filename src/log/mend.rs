//! Mending a frame's header and table when exactly one byte of them is wrong.
//!
//! Pure. One checksum covers header and table, so that one flipped bit in them would cost the whole
//! frame, ten thousand records perhaps. But a CRC tells more than right or wrong: its difference
//! to the stored one says, for every byte, which change of that byte alone would explain it. The
//! change is believed only when everything else agrees: magic, salt, offset, lengths, and, by the
//! caller, every single record.

use super::frame::{self, ENTRY_BYTES, HEADER_BYTES, Header, MAGIC};

/// CRC-32's table: what one byte does to the register.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// The table backwards: the only byte whose entry has this highest byte.
const BACK: [u8; 256] = {
    let mut back = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        back[(TABLE[byte] >> 24) as usize] = byte as u8;
        byte += 1;
    }
    back
};

/// Where the header keeps the number of records.
const RECORDS_AT: usize = 40;

/// The header and table at the start of `bytes` with one byte put right; `None` when no change of one
/// byte makes them whole and `plausible`. `bytes` may be as long as the file; little of it is read.
pub(super) fn mend(bytes: &[u8], plausible: impl Fn(&Header) -> bool) -> Option<(Header, Vec<u8>)> {
    let head = bytes.first_chunk::<HEADER_BYTES>()?;
    let records = u32::from_le_bytes(*head[RECORDS_AT..].first_chunk()?);
    let accept = |fixed: Vec<u8>| {
        let header = frame::peek(&fixed)?;
        (plausible(&header) && frame::check_prefix(&header, &fixed)).then_some((header, fixed))
    };
    if let Some(found) = with_length(bytes, prefix_len(records)).into_iter().find_map(accept) {
        return Some(found);
    }
    // The number of records itself may be what is wrong; then the checksum fits another length.
    for at in RECORDS_AT..RECORDS_AT + 4 {
        for flip in 1..=255u8 {
            let mut fixed_head = *head;
            fixed_head[at] ^= flip;
            let header = frame::peek(&fixed_head)?;
            let len = prefix_len(header.records);
            if len > bytes.len() || !plausible(&header) || !lengths_agree(&header, &bytes[..len]) {
                continue;
            }
            let mut fixed = bytes[..len].to_vec();
            fixed[at] ^= flip;
            if let Some(found) = accept(fixed) {
                return Some(found);
            }
        }
    }
    None
}

fn prefix_len(records: u32) -> usize {
    HEADER_BYTES + ENTRY_BYTES * records as usize
}

/// Cheaper than the checksum, and almost always enough to say no.
fn lengths_agree(header: &Header, prefix: &[u8]) -> bool {
    let most = header.payload_bytes as u64;
    let mut sum = 0;
    for entry in frame::entries(header, prefix) {
        sum += entry.len as u64;
        if sum > most {
            return false;
        }
    }
    sum == most
}

/// Every way to make the first `len` bytes agree with their checksum by changing one byte.
fn with_length(bytes: &[u8], len: usize) -> Vec<Vec<u8>> {
    let Some(prefix) = bytes.get(..len) else { return Vec::new() };
    let changed = |at: usize, to: &[u8]| {
        let mut fixed = prefix.to_vec();
        fixed[at..at + to.len()].copy_from_slice(to);
        fixed
    };
    let stored = u32::from_le_bytes([prefix[4], prefix[5], prefix[6], prefix[7]]);
    let computed = crc32fast::hash(&prefix[8..]);
    let difference = stored ^ computed;
    if difference == 0 {
        return vec![changed(0, &MAGIC)]; // not covered by the checksum
    }
    let mut ways = Vec::new();
    if difference.to_le_bytes().iter().filter(|byte| **byte != 0).count() == 1 {
        ways.push(changed(4, &computed.to_le_bytes()));
    }
    // Undo the effect of one byte after the other from the end: where what is left is what a single
    // byte does, that byte is a suspect.
    let mut register = difference;
    for at in (8..len).rev() {
        let byte = BACK[(register >> 24) as usize];
        let before = register ^ TABLE[byte as usize];
        if before == 0 {
            ways.push(changed(at, &[prefix[at] ^ byte]));
        }
        register = before << 8 | byte as u32;
    }
    ways
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::frame::{Kind, Record};

    fn header(records: &[&[u8]]) -> Header {
        Header {
            kind: if records.is_empty() { Kind::Idle } else { Kind::Records },
            salt: 0x1234_5678_9abc_def0,
            base: 7,
            durable: 5,
            accepted_at_micros: 1_700_000_000_000_000,
            records: records.len() as u32,
            payload_bytes: records.iter().map(|record| record.len() as u32).sum(),
        }
    }

    fn encoded(records: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        let records_of = |bytes: &&'static [u8]| Record { tag: 99, crc: crc32fast::hash(bytes), bytes };
        let owned: Vec<&'static [u8]> = records.iter().map(|r| &*r.to_vec().leak()).collect();
        frame::encode(&mut out, &header(records), owned.iter().map(records_of));
        out
    }

    #[test]
    fn any_change_of_any_one_byte_of_header_and_table_is_put_right() {
        for records in [&[][..], &[b"one".as_slice()], &[b"a".as_slice(), b"", b"three"]] {
            let whole = encoded(records);
            let expected = header(records);
            let prefix = expected.prefix_bytes() as usize;
            for at in 0..prefix {
                for flip in 1..=255u8 {
                    let mut bytes = whole.clone();
                    bytes[at] ^= flip;
                    let plausible = |header: &Header| header.salt == expected.salt && header.base == 7;
                    let (header, fixed) = mend(&bytes, plausible).expect("one byte can be mended");
                    assert_eq!(header, expected, "byte {at} flipped by {flip}");
                    assert_eq!(fixed, whole[..prefix], "byte {at} flipped by {flip}");
                }
            }
        }
    }

    #[test]
    fn two_changed_bytes_and_rubbish_are_left_alone() {
        let whole = encoded(&[b"one", b"two"]);
        let plausible = |header: &Header| header.salt == 0x1234_5678_9abc_def0;
        for (a, b) in [(0, 9), (9, 20), (20, 70), (41, 70), (30, 31)] {
            let mut bytes = whole.clone();
            bytes[a] ^= 0x55;
            bytes[b] ^= 0x2a;
            assert_eq!(mend(&bytes, plausible), None, "bytes {a} and {b}");
        }
        assert_eq!(mend(&[0; 256], plausible), None);
        assert_eq!(mend(&[0xff; 256], plausible), None);
        assert_eq!(mend(&[], plausible), None);
    }
}
