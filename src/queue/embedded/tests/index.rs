//! The index of the failure table may be deleted, damaged, old, foreign, broken or hanging: nothing but the
//! time of a start changes.
//!
//! The logs are on a simulated disk, the index is a real sled database in a directory of its own, or a
//! store that fails when it is told to.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use tempfile::TempDir;

use crate::disk::simulated::Policy;
use crate::queue::{FailureQuery, FailureRow, Fate, RowState};

use super::super::index::Index;
use super::super::index::store::{KeyChange, OpenStore, Pair, Store, open_sled};
use super::*;

const HOOK: SinkId = SinkId(0);
/// Long enough for any healthy opening on a busy machine.
const PATIENT: Duration = Duration::from_secs(60);
/// For what hangs for good.
const HASTY: Duration = Duration::from_millis(50);

fn hook() -> Vec<SinkInfo> {
    let mut infos = infos(&["hook"]);
    infos[0].parks = true;
    infos
}

fn place(dir: &Path) -> Place {
    Place {
        dir: dir.join("state.sled"),
        cache_bytes: 1 << 20,
        max_bytes: 1 << 30,
        deadline: PATIENT,
        open: Arc::new(open_sled),
    }
}

fn open(disk: &SimulatedDisk, place: Place) -> House {
    let mut house = House::open_indexed(disk, &tiny(), hook(), Some(place)).unwrap();
    house.work();
    house
}

/// Three rounds of everything that happens to rows: `from` is the first event's id.
fn work(house: &mut House, from: u64) {
    for id in (from..from + 30).step_by(10) {
        house.accept(&(id..id + 10).collect::<Vec<_>>()).unwrap();
        house.time.fetch_add(1_000, Ordering::Relaxed);
        while let Some(claim) = house.claim(HOOK, ALL) {
            let fates = (0..claim.batch.events.len()).map(|index| fate(&claim, index)).collect();
            claim.resolve(Resolution { fates: Fates::Each(fates), token: None });
        }
        house.work();
    }
}

fn fate(claim: &Claim, index: usize) -> Fate {
    let offset = claim.batch.events.iter().nth(index).unwrap().offset;
    let attempts = claim.attempts(index) + 1;
    let reason = format!("attempt {attempts} of {offset} failed");
    match (offset % 5, attempts) {
        (0, _) | (1, 2..) => Fate::Delivered,
        (2, 2..) => Fate::Dropped { reason },
        (3, _) | (4, 3..) => Fate::Dead { reason, attempts },
        _ => Fate::Retry { reason, attempts, due_at: Micros(0) },
    }
}

/// Everything the table says: its rows, by several filters, and the numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    rows: Vec<FailureRow>,
    dead: Vec<u64>,
    of_seven: Vec<u64>,
    late: Vec<u64>,
    numbers: (u64, u64, u64, u64, u64),
}

fn told(house: &House) -> Told {
    let list = |query: FailureQuery| {
        let page = house.queue.failures(&FailureQuery { limit: 1000, ..query }).unwrap();
        assert_eq!(page.next, None);
        page.rows
    };
    let offsets = |query| list(query).iter().map(|row| row.offset).collect();
    let any = FailureQuery::default();
    let sink = house.sink(HOOK);
    Told {
        rows: list(any.clone()),
        dead: offsets(FailureQuery { state: Some(RowState::Dead), ..any.clone() }),
        of_seven: offsets(FailureQuery { error_contains: Some("7 failed".to_owned()), ..any.clone() }),
        late: offsets(FailureQuery { failed_from: Some(Micros(3_000)), ..any }),
        numbers: (sink.delivered, sink.dropped, sink.dead, sink.retrying, house.status().damaged_ranges),
    }
}

fn rebuilds(house: &House) -> u64 {
    house.status().index_rebuilds
}

/// A table with rows of every kind and its index, closed in order: what it told.
fn closed(disk: &SimulatedDisk, place: &Place) -> Told {
    let mut house = open(disk, place.clone());
    work(&mut house, 0);
    work(&mut house, 30);
    let all = told(&house);
    assert!(all.rows.len() > 20 && !all.of_seven.is_empty() && all.late.len() < all.rows.len());
    assert_eq!(rebuilds(&house), 0, "the index of a new data directory is no news");
    house.close();
    all
}

/// What an index in `place` has to say about the log on `disk`: its rows, if it may be believed.
fn seed(disk: &SimulatedDisk, place: &Place) -> Option<u64> {
    let house = House::open_with(&disk.kill(), &tiny(), hook()).unwrap();
    let index = Index::open(Some(place.clone()));
    let seed = index.recall(&house.queue.shared.failures);
    index.close();
    seed.map(|seed| seed.rows.values().map(|rows| rows.len()).sum())
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type().unwrap().is_dir() {
            true => copy(&from, &to),
            // It may be gone by now.
            false => drop(fs::copy(&from, &to)),
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect();
    files.sort();
    files
}

#[test]
fn a_start_goes_on_where_the_index_is_and_reads_nothing_before() {
    let (disk, dir) = (SimulatedDisk::new(1), TempDir::new().unwrap());
    let place = place(dir.path());
    let before = closed(&disk, &place);
    assert_eq!(seed(&disk, &place), Some(before.rows.len() as u64));
    // A record that is damaged is not met by a start that does not read it, and met when it is asked for.
    let segments = disk.list(Path::new("/data/ledger/failures")).unwrap();
    assert!(segments.len() > 1, "{segments:?}");
    let house = open(&disk, place.clone());
    let row = house.queue.shared.state().sinks[0].rows.after(None).next().map(|(offset, _)| offset).unwrap();
    house.close();
    let first = disk.list(Path::new("/data/ledger/failures")).unwrap();
    let first = first.iter().map(|entry| &entry.name).filter(|name| name.starts_with('0')).min().unwrap();
    let file = disk.open(&Path::new("/data/ledger/failures").join(first), Access::ReadWrite).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_full_at(&mut bytes, 0).unwrap();
    let needle = format!(r#"{{"id":"{row}","pad""#);
    let at = bytes.windows(needle.len()).position(|window| window == needle.as_bytes()).unwrap();
    file.write_all_at(b"X", at as u64).unwrap();
    let mut house = open(&disk, place);
    assert_eq!((house.status().damaged_ranges, rebuilds(&house)), (0, 0));
    assert_eq!(house.sink(HOOK).dropped, before.numbers.1);
    assert_eq!(house.queue.failure(HOOK, row).unwrap(), None, "what is damaged is never shown");
    house.work();
    assert_eq!((house.status().damaged_ranges, house.sink(HOOK).dropped), (1, before.numbers.1 + 1));
}

#[test]
fn deleted_it_is_built_anew_and_nothing_else_changes() {
    let (disk, dir) = (SimulatedDisk::new(1), TempDir::new().unwrap());
    let place = place(dir.path());
    let before = closed(&disk, &place);
    fs::remove_dir_all(&place.dir).unwrap();
    let house = open(&disk, place.clone());
    assert_eq!((told(&house), rebuilds(&house)), (before, 1));
    house.close();
    let house = open(&disk, place);
    assert_eq!(rebuilds(&house), 0, "it was built");
}

#[test]
fn damaged_in_any_file_it_never_shows_or_loses_anything() {
    let (disk, dir) = (SimulatedDisk::new(1), TempDir::new().unwrap());
    let whole = place(dir.path());
    let before = closed(&disk, &whole);
    let mut random = Random::new(11);
    let mut built = 0;
    let mut runs = 0;
    for file in files(&whole.dir) {
        let bytes = fs::read(&file).unwrap();
        let name = file.strip_prefix(&whole.dir).unwrap();
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
        let mut damages: Vec<(String, Vec<u8>)> = Vec::new();
        for _ in 0..12 {
            let mut flipped = bytes.clone();
            let at = random.next_u64() % used.max(1);
            if let Some(byte) = flipped.get_mut(at as usize) {
                *byte ^= 1 << (random.next_u64() % 8);
            }
            damages.push((format!("a bit at {at}"), flipped));
        }
        for _ in 0..4 {
            let len = random.next_u64() % (used + 1);
            damages.push((format!("cut to {len}"), bytes[..len as usize].to_vec()));
        }
        let rubbish: Vec<u8> = (0..used.max(64)).map(|_| random.next_u64() as u8).collect();
        damages.push(("rubbish".to_owned(), rubbish.clone()));
        damages.push(("zeros".to_owned(), vec![0; bytes.len()]));
        damages.push(("rubbish behind".to_owned(), [&bytes[..used as usize], &rubbish[..64]].concat()));
        for (what, damaged) in damages {
            let what = format!("{}: {what}", name.display());
            let copied = TempDir::new().unwrap();
            let place = place(copied.path());
            copy(&whole.dir, &place.dir);
            fs::write(place.dir.join(name), damaged).unwrap();
            let house = open(&disk.kill(), place);
            assert_eq!(told(&house), before, "{what}");
            (built, runs) = (built + rebuilds(&house), runs + 1);
        }
    }
    assert!(built * 3 > runs, "{built} of {runs} were noticed; the others hit what is not in use");
}

#[test]
fn files_in_its_way_are_moved_aside_once_and_again() {
    let (disk, dir) = (SimulatedDisk::new(1), TempDir::new().unwrap());
    let place = place(dir.path());
    let before = closed(&disk, &place);
    let aside = dir.path().join("state.sled.broken");
    for round in 0..3 {
        fs::remove_dir_all(&place.dir).unwrap();
        fs::write(&place.dir, format!("no directory {round}")).unwrap();
        let house = open(&disk, place.clone());
        assert_eq!((told(&house), rebuilds(&house)), (before.clone(), 1));
        house.close();
        assert_eq!(fs::read_to_string(&aside).unwrap(), format!("no directory {round}"), "one copy is kept");
    }
    // An opening that took the process down is not tried again.
    fs::write(place.dir.join("opening"), "").unwrap();
    let house = open(&disk, place.clone());
    assert_eq!((told(&house), rebuilds(&house)), (before, 1));
    house.close();
    assert!(aside.join("opening").exists() && !place.dir.join("opening").exists());
    // What a kill leaves of a snapshot being written does not stand in the way.
    fs::write(place.dir.join("snap.0000000000000000.generating"), "half").unwrap();
    assert_eq!(rebuilds(&open(&disk, place)), 0);
}

#[test]
fn an_old_one_catches_up_and_one_from_the_future_or_of_another_log_is_not_believed() {
    let (disk, dir) = (SimulatedDisk::new(1), TempDir::new().unwrap());
    let place = place(dir.path());
    let at = |stage: usize| super::index::place(&dir.path().join(format!("stage-{stage}")));
    let mut stages = Vec::new();
    for stage in 0..5 {
        let mut house = open(&disk, place.clone());
        work(&mut house, stage * 30);
        let told = told(&house);
        house.close();
        copy(&place.dir, &at(stages.len()).dir);
        stages.push((disk.kill(), told));
    }
    for (stage, (disk, before)) in stages.iter().enumerate() {
        for index in 0..stages.len() {
            let tried = super::index::place(&dir.path().join("tried"));
            copy(&at(index).dir, &tried.dir);
            let house = open(&disk.kill(), tried.clone());
            let what = format!("the log of stage {stage} with the index of stage {index}");
            assert_eq!(&told(&house), before, "{what}");
            assert_eq!(rebuilds(&house), u64::from(index > stage), "{what}");
            house.close();
            assert_eq!(seed(disk, &tried), Some(before.rows.len() as u64), "{what}, afterwards");
            fs::remove_dir_all(dir.path().join("tried")).unwrap();
        }
    }
    // Another log that is at the same place: the same script at another time.
    let other = SimulatedDisk::new(2);
    let mut house = House::open_with(&other, &tiny(), hook()).unwrap();
    house.time.store(77, Ordering::Relaxed);
    house.work();
    (0..5).for_each(|stage| work(&mut house, stage * 30));
    let before = told(&house);
    house.close();
    let house = open(&other, place);
    assert_eq!((told(&house), rebuilds(&house)), (before, 1));
}

#[test]
fn copies_made_while_it_works_are_believed_only_where_they_are_whole() {
    let (disk, dir) = (SimulatedDisk::new(1), TempDir::new().unwrap());
    let place = place(dir.path());
    let mut house = open(&disk, place.clone());
    for round in 0..12 {
        work(&mut house, round * 30);
        // The index's thread goes on meanwhile, so that the files are of different moments.
        let copied = super::index::place(&dir.path().join(format!("copy-{round}")));
        copy(&place.dir, &copied.dir);
        let before = told(&house);
        let again = open(&disk.kill(), copied.clone());
        assert_eq!(told(&again), before, "copy {round}");
        again.close();
        assert_eq!(seed(&disk, &copied), Some(before.rows.len() as u64), "copy {round}, afterwards");
    }
}

/// What a faulty store does at its chosen call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Fail,
    Panic,
    Hang,
}

/// A store in memory, gone when its file is gone from the directory, that fails at its n-th call; an opening is a call as well.
#[derive(Clone, Default)]
struct Faulty {
    kept: Arc<Mutex<BTreeMap<Vec<u8>, Vec<u8>>>>,
    calls: Arc<AtomicU64>,
    at: u64,
    fault: Option<Fault>,
    /// Closed when the test is over: whoever hangs goes on.
    over: Option<Arc<Mutex<Receiver<()>>>>,
    met: Arc<AtomicBool>,
}

impl Faulty {
    fn new(fault: Fault, at: u64) -> (Self, Sender<()>) {
        let (over, waits) = channel();
        let over_in = Some(Arc::new(Mutex::new(waits)));
        (Self { at, fault: Some(fault), over: over_in, ..Self::default() }, over)
    }

    fn open(&self) -> OpenStore {
        let faulty = self.clone();
        Arc::new(move |dir, _| {
            faulty.call()?;
            if !dir.join("kept").exists() {
                faulty.kept.lock().unwrap().clear();
                fs::write(dir.join("kept"), "").unwrap();
            }
            Ok(Box::new(faulty.clone()))
        })
    }

    fn call(&self) -> Result<(), String> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let Some(fault) = self.fault.filter(|_| number == self.at) else { return Ok(()) };
        self.met.store(true, Ordering::Relaxed);
        match fault {
            Fault::Fail => Err("as it was told to".to_owned()),
            Fault::Panic => panic!("as it was told to"),
            Fault::Hang => {
                let over = self.over.as_ref().map(|over| over.lock().unwrap().recv());
                assert!(over.is_none_or(|ended| ended.is_err()));
                Err("it hung".to_owned())
            }
        }
    }
}

impl Store for Faulty {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, String> {
        self.call()?;
        Ok(self.kept.lock().unwrap().get(key).cloned())
    }

    fn scan(&self, after: &[u8], below: &[u8], most: usize) -> Result<Vec<Pair>, String> {
        self.call()?;
        let kept = self.kept.lock().unwrap();
        let between = kept.iter().filter(|(key, _)| &key[..] > after && &key[..] < below);
        Ok(between.take(most).map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn change(&self, changes: Vec<KeyChange>) -> Result<(), String> {
        self.call()?;
        let mut kept = self.kept.lock().unwrap();
        for (key, value) in changes {
            match value {
                Some(value) => drop(kept.insert(key, value)),
                None => drop(kept.remove(&key)),
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), String> {
        self.call()
    }

    fn bytes(&self) -> Result<u64, String> {
        self.call()?;
        Ok(1)
    }
}

/// Works a while with a store that fails at its `at`-th call: whether it came to that.
fn survives(fault: Fault, at: u64) -> bool {
    let (disk, dir) = (SimulatedDisk::new(1), TempDir::new().unwrap());
    let what = format!("{fault:?} at call {at}");
    let (faulty, over) = Faulty::new(fault, at);
    let deadline = if fault == Fault::Hang { HASTY } else { PATIENT };
    let place = Place { open: faulty.open(), deadline, ..place(dir.path()) };
    let plain = SimulatedDisk::new(1);
    let mut without = House::open_with(&plain, &tiny(), hook()).unwrap();
    without.work();
    let mut seen = 0;
    for life in 0..2 {
        let mut house = open(&disk, place.clone());
        for round in 0..2 {
            let from = (life * 2 + round) * 30;
            work(&mut house, from);
            without.time.store(house.time.load(Ordering::Relaxed) - 3_000, Ordering::Relaxed);
            work(&mut without, from);
            assert_eq!(told(&house), told(&without), "{what}");
        }
        let status = house.status();
        assert_eq!(status.refusing, None, "{what}");
        let queue = Arc::clone(&house.queue);
        house.close();
        seen += queue.status().index_rebuilds;
    }
    let met = faulty.met.load(Ordering::Relaxed);
    drop(over);
    // A hang is noticed by the next step of the ledger that comes after its deadline, if one comes.
    assert!(!met || seen > 0 || (fault == Fault::Hang && at > 0), "{what}: told");
    let good = Place { open: faulty_without(&faulty).open(), deadline: PATIENT, ..place };
    let house = open(&disk, good);
    assert_eq!(told(&house), told(&without), "{what}, afterwards");
    met
}

/// The same store, which does not fail any more.
fn faulty_without(faulty: &Faulty) -> Faulty {
    Faulty { kept: Arc::clone(&faulty.kept), ..Faulty::default() }
}

#[test]
fn a_store_that_hangs_at_any_call_is_left_behind() {
    // Each one that hangs costs its deadline, so not every call is tried.
    for at in [0, 1, 2, 3, 5, 8, 13, 21] {
        assert!(survives(Fault::Hang, at), "call {at} was made");
    }
}

#[test]
fn a_store_that_fails_or_panics_at_any_call_changes_nothing_but_a_rebuild() {
    for fault in [Fault::Fail, Fault::Panic] {
        let calls = (0..).find(|at| !survives(fault, *at)).unwrap();
        assert!(calls > 20, "{calls} calls were tried");
    }
}

#[test]
fn one_that_has_grown_too_large_is_built_anew() {
    let (disk, dir) = (SimulatedDisk::new(1), TempDir::new().unwrap());
    let place = Place { max_bytes: 0, ..place(dir.path()) };
    let before = closed(&disk, &place);
    let old = place.dir.join("old");
    fs::write(&old, "").unwrap();
    let house = open(&disk, place.clone());
    assert_eq!((told(&house), rebuilds(&house)), (before.clone(), 0), "it is no trouble");
    house.close();
    assert!(!old.exists(), "it was removed");
    let house = open(&disk, place);
    assert_eq!((told(&house), rebuilds(&house)), (before, 0), "however far the new one has come");
}

/// Every state that a crash can leave of the logs, with an index from before and one from after it.
#[test]
fn whatever_a_crash_leaves_of_the_log_an_older_or_newer_index_makes_no_difference() {
    let (disk, dir) = (SimulatedDisk::new(3), TempDir::new().unwrap());
    disk.record();
    let healthy = Faulty::default();
    let mut indexes = vec![BTreeMap::new()];
    for life in 0..3 {
        let place = Place { open: healthy.open(), ..place(dir.path()) };
        let mut house = open(&disk, place);
        work(&mut house, life * 30);
        house.close();
        indexes.push(healthy.kept.lock().unwrap().clone());
    }
    let mut random = Random::new(3);
    let mut believed = 0;
    for operation in 0..=disk.operations() {
        let killed = disk.at(operation).unwrap();
        let policy = Policy::ALL[(random.next_u64() % Policy::ALL.len() as u64) as usize];
        for state in [killed.kill(), killed.power_loss(policy, operation)] {
            let mut without = House::open_with(&state.kill(), &tiny(), hook()).unwrap();
            without.work();
            let index = &indexes[(random.next_u64() % indexes.len() as u64) as usize];
            let store = Faulty { kept: Arc::new(Mutex::new(index.clone())), ..Faulty::default() };
            fs::create_dir_all(place(dir.path()).dir).unwrap();
            fs::write(place(dir.path()).dir.join("kept"), "").unwrap();
            let house = open(&state, Place { open: store.open(), ..place(dir.path()) });
            let what = format!("{policy:?} after operation {operation} ({})", disk.describe(operation));
            assert_eq!(told(&house), told(&without), "{what}");
            believed += u64::from(!index.is_empty() && rebuilds(&house) == 0);
        }
    }
    assert!(believed > 50, "{believed} indexes were believed");
}

#[test]
fn a_row_that_a_store_gives_back_otherwise_than_it_took_it_is_noticed() {
    let (disk, dir) = (SimulatedDisk::new(1), TempDir::new().unwrap());
    let healthy = Faulty::default();
    let place = Place { open: healthy.open(), ..place(dir.path()) };
    let before = closed(&disk, &place);
    let blocks: Vec<Vec<u8>> = healthy.kept.lock().unwrap().keys().skip(1).cloned().collect();
    for key in blocks {
        // Attempts of its first row: version, count, offset, place, place, whether it is dead.
        healthy.kept.lock().unwrap().get_mut(&key).unwrap()[1 + 8 + 8 + 8 + 8 + 1] ^= 1;
        let house = open(&disk, place.clone());
        assert_eq!((told(&house), rebuilds(&house)), (before.clone(), 1), "changed");
        house.close();
        let block = healthy.kept.lock().unwrap().remove(&key);
        let house = open(&disk, place.clone());
        assert_eq!((told(&house), rebuilds(&house)), (before.clone(), 1), "lost");
        house.close();
        assert_eq!(healthy.kept.lock().unwrap().get(&key), block.as_ref(), "and built anew");
    }
}

#[test]
fn with_a_row_log_or_a_ledger_that_lost_files_it_makes_no_difference() {
    let (disk, dir) = (SimulatedDisk::new(1), TempDir::new().unwrap());
    let whole = place(&dir.path().join("whole"));
    closed(&disk, &whole);
    let table = Path::new("/data/ledger/failures");
    let entries = disk.list(table).unwrap().into_iter();
    let mut lost: Vec<Vec<PathBuf>> = entries.map(|entry| vec![table.join(entry.name)]).collect();
    lost.push(lost.concat());
    let ledger = disk.list(Path::new("/data/ledger")).unwrap().into_iter();
    let ledger = ledger.filter(|entry| entry.kind == EntryKind::File);
    lost.push(ledger.map(|entry| Path::new("/data/ledger").join(entry.name)).collect());
    let mut changed = 0;
    for files in lost {
        let broken = disk.kill();
        files.iter().for_each(|file| broken.remove(file).unwrap());
        let mut without = House::open_with(&broken.kill(), &tiny(), hook()).unwrap();
        without.work();
        let tried = place(&dir.path().join("tried"));
        copy(&whole.dir, &tried.dir);
        let house = open(&broken, tried.clone());
        assert_eq!(told(&house), told(&without), "without {files:?}");
        changed += u64::from(without.status().damaged_ranges > 0);
        house.close();
        // What is gone stays gone, whatever the index knew of it.
        let house = open(&broken, tried);
        assert_eq!(told(&house).rows, told(&without).rows, "without {files:?}, afterwards");
        house.close();
        fs::remove_dir_all(dir.path().join("tried")).unwrap();
    }
    assert!(changed > 1, "{changed} losses took rows");
}
