//! What a repair promises: the log verifies, yields every record it did before and nothing else, and a
//! crash at any operation of it costs nothing and can be repaired again.

use std::collections::BTreeMap;

use super::super::Step;
use super::super::recovery::tests::{
    End, Written, disk_with_log, flip_byte, open, options, read_all, segment_files, used,
};
use super::super::writer::tests::entropy;
use super::*;
use crate::disk::SimulatedDisk;
use crate::disk::simulated::{CrashStates, Random};

/// Does some damage, given the files of the segments.
type Harm = fn(&SimulatedDisk, &[PathBuf]);

/// A log of three segments, closed in order, harmed, then opened and closed as before any repair. `end` is
/// where it ended before.
fn harmed(harm: impl Fn(&SimulatedDisk, &[PathBuf])) -> (SimulatedDisk, u64) {
    let (disk, written) = disk_with_log(End::Clean);
    let end = written.len() as u64;
    harm(&disk, &segment_files(&disk));
    open(&disk, end).writer.close().expect("the disk works");
    (disk, end)
}

fn planned(disk: &SimulatedDisk, end: u64) -> Vec<Repair> {
    let before = (disk.operations(), disk.files());
    let planned = plan(disk, &options(), end, 1, &|_, _| {}).expect("it can be looked at");
    assert_eq!((disk.operations(), disk.files()), before, "nothing is written");
    planned
}

fn repaired(disk: &SimulatedDisk, end: u64) -> Vec<Repair> {
    let salt = disk.operations() + 1000;
    repair(disk, &options(), end, &mut entropy(salt), 1, &|_, _| {}).expect("the disk works")
}

/// Every record the log yields, opened on another disk.
fn records(disk: &SimulatedDisk, end: u64) -> BTreeMap<u64, Written> {
    let recovered = open(&disk.kill(), end);
    assert!(recovered.log.next_offset() >= end);
    read_all(recovered.log.reader(recovered.log.first_offset()), 7, 900).records
}

/// Repairs, and checks that nothing is wrong any more and everything intact is there.
fn check(disk: &SimulatedDisk, end: u64, case: &str) {
    let before = records(disk, end);
    let names = disk.files();
    let planned = planned(disk, end);
    let done = repaired(disk, end);
    let actions = |repairs: &[Repair]| repairs.iter().map(|r| (r.file.clone(), r.action)).collect::<Vec<_>>();
    assert_eq!(actions(&planned), actions(&done), "{case}");
    assert!(done.iter().all(|repair| repair.quarantined.is_some()), "{case}: {done:?}");

    assert_eq!(plan(disk, &options(), end, 1, &|_, _| {}).unwrap(), [], "{case}: it verifies");
    let recovered = open(disk, end);
    let report = &recovered.report;
    assert_eq!(report.damage, [], "{case}");
    let is_old = |name: &String| names.contains(&options().dir.join(name));
    assert!(report.foreign.iter().all(is_old), "{case}: a repair leaves {:?}", report.foreign);
    let all = read_all(recovered.log.reader(recovered.log.first_offset()), 7, 900);
    assert_eq!((all.records, all.damage), (before, vec![]), "{case}");
    assert!(recovered.log.next_offset() >= end, "{case}");
}

#[test]
fn an_intact_log_is_left_as_it_is() {
    let (disk, end) = harmed(|_, _| {});
    let before = disk.operations();
    assert_eq!((planned(&disk, end), repaired(&disk, end)), (vec![], vec![]));
    assert_eq!(disk.operations(), before);
}

#[test]
fn a_wrong_byte_anywhere_is_repaired() {
    let (_, written) = disk_with_log(End::Clean);
    for index in 0..3 {
        let (whole, _) = disk_with_log(End::Clean);
        let used = used(&whole, &segment_files(&whole)[index]);
        for at in (index as u64..used).step_by(17) {
            let (disk, end) = harmed(|disk, files| flip_byte(disk, &files[index], at, 0x41));
            let case = format!("segment {index}, byte {at}");
            check(&disk, end, &case);
            let lost = written.len() - records(&disk, end).len();
            assert!(lost <= 1, "{case}: {lost} lost");
        }
    }
}

#[test]
fn bytes_cut_off_zeroed_inserted_and_removed_are_repaired() {
    for index in 0..3 {
        for at in (0..8192).step_by(331) {
            let change = |change: fn(&mut Vec<u8>, usize)| {
                let (disk, end) = harmed(|disk, files| {
                    let mut bytes = disk.read_file(&files[index]).unwrap();
                    change(&mut bytes, at);
                    disk.write_file(&files[index], &bytes).unwrap();
                });
                check(&disk, end, &format!("segment {index}, byte {at}"));
            };
            change(|bytes, at| bytes.truncate(at));
            change(|bytes, at| bytes[at..].iter_mut().take(700).for_each(|byte| *byte = 0));
            change(|bytes, at| bytes[at..].fill(0));
            change(|bytes, at| bytes.splice(at..at, *b"not of this log").for_each(drop));
            change(|bytes, at| bytes.drain(at..(at + 100).min(8192)).for_each(drop));
        }
    }
}

/// Some damage, as the seed has it.
fn harm_at_random(disk: &SimulatedDisk, random: &mut Random) {
    let files = segment_files(disk);
    if files.is_empty() {
        return;
    }
    let file = &files[random.below(files.len() as u64) as usize];
    let mut bytes = disk.read_file(file).unwrap();
    let at = random.below(bytes.len() as u64 + 1) as usize;
    let to = (at + random.below(1500) as usize).min(bytes.len());
    match random.below(10) {
        0 => return disk.remove_file(file).unwrap(),
        1 => bytes.truncate(at),
        2 => bytes[at..to].fill(0),
        3 => bytes[at..to].iter_mut().for_each(|byte| *byte = random.next_u64() as u8),
        4 => bytes.drain(at..to).for_each(drop),
        5 => bytes.splice(at..at, vec![0x5a; to - at]).for_each(drop),
        6 => bytes[..1024.min(to)].fill(0x33),
        7 => {
            let other = &files[random.below(files.len() as u64) as usize];
            bytes = disk.read_file(other).unwrap();
        }
        _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random.below(8)),
    }
    disk.write_file(file, &bytes).unwrap();
}

#[test]
fn whatever_is_damaged_together_is_repaired() {
    let seeds = std::env::var("EVENTFLOW_REPAIR_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    for seed in 0..seeds.unwrap_or(60) {
        let mut random = Random::new(seed);
        let ends = [End::Clean, End::Idle, End::Killed];
        let (disk, written) = disk_with_log(ends[seed as usize % 3]);
        let end = if random.coin() { written.len() as u64 } else { 0 };
        for _ in 0..1 + random.below(4) {
            harm_at_random(&disk, &mut random);
        }
        let opened = open(&disk, end);
        let end = opened.log.durable_end();
        opened.writer.close().expect("the disk works");
        check(&disk, end, &format!("seed {seed}"));
    }
}

#[test]
fn missing_segments_become_voids_of_the_one_before() {
    let harms: [Harm; 4] = [
        |disk, files| disk.remove_file(&files[1]).unwrap(),
        |disk, files| disk.remove_file(&files[2]).unwrap(),
        |disk, files| disk.write_file(&files[1], b"").unwrap(),
        |disk, files| files[1..].iter().for_each(|file| disk.remove_file(file).unwrap()),
    ];
    for (index, harm) in harms.into_iter().enumerate() {
        let (disk, end) = harmed(harm);
        let first = segment_files(&disk)[0].clone();
        assert!(planned(&disk, end).iter().any(|repair| repair.action == Action::Rewrite), "case {index}");
        check(&disk, end, &format!("case {index}"));
        assert!(segment_files(&disk).contains(&first));
    }
}

#[test]
fn a_full_segment_grows_by_what_its_voids_take() {
    let disk = SimulatedDisk::new(1);
    let mut recovered = open(&disk, 0);
    let bytes = [7; 20];
    for count in [90, 5] {
        while recovered.stock.step() == Step::Worked {}
        let record = Record { tag: 1, crc: crc32fast::hash(&bytes), bytes: &bytes };
        recovered.writer.append(5, vec![record; count].into_iter()).unwrap();
        recovered.writer.commit().unwrap();
    }
    recovered.writer.close().unwrap();
    let first = segment_files(&disk)[0].clone();
    let records = DATA_START + frame::HEADER_BYTES as u64 + 90 * frame::ENTRY_BYTES as u64;
    (0..90).step_by(2).for_each(|index| flip_byte(&disk, &first, records + index * 20, 1));
    check(&disk, 95, "every other record of a full segment");
    assert_eq!(disk.read_file(&first).unwrap().len(), 8192 + 4096);

    // It is given up like any other, and its file is not used again.
    let mut recovered = open(&disk, 95);
    recovered.log.release_below(95);
    while recovered.stock.step() == Step::Worked {}
    assert!(!disk.files().contains(&first));
    assert!(disk.files().iter().all(|file| disk.read_file(file).is_ok_and(|bytes| bytes.len() <= 8192)));
}

#[test]
fn a_file_that_cannot_be_opened_is_left() {
    let (disk, end) = harmed(|disk, files| disk.remove_file(&files[1]).unwrap());
    let file = segment_files(&disk)[0].clone();
    let found = inspect(&disk, &options().dir, options().stream, Depth::Everything, end, 1, &|_, _| {});
    let mut survey = Survey::new(&disk, &options().dir, options().stream, 0).unwrap();
    let damage = found.unwrap().damage;
    assert_eq!(action(&survey, &file, &damage), Some(Action::Rewrite));
    let unreadable = [Damage { reason: UNREADABLE.to_owned(), ..damage[0].clone() }];
    assert_eq!(action(&survey, &file, &unreadable), Some(Action::Leave));
    let gone = options().dir.join("00000000000000000017.seg");
    assert_eq!(action(&survey, &gone, &[]), None);
    survey.unreadable.push(17);
    assert_eq!(action(&survey, &gone, &[]), Some(Action::Leave));
    assert_eq!(survey.silent(&options().dir), [gone]);
}

#[test]
fn a_segment_with_a_bad_sector_is_repaired_and_its_file_kept_as_it_is() {
    let (disk, end) = harmed(|_, _| {});
    let file = segment_files(&disk)[1].clone();
    let whole = disk.read_file(&file).unwrap();
    disk.make_unreadable(&file, 4096..4608).unwrap();
    let before = records(&disk, end);
    assert!(before.len() < end as usize);
    let done = repaired(&disk, end);
    let kept = done[0].quarantined.clone().expect("kept");
    assert!(kept.starts_with("/data/quarantine"), "{}", kept.display());
    assert_eq!(disk.read_file(&kept).unwrap(), whole);
    assert_eq!((planned(&disk, end), records(&disk, end)), (vec![], before));
}

/// Damage of every kind that has a repair of its own.
const HARMS: [Harm; 3] = [
    |disk, files| {
        files.iter().for_each(|file| flip_byte(disk, file, used(disk, file) - 200, 0x20));
        flip_byte(disk, &files[0], 520, 0x20);
    },
    |disk, files| {
        disk.write_file(&files[0], b"nothing").unwrap();
        flip_byte(disk, &files[2], 4096 + 300, 0x20);
    },
    |disk, files| disk.write_file(&files[1], b"nothing").unwrap(),
];

/// Crashes after every operation of a repair, in every way, and repairs again.
fn crash(harm: Harm, prepare: impl Fn(&SimulatedDisk), states: &mut CrashStates) {
    let (disk, end) = harmed(harm);
    let before = records(&disk, end);
    let planned = planned(&disk, end);
    let originals: Vec<_> =
        planned.iter().map(|repair| (&repair.file, disk.read_file(&repair.file).unwrap())).collect();
    let disk = disk.kill();
    disk.record();
    let first = disk.operations();
    prepare(&disk);
    repaired(&disk, end);
    for operation in first..=disk.operations() {
        let here = disk.at(operation).expect("recorded");
        for (left, how) in states.left(&here, 3) {
            let case = format!("{how} after operation {operation}: {}", disk.describe(operation));
            for (file, bytes) in &originals {
                let holds = |path: &PathBuf| left.read_file(path).is_ok_and(|here| here == *bytes);
                let in_quarantine = |path: &PathBuf| path.starts_with("/data/quarantine") && holds(path);
                assert!(
                    holds(file) || left.files().iter().any(in_quarantine),
                    "{case}: {} is gone",
                    file.display()
                );
            }
            assert_eq!(records(&left, end), before, "{case}");
            open(&left, end).writer.close().expect("the disk works");
            check(&left, end, &case);
        }
    }
}

#[test]
fn a_crash_at_any_operation_of_a_repair_costs_nothing_and_it_can_be_done_again() {
    let mut states = CrashStates::default();
    for harm in HARMS {
        crash(harm, |_| {}, &mut states);
    }
    println!("crashes in a repair: {states}");
}

#[test]
fn a_repair_that_forgot_one_kind_of_sync_would_be_caught() {
    for (data, dirs) in [(true, false), (false, true)] {
        let caught = std::panic::catch_unwind(|| {
            for harm in HARMS {
                crash(harm, |disk| disk.ignore_syncs(data, dirs), &mut CrashStates::default());
            }
        });
        assert!(caught.is_err(), "syncs left out unnoticed: of files {data}, of directories {dirs}");
    }
}

#[test]
fn a_repair_that_meets_a_full_disk_leaves_the_log_as_it_was() {
    let (disk, end) = harmed(HARMS[0]);
    let before = records(&disk, end);
    let full = disk.kill();
    full.set_capacity(0);
    let failed = repair(&full, &options(), end, &mut entropy(5), 1, &|_, _| {});
    assert!(failed.unwrap_err().to_string().contains("copying into quarantine"));
    full.set_capacity(1 << 30);
    assert_eq!(records(&full, end), before);
    check(&full, end, "with room again");
}
