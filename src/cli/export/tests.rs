//! Exports of archives and logs that overlap, miss each other, grow, shrink and are damaged.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

use super::join::Tail;
use super::*;
use crate::disk::{Disk, SimulatedDisk};
use crate::event::{Micros, StoredEvent, write_archive_line};
use crate::log::{Chunk, Damage, ReadError, ReadRecord};
use crate::sink::json_file::layout::{Day, Tree};
use crate::sink::json_file::manifest::Entry;

const HOUR: i64 = 3_600_000_000;
/// 2025-06-15T00:00:00Z, when offset 0 was accepted; one event an hour.
const START: i64 = 1_749_945_600_000_000;

fn accepted_at(offset: u64) -> Micros {
    Micros(START + offset as i64 * HOUR)
}

fn json(offset: u64) -> String {
    let kind = if offset.is_multiple_of(2) { "even" } else { "odd" };
    format!(r#"{{"specversion":"1.0","id":"{offset}","source":"/s/{}","type":"t.{kind}"}}"#, offset % 3)
}

fn line(offset: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let json = json(offset);
    let event = StoredEvent { offset, accepted_at: accepted_at(offset), json: json.as_bytes() };
    write_archive_line(&mut out, event);
    out
}

fn lines(offsets: impl IntoIterator<Item = u64>) -> Vec<u8> {
    offsets.into_iter().flat_map(line).collect()
}

const ROOT: &str = "/data/archive";

fn tree() -> Tree {
    Tree::of(ROOT)
}

fn put(disk: &SimulatedDisk, first: u64, bytes: &[u8]) -> PathBuf {
    let path = tree().path(Day::of(accepted_at(first)), first);
    place(disk, &path, bytes);
    path
}

fn place(disk: &SimulatedDisk, path: &Path, bytes: &[u8]) {
    disk.create_dir_all(path.parent().unwrap()).unwrap();
    disk.write_file(path, bytes).unwrap();
}

/// A disk whose archive holds each of `files`, as offsets.
fn archive(files: &[Range<u64>]) -> SimulatedDisk {
    let disk = SimulatedDisk::new(1);
    for file in files {
        put(&disk, file.start, &lines(file.clone()));
    }
    disk
}

/// Something that happens to log and archive.
type Change = Box<dyn FnMut(&mut Log)>;

/// A log in memory: what it holds, and what happens to archive and log before each read.
#[derive(Default)]
struct Log {
    held: Range<u64>,
    voids: Vec<u64>,
    damaged: Vec<u64>,
    /// What changes before the nth read.
    script: BTreeMap<u64, Change>,
    reads: u64,
}

fn log(held: Range<u64>) -> Log {
    Log { held, ..Log::default() }
}

impl Tail for Log {
    fn read(&mut self, from: u64) -> Result<Chunk, ReadError> {
        self.reads += 1;
        if let Some(mut change) = self.script.remove(&self.reads) {
            change(self);
        }
        if from < self.held.start {
            return Err(ReadError::Released { first_offset: self.held.start });
        }
        let range = from..self.held.end.min(from + 3).max(from);
        let mut buffer = Vec::new();
        let mut chunk = Chunk { range: range.clone(), ..Chunk::default() };
        for offset in range {
            if self.damaged.contains(&offset) {
                chunk.damage.push(Damage {
                    file: PathBuf::new(),
                    bytes: 0..0,
                    lost: offset..offset + 1,
                    quarantined: None,
                    reason: Default::default(),
                });
            } else if !self.voids.contains(&offset) {
                let text = json(offset);
                chunk.records.push(ReadRecord {
                    offset,
                    accepted_at_micros: accepted_at(offset).0,
                    tag: 1,
                    start: buffer.len() as u32,
                    len: text.len() as u32,
                });
                buffer.extend_from_slice(text.as_bytes());
            }
        }
        chunk.buffer = Bytes::from(buffer);
        Ok(chunk)
    }
}

fn everything() -> Filter {
    Filter::new(None, None, &[], &[]).unwrap()
}

fn between(from: &str, to: &str) -> Filter {
    let bound = |text: &str| (!text.is_empty()).then(|| text.parse::<Bound>().unwrap());
    Filter::new(bound(from), bound(to), &[], &[]).unwrap()
}

fn export(disk: &SimulatedDisk, log: Log, filter: &Filter) -> (Vec<u8>, Tally) {
    let mut out = Printer::new(Vec::new(), Format::Ndjson, true);
    let tally = Join::new(disk, &tree(), filter, log, &mut out).run().unwrap();
    (out.finish().unwrap_or_else(|e| panic!("{e}")), tally)
}

#[track_caller]
fn assert_lines(found: &[u8], offsets: impl IntoIterator<Item = u64>) {
    assert_eq!(String::from_utf8_lossy(found), String::from_utf8_lossy(&lines(offsets)));
}

#[test]
fn archive_and_log_join_without_gap_or_repeat_however_they_overlap() {
    for archived in 0..=30 {
        for held_from in 0..=archived {
            let disk =
                archive(&[0..archived.min(7), archived.min(7)..archived.min(20), archived.min(20)..archived]);
            let (found, tally) = export(&disk, log(held_from..30), &everything());
            assert_lines(&found, 0..30);
            assert_eq!(
                (tally.events, tally.first_offset, tally.last_offset, tally.bad_lines),
                (30, 0, 29, 0)
            );
        }
    }
}

#[test]
fn archive_lines_pass_byte_for_byte() {
    let disk = SimulatedDisk::new(1);
    let odd = br#"{ "specversion" : "1.0","id":"0","source":"/","type":"t","data": 1.00 ,"eventflowoffset":"0","eventflowtime":"2025-06-15T00:00:00Z"}"#;
    put(&disk, 0, &[&odd[..], b"\n"].concat());
    let (found, _) = export(&disk, log(0..2), &everything());
    assert_eq!(found, [&odd[..], b"\n", &line(1)].concat());
}

#[test]
fn an_unfinished_last_line_is_taken_from_the_log_at_every_cut() {
    let whole = lines(0..4);
    for cut in 0..whole.len() {
        let disk = SimulatedDisk::new(1);
        put(&disk, 0, &whole[..cut]);
        let (found, tally) = export(&disk, log(0..6), &everything());
        assert_lines(&found, 0..6);
        assert_eq!(tally.bad_lines, 0, "cut at {cut}");
    }
}

#[test]
fn what_an_archive_file_lost_comes_from_the_log_or_is_told() {
    let mut bytes = lines(0..6);
    let hole = line(0).len() + 3;
    bytes[hole..hole + 2 * line(1).len() - 10].fill(0);
    let disk = SimulatedDisk::new(1);
    put(&disk, 0, &bytes);
    put(&disk, 6, &lines(6..9));
    let (found, tally) = export(&disk, log(0..9), &everything());
    assert_lines(&found, 0..9);
    assert_eq!(tally.bad_lines, 0);

    let (found, tally) = export(&disk, log(5..9), &everything());
    assert_lines(&found, [0, 3, 4, 5, 6, 7, 8]);
    assert_eq!(tally.bad_lines, 1);
}

#[test]
fn segments_that_go_while_we_read_are_found_in_the_archive() {
    for moment in 1..6 {
        let disk = archive(std::slice::from_ref(&(0..5)));
        let mut log = log(5..20);
        let grown = disk.clone();
        log.script.insert(
            moment,
            Box::new(move |log| {
                put(&grown, 5, &lines(5..18));
                log.held.start = 18;
            }),
        );
        let (found, _) = export(&disk, log, &everything());
        assert_lines(&found, 0..20);
    }
}

#[test]
fn offsets_that_nobody_has_are_void_and_stop_nothing() {
    let disk = archive(&[0..3, 8..10]);
    let mut tail = log(12..20);
    tail.voids = vec![14, 15, 16, 17, 18];
    let (found, tally) = export(&disk, tail, &everything());
    assert_lines(&found, [0, 1, 2, 8, 9, 12, 13, 19]);
    assert_eq!((tally.bad_lines, tally.damaged_events), (0, 0));
}

#[test]
fn damage_in_the_log_counts_only_where_the_archive_does_not_have_the_event() {
    let mut tail = log(0..10);
    tail.damaged = vec![2, 7, 8];
    let (found, tally) = export(&archive(std::slice::from_ref(&(0..5))), tail, &between("", "8"));
    assert_lines(&found, [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(tally.damaged_events, 1);
}

#[test]
fn ranges_by_offset_cut_exactly_and_read_no_other_file() {
    for from in 0..25 {
        for to in from..25 {
            let disk = archive(&[0..6, 6..12, 12..15]);
            for (file, covers) in [(0, 0..6), (6, 6..12)] {
                if covers.end <= from || covers.start >= to {
                    let path = tree().path(Day::of(accepted_at(file)), file);
                    disk.make_unreadable(&path, 0..u64::MAX).unwrap();
                }
            }
            let (found, _) = export(&disk, log(10..22), &between(&from.to_string(), &to.to_string()));
            assert_lines(&found, from..to.min(22).max(from));
        }
    }
}

#[test]
fn ranges_by_time_cut_exactly_and_read_no_file_of_days_before() {
    let disk = archive(&[0..24, 24..48, 48..72, 72..90]);
    let day = |n: u64| tree().path(Day::of(accepted_at(n * 24)), n * 24);
    for (from, to, expected) in [
        ("2025-06-16", "2025-06-17", 24..48),
        ("2025-06-16T12:00:00Z", "2025-06-17T01:00:00Z", 36..49),
        ("2025-06-18", "", 72..100),
        ("", "2025-06-15T02:00:00Z", 0..2),
        ("2025-06-18T23:00:00Z", "", 95..100),
        ("2026-01-01", "", 0..0),
    ] {
        let disk = disk.kill();
        if expected.start >= 48 {
            disk.make_unreadable(&day(0), 0..u64::MAX).unwrap();
        }
        let (found, _) = export(&disk, log(80..100), &between(from, to));
        assert_lines(&found, expected);
    }
}

#[test]
fn a_clock_that_jumped_back_hides_no_event_from_a_range_by_time() {
    let disk = SimulatedDisk::new(1);
    put(&disk, 40, &lines(40..50));
    // Accepted later, by a clock that was 40 hours behind.
    let mut late = Vec::new();
    let json = json(10);
    let event = StoredEvent { offset: 50, accepted_at: accepted_at(10), json: json.as_bytes() };
    write_archive_line(&mut late, event);
    place(&disk, &tree().path(Day::of(accepted_at(10)), 50), &late);
    let (found, _) = export(&disk, log(51..51), &between("", "2025-06-16"));
    assert_eq!(found, late);
    let (found, _) = export(&disk, log(51..51), &between("2025-06-16", ""));
    assert_lines(&found, 40..50);
}

#[test]
fn globs_select_by_type_and_source_from_archive_and_log_alike() {
    let globs = |glob: &str| vec![glob.to_owned()];
    let filter = Filter::new(None, None, &globs("*.odd"), &globs("/s/[01]")).unwrap();
    let (found, tally) = export(&archive(std::slice::from_ref(&(0..10))), log(8..20), &filter);
    assert_lines(&found, (0..20).filter(|o| o % 2 == 1 && o % 3 < 2));
    assert_eq!(tally.last_offset, 19);
}

#[test]
fn compressed_files_are_read_and_a_damaged_one_costs_what_the_log_does_not_have() {
    let disk = archive(&[0..4, 8..12]);
    let bytes = zstd::encode_all(&lines(4..8)[..], 3).unwrap();
    let path = tree().path(Day::of(accepted_at(4)), 4).with_extension("ndjson.zst");
    place(&disk, &path, &bytes);
    let (found, tally) = export(&disk, log(12..14), &everything());
    assert_lines(&found, 0..14);
    assert_eq!(tally.bad_lines, 0);
    disk.truncate(&path, bytes.len() as u64 / 2).unwrap();
    let (found, tally) = export(&disk, log(0..14), &everything());
    assert_lines(&found, 0..14);
    assert_eq!(tally.bad_lines, 0);
    let (found, tally) = export(&disk, log(12..14), &everything());
    assert_lines(&found, (0..4).chain(8..14));
    assert_eq!(tally.bad_lines, 1);
}

fn as_array(offsets: Range<u64>) -> Vec<u8> {
    let mut out = Printer::new(Vec::new(), Format::Json, true);
    Join::new(&archive(std::slice::from_ref(&offsets)), &tree(), &everything(), None::<Log>, &mut out)
        .run()
        .unwrap();
    out.finish().unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn the_json_format_is_one_array_of_the_same_objects() {
    for count in [0, 1, 5] {
        let array: Vec<serde_json::Value> = serde_json::from_slice(&as_array(0..count)).unwrap();
        let expected: Vec<serde_json::Value> =
            (0..count).map(|o| serde_json::from_slice(&line(o)).unwrap()).collect();
        assert_eq!(array, expected);
    }
}

#[test]
fn a_file_appears_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.ndjson");
    fs::write(&path, "before").unwrap();
    let failed = to_file(&path, Format::Ndjson, |out| {
        out.line(b"half").unwrap();
        Err(JoinError::Output(io::ErrorKind::Other.into()))
    });
    assert!(failed.is_err());
    assert_eq!(fs::read_to_string(&path).unwrap(), "before");
    to_file(&path, Format::Ndjson, |out| {
        out.line(b"{}").unwrap();
        Ok(Tally::default())
    })
    .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(fs::read_to_string(&path).unwrap(), "{}\n");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
}

#[test]
fn the_ending_of_its_name_says_how_a_file_is_compressed() {
    let dir = tempfile::tempdir().unwrap();
    let line = line(7);
    let write = |name: &str| {
        let path = dir.path().join(name);
        to_file(&path, Format::Ndjson, |out| {
            (0..1000).for_each(|_| out.line(&line).unwrap());
            Ok(Tally::default())
        })
        .unwrap_or_else(|e| panic!("{e}"));
        fs::read(path).unwrap()
    };
    let plain = write("out.ndjson");
    assert_eq!(plain.len(), 1000 * (line.len() + 1));
    let zstd = write("out.ndjson.zst");
    assert!(zstd.len() < plain.len() / 10);
    assert_eq!(zstd::decode_all(&zstd[..]).unwrap(), plain);
    let mut gzip = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&write("out.gz")[..]), &mut gzip).unwrap();
    assert_eq!(gzip, plain);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "no temporary file stays");
}

fn entry(first: u64, last: u64, path: &Path) -> Entry {
    let name = path.strip_prefix(ROOT).unwrap().to_str().unwrap().to_owned();
    let entry = Entry::unread(name, first, last, accepted_at(first));
    Entry { bytes: 1, last_time: accepted_at(last), content_bytes: 1, ..entry }
}

#[test]
fn a_file_whose_times_the_manifest_tells_is_read_only_where_it_has_something() {
    // Four files of one day.
    let disk = archive(&[0..6, 6..12, 12..18, 18..24]);
    let path = |first: u64| tree().path(Day::of(accepted_at(first)), first);
    let lines: Vec<u8> =
        [0, 6, 12].into_iter().flat_map(|first| entry(first, first + 5, &path(first)).to_line()).collect();
    place(&disk, &Path::new(ROOT).join("manifest.ndjson"), &lines);
    for (from, to, expected, unread) in [
        (7, 9, 7..9, vec![0, 12]),
        (0, 1, 0..1, vec![6, 12]),
        (14, 20, 14..20, vec![0, 6]),
        (22, 30, 22..30, vec![0, 6, 12]),
    ] {
        let disk = disk.kill();
        unread.iter().for_each(|first| disk.make_unreadable(&path(*first), 0..u64::MAX).unwrap());
        let time = |offset| Some(Bound::Time(accepted_at(offset)));
        let filter = Filter::new(time(from), time(to), &[], &[]).unwrap();
        let (found, tally) = export(&disk, log(24..40), &filter);
        assert_lines(&found, expected);
        assert_eq!(tally.bad_lines, 0);
    }
}

#[test]
fn a_listed_file_that_is_gone_is_told_unless_the_log_has_its_events() {
    let disk = archive(&[0..6, 12..18]);
    let gone = tree().path(Day::of(accepted_at(6)), 6);
    place(&disk, &Path::new(ROOT).join("manifest.ndjson"), &entry(6, 11, &gone).to_line());
    let (found, tally) = export(&disk, log(18..20), &everything());
    assert_lines(&found, (0..6).chain(12..20));
    assert_eq!(tally.bad_lines, 1);
    let (found, tally) = export(&disk, log(3..20), &everything());
    assert_lines(&found, 0..20);
    assert_eq!(tally.bad_lines, 0);
}
