//! Copies of a queue at work: begun at any moment, with everything going on between their steps, each one
//! opened and compared with what had been answered before it began.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::queue::Fate;

use super::super::copy::{CopyError, Copying};
use super::*;

const HOOK: SinkId = OTHER;
const HOUR: Duration = Duration::from_secs(3600);

fn config() -> Config {
    let mut config = tiny();
    config.wal.dedupe_window = 40;
    config.failures.budget_bytes = 6 * config.least_failure_segment();
    config
}

fn sinks() -> Vec<SinkInfo> {
    let mut infos = infos(&["archive", "hook"]);
    infos[1].parks = true;
    infos
}

/// A queue under load, and what is known of it.
struct Live {
    house: House,
    random: Random,
    next_id: u64,
    /// Ids that the archive has, in order.
    archived: Vec<u64>,
    /// Ids that the hook is done with.
    hooked: BTreeSet<u64>,
}

impl Live {
    fn new(seed: u64) -> (SimulatedDisk, Self) {
        let disk = SimulatedDisk::new(seed);
        let house = House::open_with(&disk, &config(), sinks()).unwrap();
        let random = Random::new(seed);
        (disk, Self { house, random, next_id: 0, archived: Vec::new(), hooked: BTreeSet::new() })
    }

    /// A few things that happen in a daemon.
    fn go_on(&mut self) {
        for _ in 0..self.random.below(12) {
            match self.random.below(5) {
                0 | 1 => {
                    let ids: Vec<u64> = (self.next_id..).take(1 + self.random.below(3) as usize).collect();
                    match self.house.accept(&ids) {
                        Ok(_) => self.next_id += ids.len() as u64,
                        Err(Refusal::WalFull | Refusal::Overloaded) => {}
                        Err(other) => panic!("{other:?}"),
                    }
                }
                2 => self.archive(),
                3 => self.hook(),
                _ => self.house.work(),
            }
        }
    }

    fn archive(&mut self) {
        let limit = ClaimLimit { events: 4, ..ALL };
        if let Some(claim) = self.house.claim(ARCHIVE, limit) {
            self.archived.extend(ids_of(&claim.batch));
            let token = Some((self.archived.len() as u64).to_le_bytes().to_vec());
            claim.resolve(Resolution { fates: Fates::AllDelivered, token });
        }
    }

    fn hook(&mut self) {
        let Some(claim) = self.house.claim(HOOK, ClaimLimit { events: 3, ..ALL }) else { return };
        let fates = ids_of(&claim.batch).into_iter().zip(0..).map(|(id, index)| {
            let attempts = claim.attempts(index) + 1;
            if !id.is_multiple_of(3) && attempts < 3 {
                Fate::Retry { reason: "x".repeat(900), attempts, due_at: Micros(0) }
            } else {
                self.hooked.insert(id);
                Fate::Delivered
            }
        });
        let fates = Fates::Each(fates.collect());
        claim.resolve(Resolution { fates, token: None });
    }
}

/// Opens the copy and checks it; `accepted` events had been answered when it began.
fn check(disk: &SimulatedDisk, to: &Path, live: &Live, accepted: u64, resume: &Resume, context: &str) {
    let config = Config { data_dir: to.to_owned(), ..config() };
    let mut house = House::open_with(disk, &config, sinks()).unwrap();
    let status = house.status();
    let next = status.next_offset;
    assert!(next >= accepted, "{context}: {next} events of {accepted}");
    assert_eq!((status.damaged_ranges, status.voids), (0, 0), "{context}");
    assert_eq!(house.resumes[0].token, resume.token, "{context}: what was told is what is handed out");
    assert_eq!(house.resumes[0].next_offset, resume.next_offset, "{context}");
    for sink in &status.sinks {
        let sum = sink.delivered + sink.dropped + sink.dead + sink.retrying + sink.pending + sink.skipped;
        assert_eq!(sum, next, "{context}: {sink:?}");
    }
    // Every id was accepted in order and once, so it is its offset.
    let held = resume.token.as_ref().map_or(0, |token| u64::from_le_bytes(*token.first_chunk().unwrap()));
    let mut archived = live.archived[..held as usize].to_vec();
    archived.extend(house.deliver_all(ARCHIVE));
    assert_eq!(archived, (0..next).collect::<Vec<_>>(), "{context}: the archive, once and in order");
    let mut hooked = live.hooked.clone();
    loop {
        let more = house.deliver_all(HOOK);
        if more.is_empty() {
            break;
        }
        hooked.extend(more);
        house.work(); // makes room in the failure table
    }
    let missing: Vec<u64> = (0..next).filter(|id| !hooked.contains(id)).collect();
    assert_eq!(missing, Vec::<u64>::new(), "{context}: the hook");
    house.work();
    assert_eq!(house.accept(&[next - 1]).unwrap().duplicates, 1, "{context}: the window was copied");
    house.close();
}

#[test]
fn a_copy_made_at_any_moment_opens_and_misses_nothing_accepted_before_it_began() {
    let first = std::env::var("EVENTFLOW_COPY_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut sealed = 0;
    for seed in first.map_or(1..61, |seed: u64| seed..seed + 1) {
        let (disk, mut live) = Live::new(seed);
        for round in 0..4 {
            for _ in 0..8 {
                live.go_on();
            }
            let (accepted, queue) = (live.next_id, Arc::clone(&live.house.queue));
            let (from, to) = (config(), PathBuf::from(format!("/copy-{round}")));
            let mut copying = Copying::begin(&queue, &disk, &from, &to, HOUR).unwrap();
            live.go_on();
            copying.ledger().unwrap();
            for _ in 0..40 {
                live.go_on(); // time enough to go through the whole failure table
            }
            copying.failures().unwrap();
            live.go_on();
            copying.events().unwrap();
            live.go_on();
            let copied = copying.finish().unwrap();
            if accepted == 0 {
                continue;
            }
            sealed += u64::from(disk.list(&to.join("wal")).unwrap().len() > 1);
            let context = format!("EVENTFLOW_COPY_SEED={seed}, copy {round}");
            assert!(copied.next_offset >= accepted, "{context}");
            // Nobody else may need the power to stay: everything in it is synced.
            let bare = disk.power_loss(crate::disk::simulated::Policy::Drop, seed);
            check(&bare, &to, &live, accepted, &copied.resumes[0].1, &context);
        }
        live.house.work();
        live.house.close();
    }
    assert!(sealed > 10, "copies of more than one segment: {sealed}");
}

#[test]
fn only_one_copy_is_made_at_a_time_and_a_late_one_is_given_up() {
    let (disk, mut live) = Live::new(3);
    live.house.accept(&[0, 1, 2]).unwrap();
    live.next_id = 3;
    let queue = Arc::clone(&live.house.queue);
    let from = config();
    let first = Copying::begin(&queue, &disk, &from, Path::new("/a"), HOUR).unwrap();
    assert!(matches!(queue.copy_to(&disk, &from, Path::new("/b"), HOUR), Err(CopyError::Busy)));
    drop(first);
    let late = queue.copy_to(&disk, &from, Path::new("/c"), Duration::ZERO);
    assert!(matches!(late, Err(CopyError::TooSlow(_))), "{late:?}");
    queue.copy_to(&disk, &from, Path::new("/d"), HOUR).unwrap();
}

#[test]
fn what_was_held_is_freed_once_the_copy_is_done() {
    let (disk, mut live) = Live::new(4);
    let queue = Arc::clone(&live.house.queue);
    let from = config();
    let mut copying = Copying::begin(&queue, &disk, &from, Path::new("/a"), HOUR).unwrap();
    loop {
        match live.house.accept(&[live.next_id]) {
            Ok(_) => live.next_id += 1,
            Err(Refusal::WalFull) => break,
            Err(other) => panic!("{other:?}"),
        }
        live.house.deliver_all(ARCHIVE);
        live.house.deliver_all(HOOK);
        live.house.work();
    }
    assert_eq!(live.house.status().first_offset, 0, "the log pushes back rather than free anything");
    copying.ledger().unwrap();
    copying.failures().unwrap();
    copying.events().unwrap();
    copying.finish().unwrap();
    live.house.work();
    assert!(live.house.status().first_offset > 0);
    live.house.accept(&[live.next_id]).unwrap();
}
