//! What recovery promises, on the simulated disk: an intact record is delivered, a damaged one never,
//! at most one is lost by one wrong byte and then told, and the log opens whatever stands there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::super::Stream;
use super::super::frame::Record;
use super::super::segment::{parse_segment_name, segment_name, spare_name};
use super::super::writer::tests::entropy;
use super::super::{Reader, Step};
use super::*;
use crate::disk::simulated::{Policy, SimulatedDisk};

/// What a record was appended with.
pub(in crate::log) type Written = (i64, u128, Vec<u8>);

/// Bytes of a segment that nobody looks at.
const NOTHING: Range<u64> = 1024..DATA_START;

/// No offset.
const NONE: [u64; 0] = [];

/// How the process of the test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::log) enum End {
    /// In order.
    Clean,
    /// Killed after the mark of an idle log.
    Idle,
    /// Killed right after a commit.
    Killed,
}

/// Room for one page of frames: every byte of a log can be tried.
const SEGMENT_BYTES: u64 = 8192;

pub(in crate::log) fn options() -> Options {
    Options {
        dir: dir(),
        quarantine_dir: "/data/quarantine".into(),
        stream: Stream::Events,
        segment_bytes: SEGMENT_BYTES,
        budget_bytes: 20 * SEGMENT_BYTES,
        spares: 1,
        min_free_disk_bytes: 0,
        owners_files: &[],
    }
}

pub(in crate::log) fn dir() -> PathBuf {
    "/data/wal".into()
}

pub(in crate::log) fn open(disk: &SimulatedDisk, known_durable: u64) -> Recovered {
    let seed = disk.operations() + disk.files().len() as u64 + known_durable;
    recover(Arc::new(disk.clone()), options(), known_durable, entropy(seed), 77).expect("it opens")
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
    for i in 0.. {
        while recovered.stock.step() == Step::Worked {}
        let batch = batch(i, recovered.log.next_offset());
        let base = append(&mut recovered.writer, &batch);
        recovered.writer.commit().expect("the disk works");
        written.extend((base..).zip(batch));
        let newest = recovered.log.sealed_end();
        if recovered.log.usage().segments == segments && recovered.log.next_offset() > newest + 12 {
            break;
        }
    }
    written
}

/// A disk with a log of three segments on it, ended in some way.
pub(in crate::log) fn disk_with_log(end: End) -> (SimulatedDisk, BTreeMap<u64, Written>) {
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
pub(in crate::log) struct Yield {
    pub records: BTreeMap<u64, Written>,
    pub voids: BTreeSet<u64>,
    pub damage: Vec<Damage>,
}

pub(in crate::log) fn read_all(mut reader: Reader, max_records: usize, max_bytes: usize) -> Yield {
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

pub(in crate::log) fn segment_files(disk: &SimulatedDisk) -> Vec<PathBuf> {
    let is_segment = |path: &PathBuf| {
        path.starts_with(dir())
            && path.file_name().and_then(|name| parse_segment_name(name.to_str()?)).is_some()
    };
    disk.files().into_iter().filter(is_segment).collect()
}

pub(in crate::log) fn used(disk: &SimulatedDisk, path: &Path) -> u64 {
    let bytes = disk.read_file(path).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
}

/// Where the frames of a segment end.
fn end_of_frames(disk: &SimulatedDisk, path: &Path) -> u64 {
    let bytes = disk.read_file(path).unwrap();
    let mut at = DATA_START as usize;
    while let Some(header) = frame::peek(&bytes[at..]) {
        at += header.frame_bytes() as usize;
    }
    at as u64
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

/// Flips `flip` in the byte at `at`.
pub(in crate::log) fn flip_byte(disk: &SimulatedDisk, path: &Path, at: u64, flip: u8) {
    let byte = disk.read_file(path).unwrap()[at as usize];
    disk.overwrite(path, at, &[byte ^ flip]).unwrap();
}

#[test]
fn one_wrong_byte_anywhere_costs_at_most_one_record_and_is_told() {
    for (end, files) in [(End::Clean, 3), (End::Idle, 1)] {
        let (disk, written) = disk_with_log(end);
        for path in segment_files(&disk).into_iter().rev().take(files) {
            for at in (0..used(&disk, &path)).filter(|at| !NOTHING.contains(at)) {
                let disk = disk.kill();
                flip_byte(&disk, &path, at, if at % 2 == 0 { 0xff } else { 1 << (at / 2 % 8) });
                let case = format!("{end:?}, {} byte {at}", path.display());
                let lost = check(&disk, 0, &written, &case);
                assert!(lost.len() <= 1, "{case}: lost {lost:?}");
            }
        }
    }
}

#[test]
fn one_wrong_byte_in_the_last_frame_costs_at_most_what_nobody_knew_durable() {
    let (disk, written) = disk_with_log(End::Killed);
    let end = written.len() as u64;
    let path = segment_files(&disk).pop().unwrap();
    for at in (0..used(&disk, &path)).filter(|at| !NOTHING.contains(at)) {
        let disk = disk.kill();
        flip_byte(&disk, &path, at, 0x10);
        let case = format!("byte {at}");
        let lost = check(&disk.kill(), end, &written, &case);
        assert!(lost.len() <= 1, "{case}: lost {lost:?}");
        check(&disk, 0, &written, &case);
    }
}

#[test]
fn cut_at_any_length_every_record_before_the_cut_is_delivered() {
    for end in [End::Clean, End::Idle, End::Killed] {
        let (disk, written) = disk_with_log(end);
        for path in segment_files(&disk) {
            for len in (0..used(&disk, &path)).step_by(5).filter(|len| !NOTHING.contains(len)) {
                let disk = disk.kill();
                disk.truncate(&path, len).unwrap();
                let case = format!("{end:?}, {} cut to {len}", path.display());
                check(&disk, written.len() as u64, &written, &case);
            }
        }
    }
}

#[test]
fn a_tail_of_zeros_or_rubbish_costs_nothing() {
    for end in [End::Clean, End::Idle, End::Killed] {
        let (disk, written) = disk_with_log(end);
        let path = segment_files(&disk).pop().unwrap();
        let end_of_frames = end_of_frames(&disk, &path);
        for (len, byte) in [(1, 1), (40, 0xff), (64, b'E'), (1000, 0x5a), (600, 0)] {
            let disk = disk.kill();
            disk.overwrite(&path, end_of_frames, &vec![byte; len]).unwrap();
            let case = format!("{end:?}, {len} bytes of {byte}");
            assert_eq!(check(&disk.kill(), 0, &written, &case), NONE, "{case}");
            let torn = open(&disk, 0).report.torn_tail;
            assert_eq!(torn.is_some(), byte != 0, "{case}: {torn:?}");
            if let Some(torn) = torn {
                assert_eq!((torn.position, torn.non_zero_bytes), (end_of_frames, len as u64), "{case}");
                let copy = disk.read_file(&torn.quarantined.unwrap()).unwrap();
                assert_eq!(copy, vec![byte; len], "{case}");
            }
        }
    }
}

#[test]
fn own_frames_once_more_behind_the_last_one_are_no_records() {
    for end in [End::Clean, End::Idle, End::Killed] {
        let (disk, written) = disk_with_log(end);
        let path = segment_files(&disk).pop().unwrap();
        let bytes = disk.read_file(&path).unwrap();
        let end_of_frames = end_of_frames(&disk, &path);
        let own = &bytes[DATA_START as usize..end_of_frames as usize];
        disk.overwrite(&path, end_of_frames, own).unwrap();
        disk.overwrite(&path, bytes.len() as u64, own).unwrap();
        assert_eq!(check(&disk, written.len() as u64, &written, "own bytes"), NONE, "{end:?}");
    }
}

#[test]
fn bytes_inserted_or_removed_cost_what_they_hit_and_no_more() {
    let (disk, written) = disk_with_log(End::Idle);
    for path in segment_files(&disk) {
        let bytes = disk.read_file(&path).unwrap();
        for at in (DATA_START as usize..used(&disk, &path) as usize).step_by(61) {
            for count in [1, 7, 8, 24] {
                let case = format!("{} at {at}, {count} bytes", path.display());
                let most = 14; // a frame's records, where its header or table was hit, and two before it
                let mut longer = bytes.clone();
                longer.splice(at..at, vec![0xa5; count]);
                let inserted = disk.kill();
                inserted.write_file(&path, &longer).unwrap();
                let lost = check(&inserted, written.len() as u64, &written, &case);
                assert!(lost.len() <= most, "inserted, {case}: lost {lost:?}");
                let mut shorter = bytes.clone();
                shorter.drain(at..at + count);
                let removed = disk.kill();
                removed.write_file(&path, &shorter).unwrap();
                let lost = check(&removed, written.len() as u64, &written, &case);
                assert!(lost.len() <= most, "removed, {case}: lost {lost:?}");
            }
        }
    }
}

#[test]
fn a_missing_segment_costs_its_own_records_and_is_told() {
    for end in [End::Clean, End::Killed] {
        let (disk, written) = disk_with_log(end);
        let files = segment_files(&disk);
        let bases: Vec<u64> =
            files.iter().filter_map(|path| parse_segment_name(path.file_name()?.to_str()?)).collect();
        for (index, path) in files.iter().enumerate().skip(1) {
            let disk = disk.kill();
            disk.remove_file(path).unwrap();
            let until = bases.get(index + 1).copied().unwrap_or(written.len() as u64);
            let lost = check(&disk, written.len() as u64, &written, "missing");
            assert_eq!(lost, (bases[index]..until).collect::<Vec<_>>(), "{}", path.display());
        }
        // Below the first segment everything was released, for all the log can know.
        disk.remove_file(&files[0]).unwrap();
        assert_eq!(open(&disk, 0).report.first_offset, bases[1]);
    }
}

#[test]
fn offsets_never_start_again_though_every_file_is_gone() {
    let (disk, written) = disk_with_log(End::Clean);
    let end = written.len() as u64;
    for path in disk.files() {
        disk.remove_file(&path).unwrap();
    }
    let mut recovered = open(&disk, end);
    assert_eq!(append(&mut recovered.writer, &batch(0, end)), end);
}

#[test]
fn swapped_renamed_and_copied_segments_are_read_as_what_their_headers_say() {
    for end in [End::Clean, End::Idle, End::Killed] {
        let (disk, written) = disk_with_log(end);
        let files = segment_files(&disk);
        for (a, b) in [(0, 1), (1, 2), (0, 2)] {
            let disk = disk.kill();
            let (bytes_a, bytes_b) = (disk.read_file(&files[a]).unwrap(), disk.read_file(&files[b]).unwrap());
            disk.write_file(&files[a], &bytes_b).unwrap();
            disk.write_file(&files[b], &bytes_a).unwrap();
            let case = format!("{end:?}: {a} and {b} swapped");
            assert_eq!(check(&disk.kill(), 0, &written, &case), NONE, "{case}");
            assert_eq!(check(&disk.kill(), 0, &written, &case), NONE, "{case}, opened again");
        }
        for (index, file) in files.iter().enumerate() {
            for base in [3, written.len() as u64, written.len() as u64 + 5, 1 << 40] {
                let disk = disk.kill();
                let copy = dir().join(segment_name(base));
                disk.copy_file(file, &copy).unwrap();
                let case = format!("{end:?}: {index} copied to {base}");
                let recovered = open(&disk.kill(), 0);
                assert_eq!(recovered.report.foreign, [segment_name(base)], "{case}");
                assert_eq!(recovered.report.next_offset, written.len() as u64, "{case}");
                assert_eq!(check(&disk, 0, &written, &case), NONE, "{case}");
            }
        }
        let moved = dir().join(segment_name(1));
        let bytes = disk.read_file(&files[1]).unwrap();
        disk.remove_file(&files[1]).unwrap();
        disk.write_file(&moved, &bytes).unwrap();
        assert_eq!(check(&disk, 0, &written, "renamed"), NONE, "{end:?}");
        assert!(segment_files(&disk).contains(&files[1]), "it has its own name again");
    }
}

#[test]
fn foreign_names_and_directories_never_stand_in_the_way() {
    for end in [End::Clean, End::Killed] {
        let (disk, written) = disk_with_log(end);
        let end_offset = written.len() as u64;
        for name in ["notes.txt", "00000000000000000001.seg.bak", "lost+found", "spare-1.seg"] {
            disk.write_file(&dir().join(name), b"hello").unwrap();
        }
        disk.put_directory(&dir().join(segment_name(end_offset))).unwrap();
        disk.put_directory(&dir().join(spare_name(90))).unwrap();
        disk.write_file(&dir().join(segment_name(2)), b"").unwrap();
        disk.write_file(&dir().join(segment_name(end_offset + 40)), &[7; 5000]).unwrap();
        let mut recovered = open(&disk.kill(), 0);
        assert_eq!(recovered.report.foreign.len(), 8, "{:?}", recovered.report.foreign);
        assert_eq!(recovered.report.next_offset, end_offset);
        for i in 0..30 {
            while recovered.stock.step() == Step::Worked {}
            let batch = batch(i, recovered.log.next_offset());
            append(&mut recovered.writer, &batch);
            recovered.writer.commit().expect("nothing is in the way");
        }
        assert_eq!(check(&disk, end_offset, &written, "foreign"), NONE);
    }
}

#[test]
fn a_header_lost_in_both_copies_costs_nothing_where_frames_tell_the_salt() {
    for end in [End::Clean, End::Idle] {
        let (disk, written) = disk_with_log(end);
        for path in segment_files(&disk) {
            let disk = disk.kill();
            disk.overwrite(&path, 0, &[0; 4096]).unwrap();
            let case = format!("{end:?}, {}", path.display());
            assert_eq!(check(&disk, 0, &written, &case), NONE, "{case}");
        }
    }
}

#[test]
fn a_bad_sector_is_damage_and_no_error() {
    let (disk, written) = disk_with_log(End::Idle);
    for path in segment_files(&disk) {
        let disk = disk.kill();
        disk.make_unreadable(&path, 4096..4097).unwrap();
        check(&disk, written.len() as u64, &written, "bad sector");
    }
}

#[test]
fn crash_after_crash_takes_no_more_files() {
    let (mut disk, mut written) = disk_with_log(End::Killed);
    let files = disk.files().len();
    for round in 0..40 {
        let mut recovered = open(&disk, 0);
        if round % 4 == 0 {
            let offset = recovered.log.next_offset();
            let one = batch(1, offset);
            append(&mut recovered.writer, &one);
            recovered.writer.commit().unwrap();
            written.insert(offset, one[0].clone());
        }
        disk = disk.kill();
        assert!(disk.files().len() <= files + 1, "round {round}: {:?}", disk.files());
    }
    assert_eq!(check(&disk, 0, &written, "at last"), NONE);
}

#[test]
fn a_full_disk_without_a_spare_opens_for_reading_and_goes_on_once_there_is_room() {
    let (disk, written) = disk_with_log(End::Killed);
    let spares: Vec<_> =
        disk.files().into_iter().filter(|path| path.to_string_lossy().contains("spare")).collect();
    for spare in spares {
        disk.remove_file(&spare).unwrap();
    }
    let disk = disk.kill();
    disk.set_capacity(3 * SEGMENT_BYTES);
    let mut recovered = open(&disk, 0);
    let next = recovered.report.next_offset;
    assert_eq!(next, written.len() as u64);
    assert_eq!(read_all(recovered.log.reader(0), 100, 10_000).records, written);
    let refused = recovered.writer.append(1, [Record { tag: 1, crc: 0, bytes: b"" }].into_iter());
    assert!(matches!(refused, Err(AppendError::NoRoom(_))), "{refused:?}");
    recovered.log.release_below(next);
    while recovered.stock.step() == Step::Worked {}
    let one = batch(1, next);
    assert_eq!(append(&mut recovered.writer, &one), next);
    recovered.writer.commit().unwrap();
    assert_eq!(read_all(recovered.log.reader(next), 100, 10_000).records[&next], one[0]);
}

/// What was answered for after each operation of a script.
struct Script {
    disk: SimulatedDisk,
    written: BTreeMap<u64, Written>,
    /// Ascending: operations done, and the offset below which all was acknowledged by then.
    acknowledged: Vec<(u64, u64)>,
    /// Where each batch ends.
    batches: BTreeSet<u64>,
}

impl Script {
    /// Opens, appends with a roll or two, stops in order, opens again, appends, is killed.
    fn run(forget_data: bool, forget_dirs: bool) -> Self {
        let disk = SimulatedDisk::new(3);
        disk.ignore_syncs(forget_data, forget_dirs);
        disk.record();
        let mut script = Self {
            disk: disk.clone(),
            written: BTreeMap::new(),
            acknowledged: vec![],
            batches: BTreeSet::new(),
        };
        let mut recovered = open(&disk, 0);
        for i in 0..9 {
            script.append(&mut recovered, i * 3 + 2, i % 2);
        }
        recovered.writer.close().unwrap();
        let mut recovered = open(&disk, 0);
        for i in 9..14 {
            script.append(&mut recovered, i, 1);
        }
        recovered.writer.mark_idle().unwrap();
        script.append(&mut recovered, 2, 1);
        script
    }

    /// Appends one batch or two and commits them as a group.
    fn append(&mut self, recovered: &mut Recovered, i: u64, more: u64) {
        while recovered.stock.step() == Step::Worked {}
        for i in [i, i + 1].into_iter().take(1 + more as usize) {
            let batch = batch(i, recovered.log.next_offset());
            let base = append(&mut recovered.writer, &batch);
            self.written.extend((base..).zip(batch));
            self.batches.insert(recovered.log.next_offset());
        }
        let end = recovered.writer.commit().unwrap();
        self.acknowledged.push((self.disk.operations(), end));
    }

    fn acknowledged_at(&self, operation: u64) -> u64 {
        let before = self.acknowledged.iter().take_while(|(done, _)| *done <= operation);
        before.last().map_or(0, |(_, end)| *end)
    }

    /// Opens, and finds all that was acknowledged, whole batches only, nothing else.
    fn verify(&self, disk: &SimulatedDisk, acknowledged: u64, case: &str) -> BTreeMap<u64, Written> {
        let recovered = open(disk, 0);
        assert_eq!(recovered.report.damage, [], "{case}");
        let all = read_all(recovered.log.reader(0), 6, 700);
        assert_eq!(all.damage, [], "{case}");
        for (offset, record) in &all.records {
            assert_eq!(Some(record), self.written.get(offset), "{case}: offset {offset}");
        }
        let missing = (0..acknowledged).find(|offset| !all.records.contains_key(offset));
        assert_eq!(missing, None, "{case}: acknowledged up to {acknowledged}");
        for (a, b) in self.batches.iter().zip(self.batches.iter().skip(1)) {
            let there = (*a..*b).filter(|offset| all.records.contains_key(offset)).count() as u64;
            assert!(there == 0 || there == b - a, "{case}: batch {a}..{b} came in part");
        }
        all.records
    }
}

#[test]
fn a_power_loss_after_any_operation_loses_nothing_acknowledged_and_tears_no_batch() {
    let script = Script::run(false, false);
    for operation in 0..=script.disk.operations() {
        let disk = script.disk.at(operation).expect("recorded");
        let acknowledged = script.acknowledged_at(operation);
        for policy in Policy::ALL {
            let case = format!("{policy:?} at {operation}: {}", script.disk.describe(operation));
            let disk = disk.power_loss(policy, operation);
            let first = script.verify(&disk, acknowledged, &case);
            // What recovery let be read is durable, whatever happens next.
            let again = script.verify(&disk.power_loss(Policy::Drop, 0), acknowledged, &case);
            assert_eq!(first, again, "{case}");
        }
    }
}

#[test]
fn a_second_crash_at_any_operation_of_recovery_leads_to_the_same_verdict() {
    let script = Script::run(false, false);
    let last = script.disk.operations();
    for operation in [last, last - 1, last - 2, last / 2, last / 3] {
        let acknowledged = script.acknowledged_at(operation);
        let killed = script.disk.at(operation).expect("recorded");
        for (first, second) in [
            (None, Policy::Torn),
            (None, Policy::Drop),
            (None, Policy::Subset),
            (Some(Policy::Torn), Policy::Torn),
        ] {
            let disk = match first {
                None => killed.kill(),
                Some(policy) => killed.power_loss(policy, operation),
            };
            disk.record();
            let begun = disk.operations();
            open(&disk, 0);
            for step in begun..=disk.operations() {
                let case = format!("{first:?} at {operation}, {second:?} at {step}: {}", disk.describe(step));
                let crashed = disk.at(step).expect("recorded").power_loss(second, step);
                script.verify(&crashed, acknowledged, &case);
            }
        }
    }
}

#[test]
fn these_tests_notice_a_sync_that_does_nothing() {
    for (data, dirs) in [(true, false), (false, true)] {
        let script = Script::run(data, dirs);
        let last = script.disk.operations();
        let noticed = (last / 2..=last).any(|operation| {
            let disk = script.disk.at(operation).expect("recorded").power_loss(Policy::Drop, 0);
            let acknowledged = script.acknowledged_at(operation);
            let recovered = open(&disk, 0);
            let all = read_all(recovered.log.reader(recovered.log.first_offset()), 100, 10_000);
            (0..acknowledged).any(|offset| !all.records.contains_key(&offset))
        });
        assert!(noticed, "data {data}, directories {dirs}");
    }
}
