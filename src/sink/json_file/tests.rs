//! The archive holds every event exactly once and in order: after a power loss at every operation,
//! after every failing call, after lost ledgers, full disks and other people's hands.
//!
//! The world around the sink is a list of events and a list of checkpoints. What a real queue
//! promises is kept here too: a checkpoint is made of a finished delivery, may lag behind it, never goes
//! back once durable, and everything from its offset on is delivered again.

mod copy;
mod finish;
mod meanwhile;

use std::collections::BTreeSet;
use std::ops::Range;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::layout::ArchiveFile;
use super::*;
use crate::config::Layout;
use crate::disk::SimulatedDisk;
use crate::disk::simulated::{Failure as FaultKind, PagesAfter, Policy, Random, Times};
use crate::event::{Micros, StoredBatch};

const DAY: i64 = 86_400_000_000;
/// 2025-06-14T23:00:00Z
const START: i64 = 1_749_942_000_000_000;

/// Everything that was ever accepted; the index is the offset. `None` is void.
#[derive(Clone)]
struct World {
    events: Vec<Option<(Micros, String)>>,
}

impl World {
    /// `count` offsets over about three days, some void, a few accepted a little earlier than the one
    /// before.
    fn new(count: u64, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut now = START;
        let events = (0..count)
            .map(|offset| {
                now += random.below(2 * 3 * DAY as u64 / count) as i64;
                let at = Micros(now - random.below(3) as i64 * 1_000_000);
                let text = "x".repeat(random.below(700) as usize);
                let json = format!(
                    r#"{{"specversion":"1.0","id":"{offset}","source":"/s","type":"t","data":"{text}"}}"#
                );
                (random.below(12) != 0).then_some((at, json))
            })
            .collect();
        Self { events }
    }

    /// The same within a millisecond, so that neither date nor age ends a file.
    fn at_once(count: u64, seed: u64) -> Self {
        let mut world = Self::new(count, seed);
        for (at, _) in world.events.iter_mut().flatten() {
            at.0 = START + at.0 % 1000;
        }
        world
    }

    fn len(&self) -> u64 {
        self.events.len() as u64
    }

    fn batch(&self, range: Range<u64>) -> Batch {
        let mut buffer = Vec::new();
        let mut spans = Vec::new();
        let mut voids = Vec::new();
        for offset in range {
            match &self.events[offset as usize] {
                Some((at, json)) => {
                    spans.push((offset, *at, buffer.len()..buffer.len() + json.len()));
                    buffer.extend_from_slice(json.as_bytes());
                }
                None => voids.push(offset..offset + 1),
            }
        }
        let mut events = StoredBatch::over(Bytes::from(buffer));
        for (offset, at, span) in spans {
            events.push(offset, at, span);
        }
        Batch { events, voids }
    }

    /// What the archive must hold, byte for byte.
    fn expected(&self, range: Range<u64>) -> String {
        let mut out = Vec::new();
        for event in self.batch(range).events.iter() {
            write_archive_line(&mut out, event);
        }
        String::from_utf8(out).unwrap()
    }
}

fn options() -> Options {
    Options {
        sink: "archive".into(),
        tree: Tree::of("/data/archive"),
        quarantine_dir: "/data/quarantine".into(),
        rotate_size_bytes: 3000,
        rotate_every: Duration::from_secs(24 * 3600),
        rotate_count: None,
        compress: Form::Plain,
        retain_age: None,
        retain_size_bytes: None,
    }
}

fn open(disk: &SimulatedDisk, resume: Resume) -> JsonFile {
    JsonFile::open(Arc::new(disk.clone()), options(), resume).unwrap()
}

fn deliver(sink: &mut JsonFile, batch: &Batch) -> Result<Delivery, Unavailable> {
    let mut answer = sink.deliver(batch);
    match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("the archive blocks, it does not wait"),
    }
}

/// A checkpoint as the ledger keeps it.
#[derive(Debug, Clone, Default)]
struct Checkpoint {
    token: Option<Vec<u8>>,
    next: u64,
}

impl Checkpoint {
    fn resume(&self) -> Resume {
        Resume { token: self.token.clone(), next_offset: self.next }
    }
}

/// Delivers everything from `from` on in batches of `size`; stops at the first refusal. Returns the
/// checkpoint after each delivery.
fn run(sink: &mut JsonFile, world: &World, from: u64, size: u64) -> (Vec<Checkpoint>, Option<Unavailable>) {
    let mut checkpoints = Vec::new();
    let mut next = from;
    while next < world.len() {
        let end = (next + size).min(world.len());
        match deliver(sink, &world.batch(next..end)) {
            Ok(Delivery { token, .. }) => {
                // Without a new token the queue keeps the one it has.
                let token = token.or(checkpoints.last().and_then(|last: &Checkpoint| last.token.clone()));
                checkpoints.push(Checkpoint { token, next: end });
            }
            Err(refused) => return (checkpoints, Some(refused)),
        }
        next = end;
    }
    (checkpoints, None)
}

/// The archive on a disk, in whatever layout it is there.
fn tree(disk: &SimulatedDisk) -> Tree {
    let root = options().tree.root;
    let made_by = |path: PathBuf| {
        let dir = path.strip_prefix(&root).ok()?.parent()?.to_str()?;
        Layout::read(dir).map(|(layout, _)| layout)
    };
    let layout = disk.files().into_iter().find_map(made_by).unwrap_or_default();
    Tree { root, layout }
}

fn archive_files(disk: &SimulatedDisk) -> Vec<ArchiveFile> {
    tree(disk).list(disk).unwrap()
}

/// The whole archive, in order of its files' first offsets; checks each file's name on the way.
fn archive(disk: &SimulatedDisk) -> String {
    let mut all = String::new();
    for file in archive_files(disk) {
        let bytes = disk.read_file(&file.path).unwrap();
        let text = String::from_utf8(bytes).unwrap_or_else(|e| format!("<no UTF-8: {e}>"));
        if let Some(first) = text.lines().next()
            && let Some(stamp) = layout::intact_stamp(first.as_bytes())
        {
            assert_eq!(stamp.offset, file.first_offset, "{}", file.path.display());
            assert_eq!(stamp.accepted_at().map(Day::of), Some(file.day), "{}", file.path.display());
        }
        all.push_str(&text);
    }
    all
}

fn offsets(text: &str) -> Vec<String> {
    text.split_inclusive('\n')
        .map(|line| match line.strip_suffix('\n').and_then(|line| layout::intact_stamp(line.as_bytes())) {
            Some(stamp) => stamp.offset.to_string(),
            None => format!("<bad line of {} bytes>", line.len()),
        })
        .collect()
}

#[track_caller]
fn assert_exactly_once(disk: &SimulatedDisk, world: &World, range: Range<u64>, story: impl Fn() -> String) {
    let (found, expected) = (archive(disk), world.expected(range));
    if found != expected {
        let at: Vec<String> = archive_files(disk).iter().map(|f| f.path.display().to_string()).collect();
        panic!(
            "{}\n   found {:?}\nexpected {:?}\n   files {at:#?}",
            story(),
            offsets(&found).join(" "),
            offsets(&expected).join(" ")
        );
    }
}

/// A run without trouble: the recorded disk, every checkpoint, and after which operation it was due.
struct Recording {
    disk: SimulatedDisk,
    checkpoints: Vec<(u64, Checkpoint)>,
}

fn record(world: &World, size: u64) -> Recording {
    record_with(world, size, |disk| open(disk, Resume::default()), |_| ())
}

/// A run recorded: the checkpoints and after which operation each was due. `between` follows each delivery.
fn record_with(
    world: &World,
    size: u64,
    open: impl FnOnce(&SimulatedDisk) -> JsonFile,
    between: impl Fn(&JsonFile),
) -> Recording {
    let disk = SimulatedDisk::new(1);
    disk.record();
    let mut sink = open(&disk);
    let mut checkpoints = vec![(0, Checkpoint::default())];
    let mut next = 0;
    while next < world.len() {
        let end = (next + size).min(world.len());
        let delivery = deliver(&mut sink, &world.batch(next..end)).unwrap();
        checkpoints.push((disk.operations(), Checkpoint { token: delivery.token, next: end }));
        next = end;
        between(&sink);
    }
    Recording { disk, checkpoints }
}

/// Every checkpoint that may be the last durable one when the power goes at `operation`.
fn possible(recording: &Recording, operation: u64, lag: usize) -> Checkpoint {
    let reported = recording.checkpoints.iter().filter(|(due, _)| *due <= operation).count();
    recording.checkpoints[reported.saturating_sub(1 + lag)].1.clone()
}

fn seeds(policy: Policy, count: u64) -> Range<u64> {
    if policy.is_random() { 0..count } else { 0..1 }
}

#[test]
fn an_undisturbed_archive_holds_every_event_in_files_named_by_day_and_first_offset() {
    for size in [1, 4, 100] {
        let world = World::new(60, 3);
        let recording = record(&world, size);
        assert_exactly_once(&recording.disk, &world, 0..60, String::new);
        let files = archive_files(&recording.disk);
        assert!(files.len() >= 4, "the script must rotate: {files:?}");
        let days: BTreeSet<Day> = files.iter().map(|file| file.day).collect();
        assert!(days.len() >= 3, "and cross midnight: {days:?}");
        for file in &files {
            let bytes = recording.disk.read_file(&file.path).unwrap();
            assert!(bytes.len() < 3000 + 1000, "a file that has reached its size is finished");
        }
    }
}

#[test]
fn a_power_loss_at_every_operation_leaves_every_event_exactly_once() {
    let world = World::new(36, 7);
    for size in [2, 7] {
        let recording = record(&world, size);
        for operation in 0..=recording.disk.operations() {
            for policy in Policy::ALL {
                for seed in seeds(policy, 3) {
                    for lag in 0..3 {
                        let disk = recording.disk.at(operation).unwrap().power_loss(policy, seed);
                        let checkpoint = possible(&recording, operation, lag);
                        let mut sink = open(&disk, checkpoint.resume());
                        let (_, refused) = run(&mut sink, &world, checkpoint.next, 5);
                        assert!(refused.is_none(), "{refused:?}");
                        assert_exactly_once(&disk, &world, 0..36, || {
                            format!(
                                "power lost at operation {operation} ({}), {policy:?}, seed {seed}, {size} a batch, \
                                 checkpoint {} behind",
                                recording.disk.describe(operation),
                                lag
                            )
                        });
                    }
                }
            }
        }
    }
}

#[test]
fn a_second_power_loss_at_every_operation_of_the_recovery_changes_nothing() {
    let world = World::new(20, 11);
    let recording = record(&world, 4);
    let mut states = 0;
    for operation in (0..=recording.disk.operations()).step_by(3) {
        for (first, ledger_lost) in [(Policy::Keep, false), (Policy::Torn, false), (Policy::Stale, true)] {
            let checkpoint =
                if ledger_lost { Checkpoint::default() } else { possible(&recording, operation, 1) };
            let second = recording.disk.at(operation).unwrap().power_loss(first, operation);
            second.record();
            let mut sink = open(&second, checkpoint.resume());
            let mut due = vec![(0, checkpoint.clone())];
            let mut next = checkpoint.next;
            while next < world.len() {
                let end = (next + 3).min(world.len());
                let delivery = deliver(&mut sink, &world.batch(next..end)).unwrap();
                // Without a new token the queue keeps the one it has.
                let token = delivery.token.or(due[due.len() - 1].1.token.clone());
                due.push((second.operations(), Checkpoint { token, next: end }));
                next = end;
            }
            let again = Recording { disk: second, checkpoints: due };
            for at in 0..=again.disk.operations() {
                for policy in [Policy::Drop, Policy::DataOnly, Policy::Subset, Policy::Stale] {
                    let disk = again.disk.at(at).unwrap().power_loss(policy, at);
                    let resumed = possible(&again, at, (at % 2) as usize);
                    let (_, refused) = run(&mut open(&disk, resumed.resume()), &world, resumed.next, 6);
                    assert!(refused.is_none(), "{refused:?}");
                    assert_exactly_once(&disk, &world, 0..20, || {
                        format!("power lost at operation {operation} ({first:?}), then at {at} ({policy:?})")
                    });
                    states += 1;
                }
            }
        }
    }
    assert!(states > 1000, "{states}");
}

#[test]
fn what_a_recovery_after_a_kill_built_on_survives_a_power_loss_right_after_it() {
    let world = World::new(24, 13);
    let recording = record(&world, 3);
    for operation in 0..=recording.disk.operations() {
        for policy in Policy::ALL {
            // Killed: the page cache stays. Recovered from it, went on for two batches, then the power went.
            let killed = recording.disk.at(operation).unwrap();
            let checkpoint = possible(&recording, operation, 0);
            let until = (checkpoint.next + 6).min(world.len());
            let part = World { events: world.events[..until as usize].to_vec() };
            let (made, refused) = run(&mut open(&killed, checkpoint.resume()), &part, checkpoint.next, 3);
            assert!(refused.is_none(), "{refused:?}");
            let resumed = made.last().unwrap_or(&checkpoint).clone();
            let disk = killed.power_loss(policy, operation);
            let (_, refused) = run(&mut open(&disk, resumed.resume()), &world, resumed.next, 3);
            assert!(refused.is_none(), "{refused:?}");
            assert_exactly_once(&disk, &world, 0..24, || {
                format!("killed at {operation}, power lost later ({policy:?})")
            });
        }
    }
}

#[test]
fn a_lost_ledger_still_leaves_every_event_exactly_once_whatever_the_power_loss_left() {
    let world = World::new(30, 17);
    let recording = record(&world, 4);
    for operation in 0..=recording.disk.operations() {
        for policy in Policy::ALL {
            for seed in seeds(policy, 8) {
                let disk = recording.disk.at(operation).unwrap().power_loss(policy, seed);
                let (_, refused) = run(&mut open(&disk, Resume::default()), &world, 0, 5);
                assert!(refused.is_none(), "{refused:?}");
                assert_exactly_once(&disk, &world, 0..30, || {
                    format!("ledger lost, power lost at operation {operation}, {policy:?}, seed {seed}")
                });
            }
        }
    }
}

#[test]
fn with_an_old_ledger_and_a_log_that_has_let_go_nothing_archived_is_destroyed() {
    let world = World::new(40, 19);
    let recording = record(&world, 4);
    let old = recording.checkpoints[3].1.clone();
    for held_from in old.next..=40 {
        let disk = recording.disk.kill();
        let resume = Resume { token: old.token.clone(), next_offset: held_from };
        let (_, refused) = run(&mut open(&disk, resume), &world, held_from, 4);
        assert!(refused.is_none(), "{refused:?}");
        assert_exactly_once(&disk, &world, 0..40, || format!("the log begins at {held_from}"));
    }
}

#[test]
fn a_checkpoint_that_lags_behind_its_own_token_repeats_nothing() {
    let world = World::new(30, 23);
    let recording = record(&world, 5);
    let token = recording.checkpoints[4].1.token.clone();
    for from in 0..=20 {
        let disk = recording.disk.kill();
        let resume = Resume { token: token.clone(), next_offset: from };
        let (_, refused) = run(&mut open(&disk, resume), &world, from, 4);
        assert!(refused.is_none(), "{refused:?}");
        assert_exactly_once(&disk, &world, 0..30, || format!("delivered again from {from}"));
    }
}

/// Arms a fault on a fresh disk at each possible place, delivers with retries, then checks what is
/// there, what a power loss leaves, and what a restart from any checkpoint makes of it.
fn survives(arm: impl Fn(&SimulatedDisk, u64), places: u64, story: &str) {
    let world = World::new(24, 29);
    for place in 1..=places {
        let disk = SimulatedDisk::new(place);
        arm(&disk, place);
        let mut sink = open(&disk, Resume::default());
        let mut checkpoint = Checkpoint::default();
        let mut tries = 0;
        while checkpoint.next < world.len() {
            let (made, refused) = run(&mut sink, &world, checkpoint.next, 3);
            checkpoint = made.last().cloned().unwrap_or(checkpoint);
            if let Some(refused) = refused {
                // The power may go just after any refusal.
                let left = disk.power_loss(Policy::Torn, place);
                let (_, refused_again) =
                    run(&mut open(&left, checkpoint.resume()), &world, checkpoint.next, 4);
                assert!(refused_again.is_none(), "{refused_again:?}");
                assert_exactly_once(&left, &world, 0..24, || {
                    format!("{story} at {place} ({}), then the power went", refused.reason)
                });
                tries += 1;
                assert!(tries < 4, "{story} at {place}: {}", refused.reason);
            }
        }
        assert_exactly_once(&disk, &world, 0..24, || format!("{story} at {place}"));
        let left = disk.power_loss(Policy::Drop, 0);
        assert_exactly_once(&left, &world, 0..24, || format!("{story} at {place}, power lost at the end"));
    }
}

#[test]
fn a_failed_sync_anywhere_costs_nothing_whatever_the_kernel_does_with_the_pages() {
    for pages in [PagesAfter::Clean, PagesAfter::Dirty, PagesAfter::Reverted] {
        for reached in [Policy::Drop, Policy::Subset, Policy::Keep] {
            let arm = |disk: &SimulatedDisk, nth| disk.fail_sync(nth, pages, reached, Times::Once);
            survives(arm, 40, &format!("sync failed, pages {pages:?}, reached {reached:?}"));
        }
    }
}

#[test]
fn a_failed_or_short_write_anywhere_leaves_no_half_line() {
    for written in [0, 1, 100, 600] {
        for failure in [FaultKind::NoSpace, FaultKind::Io] {
            let arm = |disk: &SimulatedDisk, nth| disk.fail_write(nth, failure, written, Times::Once);
            survives(arm, 16, &format!("write failed after {written} bytes ({failure:?})"));
        }
    }
}

#[test]
fn any_failing_call_costs_nothing() {
    let arm = |disk: &SimulatedDisk, nth| disk.fail_operation(nth, FaultKind::Io, Times::Once);
    survives(arm, 70, "call failed");
}

#[test]
fn after_a_failed_sync_the_file_is_cut_and_never_written_to_again() {
    let world = World::at_once(8, 31);
    let disk = SimulatedDisk::new(1);
    let mut sink = open(&disk, Resume::default());
    deliver(&mut sink, &world.batch(0..2)).unwrap();
    let first = archive_files(&disk)[0].clone();
    let length = disk.read_file(&first.path).unwrap().len();
    disk.fail_sync(1, PagesAfter::Clean, Policy::Drop, Times::Once);
    deliver(&mut sink, &world.batch(2..4)).unwrap_err();
    deliver(&mut sink, &world.batch(2..4)).unwrap();
    assert_eq!(disk.read_file(&first.path).unwrap().len(), length);
    assert_eq!(archive_files(&disk).len(), 2);
    assert_exactly_once(&disk.power_loss(Policy::Drop, 0), &world, 0..4, String::new);
}

#[test]
fn a_disk_whose_syncs_fail_for_ever_keeps_the_sink_unavailable_and_the_archive_whole() {
    let world = World::at_once(8, 31);
    let disk = SimulatedDisk::new(1);
    let mut sink = open(&disk, Resume::default());
    let checkpoint = deliver(&mut sink, &world.batch(0..4)).unwrap();
    disk.fail_sync(1, PagesAfter::Clean, Policy::Subset, Times::Forever);
    for _ in 0..5 {
        let refused = deliver(&mut sink, &world.batch(4..8)).unwrap_err();
        assert!(refused.reason.contains("Input/output error"), "{}", refused.reason);
    }
    let left = disk.power_loss(Policy::Torn, 5);
    left.heal();
    let resume = Resume { token: checkpoint.token, next_offset: 4 };
    deliver(&mut open(&left, resume), &world.batch(4..8)).unwrap();
    assert_exactly_once(&left, &world, 0..8, String::new);
}

#[test]
fn a_full_disk_makes_the_sink_wait_and_room_lets_it_go_on() {
    let world = World::new(60, 37);
    let disk = SimulatedDisk::new(1);
    disk.set_capacity(4 * 4096);
    let mut sink = open(&disk, Resume::default());
    let mut next = 0;
    let mut refusals = 0;
    while next < world.len() {
        let (made, refused) = run(&mut sink, &world, next, 2);
        next = made.last().map_or(next, |checkpoint| checkpoint.next);
        if let Some(refused) = refused {
            assert!(refused.reason.contains("No space"), "{}", refused.reason);
            assert_exactly_once(&disk.power_loss(Policy::Drop, 0), &world, 0..next, || "while full".into());
            refusals += 1;
            if refusals % 2 == 0 {
                disk.set_capacity(4 * 4096 * (refusals + 1));
            }
        }
    }
    assert!(refusals >= 2);
    sink.close().unwrap();
    assert_exactly_once(&disk, &world, 0..60, || "in the end".into());
}

#[test]
fn closing_after_a_refused_batch_leaves_a_file_that_ends_in_a_newline() {
    let world = World::at_once(8, 31);
    let disk = SimulatedDisk::new(1);
    let mut sink = open(&disk, Resume::default());
    deliver(&mut sink, &world.batch(0..4)).unwrap();
    disk.fail_write(1, FaultKind::NoSpace, 33, Times::Once);
    deliver(&mut sink, &world.batch(4..8)).unwrap_err();
    sink.close().unwrap();
    assert_exactly_once(&disk, &world, 0..4, String::new);
}

/// What somebody does to the archive's current file.
fn vandalise(disk: &SimulatedDisk, path: &Path, how: &str) {
    let bytes = disk.read_file(path).unwrap();
    match how {
        "cut" => disk.truncate(path, bytes.len() as u64 / 2).unwrap(),
        "emptied" => disk.truncate(path, 0).unwrap(),
        "deleted" => disk.remove_file(path).unwrap(),
        "appended to" => disk.overwrite(path, bytes.len() as u64, b"mine\n").unwrap(),
        "replaced" => disk.write_file(path, &vec![b'\n'; bytes.len()]).unwrap(),
        "edited at its end" => disk.overwrite(path, bytes.len() as u64 - 20, b"9").unwrap(),
        other => panic!("{other}"),
    }
}

const VANDALISM: [&str; 6] = ["cut", "emptied", "deleted", "appended to", "replaced", "edited at its end"];

#[test]
fn a_file_changed_under_the_daemon_is_left_alone_and_a_new_one_goes_on() {
    let world = World::at_once(10, 41);
    for how in VANDALISM {
        let disk = SimulatedDisk::new(1);
        let mut sink = open(&disk, Resume::default());
        let first = deliver(&mut sink, &world.batch(0..4)).unwrap();
        let current = Position::decode(&first.token.unwrap()).unwrap().0.file.unwrap();
        let path = options().tree.path(current.day, current.first_offset);
        vandalise(&disk, &path, how);
        let left = disk.read_file(&path).ok();
        deliver(&mut sink, &world.batch(4..7)).unwrap();
        deliver(&mut sink, &world.batch(7..10)).unwrap();
        assert_eq!(disk.read_file(&path).ok(), left, "{how}");
        let all = archive(&disk);
        assert!(all.ends_with(&world.expected(4..10)), "{how}: {:?}", offsets(&all));
        assert!(!all.contains('\0'), "{how}");
    }
}

#[test]
fn a_file_changed_between_two_runs_is_never_extended_and_costs_no_later_event() {
    let world = World::at_once(10, 41);
    for how in VANDALISM {
        let disk = SimulatedDisk::new(1);
        let mut sink = open(&disk, Resume::default());
        let first = deliver(&mut sink, &world.batch(0..4)).unwrap();
        let current = Position::decode(first.token.as_ref().unwrap()).unwrap().0.file.unwrap();
        let path = options().tree.path(current.day, current.first_offset);
        vandalise(&disk, &path, how);
        let resume = Resume { token: first.token, next_offset: 4 };
        deliver(&mut open(&disk, resume), &world.batch(4..10)).unwrap();
        let all = archive(&disk);
        assert!(all.ends_with(&world.expected(4..10)), "{how}: {:?}", offsets(&all));
        assert!(!all.contains('\0'), "{how}");
    }
}

#[test]
fn damage_inside_a_surveyed_file_takes_no_intact_line_that_will_not_come_again() {
    let world = World::at_once(12, 43);
    let disk = SimulatedDisk::new(1);
    let big = Options { rotate_size_bytes: 1 << 20, rotate_every: Duration::from_secs(1 << 30), ..options() };
    let mut sink = JsonFile::open(Arc::new(disk.clone()), big, Resume::default()).unwrap();
    deliver(&mut sink, &world.batch(0..12)).unwrap();
    let path = archive_files(&disk)[0].path.clone();
    let whole = disk.read_file(&path).unwrap();
    disk.overwrite(&path, 5, b"\0").unwrap();
    // The ledger is lost, and the log has let go of everything.
    let mut sink = open(&disk, Resume { token: None, next_offset: 12 });
    assert!(sink.close().is_ok());
    let kept = disk.read_file(&path).unwrap();
    assert_eq!(kept.len(), whole.len());
    assert_eq!(kept[6..], whole[6..]);

    // The log still has everything: the good lines behind the damage are set aside and come again.
    let (_, refused) = run(&mut open(&disk, Resume::default()), &world, 0, 3);
    assert!(refused.is_none(), "{refused:?}");
    assert_exactly_once(&disk, &world, 0..12, String::new);
    let aside: Vec<PathBuf> =
        disk.files().into_iter().filter(|p| p.starts_with("/data/quarantine")).collect();
    assert_eq!(aside.len(), 1, "{aside:?}");
    assert_eq!(disk.read_file(&aside[0]).unwrap(), kept);
}

#[test]
fn an_archive_of_another_data_directory_is_neither_skipped_over_nor_touched() {
    let theirs = World::new(20, 47);
    let ours = World::new(20, 48);
    let disk = record(&theirs, 5).disk.kill();
    let before = archive(&disk);
    let mut sink = open(&disk, Resume::default());
    for _ in 0..2 {
        let refused = deliver(&mut sink, &ours.batch(0..5)).unwrap_err();
        assert!(refused.reason.contains("another data directory"), "{}", refused.reason);
    }
    assert_eq!(archive(&disk), before);

    // The same when a token of ours meets a directory of theirs: nothing behind it is removed.
    let token = record(&ours, 5).checkpoints[1].1.clone();
    let mut sink = open(&disk, token.resume());
    deliver(&mut sink, &ours.batch(5..10)).unwrap_err();
    assert_eq!(archive(&disk), before);
}

#[test]
fn a_compressed_last_file_is_read_for_its_end_and_left_alone() {
    let world = World::new(30, 53);
    for form in ["gz", "zst"] {
        let disk = record(&world, 5).disk.kill();
        let last = archive_files(&disk).pop().unwrap();
        let bytes = disk.read_file(&last.path).unwrap();
        let packed = if form == "zst" { zstd::encode_all(&bytes[..], 1).unwrap() } else { gzip(&bytes) };
        let path = last.path.with_extension(format!("ndjson.{form}"));
        disk.write_file(&path, &packed).unwrap();
        disk.remove_file(&last.path).unwrap();
        let (_, refused) = run(&mut open(&disk, Resume::default()), &world, 0, 7);
        assert!(refused.is_none(), "{refused:?}");
        assert_eq!(disk.read_file(&path).unwrap(), packed);
        assert!(world.expected(0..30).ends_with(std::str::from_utf8(&bytes).unwrap()));
        let before = world.expected(0..30).len() - bytes.len();
        disk.remove_file(&path).unwrap();
        assert_eq!(archive(&disk), world.expected(0..30)[..before]);
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_clock_that_jumps_changes_files_but_neither_order_nor_count() {
    let mut world = World::new(20, 59);
    for (offset, event) in world.events.iter_mut().enumerate() {
        if let Some((at, _)) = event {
            at.0 += [0, -30 * DAY, 400 * DAY, -1_000_000][offset / 3 % 4];
        }
    }
    let recording = record(&world, 3);
    assert_exactly_once(&recording.disk, &world, 0..20, String::new);
    for operation in 0..=recording.disk.operations() {
        let disk = recording.disk.at(operation).unwrap().power_loss(Policy::Torn, operation);
        let checkpoint = possible(&recording, operation, 1);
        let (_, refused) = run(&mut open(&disk, checkpoint.resume()), &world, checkpoint.next, 3);
        assert!(refused.is_none(), "{refused:?}");
        assert_exactly_once(&disk, &world, 0..20, || format!("power lost at operation {operation}"));
    }
}

#[test]
fn a_batch_of_void_offsets_only_moves_the_checkpoint() {
    let disk = SimulatedDisk::new(1);
    let world = World { events: vec![None, None, Some((Micros(START), "{\"id\":\"1\"}".into()))] };
    let mut sink = open(&disk, Resume::default());
    let delivery = deliver(&mut sink, &world.batch(0..2)).unwrap();
    assert!(archive_files(&disk).is_empty());
    let resume = Resume { token: delivery.token, next_offset: 2 };
    deliver(&mut open(&disk, resume), &world.batch(2..3)).unwrap();
    assert_exactly_once(&disk, &world, 0..3, String::new);
}

#[test]
fn a_token_is_small_enough_for_the_ledger() {
    let recording = record(&World::new(10, 3), 3);
    for (_, checkpoint) in &recording.checkpoints[1..] {
        assert!(checkpoint.token.as_ref().unwrap().len() <= super::super::MAX_TOKEN_BYTES);
    }
}

// ---- these tests can fail: the mistakes they are there for, planted

/// Runs the power-loss script over a disk that forgets some syncs; true when the script notices.
fn caught(data: bool, dirs: bool) -> bool {
    let world = World::new(24, 7);
    let disk = SimulatedDisk::new(1);
    disk.ignore_syncs(data, dirs);
    disk.record();
    let mut sink = open(&disk, Resume::default());
    let (checkpoints, _) = run(&mut sink, &world, 0, 4);
    let last = checkpoints.last().unwrap();
    Policy::ALL.iter().any(|policy| {
        let left = disk.power_loss(*policy, 1);
        let _ = run(&mut open(&left, last.resume()), &world, last.next, 4);
        archive(&left) != world.expected(0..24)
    })
}

#[test]
fn a_forgotten_sync_of_data_or_of_a_directory_would_be_noticed() {
    assert!(!caught(false, false));
    assert!(caught(true, false));
    assert!(caught(false, true));
}
