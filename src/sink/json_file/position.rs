//! Where an archive stands, and its encoding as the resume token. Pure.
//!
//! ```text
//! token     0  1  version: 2
//!           1  1  1 when a file is open for more, 0 when the next event begins one
//!           2  2  how many files are finished and not listed in the manifest yet
//!           4  4  crc32 of the file's last min(length, 512) bytes
//!           8  8  next offset: every event below it is in the archive
//!          16  8  the file: its UTC day, counted from 1970-01-01
//!          24  8  offset of its first event
//!          32  8  its length in bytes, all of them synced
//!          40  8  events in it
//!          48  8  acceptance of its first event, microseconds since the Unix epoch
//!          56  8  offsets from here to its first event hold none
//!          64  8  offsets from here to the next offset hold no event
//!          72  4  crc32 of all of it
//!          76  4  zero
//! finished  0  8  its UTC day
//!           8  8  offset of its first event
//!          16  8  its length in bytes
//!          24  8  events in it
//!          32  8  offsets from here to its first event hold none
//!          40  4  crc32 of all of it
//!          44  4  zero
//! ```
//!
//! Little-endian. The ledger's record carries the checksum. The path follows from day, first
//! offset and the configured layout, so that no token can name a file outside the archive.

use crate::event::Micros;

use super::super::MAX_TOKEN_BYTES;
use super::layout::Day;

const VERSION: u8 = 2;
const POSITION_BYTES: usize = 80;
const FINISHED_BYTES: usize = 48;

/// A token has room for so many finished files.
pub(super) const MAX_FINISHED: usize = (MAX_TOKEN_BYTES - POSITION_BYTES) / FINISHED_BYTES;

/// How many of a file's last bytes its position vouches for.
pub(super) const TAIL_BYTES: usize = 512;

/// Where the archive stands: everything it says is written and synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    /// Every event below this offset is in the archive.
    pub next_offset: u64,
    /// Every offset from here to the next one is void.
    pub void_from: u64,
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
    /// Every offset from here to its first event is void.
    pub covers_from: u64,
    /// Checksum of its last bytes; tells our file from another one in its place.
    pub tail_crc: u32,
    /// Checksum of all of its bytes.
    pub crc: u32,
}

/// A file that takes no more, as it was written: what its bytes are to be when they are read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Finished {
    pub day: Day,
    pub first_offset: u64,
    pub length: u64,
    pub events: u64,
    pub covers_from: u64,
    pub crc: u32,
}

impl FilePosition {
    /// What stays of it when it takes no more.
    pub fn finish(&self) -> Finished {
        let Self { day, first_offset, length, events, covers_from, crc, .. } = *self;
        Finished { day, first_offset, length, events, covers_from, crc }
    }
}

impl Position {
    /// Between two files.
    pub fn between(next_offset: u64, void_from: u64) -> Self {
        Self { next_offset, void_from, file: None }
    }

    /// The resume token; `finished` has at most [`MAX_FINISHED`] files.
    pub fn encode(&self, finished: &[Finished]) -> Vec<u8> {
        let mut token = Vec::with_capacity(POSITION_BYTES + finished.len() * FINISHED_BYTES);
        let file = self.file.unwrap_or(FilePosition {
            day: Day(0),
            first_offset: 0,
            length: 0,
            events: 0,
            first_accepted_at: Micros(0),
            covers_from: 0,
            tail_crc: 0,
            crc: 0,
        });
        token.extend_from_slice(&[VERSION, u8::from(self.file.is_some())]);
        token.extend_from_slice(&(finished.len() as u16).to_le_bytes());
        token.extend_from_slice(&file.tail_crc.to_le_bytes());
        token.extend_from_slice(&self.next_offset.to_le_bytes());
        token.extend_from_slice(&file.day.0.to_le_bytes());
        token.extend_from_slice(&file.first_offset.to_le_bytes());
        token.extend_from_slice(&file.length.to_le_bytes());
        token.extend_from_slice(&file.events.to_le_bytes());
        token.extend_from_slice(&file.first_accepted_at.0.to_le_bytes());
        token.extend_from_slice(&file.covers_from.to_le_bytes());
        token.extend_from_slice(&self.void_from.to_le_bytes());
        token.extend_from_slice(&u64::from(file.crc).to_le_bytes());
        for file in finished {
            token.extend_from_slice(&file.day.0.to_le_bytes());
            token.extend_from_slice(&file.first_offset.to_le_bytes());
            token.extend_from_slice(&file.length.to_le_bytes());
            token.extend_from_slice(&file.events.to_le_bytes());
            token.extend_from_slice(&file.covers_from.to_le_bytes());
            token.extend_from_slice(&u64::from(file.crc).to_le_bytes());
        }
        token
    }

    /// Reads a token; `None` when it is none of this version's.
    pub fn decode(token: &[u8]) -> Option<(Self, Vec<Finished>)> {
        let (position, rest) = token.split_at_checked(POSITION_BYTES)?;
        let (&[version, has_file], finished) =
            (position.first_chunk()?, u16::from_le_bytes([position[2], position[3]]));
        if version != VERSION || has_file > 1 || rest.len() != usize::from(finished) * FINISHED_BYTES {
            return None;
        }
        let (next_offset, void_from) = (word(position, 8)?, word(position, 64)?);
        let file = FilePosition {
            tail_crc: u32::from_le_bytes(*position[4..8].first_chunk()?),
            day: Day(word(position, 16)?.cast_signed()),
            first_offset: word(position, 24)?,
            length: word(position, 32)?,
            events: word(position, 40)?,
            first_accepted_at: Micros(word(position, 48)?.cast_signed()),
            covers_from: word(position, 56)?,
            crc: u32::try_from(word(position, 72)?).ok()?,
        };
        // A file that takes more has at least one event, and they all lie below the next offset.
        let sound = file.length > 0 && file.events > 0 && file.first_offset < next_offset;
        if void_from > next_offset || (has_file == 1 && !sound) {
            return None;
        }
        let finished = rest.chunks_exact(FINISHED_BYTES).map(|file| {
            Some(Finished {
                day: Day(word(file, 0)?.cast_signed()),
                first_offset: word(file, 8)?,
                length: word(file, 16)?,
                events: word(file, 24)?,
                covers_from: word(file, 32)?,
                crc: u32::try_from(word(file, 40)?).ok()?,
            })
        });
        let position = Self { next_offset, void_from, file: (has_file == 1).then_some(file) };
        Some((position, finished.collect::<Option<_>>()?))
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position() -> Position {
        Position {
            next_offset: 10,
            void_from: 9,
            file: Some(FilePosition {
                day: Day(3),
                first_offset: 4,
                length: 5,
                events: 2,
                first_accepted_at: Micros(-5),
                covers_from: 1,
                tail_crc: 0x0403_0201,
                crc: 0x0807_0605,
            }),
        }
    }

    fn finished() -> Vec<Finished> {
        vec![position().file.unwrap().finish()]
    }

    #[test]
    fn a_token_is_these_bytes_and_no_others() {
        let word = |n: u64| n.to_le_bytes().to_vec();
        let golden: Vec<u8> = [
            vec![2, 1, 1, 0, 1, 2, 3, 4],
            [10, 3, 4, 5, 2].into_iter().flat_map(word).collect(),
            vec![0xfb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            [1, 9].into_iter().flat_map(word).collect(),
            vec![5, 6, 7, 8, 0, 0, 0, 0],
            [3, 4, 5, 2, 1].into_iter().flat_map(word).collect(),
            vec![5, 6, 7, 8, 0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(position().encode(&finished()), golden);
        assert_eq!(Position::decode(&golden), Some((position(), finished())));
    }

    #[test]
    fn a_position_between_two_files_survives_its_token() {
        let between = Position::between(u64::MAX, 7);
        assert_eq!(Position::decode(&between.encode(&[])), Some((between, vec![])));
    }

    #[test]
    fn the_longest_token_fits_into_the_ledger_and_is_read_back() {
        let finished = vec![finished()[0]; MAX_FINISHED];
        let token = position().encode(&finished);
        assert!(token.len() <= MAX_TOKEN_BYTES && MAX_FINISHED > 80, "{} bytes", token.len());
        assert_eq!(Position::decode(&token), Some((position(), finished)));
    }

    #[test]
    fn a_token_of_another_version_or_length_or_without_sense_is_none() {
        let good = position().encode(&finished());
        for cut in 0..good.len() {
            assert_eq!(Position::decode(&good[..cut]), None);
        }
        for (at, value) in [(0, 1), (1, 2), (2, 2), (24, 10), (64, 11), (76, 1)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(Position::decode(&bad), None, "byte {at}");
        }
    }
}
