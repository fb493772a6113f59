//! Where an archive stands, and its encoding as the resume token. Pure.
//!
//! ```text
//! token     0  1  version: 1
//!           1  1  1 when a file is open for more, 0 when the next event begins one
//!           2  2  zero
//!           4  4  crc32 of the file's last min(length, 512) bytes
//!           8  8  next offset: every event below it is in the archive
//!          16  8  the file: its UTC day, counted from 1970-01-01
//!          24  8  offset of its first event
//!          32  8  its length in bytes, all of them synced
//!          40  8  events in it
//!          48  8  acceptance of its first event, microseconds since the Unix epoch
//! ```
//!
//! Little-endian. The ledger's record carries the checksum. The path follows from day and first
//! offset, so that no token can name a file outside the archive.

use std::path::PathBuf;

use crate::event::Micros;

use super::layout::{Day, relative_path};

const VERSION: u8 = 1;
const TOKEN_BYTES: usize = 56;

/// How many of a file's last bytes its position vouches for.
pub(super) const TAIL_BYTES: usize = 512;

/// Where the archive stands: everything it says is written and synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    /// Every event below this offset is in the archive.
    pub next_offset: u64,
    /// The file that takes more; without one the next event begins one.
    pub file: Option<FilePosition>,
}

/// A file that takes more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FilePosition {
    pub day: Day,
    pub first_offset: u64,
    pub length: u64,
    pub events: u64,
    pub first_accepted_at: Micros,
    /// Checksum of its last bytes; tells our file from another one in its place.
    pub tail_crc: u32,
}

impl FilePosition {
    /// Its path under the archive's directory.
    pub fn relative_path(&self) -> PathBuf {
        relative_path(self.day, self.first_offset)
    }
}

impl Position {
    /// The resume token.
    pub fn encode(&self) -> Vec<u8> {
        let mut token = Vec::with_capacity(TOKEN_BYTES);
        let file = self.file.unwrap_or(FilePosition {
            day: Day(0),
            first_offset: 0,
            length: 0,
            events: 0,
            first_accepted_at: Micros(0),
            tail_crc: 0,
        });
        token.extend_from_slice(&[VERSION, u8::from(self.file.is_some()), 0, 0]);
        token.extend_from_slice(&file.tail_crc.to_le_bytes());
        token.extend_from_slice(&self.next_offset.to_le_bytes());
        token.extend_from_slice(&file.day.0.to_le_bytes());
        token.extend_from_slice(&file.first_offset.to_le_bytes());
        token.extend_from_slice(&file.length.to_le_bytes());
        token.extend_from_slice(&file.events.to_le_bytes());
        token.extend_from_slice(&file.first_accepted_at.0.to_le_bytes());
        token
    }

    /// Reads a token; `None` when it is none of this version's.
    pub fn decode(token: &[u8]) -> Option<Self> {
        let token: &[u8; TOKEN_BYTES] = token.try_into().ok()?;
        let word = |at: usize| token[at..at + 8].first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
        if token[0] != VERSION || token[1] > 1 || token[2..4] != [0, 0] {
            return None;
        }
        let next_offset = word(8)?;
        let file = FilePosition {
            tail_crc: u32::from_le_bytes(*token[4..8].first_chunk()?),
            day: Day(word(16)?.cast_signed()),
            first_offset: word(24)?,
            length: word(32)?,
            events: word(40)?,
            first_accepted_at: Micros(word(48)?.cast_signed()),
        };
        // A file that takes more has at least one event, and they all lie below the next offset.
        let sound = file.length > 0 && file.events > 0 && file.first_offset < next_offset;
        match token[1] {
            0 => Some(Self { next_offset, file: None }),
            _ if sound => Some(Self { next_offset, file: Some(file) }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position() -> Position {
        let file = FilePosition {
            day: Day(20_090),
            first_offset: 7,
            length: 0x0102_0304,
            events: 3,
            first_accepted_at: Micros(-5),
            tail_crc: 0xdead_beef,
        };
        Position { next_offset: 10, file: Some(file) }
    }

    #[test]
    fn a_token_is_these_bytes_and_no_others() {
        let mut golden = vec![1, 1, 0, 0, 0xef, 0xbe, 0xad, 0xde];
        golden.extend_from_slice(&[10, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend_from_slice(&[0x7a, 0x4e, 0, 0, 0, 0, 0, 0]);
        golden.extend_from_slice(&[7, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend_from_slice(&[4, 3, 2, 1, 0, 0, 0, 0]);
        golden.extend_from_slice(&[3, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend_from_slice(&[0xfb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(position().encode(), golden);
        assert_eq!(Position::decode(&golden), Some(position()));
    }

    #[test]
    fn a_position_between_two_files_survives_its_token() {
        let between = Position { next_offset: u64::MAX, file: None };
        assert_eq!(Position::decode(&between.encode()), Some(between));
    }

    #[test]
    fn a_token_of_another_version_or_length_or_without_sense_is_none() {
        let good = position().encode();
        for cut in 0..good.len() {
            assert_eq!(Position::decode(&good[..cut]), None);
        }
        for (at, value) in [(0, 2), (1, 2), (2, 1), (24, 10)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(Position::decode(&bad), None, "byte {at}");
        }
    }
}
