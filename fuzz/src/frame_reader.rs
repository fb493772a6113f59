//! Whatever bytes its segments hold, a log opens, and what it delivers was written.
//!
//! * Opening succeeds, reading ends, and no offset comes twice or goes back.
//! * Every delivered record stands in a frame of its segment whose checksums fit, by a reading of the format
//!   that is written here once more. Every other offset that was passed is told as void.
//! * A kill right after the opening changes nothing, and neither does an orderly stop.
//! * What is appended then gets the next offset and is read back.
//!
//! ```text
//! input    0  1  known durable: what the ledger would say
//! segment  0  1  bit 0, 1: copy A, B of its header is spoilt; bit 2: its frames stay as they are, else
//!                their checksums are made right, and a salt of 0 is the segment's; bit 3: then the last
//!                byte that follows is spoilt
//!          1  1  base: so much more than the one before
//!          2  1  durable
//!          3  2  bytes that follow, from where frames begin
//! ```

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use eventflow::disk::simulated::Random;
use eventflow::disk::{Disk, SimulatedDisk};
use eventflow::log::frame::{ALIGN, ENTRY_BYTES, HEADER_BYTES, Record};
use eventflow::log::inspect::{Depth, inspect};
use eventflow::log::segment::{self, COPY_B, DATA_START, SegmentHeader};
use eventflow::log::{Chunk, Log, OfflineReader, Options, Recovered, Step, Stream, recover};

const DIR: &str = "/data/wal";
const SEGMENT_BYTES: usize = 8192;
/// Segments of an input; the budget has room for those that opening and appending begin.
const MOST_SEGMENTS: usize = 3;
/// Offsets from here on are not appended to.
const LATE: u64 = 1 << 62;
/// More reads than any such log has records or gaps: beyond it a reader hangs.
const MOST_READS: usize = 10_000;

/// Offset, tag and bytes.
type Delivered = (u64, u128, Vec<u8>);

/// See the module.
pub fn check(data: &[u8]) {
    let Some((&known_durable, rest)) = data.split_first() else { return };
    let known_durable = u64::from(known_durable);
    let (disk, written) = image(rest);
    look_on(&disk, known_durable);

    let opened = open(&disk, known_durable, 1);
    let next = opened.report.next_offset;
    assert!(next >= known_durable, "offset {next} is given again: {known_durable} were synced");
    let delivered = read_all(&opened.log);
    for record in &delivered {
        assert!(written.contains(record), "nobody wrote {record:?}");
    }
    assert!(delivered.last().is_none_or(|(offset, ..)| *offset < next), "{next} is in use");

    let killed = open(&disk.kill(), known_durable, 2);
    assert_eq!(read_all(&killed.log), delivered, "a kill after the opening changes what is there");
    drop(killed);

    append_and_stop(&disk, opened, delivered, data);
}

fn append_and_stop(disk: &SimulatedDisk, opened: Recovered, mut delivered: Vec<Delivered>, data: &[u8]) {
    let Recovered { log, mut writer, mut stock, .. } = opened;
    while stock.step() == Step::Worked {}
    let next = log.next_offset();
    if next > LATE {
        return; // nobody gets there, and what comes behind is not read back
    }
    let bytes = &data[..data.len().min(64)];
    let record = Record { tag: 7, crc: crc32fast::hash(bytes), bytes };
    writer.append(5, [record].into_iter()).expect("there is room");
    writer.commit().expect("the disk works");
    delivered.push((next, 7, bytes.to_vec()));
    assert_eq!(read_all(&log), delivered, "what was appended is not what is read");
    writer.close().expect("the disk works");
    drop((log, stock));

    // Of a file that was used before, rubbish may stand behind the mark of a stop, and be taken for a torn
    // tail: that costs a line in the log, and no record.
    let report = open(disk, 0, 3).report;
    assert!(
        report.clean_stop || report.torn_tail.is_some(),
        "an orderly stop is not seen as one: {report:?}"
    );
    assert_eq!(report.next_offset, next + 1, "an orderly stop moves the offsets: {report:?}");
    let reopened = open(disk, 0, 4);
    assert_eq!(read_all(&reopened.log), delivered, "a stop in order changes what is there");
}

fn open(disk: &SimulatedDisk, known_durable: u64, salts: u64) -> Recovered {
    let options = Options {
        dir: PathBuf::from(DIR),
        quarantine_dir: PathBuf::from("/data/quarantine"),
        stream: Stream::Events,
        segment_bytes: SEGMENT_BYTES as u64,
        budget_bytes: 4 * MOST_SEGMENTS as u64 * SEGMENT_BYTES as u64,
        spares: 1,
        min_free_disk_bytes: 0,
        owners_files: &[],
    };
    let mut random = Random::new(salts);
    let entropy = Box::new(move || random.next_u64());
    recover(Arc::new(disk.clone()), options, known_durable, entropy, 9).expect("opening never refuses")
}

/// What commands read of files that no daemon has opened.
fn look_on(disk: &SimulatedDisk, known_durable: u64) {
    let found =
        inspect(disk, Path::new(DIR), Stream::Events, Depth::Everything, known_durable, 1, &|_, _| ());
    found.expect("looking on never refuses");
    let mut reader =
        OfflineReader::open(disk, Path::new(DIR), Stream::Events).expect("looking on never refuses");
    let mut at = reader.first_offset();
    for _ in 0..MOST_READS {
        let chunk = reader.read(at, 3, 2_000).expect("a simulated disk reads");
        if chunk.range.is_empty() {
            return;
        }
        take(&chunk, &mut at);
    }
    panic!("reading from outside does not end");
}

fn read_all(log: &Log) -> Vec<Delivered> {
    let mut at = log.first_offset();
    let mut reader = log.reader(at);
    let mut delivered = Vec::new();
    for _ in 0..MOST_READS {
        let chunk = reader.read(3, 2_000).expect("a simulated disk reads");
        if chunk.range.is_empty() {
            assert_eq!(at, log.durable_end(), "the reader stops before the end");
            return delivered;
        }
        delivered.extend(take(&chunk, &mut at));
    }
    panic!("reading does not end");
}

/// The chunk's records. Together with its voids they are every offset from `at` on, once.
fn take(chunk: &Chunk, at: &mut u64) -> Vec<Delivered> {
    assert_eq!(chunk.range.start, *at, "offsets are passed in silence");
    let of_records = chunk.records.iter().map(|record| record.offset..record.offset + 1);
    let mut covered: Vec<Range<u64>> = of_records.chain(chunk.voids.iter().cloned()).collect();
    covered.retain(|range| !range.is_empty());
    covered.sort_by_key(|range| range.start);
    for range in covered {
        assert_eq!(range.start, *at, "offset {at} is neither a record nor void, or both: {chunk:?}");
        *at = range.end;
    }
    assert_eq!(chunk.range.end, *at, "a chunk covers other offsets than it says");
    let records = chunk.records.iter();
    records.map(|record| (record.offset, record.tag, chunk.bytes(record).to_vec())).collect()
}

/// The disk an input describes, and every record that its segments hold whole.
fn image(mut rest: &[u8]) -> (SimulatedDisk, BTreeSet<Delivered>) {
    let disk = SimulatedDisk::new(1);
    let mut written = BTreeSet::new();
    disk.create_dir_all(Path::new(DIR)).expect("an empty disk has room");
    let mut base = 0;
    for number in 0..MOST_SEGMENTS as u64 {
        let Some((&[flags, further, durable, low, high], after)) = rest.split_first_chunk() else { break };
        let len = usize::from(u16::from_le_bytes([low, high])).min(SEGMENT_BYTES - DATA_START as usize);
        let (data, after) = after.split_at(len.min(after.len()));
        rest = after;
        base += u64::from(further);
        let salt = 0x5a17 + number;
        let header = SegmentHeader {
            stream: Stream::Events,
            base,
            salt,
            size: SEGMENT_BYTES as u64,
            created_micros: 1,
            durable: u64::from(durable),
        };
        let mut bytes = Vec::with_capacity(SEGMENT_BYTES);
        segment::encode_header(&mut bytes, &header);
        bytes.extend_from_slice(data);
        bytes.resize(SEGMENT_BYTES, 0);
        if flags & 4 == 0 {
            make_right(&mut bytes, salt);
        }
        // Without a header the segment is what its name and its frames say; and one wrong byte of a frame's
        // header or table is put right in reading, so what stood there before counts as well.
        let salts = (flags & 3 != 3).then_some(salt);
        written.extend(records_in(&bytes, salts));
        if flags & 8 != 0 {
            bytes[DATA_START as usize + data.len().saturating_sub(1)] ^= 0xff;
            written.extend(records_in(&bytes, salts));
        }
        for (bit, at) in [(1, 0), (2, COPY_B)] {
            if flags & bit != 0 {
                bytes[at + 20] ^= 0xff;
            }
        }
        let path = Path::new(DIR).join(segment::segment_name(base));
        if let Ok(file) = disk.create(&path) {
            file.write_all_at(&bytes, 0).expect("an empty disk has room");
            file.sync_data().expect("a simulated disk syncs");
        }
    }
    disk.sync_dir(Path::new(DIR)).expect("a simulated disk syncs");
    (disk, written)
}

fn number_at(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Where tables and records of the frame at `at` lie, if all of it is there.
fn layout(bytes: &[u8], at: usize) -> Option<(Range<usize>, Range<usize>)> {
    let header = bytes.get(at..at + HEADER_BYTES)?;
    if !header.starts_with(b"EVFR") {
        return None;
    }
    let (count, payload) = (number_at(header, 40, 4) as usize, number_at(header, 44, 4) as usize);
    let table = at + HEADER_BYTES..at + HEADER_BYTES + ENTRY_BYTES * count;
    let records = table.end..table.end + payload;
    (records.end <= bytes.len()).then_some((table, records))
}

/// Gives every frame the checksums of what it holds, so that the fuzzer need not compute them; those within
/// another one first.
fn make_right(bytes: &mut [u8], own_salt: u64) {
    for at in (DATA_START as usize..bytes.len()).step_by(ALIGN).rev() {
        let Some((table, records)) = layout(bytes, at) else { continue };
        if number_at(bytes, at + 8, 8) == 0 {
            bytes[at + 8..at + 16].copy_from_slice(&own_salt.to_le_bytes());
        }
        let (salt, base) = (number_at(bytes, at + 8, 8), number_at(bytes, at + 16, 8));
        let mut from = records.start;
        for (index, entry) in table.clone().step_by(ENTRY_BYTES).enumerate() {
            let to = from + number_at(bytes, entry + 16, 4) as usize;
            if to > records.end {
                break;
            }
            let crc = bound(&bytes[from..to], salt, base.wrapping_add(index as u64));
            bytes[entry + 20..entry + 24].copy_from_slice(&crc.to_le_bytes());
            from = to;
        }
        let crc = crc32fast::hash(&bytes[at + 8..table.end]);
        bytes[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
    }
}

/// A record's checksum, as the specification in `log/mod.rs` has it.
fn bound(record: &[u8], salt: u64, offset: u64) -> u32 {
    let place = [salt.to_le_bytes(), offset.to_le_bytes()].concat();
    crc32fast::hash(record) ^ crc32fast::hash(&place)
}

/// Every record that stands whole in a whole frame of this salt, or of any, at any place where a frame may
/// begin.
fn records_in(bytes: &[u8], wanted: Option<u64>) -> Vec<Delivered> {
    let mut found = Vec::new();
    for at in (DATA_START as usize..bytes.len()).step_by(ALIGN) {
        let Some((table, records)) = layout(bytes, at) else { continue };
        let crc = u64::from(crc32fast::hash(&bytes[at + 8..table.end]));
        let salt = number_at(bytes, at + 8, 8);
        if crc != number_at(bytes, at + 4, 4) || wanted.is_some_and(|wanted| wanted != salt) {
            continue;
        }
        let base = number_at(bytes, at + 16, 8);
        let mut from = records.start;
        for (index, entry) in table.step_by(ENTRY_BYTES).enumerate() {
            let to = from + number_at(bytes, entry + 16, 4) as usize;
            let Some(offset) = base.checked_add(index as u64).filter(|_| to <= records.end) else { break };
            if u64::from(bound(&bytes[from..to], salt, offset)) == number_at(bytes, entry + 20, 4) {
                let tag = u128::from_le_bytes(*bytes[entry..].first_chunk().expect("an entry has 24 bytes"));
                found.push((offset, tag, bytes[from..to].to_vec()));
            }
            from = to;
        }
    }
    found
}
