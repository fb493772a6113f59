//! A repair of the event log, as the queue sees it: what is intact is delivered once, what is lost stays
//! counted, whenever the repair was broken off.

use super::*;
use crate::disk::simulated::CrashStates;
use crate::log::inspect::{Depth, inspect};
use crate::log::repair::Repair;
use crate::log::segment::parse_segment_name;
use crate::log::{Damage, Stream};
use crate::queue::QueueError;
use crate::queue::embedded::{known_durable, repair_log};

const SINKS: [&str; 2] = ["archive", "other"];
/// What `archive` has when the log is damaged goes up to this event.
const DELIVERED: u64 = 10;
/// The event with a wrong byte: `archive` has it, `other` has not.
const WRONG: u64 = 3;

/// With a window over everything, so that the ring has the tags of what is lost.
fn config() -> Config {
    let mut config = tiny();
    config.wal.dedupe_window = 100;
    config
}

fn segments(disk: &SimulatedDisk) -> Vec<PathBuf> {
    let is_segment = |path: &PathBuf| {
        path.starts_with("/data/wal")
            && path.file_name().and_then(|name| parse_segment_name(name.to_str()?)).is_some()
    };
    disk.files().into_iter().filter(is_segment).collect()
}

/// A queue that was stopped, in order or not, with an event damaged that one sink has and the other has not, and a
/// segment gone that none has. The ids that can still be delivered.
fn damaged(in_order: bool) -> (SimulatedDisk, Vec<u64>) {
    let disk = SimulatedDisk::new(4);
    let mut house = House::open(&disk, &config(), &SINKS);
    for id in 0..70 {
        house.accept(&[id]).unwrap();
        if id == DELIVERED {
            house.deliver_all(ARCHIVE);
        }
        house.work();
    }
    if in_order {
        house.close();
    } else {
        drop(house);
    }
    let files = segments(&disk);
    let bytes = disk.read_file(&files[0]).unwrap();
    let at = memchr::memmem::find(&bytes, format!(r#"{{"id":"{WRONG}","#).as_bytes()).unwrap();
    disk.overwrite(&files[0], at as u64 + 20, b"X").unwrap();
    let base = |path: &PathBuf| parse_segment_name(path.file_name().unwrap().to_str().unwrap()).unwrap();
    let (gone, end) = (base(&files[2]), base(&files[3]));
    assert!(gone > DELIVERED, "none has it");
    disk.remove_file(&files[2]).unwrap();
    let intact = (0..70).filter(|id| *id != WRONG && !(gone..end).contains(id)).collect();
    (disk.kill(), intact)
}

fn found(disk: &SimulatedDisk) -> Vec<Damage> {
    let known = known_durable(disk, &config()).unwrap();
    let dir = Path::new("/data/wal");
    inspect(disk, dir, Stream::Events, Depth::Everything, known, 1, &|_, _| {}).unwrap().damage
}

fn repaired(disk: &SimulatedDisk) -> Result<Vec<Repair>, QueueError> {
    let clock: Clock = Arc::new(|| Micros(1_000));
    let opened =
        open_with(Arc::new(disk.clone()), &config(), infos(&SINKS), entropy(7), clock, None).unwrap();
    let salts = entropy(disk.operations() + 8);
    repair_log(disk, &config(), opened, salts, 1, &|_, _| {})
}

/// A start after a repair, or after what a crash left of it: every number and every event.
fn check(disk: &SimulatedDisk, intact: &[u64], case: &str) {
    let house = House::open(disk, &config(), &SINKS);
    let rest: Vec<u64> = intact.iter().copied().filter(|id| *id > DELIVERED).collect();
    assert_eq!(house.deliver_all(ARCHIVE), rest, "{case}");
    assert_eq!(house.deliver_all(OTHER), intact, "{case}");
    let status = house.status();
    assert_eq!(status.damaged_ranges, 2, "{case}: each is counted, once");
    let (archive, other) = (house.sink(ARCHIVE), house.sink(OTHER));
    // What was delivered before it was damaged stays delivered.
    assert_eq!((archive.delivered, archive.pending), (intact.len() as u64 + 1, 0), "{case}");
    assert_eq!((other.delivered, other.pending), (intact.len() as u64, 0), "{case}");
    assert_eq!(status.next_offset, 70, "{case}");
    assert_eq!(house.queue.event(WRONG).unwrap(), crate::queue::Lookup::Void, "{case}");
}

#[test]
fn a_repaired_log_verifies_and_its_losses_stay_counted() {
    for in_order in [true, false] {
        let (disk, intact) = damaged(in_order);
        assert_eq!(found(&disk).len(), 2);
        assert_eq!(repaired(&disk).unwrap().len(), 2);
        assert_eq!(found(&disk), []);
        check(&disk.kill(), &intact, "the first start");
        assert_eq!(repaired(&disk).unwrap(), [], "once is enough");
        check(&disk, &intact, "the second start");
    }
}

#[test]
fn what_a_repair_found_lost_may_be_sent_again_and_nothing_else() {
    let (disk, intact) = damaged(true);
    let lost: Vec<u64> = (0..70).filter(|id| !intact.contains(id)).collect();
    repaired(&disk).unwrap();
    let mut house = House::open(&disk, &config(), &SINKS);
    let duplicates = |count| Ok(Appended { accepted: 0, duplicates: count, first_offset: 70 });
    assert_eq!(house.accept(&intact[..10]), duplicates(10));
    assert_eq!(house.accept(&intact[intact.len() - 10..]), duplicates(10));
    assert_eq!(house.accept(&lost), Ok(accepted(lost.len() as u64, 70)));
    let sent: Vec<u64> = intact.iter().chain(&lost).copied().collect();
    assert_eq!(house.deliver_all(OTHER), sent);
}

#[test]
fn a_crash_at_any_operation_of_a_repair_leaves_the_same_events_and_the_same_numbers() {
    let mut states = CrashStates::default();
    for in_order in [true, false] {
        crash(in_order, &mut states);
    }
    println!("crashes in a repair: {states}");
}

fn crash(in_order: bool, states: &mut CrashStates) {
    let (disk, intact) = damaged(in_order);
    disk.record();
    let first = disk.operations();
    repaired(&disk).unwrap();
    for operation in first..=disk.operations() {
        for (left, how) in states.left(&disk.at(operation).expect("recorded"), 2) {
            let case = format!("{how} after operation {operation}: {}", disk.describe(operation));
            check(&left.kill(), &intact, &case);
            if !found(&left).is_empty() {
                repaired(&left).unwrap(); // as the command does: a log that verifies is left alone
            }
            assert_eq!(found(&left), [], "{case}");
            check(&left.kill(), &intact, &case);
            let mut house = House::open(&left, &config(), &SINKS);
            house.deliver_all(ARCHIVE);
            house.deliver_all(OTHER);
            house.work(); // makes room
            assert_eq!(house.accept(&[WRONG]), Ok(accepted(1, 70)), "{case}: it may be sent again");
        }
    }
}

#[test]
fn on_a_full_disk_nothing_is_repaired_and_the_losses_are_counted_all_the_same() {
    let (disk, intact) = damaged(true);
    let before = found(&disk);
    disk.set_capacity(0);
    let failed = repaired(&disk).unwrap_err().to_string();
    assert!(failed.contains("quarantine") && failed.contains("No space left"), "{failed}");
    assert_eq!(found(&disk), before);
    disk.set_capacity(1 << 30);
    check(&disk, &intact, "with room again");
    repaired(&disk).unwrap();
    assert_eq!(found(&disk), []);
}
