//! The durable side of the dedupe window: one file of fixed size, so that a duplicate is known as
//! one even after its first copy's segment was freed and the process restarted.
//!
//! ```text
//! ledger/dedupe.ring     0  header, copy A    (one sector each; the valid one with the higher
//!                      512  header, copy B     sequence counts)
//!                     4096  window × 16 bytes: the tag of offset o at position  o mod window,
//!                           0 where the offset is void
//!
//! header   0  8  magic "EVFLRNG1"
//!          8  4  crc32 of bytes 16..48
//!         12  4  zero
//!         16  8  sequence
//!         24  8  window
//!         32  8  start: no tag below this offset was ever kept here
//!         40  8  end: every tag below this offset is durable here
//! ```
//!
//! Used by one thread at a time. It only ever trails the log: tags are written first and synced,
//! then a header says so. When the power fails in between, positions may hold the tags of later
//! offsets than the header allows for. Those they replaced were out of the window by then, because
//! the log was further along already; and the log is walked from `end` on open, which puts the right
//! offsets on top. So an entry can be attributed to too low an offset, and never a tag that nobody
//! sent.
//!
//! Creating the file is the only moment that needs disk space. A ring that is missing, damaged or
//! failing costs memory of old duplicates at most; it is never a reason not to start.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Access, Disk, DiskFile};

const MAGIC: [u8; 8] = *b"EVFLRNG1";
const HEADER_BYTES: usize = 48;
const SECTOR: u64 = 512;
const DATA: u64 = 4096;
const TAG_BYTES: u64 = 16;
/// Tags moved by one read or write.
const CHUNK_TAGS: u64 = 8192;

/// The file's name in its directory.
pub const FILE_NAME: &str = "dedupe.ring";
const NEW_NAME: &str = "dedupe.ring.new";
/// Every name a ring may leave in its directory.
pub const NAMES: [&str; 2] = [FILE_NAME, NEW_NAME];

/// An open ring.
#[derive(Debug)]
pub struct Ring {
    path: PathBuf,
    file: Box<dyn DiskFile>,
    header: Header,
    is_durable: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    sequence: u64,
    window: u64,
    start: u64,
    end: u64,
}

impl Header {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        for (at, field) in [(16, self.sequence), (24, self.window), (32, self.start), (40, self.end)] {
            bytes[at..at + 8].copy_from_slice(&field.to_le_bytes());
        }
        let crc = crc32fast::hash(&bytes[16..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let field = |at: usize| bytes[at..].first_chunk().map(|b| u64::from_le_bytes(*b));
        let crc = crc32fast::hash(&bytes[16..]);
        if bytes[..8] != MAGIC || bytes[8..12] != crc.to_le_bytes() {
            return None;
        }
        let header = Self { sequence: field(16)?, window: field(24)?, start: field(32)?, end: field(40)? };
        (header.window > 0 && header.start <= header.end).then_some(header)
    }
}

impl Ring {
    /// Opens the ring in `dir`. `Ok(None)` when there is none, an error when what is there cannot be
    /// read as one.
    pub fn open(disk: &dyn Disk, dir: &Path) -> io::Result<Option<Self>> {
        let path = dir.join(FILE_NAME);
        let file = match disk.open(&path, Access::ReadWrite) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let header = newest_header(&*file)?.ok_or_else(|| bad("neither copy of its header is valid"))?;
        let bytes = header.window.checked_mul(TAG_BYTES).and_then(|b| b.checked_add(DATA));
        if bytes.is_none_or(|bytes| file.len().map_or(true, |len| len < bytes)) {
            return Err(bad("it is shorter than its header says"));
        }
        // What was read may be in the page cache only, left there by a process that was killed;
        // segments are freed on the strength of it, so it must be on the disk first.
        let is_durable = file.sync_data().is_ok();
        Ok(Some(Self { path, file, header, is_durable }))
    }

    /// What [`Ring::end`] would say of the ring in `dir`, read-only; 0 when there is none to be read.
    pub fn look_at_end(disk: &dyn Disk, dir: &Path) -> u64 {
        let header = disk.open(&dir.join(FILE_NAME), Access::Read).and_then(|file| newest_header(&*file));
        header.ok().flatten().map_or(0, |header| header.end)
    }

    /// Makes a new ring that replaces whatever is in `dir`, with everything `old` remembers as far
    /// as it can be read; without an old one it begins empty at offset `start`.
    pub fn create(
        disk: &Arc<dyn Disk>,
        dir: &Path,
        window: u64,
        start: u64,
        old: Option<&Ring>,
    ) -> io::Result<Self> {
        let (path, new) = (dir.join(FILE_NAME), dir.join(NEW_NAME));
        match disk.remove(&new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let file = disk.create(&new)?;
        let zeros = vec![0; (CHUNK_TAGS * TAG_BYTES) as usize];
        let bytes = DATA + window * TAG_BYTES;
        let mut at = 0;
        while at < bytes {
            let len = (bytes - at).min(zeros.len() as u64);
            file.write_all_at(&zeros[..len as usize], at)?;
            at += len;
        }
        let (start, end) = old.map_or((start, start), |old| (old.first(), old.header.end));
        let start = start.max(end.saturating_sub(window));
        let header = Header { sequence: 1, window, start, end };
        let ring = Self { path, file, header, is_durable: true };
        if let Some(old) = old {
            old.read(start, |offset, tags| ring.write(offset, tags))?;
        }
        ring.file.write_all_at(&ring.header.encode(), (ring.header.sequence % 2) * SECTOR)?;
        ring.file.sync_data()?;
        disk.replace(&new, &ring.path)?;
        disk.sync_dir(dir)?;
        Ok(ring)
    }

    /// How many offsets it remembers.
    pub fn window(&self) -> u64 {
        self.header.window
    }

    /// Whether what it says is on the disk for certain; if not, it is good for a copy only.
    pub fn is_durable(&self) -> bool {
        self.is_durable
    }

    /// The offset below which every tag is durable here.
    pub fn end(&self) -> u64 {
        self.header.end
    }

    /// The lowest offset it has a tag for.
    pub fn first(&self) -> u64 {
        self.header.start.max(self.header.end.saturating_sub(self.header.window))
    }

    /// Hands every remembered tag from offset `from` on to `take`, in runs of ascending offsets.
    pub fn read(&self, from: u64, mut take: impl FnMut(u64, &[u128]) -> io::Result<()>) -> io::Result<()> {
        let mut offset = from.max(self.first());
        let mut bytes = vec![0; (CHUNK_TAGS * TAG_BYTES) as usize];
        let mut tags = Vec::with_capacity(CHUNK_TAGS as usize);
        while offset < self.header.end {
            let run = self.run(offset, self.header.end - offset);
            let bytes = &mut bytes[..(run * TAG_BYTES) as usize];
            if self.file.read_full_at(bytes, self.position(offset))? < bytes.len() {
                return Err(bad("it ends early"));
            }
            tags.clear();
            let whole = bytes.chunks_exact(TAG_BYTES as usize);
            tags.extend(whole.filter_map(|tag| tag.first_chunk()).map(|tag| u128::from_le_bytes(*tag)));
            take(offset, &tags)?;
            offset += run;
        }
        Ok(())
    }

    /// Writes the tags of a run of offsets, 0 for a void one. They count after [`Ring::publish`].
    pub fn write(&self, offset: u64, tags: &[u128]) -> io::Result<()> {
        let mut offset = offset;
        let mut rest = tags;
        while !rest.is_empty() {
            let (run, after) = rest.split_at(self.run(offset, rest.len() as u64) as usize);
            let bytes: Vec<u8> = run.iter().flat_map(|tag| tag.to_le_bytes()).collect();
            self.file.write_all_at(&bytes, self.position(offset))?;
            offset += run.len() as u64;
            rest = after;
        }
        Ok(())
    }

    /// Forgets the tags of these offsets, as far as they are kept here. Certain after [`Ring::publish`].
    pub fn forget(&self, offsets: Range<u64>) -> io::Result<()> {
        let mut offset = offsets.start.max(self.first());
        let end = offsets.end.min(self.header.end);
        while offset < end {
            let run = (end - offset).min(CHUNK_TAGS);
            self.write(offset, &vec![0; run as usize])?;
            offset += run;
        }
        Ok(())
    }

    /// Makes what was written durable, then says so: the end moves to `end`. After an error this
    /// ring must not be used again, because nobody knows what of it the disk has.
    pub fn publish(&mut self, end: u64) -> io::Result<()> {
        self.file.sync_data()?;
        let header = Header { sequence: self.header.sequence + 1, end, ..self.header };
        // The copies take turns, so that a torn header leaves the other one standing.
        self.file.write_all_at(&header.encode(), (header.sequence % 2) * SECTOR)?;
        self.file.sync_data()?;
        self.header = header;
        Ok(())
    }

    fn position(&self, offset: u64) -> u64 {
        DATA + offset % self.header.window * TAG_BYTES
    }

    /// How many of `max` offsets lie in a row in the file, at most one chunk.
    fn run(&self, offset: u64, max: u64) -> u64 {
        max.min(self.header.window - offset % self.header.window).min(CHUNK_TAGS)
    }
}

fn newest_header(file: &dyn DiskFile) -> io::Result<Option<Header>> {
    let mut newest: Option<Header> = None;
    for copy in [0, SECTOR] {
        let mut bytes = [0; HEADER_BYTES];
        if file.read_full_at(&mut bytes, copy)? < HEADER_BYTES {
            continue;
        }
        if let Some(header) = Header::decode(&bytes) {
            newest = newest.filter(|n| n.sequence >= header.sequence).or(Some(header));
        }
    }
    Ok(newest)
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SimulatedDisk;
    use crate::disk::simulated::Policy;

    const WINDOW: u64 = 10;

    fn dir() -> &'static Path {
        Path::new("/ledger")
    }

    fn tag(offset: u64) -> u128 {
        // Every third offset is void.
        if offset % 3 == 2 { 0 } else { u128::from(offset + 1) << 64 | u128::from(offset + 1) }
    }

    fn tags(range: Range<u64>) -> Vec<u128> {
        range.map(tag).collect()
    }

    fn all(ring: &Ring) -> Vec<(u64, u128)> {
        let mut found = Vec::new();
        ring.read(0, |offset, tags| {
            found.extend((offset..).zip(tags.iter().copied()));
            Ok(())
        })
        .unwrap();
        found
    }

    fn fresh(window: u64) -> (Arc<dyn Disk>, Ring) {
        let disk: Arc<dyn Disk> = Arc::new(SimulatedDisk::new(1));
        disk.create_dir_all(dir()).unwrap();
        let ring = Ring::create(&disk, dir(), window, 0, None).unwrap();
        (disk, ring)
    }

    #[test]
    fn remembers_the_last_window_across_reopening() {
        let (disk, mut ring) = fresh(WINDOW);
        for end in [3, 9, 10, 17, 31] {
            ring.write(ring.end(), &tags(ring.end()..end)).unwrap();
            ring.publish(end).unwrap();
            let reopened = Ring::open(&*disk, dir()).unwrap().unwrap();
            let expected: Vec<_> = (end.saturating_sub(WINDOW)..end).map(|o| (o, tag(o))).collect();
            assert_eq!(all(&reopened), expected);
        }
    }

    #[test]
    fn what_is_to_be_forgotten_is_and_nothing_else() {
        for forgotten in [0..3, 20..22, 19..31, 23..24, 5..24, 30..40, 0..100] {
            let (disk, mut ring) = fresh(WINDOW);
            for end in [9, 18, 27, 31] {
                ring.write(ring.end(), &tags(ring.end()..end)).unwrap();
                ring.publish(end).unwrap();
            }
            ring.forget(forgotten.clone()).unwrap();
            ring.publish(31).unwrap();
            let reopened = Ring::open(&*disk, dir()).unwrap().unwrap();
            let expected = (21..31).map(|o| (o, if forgotten.contains(&o) { 0 } else { tag(o) }));
            assert_eq!(all(&reopened), expected.collect::<Vec<_>>(), "{forgotten:?}");
        }
    }

    #[test]
    fn another_window_keeps_what_both_can_hold() {
        for window in [4, 25] {
            let (disk, mut ring) = fresh(WINDOW);
            ring.write(0, &tags(0..8)).unwrap();
            ring.publish(8).unwrap();
            ring.write(8, &tags(8..17)).unwrap();
            ring.publish(17).unwrap();
            let other = Ring::create(&disk, dir(), window, 5, Some(&ring)).unwrap();
            let from = 17 - window.min(WINDOW);
            assert_eq!(all(&other), (from..17).map(|o| (o, tag(o))).collect::<Vec<_>>());
            let reopened = Ring::open(&*disk, dir()).unwrap().unwrap();
            assert_eq!((reopened.window(), reopened.end()), (window, 17));
        }
    }

    #[test]
    fn no_power_loss_takes_a_tag_of_the_window_or_makes_one_up() {
        let ends = [4u64, 9, 14, 23, 24, 37];
        let simulated = SimulatedDisk::new(2);
        let disk: Arc<dyn Disk> = Arc::new(simulated.clone());
        disk.create_dir_all(dir()).unwrap();
        simulated.record();
        let first = simulated.operations();
        let mut ring = Ring::create(&disk, dir(), WINDOW, 0, None).unwrap();
        let created = simulated.operations();
        // After operation n the ring promises everything below published[n].
        let mut published = vec![(created, 0)];
        for end in ends {
            ring.write(ring.end(), &tags(ring.end()..end)).unwrap();
            ring.publish(end).unwrap();
            published.push((simulated.operations(), end));
        }
        for operation in first..=simulated.operations() {
            for policy in Policy::ALL {
                for seed in 0..if policy.is_random() { 8 } else { 1 } {
                    let lost = simulated.at(operation).unwrap().power_loss(policy, seed);
                    let what = format!("{policy:?} seed {seed} after {}", simulated.describe(operation));
                    let Some(ring) = Ring::open(&lost, dir()).unwrap() else {
                        assert!(operation < created, "{what}");
                        continue;
                    };
                    let promised = published
                        .iter()
                        .rev()
                        .find(|(done, _)| *done <= operation)
                        .map_or(0, |(_, end)| *end);
                    let attempted = ends.into_iter().find(|end| *end > promised).unwrap_or(promised);
                    assert!(ring.end() == promised || ring.end() == attempted, "{what}");
                    // The log was at `attempted` when these were written: older ones are out of the
                    // window by now.
                    let window = attempted.saturating_sub(WINDOW)..ring.end();
                    for (offset, found) in all(&ring) {
                        if window.contains(&offset) {
                            assert_eq!(found, tag(offset), "{what}: offset {offset}");
                        } else {
                            assert!(found == 0 || (0..attempted).any(|o| tag(o) == found), "{what}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_damaged_ring_is_an_error_and_never_a_panic() {
        let (disk, mut ring) = fresh(WINDOW);
        ring.write(0, &tags(0..8)).unwrap();
        ring.publish(8).unwrap();
        let path = dir().join(FILE_NAME);
        let file = disk.open(&path, Access::ReadWrite).unwrap();
        file.write_all_at(&[0xff], 20).unwrap();
        // One copy of the header is enough, even though it is the older one.
        assert!(Ring::open(&*disk, dir()).unwrap().is_some());
        file.write_all_at(&[0xff], SECTOR + 20).unwrap();
        assert_eq!(Ring::open(&*disk, dir()).unwrap_err().kind(), io::ErrorKind::InvalidData);

        let (disk, _ring) = fresh(WINDOW);
        for len in [0, 40, 600, DATA, DATA + WINDOW * TAG_BYTES - 1] {
            disk.open(&path, Access::ReadWrite).unwrap().set_len(len).unwrap();
            assert_eq!(Ring::open(&*disk, dir()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}
