//! `manifest.ndjson`: what the archive's finished files are, one JSON object a line.
//!
//! ```text
//! {"name":"2026/11/27/events-00000000000000000000.ndjson.zst",    as it lies on the disk
//!  "first_offset":0,"last_offset":41,"count":40,                  its events
//!  "bytes":1234,"sha256":"…",                                     the file under that name
//!  "voids":[[7,9]],                                               offsets 7 and 8 hold no event
//!  "covers_from":0,                                               nor does any from here to the first
//!  "first_time":"…","last_time":"…",                              the earliest and the latest acceptance
//!  "content_bytes":9876,"content_crc32":"…",                      decompressed, as it was written
//!  "crc32":"0a1b2c3d"}                                            of the line up to this comma
//! ```
//!
//! A file that retention took has a second line with `removed` (when) and `reason`; of several lines
//! about one first offset the last one holds. When such lines have become many, the manifest is written anew,
//! and files that were removed one after another share a line: it has the first one's name, and says of how
//! many `files` it is. So its length follows the files that are there. A file whose events skip more than [`MAX_VOIDS`] ranges
//! (a sink with a filter) says `"sparse":true` instead of naming them.
//!
//! A line is appended and synced before anyone relies on it. A crash can leave the last one torn; that
//! file is then listed again. A bad line anywhere else is damage and says so, and costs what it
//! says about one file, which can be read again from the file.
//!
//! Reading here is for everybody (`export`, `verify`, the sink), on the caller's thread. Errors are the
//! file system's own; a damaged line is no error but part of the answer.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::ops::{Range, RangeInclusive};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::event::Micros;

use super::examine::Examined;
use super::layout::{self, ArchiveFile, FileReader, Form};

/// The manifest's name under the archive's directory.
pub const NAME: &str = "manifest.ndjson";

/// More ranges without an event than this are not named one by one.
pub const MAX_VOIDS: usize = 1000;

/// The longest line that is one of ours.
const MAX_LINE_BYTES: usize = 1 << 20;

const CRC_KEY: &[u8] = b",\"crc32\":\"";

/// What the manifest says about one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its path under the archive's directory, with forward slashes.
    pub name: String,
    /// Offset of its first event.
    pub first_offset: u64,
    /// Offset of its last event.
    pub last_offset: u64,
    /// How many events it holds.
    pub count: u64,
    /// Its length on the disk, as it is called `name`.
    pub bytes: u64,
    /// SHA-256 of these bytes, in hexadecimal.
    pub sha256: String,
    /// Offsets between its first and last event that hold none; ascending, disjoint, `[start, end)`.
    pub voids: Vec<(u64, u64)>,
    /// Its voids are too many to be named.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sparse: bool,
    /// Offsets from here to its first event hold no event: where the file before it has to end.
    pub covers_from: u64,
    /// The earliest time at which one of its events was accepted.
    #[serde(with = "rfc3339")]
    pub first_time: Micros,
    /// The latest such time.
    #[serde(with = "rfc3339")]
    pub last_time: Micros,
    /// Bytes of its lines; the same as `bytes` when it is not compressed.
    pub content_bytes: u64,
    /// CRC-32 of these lines as the sink wrote them, in hexadecimal in the file. Where the lines have
    /// another, somebody changed them since.
    #[serde(with = "hexadecimal")]
    pub content_crc32: u32,
    /// When retention took it, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "rfc3339::optional")]
    pub removed: Option<Micros>,
    /// Why retention took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How many files it stands for: more than one only of those that were removed.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub files: u64,
}

fn one() -> u64 {
    1
}

fn is_one(files: &u64) -> bool {
    *files == 1
}

impl Entry {
    /// What there is to say of a file that was read; `None` when its name says something else.
    pub(super) fn of_file(
        root: &Path,
        file: &ArchiveFile,
        found: &Examined,
        covers_from: u64,
    ) -> Option<Self> {
        let (_, last_offset) = found.offsets.filter(|(first, _)| *first == file.first_offset)?;
        let (first_time, last_time) = found.times?;
        Some(Self {
            name: file.path.strip_prefix(root).ok()?.to_str()?.to_owned(),
            first_offset: file.first_offset,
            last_offset,
            count: found.count,
            bytes: found.bytes,
            sha256: found.sha256.clone(),
            voids: if found.is_sparse { vec![] } else { found.gaps.clone() },
            sparse: found.is_sparse,
            covers_from: covers_from.min(file.first_offset),
            first_time,
            last_time,
            content_bytes: found.content_bytes,
            content_crc32: found.content_crc,
            removed: None,
            reason: None,
            files: 1,
        })
    }

    /// Of a file with an event at each of these offsets, all accepted at `at`, of whose bytes nothing is known.
    pub(crate) fn unread(name: String, first_offset: u64, last_offset: u64, at: Micros) -> Self {
        Self {
            name,
            first_offset,
            last_offset,
            count: last_offset - first_offset + 1,
            bytes: 0,
            sha256: String::new(),
            voids: vec![],
            sparse: false,
            covers_from: first_offset,
            first_time: at,
            last_time: at,
            content_bytes: 0,
            content_crc32: 0,
            removed: None,
            reason: None,
            files: 1,
        }
    }

    /// What there is to say of this file and the next one when both were removed, for the same reason, and
    /// no offset between them is unaccounted for.
    fn with(&self, next: &Entry) -> Option<Entry> {
        let are_alike = self.removed.is_some() && next.removed.is_some() && self.reason == next.reason;
        (are_alike && next.covers_from <= self.last_offset + 1).then(|| Entry {
            last_offset: next.last_offset,
            count: self.count + next.count,
            bytes: self.bytes + next.bytes,
            sha256: String::new(), // of files that nobody will compare any more
            voids: vec![],
            sparse: true,
            first_time: self.first_time.min(next.first_time),
            last_time: self.last_time.max(next.last_time),
            content_bytes: self.content_bytes + next.content_bytes,
            content_crc32: 0,
            removed: self.removed.max(next.removed),
            files: self.files + next.files,
            ..self.clone()
        })
    }

    /// Whether its file is to be there.
    pub fn is_kept(&self) -> bool {
        self.removed.is_none()
    }

    /// Where its file is, under `root`.
    pub fn path(&self, root: &Path) -> PathBuf {
        root.join(&self.name)
    }

    /// How its file is to be read.
    pub fn form(&self) -> Form {
        layout::parse_path(Path::new(&self.name)).map_or(Form::Plain, |(_, form)| form)
    }

    /// The times at which its events were accepted.
    pub fn times(&self) -> RangeInclusive<Micros> {
        self.first_time..=self.last_time
    }

    /// Its line, newline included.
    pub fn to_line(&self) -> Vec<u8> {
        // Numbers, texts and times of ours have a JSON form.
        let mut line = serde_json::to_vec(self).expect("an entry is JSON");
        line.pop();
        let crc = crc32fast::hash(&line);
        line.extend_from_slice(CRC_KEY);
        line.extend_from_slice(format!("{crc:08x}\"}}\n").as_bytes());
        line
    }

    /// Reads a line without its newline; `None` when it is not, byte for byte, one that was written.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let (head, tail) = line.split_at_checked(line.len().checked_sub(CRC_KEY.len() + 10)?)?;
        let digits = tail.strip_prefix(CRC_KEY)?.strip_suffix(b"\"}")?;
        if digits != format!("{:08x}", crc32fast::hash(head)).as_bytes() {
            return None;
        }
        let entry: Self = serde_json::from_slice(&[head, b"}"].concat()).ok()?;
        entry.is_sound().then_some(entry)
    }

    /// Whether it makes sense, and names a file of the archive and nothing outside.
    fn is_sound(&self) -> bool {
        let path = Path::new(&self.name);
        let is_inside = path.components().all(|part| matches!(part, Component::Normal(_)));
        let voids = self.voids.iter().map(|(start, end)| start..end);
        is_inside
            && layout::parse_path(path).is_some_and(|(first, _)| first == self.first_offset)
            && self.covers_from <= self.first_offset
            && self.first_offset <= self.last_offset
            && self.last_offset < u64::MAX
            && self.count > 0
            && (self.files == 1 || (self.files > 1 && self.removed.is_some()))
            && self.first_time <= self.last_time
            && voids.clone().all(|void| *void.start > self.first_offset && void.start < void.end)
            && voids.clone().all(|void| *void.end <= self.last_offset)
            && voids.clone().zip(voids.skip(1)).all(|(a, b)| a.end < b.start)
    }
}

/// A line that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLine {
    /// Its number, counted from 1.
    pub number: u64,
    /// Where it stands in the manifest.
    pub bytes: Range<u64>,
}

/// The manifest, read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The last word on each file, by its first offset.
    pub entries: BTreeMap<u64, Entry>,
    /// Lines that say nothing, before the last good one.
    pub damage: Vec<BadLine>,
    /// What stands behind the last good line: torn by a crash, or being written at this moment.
    pub unfinished: Option<BadLine>,
    /// Where the next line goes: behind the last good one.
    pub end: u64,
    /// Lines read, good and bad.
    pub lines: u64,
}

impl Manifest {
    /// Reads the manifest of the archive at `root`; an empty one when there is none.
    pub fn read(disk: &dyn Disk, root: &Path) -> io::Result<Self> {
        let mut bytes = Vec::new();
        match FileReader::open(disk, &root.join(NAME)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            opened => opened?.read_to_end(&mut bytes)?,
        };
        Ok(Self::parse(&bytes))
    }

    fn parse(bytes: &[u8]) -> Self {
        let mut manifest = Self::default();
        let mut bad = Vec::new();
        let mut at = 0;
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            manifest.lines += 1;
            let here = at..at + piece.len() as u64;
            at = here.end;
            let line = piece.strip_suffix(b"\n").filter(|line| line.len() <= MAX_LINE_BYTES);
            match line.and_then(Entry::parse) {
                Some(entry) => {
                    manifest.damage.append(&mut bad);
                    manifest.entries.insert(entry.first_offset, entry);
                    manifest.end = at;
                }
                None => bad.push(BadLine { number: manifest.lines, bytes: here }),
            }
        }
        manifest.unfinished =
            bad.first().map(|first| BadLine { number: first.number, bytes: first.bytes.start..at });
        manifest
    }

    /// The same with one entry for files that were removed one after another.
    pub(super) fn compacted(&self) -> BTreeMap<u64, Entry> {
        let mut entries: BTreeMap<u64, Entry> = BTreeMap::new();
        for (first_offset, entry) in &self.entries {
            let mut last = entries.last_entry();
            match last.as_ref().and_then(|last| last.get().with(entry)) {
                Some(both) => last.as_mut().into_iter().for_each(|last| {
                    last.insert(both.clone());
                }),
                None => {
                    entries.insert(*first_offset, entry.clone());
                }
            }
        }
        entries
    }

    /// The offset behind the last file it knows: below it everything was archived, or is void.
    pub fn next_offset(&self) -> u64 {
        self.entries.values().next_back().map_or(0, |last| last.last_offset + 1)
    }

    /// What it says about the file whose events hold `offset`.
    pub fn covering(&self, offset: u64) -> Option<&Entry> {
        let (_, entry) = self.entries.range(..=offset).next_back()?;
        (offset <= entry.last_offset).then_some(entry)
    }
}

/// Checksums as the manifest writes them.
mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(crc: &u32, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{crc:08x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
        let text = String::deserialize(from)?;
        u32::from_str_radix(&text, 16).map_err(|_| de::Error::custom("not a checksum"))
    }
}

/// Times as the manifest writes them.
mod rfc3339 {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use crate::event::Micros;

    pub fn serialize<S: Serializer>(at: &Micros, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&at.to_rfc3339())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Micros, D::Error> {
        let text = String::deserialize(from)?;
        Micros::parse_rfc3339(&text).ok_or_else(|| de::Error::custom("not a time"))
    }

    /// The same where there may be none.
    pub mod optional {
        use super::{Deserializer, Micros, Serializer};

        pub fn serialize<S: Serializer>(at: &Option<Micros>, to: S) -> Result<S::Ok, S::Error> {
            match at {
                Some(at) => super::serialize(at, to),
                None => to.serialize_none(),
            }
        }

        pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Micros>, D::Error> {
            super::deserialize(from).map(Some)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(first: u64, last: u64) -> Entry {
        let name = format!("2026/11/27/events-{first:020}.ndjson.zst");
        Entry {
            bytes: 1234,
            sha256: "0f".repeat(32),
            last_time: Micros(1_000_000),
            content_bytes: 9876,
            content_crc32: 0x1234,
            ..Entry::unread(name, first, last, Micros(0))
        }
    }

    #[test]
    fn a_line_has_the_members_that_the_documents_name_and_is_read_back() {
        let mut entry = entry(7, 20);
        (entry.covers_from, entry.voids, entry.count) = (5, vec![(9, 11)], 12);
        let line = String::from_utf8(entry.to_line()).unwrap();
        assert!(
            line.starts_with(
                r#"{"name":"2026/11/27/events-00000000000000000007.ndjson.zst","first_offset":7,"last_offset":20,"count":12,"bytes":1234,"sha256":"0f0f"#
            ),
            "{line}"
        );
        assert!(
            line.contains(r#""voids":[[9,11]],"covers_from":5,"first_time":"1970-01-01T00:00:00.000000Z""#)
        );
        serde_json::from_str::<serde_json::Value>(&line).unwrap();
        assert_eq!(Entry::parse(line.trim_end().as_bytes()), Some(entry.clone()));
        (entry.removed, entry.reason) = (Some(Micros(5)), Some("older than 30d".to_owned()));
        assert_eq!(Entry::parse(entry.to_line().trim_ascii_end()), Some(entry));
    }

    #[test]
    fn a_line_with_any_other_byte_is_none() {
        let line = entry(7, 20).to_line();
        let line = &line[..line.len() - 1];
        for at in 0..line.len() {
            for flip in [1, 0x20, 0x80] {
                let mut bad = line.to_vec();
                bad[at] ^= flip;
                assert_eq!(Entry::parse(&bad), None, "byte {at} of {}", String::from_utf8_lossy(line));
            }
            assert_eq!(Entry::parse(&line[..at]), None);
        }
    }

    #[test]
    fn no_line_names_a_file_outside_the_archive_or_makes_no_sense() {
        let good = entry(7, 20);
        let bad = |change: fn(&mut Entry)| {
            let mut entry = good.clone();
            change(&mut entry);
            Entry::parse(entry.to_line().trim_ascii_end())
        };
        assert!(bad(|_| ()).is_some());
        for change in [
            (|e| e.name = format!("../{}", e.name)) as fn(&mut Entry),
            |e| e.name = format!("/{}", e.name),
            |e| e.name = "2026/11/27/events-00000000000000000008.ndjson".to_owned(),
            |e| e.name = "notes.txt".to_owned(),
            |e| e.last_offset = 6,
            |e| e.covers_from = 8,
            |e| e.count = 0,
            |e| e.voids = vec![(9, 9)],
            |e| e.voids = vec![(7, 8)],
            |e| e.voids = vec![(19, 21)],
            |e| e.voids = vec![(12, 13), (9, 10)],
            |e| e.last_time = Micros(-1),
        ] {
            assert_eq!(bad(change), None);
        }
    }

    #[test]
    fn the_last_line_about_a_file_holds_a_torn_end_is_told_from_damage() {
        let mut again = entry(0, 9);
        again.name = "2026/11/27/events-00000000000000000000.ndjson".to_owned();
        let lines = [entry(0, 9).to_line(), entry(10, 19).to_line(), again.to_line()].concat();
        let whole = Manifest::parse(&lines);
        assert_eq!(whole.entries.values().cloned().collect::<Vec<_>>(), [again, entry(10, 19)]);
        assert_eq!((whole.end, whole.lines, whole.next_offset()), (lines.len() as u64, 3, 20));
        assert!(whole.damage.is_empty() && whole.unfinished.is_none());
        assert_eq!(whole.covering(12).map(|e| e.first_offset), Some(10));
        assert_eq!(whole.covering(20), None);

        let two = (entry(0, 9).to_line().len() + entry(10, 19).to_line().len()) as u64;
        let torn = Manifest::parse(&lines[..lines.len() - 1]);
        let unfinished = BadLine { number: 3, bytes: two..lines.len() as u64 - 1 };
        assert_eq!((torn.end, torn.unfinished), (two, Some(unfinished)));
        assert!(torn.damage.is_empty());

        let mut flipped = lines.clone();
        flipped[5] ^= 1;
        let damaged = Manifest::parse(&flipped);
        let first = entry(0, 9).to_line().len() as u64;
        assert_eq!(damaged.damage, [BadLine { number: 1, bytes: 0..first }]);
        assert_eq!(damaged.entries.len(), 2);
        assert!(damaged.unfinished.is_none());
    }
}
