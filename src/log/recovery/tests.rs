//! What recovery promises, on the simulated disk: an intact record is delivered, a damaged one never,
//! at most one is lost by one wrong byte and then told, and the log opens whatever stands there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::super::frame::Record;
use super::super::segment::{parse_segment_name, segment_name};
use super::super::writer::tests::{SEGMENT_BYTES, entropy, options};
use super::super::{Reader, Step};
use super::*;
use crate::disk::simulated::SimulatedDisk;

/// What a record was appended with.
type Written = (i64, u128, Vec<u8>);

/// How the process of the test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// In order.
    Clean,
    /// Killed after the mark of an idle log.
    Idle,
    /// Killed right after a commit.
    Killed,
}

fn dir() -> PathBuf {
    options(8, 1).dir
}

fn open(disk: &SimulatedDisk, known_durable: u64) -> Recovered {
    let seed = disk.operations() + disk.files().len() as u64 + known_durable;
    recover(Arc::new(disk.clone()), options(8, 1), known_durable, entropy(seed), 77).expect("it opens")
}

/// The `i`-th append of the tests: three records, one, or many, of lengths from nothing to a few
/// hundred bytes.
fn batch(i: u64, base: u64) -> Vec<Written> {
    let count = [3, 1, 12][i as usize % 3];
    (base..base + count)
        .map(|offset| {
            let len = (offset * 37 % 11) * 23;
            let bytes = (0..len).map(|at| (offset * 7 + at * 13) as u8).collect();
            (1_000_000 + i as i64, offset as u128 + 1, bytes)
        })
        .collect()
}

fn append(writer: &mut Writer, batch: &[Written]) -> u64 {
    let records =
        batch.iter().map(|(_, tag, bytes)| Record { tag: *tag, crc: crc32fast::hash(bytes), bytes });
    writer.append(batch[0].0, records).expect("there is room")
}

/// Fills a log until it has `segments` segments and a little in the last; returns what is in it.
fn fill(recovered: &mut Recovered, segments: u64) -> BTreeMap<u64, Written> {
    let mut written = BTreeMap::new();
    let mut more = 5;
    for i in 0.. {
        while recovered.stock.step() == Step::Worked {}
        let batch = batch(i, recovered.log.next_offset());
        let base = append(&mut recovered.writer, &batch);
        recovered.writer.commit().expect("the disk works");
        written.extend((base..).zip(batch));
        if recovered.log.usage().segments == segments {
            more -= 1;
            if more == 0 {
                break;
            }
        }
    }
    written
}

/// A disk with a log of three segments on it, ended in some way.
fn disk_with_log(end: End) -> (SimulatedDisk, BTreeMap<u64, Written>) {
    let disk = SimulatedDisk::new(1);
    let mut recovered = open(&disk, 0);
    let written = fill(&mut recovered, 3);
    match end {
        End::Clean => recovered.writer.close().expect("the disk works"),
        End::Idle => recovered.writer.mark_idle().expect("the disk works"),
        End::Killed => {}
    }
    (disk.kill(), written)
}

/// Everything a log yields from `from` on.
#[derive(Debug, Default)]
struct Yield {
    records: BTreeMap<u64, Written>,
    voids: BTreeSet<u64>,
    damage: Vec<Damage>,
}

fn read_all(mut reader: Reader, max_records: usize, max_bytes: usize) -> Yield {
    let mut all = Yield::default();
    loop {
        let at = reader.position();
        let chunk = reader.read(max_records, max_bytes).expect("it reads");
        assert_eq!((chunk.range.start, chunk.range.end), (at, reader.position()));
        if chunk.range.is_empty() {
            return all;
        }
        let mut covered = BTreeSet::new();
        for record in &chunk.records {
            let bytes = chunk.bytes(record).to_vec();
            assert!(covered.insert(record.offset), "offset {} came twice", record.offset);
            all.records.insert(record.offset, (record.accepted_at_micros, record.tag, bytes));
        }
        for offset in chunk.voids.iter().cloned().flatten() {
            assert!(covered.insert(offset), "void offset {offset} came twice");
            all.voids.insert(offset);
        }
        assert!(covered.iter().copied().eq(chunk.range.clone()), "{:?} for {:?}", covered, chunk.range);
        all.damage.extend(chunk.damage);
    }
}

/// Opens a disk and reads all of it. What comes is what was written; what does not come was told.
/// Returns the offsets lost.
fn check(disk: &SimulatedDisk, known: u64, written: &BTreeMap<u64, Written>, case: &str) -> Vec<u64> {
    let recovered = open(disk, known);
    let all = read_all(recovered.log.reader(recovered.log.first_offset()), 7, 900);
    for (offset, record) in &all.records {
        assert_eq!(Some(record), written.get(offset), "{case}: offset {offset} is wrong");
    }
    let lost: Vec<u64> = written.keys().copied().filter(|offset| !all.records.contains_key(offset)).collect();
    let told: Vec<_> = recovered.report.damage.iter().chain(&all.damage).collect();
    for offset in &lost {
        let is_told = told.iter().any(|damage| damage.lost.contains(offset));
        let is_torn = *offset >= recovered.report.known_durable;
        assert!(is_told || is_torn, "{case}: nobody tells that {offset} is lost: {told:?}");
    }
    for damage in &told {
        let false_alarm = damage.lost.clone().find(|offset| all.records.contains_key(offset));
        assert_eq!(false_alarm, None, "{case}: told as lost, yet delivered: {damage:?}");
    }
    assert!(recovered.log.next_offset() >= known.max(recovered.report.known_durable), "{case}");
    lost
}

fn segment_files(disk: &SimulatedDisk) -> Vec<PathBuf> {
    let is_segment = |path: &PathBuf| {
        path.starts_with(dir())
            && path.file_name().and_then(|name| parse_segment_name(name.to_str()?)).is_some()
    };
    disk.files().into_iter().filter(is_segment).collect()
}

fn used(disk: &SimulatedDisk, path: &Path) -> u64 {
    let bytes = disk.read_file(path).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
}

#[test]
fn a_log_that_was_closed_goes_on_where_it_ended() {
    let (disk, written) = disk_with_log(End::Clean);
    let end = written.len() as u64;
    let before = segment_files(&disk);
    let mut recovered = open(&disk, 0);
    assert!(recovered.report.clean_stop);
    assert_eq!((recovered.report.known_durable, recovered.report.next_offset), (end, end));
    assert_eq!(recovered.report.rewritten, 0);
    let batch = batch(0, end);
    append(&mut recovered.writer, &batch);
    recovered.writer.commit().unwrap();
    assert_eq!(segment_files(&disk), before, "no segment is begun");
    let mut written = written;
    written.extend((end..).zip(batch));
    assert_eq!(read_all(recovered.log.reader(0), 1000, 1 << 20).records, written);
}

#[test]
fn a_killed_log_keeps_every_record_with_its_tag_and_time() {
    for end in [End::Idle, End::Killed] {
        let (disk, written) = disk_with_log(end);
        let recovered = open(&disk, 0);
        assert!(!recovered.report.clean_stop);
        assert_eq!(recovered.report.damage, [], "{end:?}");
        assert_eq!(recovered.report.torn_tail, None, "{end:?}");
        let all = read_all(recovered.log.reader(0), 5, 1);
        assert_eq!((all.records, all.damage), (written, vec![]), "{end:?}");
    }
}
