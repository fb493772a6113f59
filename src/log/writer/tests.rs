//! What the writer promises: one write and one sync a group, a roll no crash can tear, and after a
//! failed write or sync no success ever again.

use std::collections::BTreeMap;
use std::path::Path;

use super::super::segment::{decode_header, parse_segment_name};
use super::super::{Log, Options, Step, Stock, Stream};
use super::super::{catalog::Inventory, handle::assemble};
use super::*;
use crate::disk::Disk;
use crate::disk::simulated::{Failure, PagesAfter, Policy, Random, SimulatedDisk, Times};

pub(in crate::log) const SEGMENT_BYTES: u64 = 16 << 10;
/// The largest frame a segment of that size takes.
const CAPACITY: u64 = SEGMENT_BYTES - 4096 - 64;

/// A log on a simulated disk, driven step by step.
pub(in crate::log) struct Rig {
    pub disk: SimulatedDisk,
    pub log: Log,
    pub writer: Writer,
    pub stock: Stock,
    /// What has been answered for, by offset.
    pub acknowledged: BTreeMap<u64, Vec<u8>>,
}

pub(in crate::log) fn options(segments: u64, spares: u32) -> Options {
    Options {
        dir: "/data/wal".into(),
        quarantine_dir: "/data/quarantine".into(),
        stream: Stream::Events,
        segment_bytes: SEGMENT_BYTES,
        budget_bytes: segments * SEGMENT_BYTES,
        spares,
        min_free_disk_bytes: 0,
        owners_files: &[],
    }
}

pub(in crate::log) fn entropy(seed: u64) -> Entropy {
    let mut random = Random::new(seed);
    Box::new(move || random.next_u64())
}

impl Rig {
    /// An empty log with nothing prepared yet.
    pub fn new(options: Options) -> Self {
        let disk = SimulatedDisk::new(1);
        disk.create_dir_all(&options.dir).unwrap();
        let inventory = Inventory {
            segments: vec![],
            resume: None,
            spares: vec![],
            next_spare_number: 0,
            next_offset: 0,
        };
        let (log, writer, stock) = assemble(Arc::new(disk.clone()), options, entropy(2), inventory);
        Self { disk, log, writer, stock, acknowledged: BTreeMap::new() }
    }

    /// Steps the stock until it has nothing to do.
    pub fn settle(&mut self) -> Step {
        loop {
            let step = self.stock.step();
            if step != Step::Worked {
                return step;
            }
        }
    }

    /// Appends one record of so many bytes that its frame takes `frame_bytes` in all.
    pub fn append(&mut self, frame_bytes: u64) -> Result<u64, AppendError> {
        let record = payload(self.log.next_offset(), frame_bytes - 88);
        append(&mut self.writer, &record)
    }

    /// Commits; what was appended counts as acknowledged when that worked.
    pub fn commit(&mut self, appended: &[(u64, u64)]) -> Result<u64, LogError> {
        let end = self.writer.commit()?;
        for (offset, frame_bytes) in appended {
            self.acknowledged.insert(*offset, payload(*offset, frame_bytes - 88));
        }
        Ok(end)
    }

    pub fn append_and_commit(&mut self, frame_bytes: u64) -> Result<u64, AppendError> {
        let offset = self.append(frame_bytes)?;
        self.commit(&[(offset, frame_bytes)])?;
        Ok(offset)
    }
}

/// Bytes that tell their offset.
fn payload(offset: u64, len: u64) -> Vec<u8> {
    offset.to_le_bytes().into_iter().cycle().take(len as usize).collect()
}

fn append(writer: &mut Writer, bytes: &[u8]) -> Result<u64, AppendError> {
    let record = Record { tag: bytes.len() as u128, crc: crc32fast::hash(bytes), bytes };
    writer.append(1_000_000, std::iter::once(record))
}

/// Every record that stands, by offset, in segments whose name is their header's base; read naively, a
/// frame after the other until one does not hold.
pub(in crate::log) fn stored(disk: &SimulatedDisk) -> BTreeMap<u64, Vec<u8>> {
    try_stored(disk).unwrap()
}

fn try_stored(disk: &SimulatedDisk) -> Result<BTreeMap<u64, Vec<u8>>, String> {
    let mut found = BTreeMap::new();
    for path in disk.files() {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(base) = parse_segment_name(name) else { continue };
        let bytes = disk.read_file(&path).unwrap();
        let header = match decode_header(&bytes, base) {
            Some(header) if header.base == base => header,
            other => return Err(format!("{name}: the name of a segment over {other:?}")),
        };
        let mut at = 4096;
        while let Some(frame) = intact_frame(&bytes[at..], header.salt) {
            let mut start = at + frame.prefix_bytes() as usize;
            for (offset, entry) in frame.offsets().zip(frame::entries(&frame, &bytes[at..])) {
                found.insert(offset, bytes[start..start + entry.len as usize].to_vec());
                start += entry.len as usize;
            }
            at += frame.frame_bytes() as usize;
        }
    }
    Ok(found)
}

/// The frame at the start of `bytes`, if header and every record hold.
fn intact_frame(bytes: &[u8], salt: u64) -> Option<Header> {
    let header = frame::peek(bytes)?;
    if header.salt != salt || !frame::check_prefix(&header, bytes) {
        return None;
    }
    let mut start = header.prefix_bytes() as usize;
    for (offset, entry) in header.offsets().zip(frame::entries(&header, bytes)) {
        let record = bytes.get(start..start + entry.len as usize)?;
        if !frame::check_record(&header, offset, &entry, record) {
            return None;
        }
        start += entry.len as usize;
    }
    Some(header)
}

/// What happened on the disk since `before`.
fn operations_since(disk: &SimulatedDisk, before: u64) -> Vec<String> {
    (before + 1..=disk.operations()).map(|operation| disk.describe(operation)).collect()
}

#[test]
fn a_group_is_one_write_and_one_sync() {
    let mut rig = Rig::new(options(4, 1));
    rig.settle();
    rig.append_and_commit(200).unwrap();
    rig.disk.record();
    let before = rig.disk.operations();
    for _ in 0..5 {
        rig.append(200).unwrap();
    }
    assert_eq!(rig.disk.operations(), before, "an append touches no disk");
    assert_eq!((rig.log.durable_end(), rig.log.next_offset()), (1, 6));
    assert_eq!(rig.writer.commit().unwrap(), 6);
    let operations = operations_since(&rig.disk, before);
    assert_eq!(operations.len(), 2, "{operations:?}");
    assert_eq!(rig.log.durable_end(), 6);
    assert_eq!(rig.writer.commit().unwrap(), 6, "nothing to commit");
    assert_eq!(rig.disk.operations(), before + 2);
}

#[test]
fn a_roll_adds_a_rename_and_a_directory_sync_and_no_descriptor() {
    let mut rig = Rig::new(options(4, 1));
    rig.settle();
    rig.append_and_commit(CAPACITY).unwrap();
    rig.settle();
    rig.disk.record();
    rig.disk.set_descriptors(0);
    let before = rig.disk.operations();
    rig.append_and_commit(200).unwrap();
    let operations = operations_since(&rig.disk, before);
    assert_eq!(operations.len(), 4, "{operations:?}");
    let begins: Vec<_> = operations.iter().filter_map(|what| what.split(' ').next()).collect();
    assert_eq!(begins, ["write", "sync", "rename", "sync"]);
}

#[test]
fn a_frame_that_fits_exactly_does_not_roll_and_the_next_one_does() {
    let mut rig = Rig::new(options(4, 1));
    rig.settle();
    rig.append_and_commit(CAPACITY - 88).unwrap();
    rig.settle();
    rig.append_and_commit(88).unwrap();
    assert_eq!(rig.log.usage().segments, 1);
    assert_eq!(rig.log.sealed_end(), 0);
    rig.append_and_commit(88).unwrap();
    assert_eq!(rig.log.usage().segments, 2);
    assert_eq!(rig.log.sealed_end(), 2);
    assert_eq!(stored(&rig.disk), rig.acknowledged);
}

#[test]
fn a_frame_larger_than_a_segment_is_refused_and_nothing_else_is() {
    let mut rig = Rig::new(options(4, 1));
    rig.settle();
    assert_eq!(rig.log.max_frame_bytes(), CAPACITY);
    match rig.append(CAPACITY + 8) {
        Err(AppendError::TooLarge { bytes, limit_bytes }) => {
            assert_eq!((bytes, limit_bytes), (CAPACITY + 8, CAPACITY));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(rig.append_and_commit(CAPACITY).unwrap(), 0);
}

#[test]
fn a_refused_append_leaves_the_group_as_it_was() {
    let mut rig = Rig::new(options(2, 1));
    rig.settle();
    rig.append_and_commit(CAPACITY).unwrap();
    rig.settle();
    let kept = rig.append(CAPACITY / 16 * 8).unwrap();
    rig.settle();
    for _ in 0..2 {
        match rig.append(CAPACITY) {
            Err(AppendError::NoRoom(NoRoom::Budget)) => {}
            other => panic!("{other:?}"),
        }
    }
    rig.commit(&[(kept, CAPACITY / 16 * 8)]).unwrap();
    assert_eq!(rig.append_and_commit(88).unwrap(), 2, "what still fits is taken");
    assert_eq!(stored(&rig.disk), rig.acknowledged);
}

#[test]
fn nothing_of_a_new_segment_is_durable_before_its_name_is() {
    let mut rig = Rig::new(options(4, 2));
    rig.settle();
    rig.append_and_commit(CAPACITY).unwrap();
    let offset = rig.append(200).unwrap();
    rig.disk.fail_sync(2, PagesAfter::Dirty, Policy::Drop, Times::Once); // the directory's
    assert!(rig.commit(&[(offset, 200)]).is_err());
    assert_eq!(rig.log.durable_end(), 1);
    assert_eq!(rig.log.usage().segments, 1);
    assert!(rig.log.failed().is_some());
}

#[test]
fn a_group_that_spans_a_roll_is_acknowledged_whole() {
    let mut rig = Rig::new(options(4, 2));
    rig.settle();
    let mut appended = vec![];
    for _ in 0..3 {
        let frame_bytes = CAPACITY / 16 * 8;
        appended.push((rig.append(frame_bytes).unwrap(), frame_bytes));
    }
    assert_eq!(rig.log.durable_end(), 2, "the full segment is durable before the next one begins");
    assert_eq!(rig.commit(&appended).unwrap(), 3);
    let after = rig.disk.power_loss(Policy::Drop, 0);
    assert_eq!(stored(&after), rig.acknowledged);
}

#[test]
fn markers_find_room_at_the_end_of_a_full_segment_and_are_not_repeated() {
    let mut rig = Rig::new(options(4, 1));
    rig.settle();
    rig.writer.mark_idle().unwrap();
    assert_eq!(rig.log.usage().segments, 0, "an empty log has nothing to mark");
    rig.append_and_commit(CAPACITY - 64).unwrap();
    let before = rig.disk.operations();
    rig.writer.mark_idle().unwrap();
    assert_eq!(rig.disk.operations(), before + 2);
    rig.writer.mark_idle().unwrap();
    assert_eq!(rig.disk.operations(), before + 2, "one marker tells it");
    let disk = rig.disk.clone();
    rig.writer.close().unwrap();
    assert_eq!(disk.operations(), before + 4, "the mark of a clean stop has a place of its own");
    let bytes = disk.read_file(Path::new("/data/wal/00000000000000000000.seg")).unwrap();
    let last = frame::peek(&bytes[bytes.len() - 64..]).unwrap();
    assert_eq!((last.kind, last.base, last.durable), (Kind::CleanStop, 1, 1));
    let idle = frame::peek(&bytes[bytes.len() - 128..]).unwrap();
    assert_eq!((idle.kind, idle.base, idle.durable), (Kind::Idle, 1, 1));
}

#[test]
fn every_frame_tells_what_was_durable_when_it_was_written() {
    let mut rig = Rig::new(options(4, 1));
    rig.settle();
    rig.append_and_commit(96).unwrap();
    rig.append(96).unwrap();
    rig.append(96).unwrap();
    rig.writer.commit().unwrap();
    let bytes = rig.disk.read_file(Path::new("/data/wal/00000000000000000000.seg")).unwrap();
    let told: Vec<_> = (0..3).map(|at| frame::peek(&bytes[4096 + 96 * at..]).unwrap().durable).collect();
    assert_eq!(told, [0, 1, 1]);
}

#[test]
fn appends_in_steady_state_allocate_nothing() {
    let mut rig = Rig::new(options(8, 2));
    rig.settle();
    let mut capacity = None;
    for round in 0..50 {
        for _ in 0..8 {
            rig.append(256).unwrap();
        }
        rig.writer.commit().unwrap();
        rig.log.release_below(rig.log.durable_end());
        rig.settle();
        if round > 2 * 6 {
            let before = *capacity.get_or_insert(rig.writer.group.capacity());
            assert_eq!(rig.writer.group.capacity(), before);
        }
    }
}

#[test]
fn a_buffer_that_one_large_group_blew_up_is_given_back() {
    let options = Options { segment_bytes: 16 << 20, budget_bytes: 64 << 20, ..options(4, 1) };
    let mut rig = Rig::new(options);
    rig.settle();
    append(&mut rig.writer, &vec![7; 6 << 20]).unwrap();
    rig.writer.commit().unwrap();
    assert!(rig.writer.group.capacity() > KEEP_GROUP_BYTES);
    for _ in 0..SMALL_GROUPS {
        append(&mut rig.writer, b"small").unwrap();
        rig.writer.commit().unwrap();
    }
    assert!(rig.writer.group.capacity() <= KEEP_GROUP_BYTES);
}

#[test]
fn a_file_in_the_next_segments_place_is_told_and_waited_out() {
    let mut rig = Rig::new(options(4, 2));
    rig.settle();
    rig.append_and_commit(CAPACITY).unwrap();
    let path = Path::new("/data/wal/00000000000000000001.seg");
    rig.disk.write_file(path, b"somebody's").unwrap();
    for _ in 0..3 {
        match rig.append(200) {
            Err(AppendError::NoRoom(NoRoom::Disk(reason))) => assert!(reason.contains("001.seg"), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(rig.log.failed(), None);
    rig.disk.remove_file(path).unwrap();
    rig.disk.put_directory(path).unwrap();
    assert!(matches!(rig.append(200), Err(AppendError::NoRoom(NoRoom::Disk(_)))));
    assert_eq!(rig.disk.read_file(path).unwrap_err().kind(), io::ErrorKind::IsADirectory);
    assert_eq!(rig.log.usage().spares, 1, "the spare is where it was");
}

#[tokio::test]
async fn whoever_waits_is_woken_by_the_commit_and_by_the_latch() {
    let mut rig = Rig::new(options(4, 1));
    rig.settle();
    rig.log.wait_beyond(0).now_or_pending().await.unwrap_err();
    let log = rig.log.clone();
    let waiting = tokio::spawn(async move { log.wait_beyond(0).await });
    tokio::task::yield_now().await;
    rig.append_and_commit(200).unwrap();
    waiting.await.unwrap();
    let log = rig.log.clone();
    let waiting = tokio::spawn(async move { log.wait_beyond(1).await });
    tokio::task::yield_now().await;
    rig.disk.fail_write(1, Failure::Io, 0, Times::Once);
    rig.append_and_commit(200).unwrap_err();
    waiting.await.unwrap();
}

/// Polls a future once.
trait NowOrPending: Future + Sized {
    async fn now_or_pending(self) -> Result<Self::Output, ()> {
        tokio::select! { biased; output = self => Ok(output), () = std::future::ready(()) => Err(()) }
    }
}

impl<F: Future> NowOrPending for F {}

/// Rolls through all files several times: appends of changing sizes, groups of changing lengths,
/// releases behind. Stops at the first failure and says whether there was one.
fn run_script(rig: &mut Rig) -> Result<(), AppendError> {
    let mut random = Random::new(7);
    for _ in 0..70 {
        rig.settle();
        let mut appended = vec![];
        for _ in 0..1 + random.below(3) {
            let frame_bytes = 96 + 8 * random.below(500);
            match rig.append(frame_bytes) {
                Ok(offset) => appended.push((offset, frame_bytes)),
                Err(AppendError::NoRoom(_)) => break,
                Err(error) => return Err(error),
            }
        }
        rig.commit(&appended)?;
        if random.below(4) == 0 {
            let end = rig.log.durable_end();
            rig.log.release_below(end.saturating_sub(random.below(4)));
            let first = rig.log.first_offset();
            rig.acknowledged.retain(|offset, _| *offset >= first);
        }
    }
    Ok(())
}

/// Loses the power at every operation of the script in every way; returns the first broken promise.
fn first_broken_promise(data_syncs_ignored: bool, dir_syncs_ignored: bool) -> Option<String> {
    let mut whole = Rig::new(options(4, 1));
    run_script(&mut whole).unwrap();
    let operations = whole.disk.operations();
    assert!(whole.log.first_offset() > 0 && operations > 200, "{operations} operations");
    for stop_at in 3..=operations {
        let mut rig = Rig::new(options(4, 1));
        rig.disk.ignore_syncs(data_syncs_ignored, dir_syncs_ignored);
        rig.disk.stop_at(stop_at);
        let _ = run_script(&mut rig);
        for policy in Policy::ALL {
            // The seed differs each time.
            let broken = match try_stored(&rig.disk.power_loss(policy, stop_at)) {
                Ok(after) => broken_promise(&rig.acknowledged, &after),
                Err(broken) => Some(broken),
            };
            if let Some(broken) = broken {
                return Some(format!("{broken}; {policy:?}, stopped at operation {stop_at}"));
            }
        }
    }
    None
}

fn broken_promise(acknowledged: &BTreeMap<u64, Vec<u8>>, after: &BTreeMap<u64, Vec<u8>>) -> Option<String> {
    let lost = acknowledged.iter().find(|(offset, bytes)| after.get(offset) != Some(bytes));
    let invented = after.iter().find(|(offset, bytes)| **bytes != payload(**offset, bytes.len() as u64));
    let lost = lost.map(|(offset, _)| format!("lost {offset}"));
    lost.or_else(|| invented.map(|(offset, _)| format!("invented {offset}")))
}

#[test]
fn a_power_loss_at_any_operation_costs_nothing_acknowledged_and_invents_nothing() {
    assert_eq!(first_broken_promise(false, false), None);
}

#[test]
fn the_test_of_power_losses_notices_a_missing_sync() {
    assert!(first_broken_promise(true, false).is_some());
    assert!(first_broken_promise(false, true).is_some());
}

#[test]
fn after_a_failed_sync_nothing_succeeds_any_more_whichever_it_was() {
    let mut whole = Rig::new(options(4, 1));
    whole.disk.record();
    run_script(&mut whole).unwrap();
    let operations = operations_since(&whole.disk, 2);
    let syncs = operations.iter().filter(|what| what.starts_with("sync ")).count() as u64;
    for pages in [PagesAfter::Clean, PagesAfter::Dirty, PagesAfter::Reverted] {
        let mut latched = 0;
        for nth in 1..=syncs {
            let mut rig = Rig::new(options(4, 1));
            rig.disk.fail_sync(nth, pages, Policy::Drop, Times::Once);
            let outcome = run_script(&mut rig);
            assert_eq!(outcome.is_err(), rig.log.failed().is_some(), "sync {nth}");
            if outcome.is_err() {
                latched += 1;
                let end = rig.log.durable_end();
                let operations = rig.disk.operations();
                assert!(
                    rig.append(200).is_err()
                        && rig.writer.commit().is_err()
                        && rig.writer.mark_idle().is_err()
                );
                assert_eq!(rig.stock.step(), Step::Idle);
                assert_eq!(rig.log.durable_end(), end);
                assert_eq!(rig.disk.operations(), operations, "a latched log touches no file");
            }
            let after = stored(&rig.disk.power_loss(Policy::Drop, 0));
            for (offset, bytes) in &rig.acknowledged {
                assert_eq!(after.get(offset), Some(bytes), "offset {offset}, sync {nth}, {pages:?}");
            }
        }
        assert!(latched > 40, "{latched}");
    }
}

#[test]
fn after_a_failed_write_of_a_group_nothing_of_it_counts() {
    for written in [0, 100, 5000] {
        let mut rig = Rig::new(options(4, 1));
        rig.settle();
        rig.append_and_commit(200).unwrap();
        rig.append(6000).unwrap();
        rig.disk.fail_write(1, Failure::NoSpace, written, Times::Once);
        let error = rig.writer.commit().unwrap_err();
        assert!(error.to_string().contains("writing /data/wal/"), "{error}");
        assert_eq!(rig.log.durable_end(), 1);
        assert_eq!(stored(&rig.disk), rig.acknowledged);
        assert!(matches!(rig.append(200), Err(AppendError::Failed(LogError::Failed(_)))));
    }
}

#[test]
fn stale_bytes_of_a_reused_file_never_validate() {
    let mut rig = Rig::new(options(3, 1));
    for round in 0..40 {
        rig.settle();
        rig.append_and_commit(1000 + 8 * (round % 7)).unwrap();
        rig.log.release_below(rig.log.durable_end());
        rig.acknowledged.retain(|offset, _| *offset >= rig.log.first_offset());
        // Every frame that holds anywhere in a live segment is one that was acknowledged in it.
        for path in rig.disk.files() {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some(base) = parse_segment_name(name) else { continue };
            let bytes = rig.disk.read_file(&path).unwrap();
            let salt = decode_header(&bytes, base).unwrap().salt;
            let offsets: Vec<_> = (4096..bytes.len())
                .step_by(8)
                .filter_map(|at| intact_frame(&bytes[at..], salt))
                .map(|frame| frame.base)
                .collect();
            let expected: Vec<_> = (base..base + offsets.len() as u64).collect();
            assert_eq!(offsets, expected, "{name}");
        }
    }
    assert!(rig.disk.files().len() <= 3);
}

#[test]
fn recovery_can_write_frames_anew_over_a_segment_of_the_same_base() {
    let mut rig = Rig::new(options(4, 1));
    rig.settle();
    rig.writer.begin(5).unwrap();
    rig.append(200).unwrap();
    rig.writer.commit().unwrap();
    // A second run that trusts nothing of it.
    let path: PathBuf = "/data/wal/00000000000000000000.seg".into();
    let bytes = rig.disk.read_file(&path).unwrap();
    let header = decode_header(&bytes, 0).unwrap();
    let inventory = Inventory {
        segments: vec![Segment::new(header, path.clone(), SEGMENT_BYTES, SEGMENT_BYTES)],
        resume: None,
        spares: vec![],
        next_spare_number: 9,
        next_offset: 0,
    };
    let disk = rig.disk.kill();
    let (log, mut writer, mut stock) = assemble(Arc::new(disk.clone()), options(4, 1), entropy(3), inventory);
    while log.usage().spares == 0 {
        assert_eq!(stock.step(), Step::Worked);
    }
    append(&mut writer, &payload(0, 50)).unwrap();
    writer.begin(6).unwrap();
    assert_eq!((log.durable_end(), log.usage().segments, log.first_offset()), (1, 1, 0));
    assert_eq!(log.usage().bytes, SEGMENT_BYTES);
    let after = stored(&disk.power_loss(Policy::Drop, 0));
    assert_eq!(after, BTreeMap::from([(0, payload(0, 50))]));
}

#[test]
fn a_void_is_written_down_and_appending_goes_on_behind_it() {
    let mut rig = Rig::new(options(4, 2));
    rig.settle();
    rig.writer.skip_to(5, 1).unwrap();
    rig.writer.skip_to(3, 1).unwrap(); // never back
    assert_eq!(rig.append_and_commit(200).unwrap(), 5);
    assert_eq!((rig.log.first_offset(), rig.log.durable_end()), (0, 6));
    let bytes = rig.disk.read_file(Path::new("/data/wal/00000000000000000000.seg")).unwrap();
    let void = frame::peek(&bytes[4096..]).unwrap();
    assert!(frame::check_prefix(&void, &bytes[4096..]));
    assert_eq!((void.kind, void.base, void.next_offset()), (Kind::Void, 0, 5));
    assert_eq!(frame::peek(&bytes[4096 + 64..]).unwrap().base, 5);
}

#[test]
fn a_clean_stop_is_resumed_in_the_same_segment() {
    let mut rig = Rig::new(options(4, 1));
    rig.settle();
    rig.append_and_commit(200).unwrap();
    let disk = rig.disk.clone();
    rig.writer.close().unwrap();
    let path: PathBuf = "/data/wal/00000000000000000000.seg".into();
    let header = decode_header(&disk.read_file(&path).unwrap(), 0).unwrap();
    let resume = Resume {
        file: disk.open(&path, Access::ReadWrite).unwrap().into(),
        position: 4096 + 200 + 64,
        is_marked_clean: true,
    };
    let inventory = Inventory {
        segments: vec![Segment::new(header, path, SEGMENT_BYTES, SEGMENT_BYTES)],
        resume: Some(resume),
        spares: vec![],
        next_spare_number: 9,
        next_offset: 1,
    };
    let (_, mut writer, _) = assemble(Arc::new(disk.clone()), options(4, 1), entropy(3), inventory);
    let before = disk.operations();
    writer.mark_idle().unwrap();
    assert_eq!(disk.operations(), before, "the mark of the clean stop tells it all");
    append(&mut writer, &payload(1, 80)).unwrap();
    writer.commit().unwrap();
    let expected = BTreeMap::from([(0, payload(0, 112)), (1, payload(1, 80))]);
    assert_eq!(stored(&disk), expected);
}
