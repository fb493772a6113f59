//! A whole data directory, damaged everywhere: each byte of each file wrong, each file cut, gone, copied or
//! swapped with another. The next life never refuses to start, never delivers anything that was not sent,
//! loses at most what the damage hit, and says so.
//!
//! `EVENTFLOW_DAMAGE_STRIDE` (default 41) is the distance between the bytes that are tried; the first one is
//! chosen by the day, so that in time all are. 1 tries every byte.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use eventflow::disk::SimulatedDisk;
use eventflow::queue::Queue;

use super::house::{Line, archive_lines};
use super::script::{History, Run};
use super::{located, plain};

/// What a damage may cost of what was acknowledged.
#[derive(Debug, Clone)]
enum Cost {
    /// One event, whichever; in the archive two lines, where a line's end was hit.
    One,
    /// Any of these offsets.
    These(Range<u64>),
    Nothing,
}

fn stride() -> usize {
    std::env::var("EVENTFLOW_DAMAGE_STRIDE").ok().and_then(|stride| stride.parse().ok()).unwrap_or(41)
}

/// The first byte to try.
fn first(stride: usize) -> usize {
    let days =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs() / 86_400;
    let first = std::env::var("EVENTFLOW_DAMAGE_FIRST").ok().and_then(|first| first.parse().ok());
    first.unwrap_or(days as usize % stride)
}

/// The segments of the event log. A spare is none, whatever its bytes are.
fn segments(disk: &SimulatedDisk) -> Vec<PathBuf> {
    let is_spare = |path: &PathBuf| path.to_string_lossy().contains("spare-");
    disk.files().into_iter().filter(|path| path.starts_with("/data/wal") && !is_spare(path)).collect()
}

/// A data directory as a kill left it when its log was as long as it got, and what was known by then.
fn data_directory() -> (SimulatedDisk, History) {
    let run = Run::script(0, plain);
    let states = (0..run.disk.operations()).step_by(10).map(|operation| {
        let left = run.disk.at(operation).expect("recorded").kill();
        (segments(&left).len(), operation, left)
    });
    let (segments, operation, left) = states.max_by_key(|(segments, ..)| *segments).expect("a script writes");
    assert!(segments > 3, "the log has rolled");
    (left, run.history.until(operation))
}

fn is_archive(path: &Path) -> bool {
    path.starts_with("/data/archive")
}

/// The offsets that a file of the log or of the archive holds, by its name and the next one's.
fn offsets_of(disk: &SimulatedDisk, path: &Path) -> Range<u64> {
    let number = |path: &Path| -> Option<u64> {
        let name = path.file_name()?.to_str()?;
        let digits = name.strip_prefix("events-").unwrap_or(name).get(..20)?;
        digits.parse().ok()
    };
    let kind = |path: &Path| (is_archive(path), path.starts_with("/data/wal"));
    let Some(first) = number(path) else { return 0..0 };
    if kind(path) == (false, false) {
        return 0..0; // the ledger's, which holds no event
    }
    let others = disk.files().into_iter().filter(|other| kind(other) == kind(path));
    let next = others.filter_map(|other| number(&other)).filter(|number| *number > first).min();
    first..next.unwrap_or(u64::MAX)
}

/// Starts on a damaged directory, has everything delivered, and compares.
fn check(disk: &SimulatedDisk, known: &History, damaged: &Path, cost: &Cost) {
    let mut run = Run::on(disk, plain(disk), known.clone(), 0xdead);
    run.start_damaged();
    let end = run.house().queue.status().next_offset;
    assert!(end >= known.promised_end(), "offset {end} is given again");
    run.resume();
    run.deliver_all();
    run.house().settle();
    let told = run.house().queue.status().damaged_ranges;

    let (lines, mangled) = archive_lines(disk);
    assert!(mangled.iter().all(|(path, _)| path == damaged), "a damaged line was written: {mangled:?}");
    let mut at: BTreeMap<u64, &Line> = BTreeMap::new();
    // A wrong digit in an archived offset makes a whole line of another offset.
    let is_moved = |line: &Line| known.homes.get(&line.id).is_some_and(|home| home.offset != line.offset);
    for line in lines.iter().filter(|line| !(is_archive(damaged) && is_moved(line))) {
        if let Some(again) = at.insert(line.offset, line) {
            panic!("offset {} twice: {line:?} {again:?}", line.offset);
        }
    }
    let lost: Vec<u64> = known
        .homes
        .iter()
        .filter(|(id, home)| at.get(&home.offset).is_none_or(|line| line.id != **id))
        .map(|(_, home)| home.offset)
        .collect();
    match cost {
        Cost::One => assert!(lost.len() <= 1 + usize::from(is_archive(damaged)), "lost: {lost:?}"),
        Cost::These(range) => assert!(lost.iter().all(|offset| range.contains(offset)), "lost: {lost:?}"),
        Cost::Nothing => assert!(lost.is_empty(), "lost: {lost:?}"),
    }
    // The archive's own damage is for `archive verify` to tell; the log's and the ledger's shows at once.
    assert!(lost.is_empty() || is_archive(damaged) || told > 0, "{lost:?} are lost and nobody is told");

    // It goes on: the next event gets the next offset and is archived.
    let id = run.history.next_id;
    run.history.next_id += 1;
    assert!(run.post(vec![id]), "there is room");
    run.commit();
    run.deliver_all();
    let (lines, _) = archive_lines(disk);
    assert!(lines.iter().any(|line| line.id == id && line.offset == end), "the next event is not archived");
}

/// Every byte of every file wrong, one after another.
#[test]
fn one_wrong_byte_anywhere_in_a_data_directory_costs_at_most_one_event_and_is_told() {
    flip_every(stride());
}

/// Flips a bit in every `stride`-th byte of a data directory, one after another.
pub fn flip_every(stride: usize) {
    let (disk, known) = data_directory();
    let first = first(stride);
    println!("EVENTFLOW_DAMAGE_STRIDE={stride} EVENTFLOW_DAMAGE_FIRST={first}");
    let mut cases = 0;
    for path in disk.files() {
        let bytes = disk.read_file(&path).expect("a file");
        // What follows a wrong byte in a compressed file cannot be read any more.
        let is_compressed = path.extension().is_some_and(|ending| ending == "zst");
        let cost = if is_compressed { Cost::These(offsets_of(&disk, &path)) } else { Cost::One };
        for position in (first..bytes.len()).step_by(stride) {
            let damaged = disk.kill();
            let flipped = bytes[position] ^ (1 << (position % 8));
            damaged.overwrite(&path, position as u64, &[flipped]).expect("a file");
            let place = || format!("byte {position} of {}", path.display());
            located(place, || check(&damaged, &known, &path, &cost));
            cases += 1;
        }
    }
    println!("{cases} wrong bytes");
}

/// Every file cut at many lengths.
#[test]
fn a_file_of_a_data_directory_cut_anywhere_costs_what_was_cut_off_and_is_told() {
    let (disk, known) = data_directory();
    let (stride, first) = (stride() * 7, first(stride()));
    println!("EVENTFLOW_DAMAGE_STRIDE={stride} EVENTFLOW_DAMAGE_FIRST={first}");
    for path in disk.files() {
        let len = disk.read_file(&path).expect("a file").len();
        let cost = Cost::These(offsets_of(&disk, &path));
        for len in std::iter::once(0).chain((first..len).step_by(stride)) {
            let damaged = disk.kill();
            damaged.truncate(&path, len as u64).expect("a file");
            let place = || format!("{} cut to {len} bytes", path.display());
            located(place, || check(&damaged, &known, &path, &cost));
        }
    }
}

/// Every file gone, and once more under another's name.
#[test]
fn a_file_of_a_data_directory_missing_copied_or_swapped_costs_its_own_events_at_most() {
    let (disk, known) = data_directory();
    let files: Vec<PathBuf> = disk.files();
    for path in &files {
        let damaged = disk.kill();
        damaged.remove_file(path).expect("a file");
        let cost = Cost::These(offsets_of(&disk, path));
        located(|| format!("{} missing", path.display()), || check(&damaged, &known, path, &cost));

        let damaged = disk.kill();
        let copy = path.with_file_name("00000000000000009999.seg");
        if !is_archive(path) {
            damaged.copy_file(path, &copy).expect("copied");
            let place = || format!("{} copied to {}", path.display(), copy.display());
            located(place, || check(&damaged, &known, path, &Cost::Nothing));
        }
    }
    let segments = segments(&disk);
    for (one, other) in segments.iter().zip(&segments[1..]) {
        let damaged = disk.kill();
        damaged.copy_file(other, one).expect("copied");
        damaged.write_file(other, &disk.read_file(one).expect("a file")).expect("written");
        let place = || format!("{} and {} swapped", one.display(), other.display());
        located(place, || check(&damaged, &known, one, &Cost::Nothing));
    }
}
