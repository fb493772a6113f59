//! What the stock promises: the budget holds, files are reused, and what the disk or the process
//! lacks refuses appends for a while and nothing more.

use super::super::AppendError;
use super::super::writer::tests::{Rig, SEGMENT_BYTES, entropy, options, stored};
use super::super::{catalog::Inventory, handle::assemble};
use super::*;
use crate::disk::Disk;
use crate::disk::simulated::{Failure, PagesAfter, Policy, SimulatedDisk, Times};
use crate::log::Options;

/// A frame that fills a segment.
const FULL: u64 = SEGMENT_BYTES - 4096 - 64;

fn names(rig: &Rig) -> Vec<String> {
    let mut names: Vec<_> =
        rig.disk.list("/data/wal".as_ref()).unwrap().into_iter().map(|entry| entry.name).collect();
    names.sort();
    names
}

fn refused(rig: &mut Rig) -> NoRoom {
    match rig.append(FULL) {
        Err(AppendError::NoRoom(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

fn file_bytes(rig: &Rig) -> u64 {
    let sizes = rig.disk.files().into_iter().map(|path| rig.disk.read_file(&path).unwrap().len() as u64);
    sizes.sum()
}

#[test]
fn a_full_budget_refuses_until_something_is_released() {
    let mut rig = Rig::new(options(3, 1));
    for _ in 0..3 {
        rig.settle();
        rig.append_and_commit(FULL).unwrap();
    }
    assert_eq!(rig.settle(), Step::Blocked);
    assert_eq!(refused(&mut rig), NoRoom::Budget);
    assert_eq!(rig.log.room_for(88), Err(NoRoom::Budget));
    assert_eq!(rig.log.usage().bytes, 3 * SEGMENT_BYTES);
    assert_eq!(file_bytes(&rig), 3 * SEGMENT_BYTES);
    rig.log.release_below(1);
    assert_eq!(rig.log.first_offset(), 1);
    assert_eq!(rig.log.room_for(88), Err(NoRoom::Preparing));
    rig.settle();
    assert_eq!(rig.log.room_for(FULL), Ok(()));
    assert_eq!(rig.append_and_commit(FULL).unwrap(), 3);
    assert_eq!(file_bytes(&rig), 3 * SEGMENT_BYTES, "reused, not made anew");
    rig.acknowledged.remove(&0);
    assert_eq!(stored(&rig.disk), rig.acknowledged);
}

#[test]
fn without_a_stock_thread_a_roll_does_not_wait() {
    let mut rig = Rig::new(options(3, 1));
    assert_eq!(refused(&mut rig), NoRoom::Preparing);
    assert_eq!(rig.log.room_for(88), Err(NoRoom::Preparing));
}

#[test]
fn a_full_disk_meets_the_preparation_only_and_is_waited_out() {
    for after_pages in 0..4 {
        let mut rig = Rig::new(options(8, 1));
        rig.settle();
        rig.append(88).unwrap();
        rig.writer.commit().unwrap();
        let free_at_first = rig.disk.free_bytes("/data".as_ref()).unwrap();
        assert!(free_at_first > 0);
        // Free space runs out between the look at it and the last write.
        rig.disk.fail_write(1, Failure::NoSpace, after_pages * 4096, Times::Forever);
        assert_eq!(rig.settle(), Step::Blocked);
        assert_eq!(rig.log.usage().bytes, SEGMENT_BYTES, "nothing half-made is left");
        assert!(matches!(refused(&mut rig), NoRoom::Disk(_)));
        assert!(matches!(rig.log.room_for(FULL), Err(NoRoom::Disk(_))));
        assert_eq!(rig.log.failed(), None);
        rig.disk.heal();
        assert_eq!(rig.append_and_commit(200).unwrap(), 1, "the active segment takes what fits");
        rig.settle();
        assert_eq!(rig.append_and_commit(FULL).unwrap(), 2);
    }
}

#[test]
fn room_left_to_others_is_not_touched() {
    let mut rig = Rig::new(Options { min_free_disk_bytes: 10 << 20, ..options(8, 1) });
    rig.disk.set_capacity((10 << 20) + 2 * SEGMENT_BYTES);
    rig.settle();
    rig.append_and_commit(FULL).unwrap();
    rig.settle();
    rig.append_and_commit(FULL).unwrap();
    assert_eq!(rig.settle(), Step::Blocked);
    match refused(&mut rig) {
        NoRoom::Disk(reason) => assert!(reason.contains("bytes free"), "{reason}"),
        other => panic!("{other:?}"),
    }
    // A release gives its file back without a byte more.
    rig.log.release_below(1);
    rig.settle();
    rig.append_and_commit(FULL).unwrap();
}

#[test]
fn a_lack_of_descriptors_is_waited_out() {
    let mut rig = Rig::new(options(8, 1));
    rig.settle();
    rig.append_and_commit(FULL).unwrap();
    rig.disk.set_descriptors(0);
    assert_eq!(rig.settle(), Step::Blocked);
    assert!(matches!(refused(&mut rig), NoRoom::Disk(_)));
    rig.disk.set_descriptors(100);
    rig.settle();
    rig.append_and_commit(FULL).unwrap();
    // The same while a released file is to be taken back.
    rig.log.release_below(1);
    rig.disk.set_descriptors(0);
    assert_eq!(rig.settle(), Step::Blocked);
    rig.disk.set_descriptors(100);
    rig.settle();
    assert_eq!(rig.log.usage().spares, 1);
    assert_eq!(rig.log.failed(), None);
}

#[test]
fn a_log_whose_readers_keep_up_uses_the_same_files_for_ever() {
    let mut rig = Rig::new(options(8, 1));
    let mut files = vec![];
    for round in 0..20 {
        rig.settle();
        rig.append_and_commit(FULL).unwrap();
        rig.settle();
        rig.log.release_below(rig.log.durable_end());
        rig.settle();
        if round > 2 {
            files.push(rig.log.usage().bytes);
        }
    }
    assert!(files.iter().all(|bytes| *bytes == 3 * SEGMENT_BYTES), "{files:?}");
    assert_eq!(rig.log.first_offset(), 19, "the newest segment stays, its base is the offsets' memory");
}

#[test]
fn what_exceeds_the_spares_is_given_back_to_the_disk() {
    let mut rig = Rig::new(options(8, 1));
    for _ in 0..6 {
        rig.settle();
        rig.append_and_commit(FULL).unwrap();
    }
    rig.log.release_below(6);
    rig.settle();
    assert_eq!(rig.log.usage().segments, 1);
    assert_eq!(rig.log.usage().spares, 2);
    assert_eq!(rig.log.usage().bytes, 3 * SEGMENT_BYTES);
    assert_eq!(file_bytes(&rig), 3 * SEGMENT_BYTES);
}

#[test]
fn a_spare_whose_sync_failed_is_thrown_away_and_latches_nothing() {
    let mut rig = Rig::new(options(8, 1));
    rig.disk.fail_sync(1, PagesAfter::Clean, Policy::Drop, Times::Once);
    assert_eq!(rig.settle(), Step::Blocked);
    assert_eq!(names(&rig), Vec::<String>::new());
    assert_eq!(rig.log.failed(), None);
    rig.settle();
    rig.append_and_commit(FULL).unwrap();
    assert_eq!(stored(&rig.disk.power_loss(Policy::Drop, 0)), rig.acknowledged);
}

#[test]
fn a_failed_sync_of_the_directory_latches() {
    let mut rig = Rig::new(options(8, 1));
    rig.disk.fail_sync(2, PagesAfter::Clean, Policy::Drop, Times::Once);
    assert_eq!(rig.settle(), Step::Idle);
    assert!(rig.log.failed().unwrap().contains("syncing directory"), "{:?}", rig.log.failed());
}

#[test]
fn files_left_by_an_earlier_run_are_used_or_removed() {
    let disk = SimulatedDisk::new(1);
    let dir = options(8, 1).dir;
    disk.create_dir_all(&dir).unwrap();
    let whole = SEGMENT_BYTES as usize;
    let found: Vec<_> = [whole, whole, 4096, whole]
        .into_iter()
        .zip(0..)
        .map(|(len, number)| {
            let path = dir.join(spare_name(number));
            disk.write_file(&path, &vec![1; len]).unwrap();
            FoundFile { path, len: len as u64, allocated: len as u64 }
        })
        .collect();
    let inventory =
        Inventory { segments: vec![], resume: None, spares: found, next_spare_number: 2, next_offset: 5 };
    let (log, _writer, mut stock) = assemble(Arc::new(disk.clone()), options(8, 1), entropy(1), inventory);
    assert_eq!(log.usage().bytes, 3 * SEGMENT_BYTES + 4096);
    while stock.step() == Step::Worked {}
    assert_eq!(log.usage().spares, 2);
    assert_eq!(log.usage().bytes, 2 * SEGMENT_BYTES);
    assert_eq!(disk.files(), [dir.join(spare_name(0)), dir.join(spare_name(1))]);
    assert_eq!((log.first_offset(), log.next_offset()), (5, 5));
}

#[test]
fn a_found_spare_with_holes_is_filled_before_it_is_used() {
    let disk = SimulatedDisk::new(1);
    let options = options(8, 1);
    disk.create_dir_all(&options.dir).unwrap();
    let path = options.dir.join(spare_name(0));
    disk.create(&path).unwrap().set_len(SEGMENT_BYTES).unwrap();
    let found = FoundFile { path: path.clone(), len: SEGMENT_BYTES, allocated: 0 };
    let inventory = Inventory {
        segments: vec![],
        resume: None,
        spares: vec![found],
        next_spare_number: 2,
        next_offset: 0,
    };
    let (log, _writer, mut stock) = assemble(Arc::new(disk.clone()), options, entropy(1), inventory);
    assert_eq!(stock.step(), Step::Worked);
    assert_eq!(log.usage().spares, 1);
    let file = disk.open(&path, Access::Read).unwrap();
    assert_eq!(file.allocated_bytes().unwrap(), SEGMENT_BYTES);
}

#[test]
fn a_reader_learns_that_a_segment_was_released_before_its_file_is_used_again() {
    let mut rig = Rig::new(options(8, 1));
    for _ in 0..2 {
        rig.settle();
        rig.append_and_commit(FULL).unwrap();
    }
    let segment = Arc::clone(&rig.log.shared().state().segments[0]);
    let file = segment.open(&rig.disk).unwrap();
    assert!(!segment.is_released());
    rig.log.release_below(1);
    assert!(segment.is_released());
    rig.settle();
    assert_eq!(file.len().unwrap(), SEGMENT_BYTES, "a file that is open stays readable");
    assert!(segment.path != rig.log.shared().state().segments[0].path);
}

#[test]
fn a_roll_waits_for_the_stock_thread_and_a_stop_ends_it() {
    let Rig { log, mut writer, stock, .. } = Rig::new(options(64, 1));
    let thread = std::thread::spawn(move || stock.run());
    // Until the thread has begun, a roll does not wait for it.
    while !log.shared().state().stock_runs {
        std::thread::yield_now();
    }
    let bytes = vec![1; FULL as usize - 88];
    for offset in 0..64 {
        let record = crate::log::frame::Record { tag: 0, crc: crc32fast::hash(&bytes), bytes: &bytes };
        assert_eq!(writer.append(0, std::iter::once(record)).unwrap(), offset);
        writer.commit().unwrap();
    }
    log.stop_stock();
    thread.join().unwrap();
    assert_eq!(log.usage().bytes, 64 * SEGMENT_BYTES);
}
