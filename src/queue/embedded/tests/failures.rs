//! The failure table: nothing parked is lost, counted twice, or tried when it must not be.

use std::task::{Context, Poll, Waker};

use crate::disk::simulated::{PagesAfter, Policy, Times};
use crate::queue::{
    EventState, FailurePage, FailureQuery, FailureRow, Fate, Lookup, QueueError, Redrive, RowState, Selection,
};

use super::*;

const HOOK: SinkId = SinkId(0);

fn parking(names: &[&str]) -> Vec<SinkInfo> {
    let info = |name: &&str| SinkInfo {
        name: (*name).to_owned(),
        kind: "toy",
        starts_paused: false,
        parks: true,
        order: None,
    };
    names.iter().map(info).collect()
}

fn open_hook(disk: &SimulatedDisk) -> House {
    let mut house = House::open_with(disk, &tiny(), parking(&["hook"])).unwrap();
    house.work();
    house
}

fn new() -> (SimulatedDisk, House) {
    let disk = SimulatedDisk::new(1);
    let house = open_hook(&disk);
    (disk, house)
}

fn retry(attempts: u32, due_at: i64) -> Fate {
    Fate::Retry { reason: format!("attempt {attempts} failed"), attempts, due_at: Micros(due_at) }
}

fn dead(attempts: u32) -> Fate {
    Fate::Dead { reason: format!("gave up after {attempts}"), attempts }
}

fn each(fates: Vec<Fate>) -> Resolution {
    Resolution { fates: Fates::Each(fates), token: None }
}

impl House {
    fn at(&self, micros: i64) {
        self.time.store(micros, Ordering::Relaxed);
    }

    /// Claims what is there and gives every event this fate.
    fn all(&self, fate: &Fate) -> Vec<u64> {
        let Some(claim) = self.claim(HOOK, ALL) else { return Vec::new() };
        let ids = ids_of(&claim.batch);
        claim.resolve(each(vec![fate.clone(); ids.len()]));
        ids
    }

    fn rows(&self) -> Vec<FailureRow> {
        let query = FailureQuery { limit: 1000, ..FailureQuery::default() };
        self.queue.failures(&query).unwrap().rows
    }

    fn redrive(&mut self, selection: Selection, action: Redrive) -> u64 {
        let queue = Arc::clone(&self.queue);
        let mut asked = queue.redrive(HOOK, selection, action);
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..10_000 {
            if let Poll::Ready(changed) = asked.as_mut().poll(&mut context) {
                return changed.unwrap();
            }
            self.ledger.step().unwrap();
        }
        panic!("the redrive does not end");
    }

    /// The sum that must hold at every instant, for a sink that was there from the start.
    fn adds_up(&self, accepted: u64) -> SinkStatus {
        let sink = self.sink(HOOK);
        let sum = sink.delivered + sink.dropped + sink.dead + sink.retrying + sink.pending + sink.skipped;
        assert_eq!(sum, accepted, "{sink:?}");
        sink
    }
}

#[test]
fn a_failed_event_is_parked_durably_before_the_checkpoint_passes_it() {
    let (disk, mut house) = new();
    house.accept(&[1, 2, 3]).unwrap();
    let claim = house.claim(HOOK, ALL).unwrap();
    claim.resolve(each(vec![Fate::Delivered, retry(1, 2_000), dead(1)]));
    let sink = house.adds_up(3);
    assert_eq!(
        (sink.acked_offset, sink.in_flight, sink.retrying, sink.dead),
        (0, 3, 0, 0),
        "not durable yet"
    );
    house.work();
    let sink = house.adds_up(3);
    assert_eq!((sink.acked_offset, sink.delivered, sink.retrying, sink.dead), (3, 1, 1, 1));
    for disk in [disk.kill(), disk.power_loss(Policy::Drop, 0)] {
        let house = open_hook(&disk);
        let sink = house.adds_up(3);
        assert_eq!((sink.acked_offset, sink.delivered, sink.retrying, sink.dead), (3, 1, 1, 1));
        let rows = house.rows();
        assert_eq!(
            rows.iter().map(|row| (row.offset, row.state)).collect::<Vec<_>>(),
            [(1, RowState::Retrying), (2, RowState::Dead)]
        );
        assert_eq!((rows[0].attempts, rows[0].due_at), (1, Some(Micros(2_000))));
        assert_eq!((rows[0].first_failed_at, rows[0].error.as_str()), (Micros(1_000), "attempt 1 failed"));
        assert_eq!((rows[1].due_at, rows[1].bytes), (None, text(3).len() as u64));
        let failed = house.queue.failure(HOOK, 2).unwrap().unwrap();
        assert_eq!((failed.json, failed.accepted_at), (text(3), Micros(5)));
    }
}

#[test]
fn a_row_is_claimed_when_it_is_due_before_the_log_and_knows_its_attempts() {
    let (_disk, mut house) = new();
    house.accept(&[1, 2]).unwrap();
    assert_eq!(house.all(&retry(1, 2_000)), [1, 2]);
    house.work();
    house.accept(&[3]).unwrap();
    assert_eq!(house.all(&Fate::Delivered), [3], "nothing is due");
    house.accept(&[4]).unwrap();
    house.at(2_000);
    let claim = house.claim(HOOK, ALL).unwrap();
    assert_eq!((claim.origin.clone(), ids_of(&claim.batch)), (Origin::FailureTable, vec![1, 2]));
    assert_eq!((claim.attempts(0), claim.attempts(1)), (1, 1));
    assert_eq!(house.all(&Fate::Delivered), [4], "nobody else gets what is held");
    assert!(house.claim(HOOK, ALL).is_none());
    claim.resolve(each(vec![Fate::Delivered, retry(2, 9_000)]));
    house.work();
    let sink = house.adds_up(4);
    assert_eq!((sink.delivered, sink.retrying), (3, 1));
    let rows = house.rows();
    assert_eq!(
        (rows[0].attempts, rows[0].first_failed_at, rows[0].last_failed_at),
        (2, Micros(1_000), Micros(2_000))
    );
    assert_eq!(rows[0].error, "attempt 2 failed");
}

#[test]
fn a_dropped_claim_of_rows_goes_back_and_a_clock_that_jumps_back_only_delays() {
    let (_disk, mut house) = new();
    house.accept(&[1]).unwrap();
    house.all(&retry(1, 2_000));
    house.work();
    house.at(5_000);
    drop(house.claim(HOOK, ALL).unwrap());
    house.at(-7);
    assert!(house.claim(HOOK, ALL).is_none(), "not due by this clock");
    house.at(i64::MAX);
    assert_eq!(house.all(&Fate::Delivered), [1]);
    house.work();
    assert_eq!((house.adds_up(1).delivered, house.rows().len()), (1, 0));
}

#[test]
fn a_paused_sink_is_given_no_rows_and_one_that_never_parks_neither() {
    let disk = SimulatedDisk::new(1);
    let mut sinks = parking(&["hook"]);
    sinks[0].starts_paused = true;
    let mut house = open_hook(&disk);
    house.accept(&[1]).unwrap();
    house.all(&retry(1, 0));
    house.close();
    let house = House::open_with(&disk, &tiny(), sinks.clone()).unwrap();
    assert!(house.claim(HOOK, ALL).is_none());
    drop(house);
    (sinks[0].starts_paused, sinks[0].parks) = (false, false);
    let mut house = House::open_with(&disk.kill(), &tiny(), sinks).unwrap();
    house.work();
    assert!(house.claim(HOOK, ALL).is_none());
    house.accept(&[2]).unwrap();
    assert_eq!(house.all(&dead(1)), [2]);
    assert_eq!(house.all(&Fate::Delivered), [2], "it parks nothing: the event went back");
}

#[test]
fn the_dead_stay_dead_until_they_are_redriven_and_a_drop_is_counted() {
    let (disk, mut house) = new();
    house.accept(&[1, 2, 3, 4]).unwrap();
    house.all(&dead(7));
    house.work();
    house.at(i64::MAX);
    assert!(house.claim(HOOK, ALL).is_none());
    house.at(50);
    assert_eq!(house.redrive(Selection::Offsets(vec![3, 0, 99, 3]), Redrive::Drop), 2);
    assert_eq!(house.redrive(Selection::Offsets(vec![1]), Redrive::Retry), 1);
    let disk = disk.power_loss(Policy::Drop, 0);
    let mut house = open_hook(&disk);
    let sink = house.adds_up(4);
    assert_eq!((sink.dropped, sink.retrying, sink.dead), (2, 1, 1), "durable when it was answered");
    let row = &house.rows()[0];
    assert_eq!((row.attempts, row.due_at, row.error.as_str()), (0, Some(Micros(50)), "gave up after 7"));
    let claim = house.claim(HOOK, ALL).unwrap();
    assert_eq!((ids_of(&claim.batch), claim.attempts(0)), (vec![2], 0));
    assert_eq!(house.redrive(Selection::All, Redrive::Drop), 1, "what is being tried is left alone");
    claim.resolve(each(vec![Fate::Delivered]));
    house.work();
    assert_eq!((house.adds_up(4).delivered, house.rows().len()), (1, 0));
    assert_eq!(house.redrive(Selection::All, Redrive::Retry), 0);
}

#[test]
fn an_event_is_found_in_the_table_after_the_log_let_it_go() {
    let (_disk, mut house) = new();
    house.accept(&[0]).unwrap();
    house.all(&dead(3));
    house.work();
    assert!(
        matches!(house.queue.event(0).unwrap(), Lookup::Found { sinks, .. } if sinks[0].1 == EventState::Dead)
    );
    for id in 1..60 {
        house.accept(&[id]).unwrap();
        house.all(&Fate::Delivered);
        house.work();
    }
    assert!(house.status().first_offset > 0, "a poison event pins nothing");
    match house.queue.event(0).unwrap() {
        Lookup::Found { json, accepted_at, sinks } => {
            assert_eq!((json, accepted_at, sinks[0].1), (text(0), Micros(5), EventState::Dead));
        }
        other => panic!("{other:?}"),
    }
    house.redrive(Selection::All, Redrive::Drop);
    assert_eq!(house.queue.event(0).unwrap(), Lookup::Released);
}

#[test]
fn a_full_table_holds_up_the_log_of_that_sink_only_and_lets_go_when_rows_go() {
    let disk = SimulatedDisk::new(1);
    let mut sinks = parking(&["hook"]);
    sinks.extend(infos(&["archive"]));
    let mut house = House::open_with(&disk, &tiny(), sinks).unwrap();
    house.work();
    let (mut id, mut parked) = (0, 0);
    loop {
        while house.accept(&[id]).is_ok() {
            id += 1;
        }
        while let Some(claim) = house.claim(SinkId(1), ALL) {
            claim.resolve(Resolution::default());
        }
        let now = house.all(&dead(1)).len();
        house.work();
        parked += now;
        if now == 0 {
            break;
        }
    }
    let sink = house.adds_up(id);
    assert_eq!(sink.dead, parked as u64);
    assert!(parked > 100, "{parked}");
    assert!(sink.last_error.unwrap().contains("full"));
    assert_eq!(house.sink(SinkId(1)).pending, 0, "the other one is not held up");
    assert_eq!(house.accept(&[id]), Err(Refusal::WalFull));
    assert_eq!(house.redrive(Selection::Offsets((0..100).collect()), Redrive::Drop), 100);
    house.work();
    assert!(!house.all(&Fate::Delivered).is_empty());
    house.close();
    let mut house = House::open_with(&disk, &tiny(), parking(&["hook"])).unwrap();
    house.work();
    assert_eq!(house.adds_up(id).dead, parked as u64 - 100);
    assert_eq!(house.redrive(Selection::All, Redrive::Drop), parked as u64 - 100);
    house.adds_up(id);
}

#[test]
fn cleaning_keeps_every_live_row_and_what_was_told_of_it_last() {
    let (disk, mut house) = new();
    let keep: Vec<u64> = (0..40).collect();
    for chunk in keep.chunks(8) {
        house.accept(chunk).unwrap();
        house.all(&retry(1, 10_000));
        house.work();
    }
    house.at(10_000);
    let mut failed = 0;
    while let Some(claim) = house.claim(HOOK, ALL) {
        let events = claim.batch.events.len();
        failed += events;
        claim.resolve(each(vec![retry(2, i64::MAX); events]));
        house.work();
    }
    assert_eq!(failed, 40);
    // Much comes and goes meanwhile.
    for id in 100..1500 {
        house.accept(&[id]).unwrap();
        house.at(1_000);
        house.all(&retry(1, 2_000));
        house.work();
        house.at(3_000);
        house.all(&Fate::Delivered);
        house.work();
    }
    assert!(house.queue.shared.failures.first_offset() > 2 * 40, "segments were freed");
    let disk = disk.power_loss(Policy::Drop, 0);
    let house = open_hook(&disk);
    let sink = house.adds_up(1440);
    assert_eq!((sink.retrying, sink.delivered), (40, 1400));
    for (row, id) in house.rows().iter().zip(&keep) {
        assert_eq!((row.offset, row.attempts, row.error.as_str()), (*id, 2, "attempt 2 failed"));
        assert_eq!((row.first_failed_at, row.last_failed_at), (Micros(1_000), Micros(10_000)));
        assert_eq!(house.queue.failure(HOOK, row.offset).unwrap().unwrap().json, text(*id));
    }
}

#[test]
fn a_sink_that_is_not_configured_keeps_its_rows_and_they_are_not_touched() {
    let (disk, mut house) = new();
    house.accept(&[1, 2]).unwrap();
    house.all(&retry(1, 0));
    house.close();
    let mut house = House::open_with(&disk, &tiny(), parking(&["other"])).unwrap();
    house.work();
    assert!(house.rows().is_empty());
    house.all(&Fate::Delivered);
    for id in 10..800 {
        house.accept(&[id]).unwrap();
        house.all(&retry(1, 0));
        house.work();
        house.all(&Fate::Delivered);
        house.work();
    }
    assert!(house.queue.shared.failures.first_offset() > 2);
    house.close();
    let mut house = House::open_with(&disk, &tiny(), parking(&["hook"])).unwrap();
    house.work();
    let sink = house.sink(HOOK);
    assert_eq!((sink.retrying, sink.dropped), (2, 0));
    assert_eq!(house.all(&Fate::Delivered), [1, 2]);
}

#[test]
fn without_the_table_its_events_are_missed_and_said_to_be() {
    let (disk, mut house) = new();
    house.accept(&[1, 2, 3]).unwrap();
    house.claim(HOOK, ALL).unwrap().resolve(each(vec![Fate::Delivered, dead(1), retry(1, 0)]));
    house.close();
    remove_files(&disk, "/data/ledger/failures");
    let mut house = open_hook(&disk);
    let sink = house.adds_up(3);
    assert_eq!((sink.delivered, sink.dropped, sink.dead, sink.retrying), (1, 2, 0, 0));
    assert!(house.status().damaged_ranges > 0);
    house.accept(&[4]).unwrap();
    house.all(&dead(1));
    house.close();
    assert_eq!(open_hook(&disk).adds_up(4).dead, 1, "and new rows are counted as ever");
}

#[test]
fn a_failed_sync_of_the_table_is_final() {
    let (disk, mut house) = new();
    house.accept(&[1]).unwrap();
    house.all(&dead(1));
    disk.fail_sync(1, PagesAfter::Clean, Policy::Drop, Times::Once);
    assert!(house.ledger.step().is_err());
    assert!(house.queue.failed().unwrap().contains("failure table"));
    assert_eq!(house.post(&[2]).err(), Some(Refusal::StorageFailed));
    disk.heal();
    let mut house = open_hook(&disk.power_loss(Policy::Drop, 0));
    assert_eq!(house.all(&Fate::Delivered), [1]);
    house.work();
    house.adds_up(1);
}

/// The model checker found both (`schedules.rs`): they waited for ever.
#[test]
fn a_redrive_under_way_hears_that_storage_has_failed() {
    let mut context = Context::from_waker(Waker::noop());
    for by_stock in [false, true] {
        let (disk, mut house) = new();
        house.accept(&[0]).unwrap();
        house.all(&dead(1));
        house.work();
        let queue = Arc::clone(&house.queue);
        let mut asked = queue.redrive(HOOK, Selection::All, Redrive::Retry);
        assert!(asked.as_mut().poll(&mut context).is_pending());
        if by_stock {
            // The stock latches the log and tells nobody; the ledger finds it so.
            for id in 1.. {
                disk.fail_sync(2, PagesAfter::Clean, Policy::Drop, Times::Once); // the directory's, behind the spare's
                if house.queue.shared.log.usage().spares == 0 {
                    break;
                }
                disk.heal();
                house.accept(&[id]).unwrap();
            }
            house.stock.step();
            assert!(house.ledger.run().is_err());
        } else {
            disk.fail_sync(1, PagesAfter::Clean, Policy::Drop, Times::Once);
            assert_eq!(house.accept(&[1]), Err(Refusal::StorageFailed));
        }
        let told = asked.as_mut().poll(&mut context);
        assert!(matches!(told, Poll::Ready(Err(QueueError::StorageFailed(_)))), "{told:?}");
    }
}

#[test]
fn pages_walk_the_whole_table_in_order_whatever_the_filter() {
    let (_disk, mut house) = new();
    let ids: Vec<u64> = (0..30).collect();
    for chunk in ids.chunks(10) {
        house.accept(chunk).unwrap();
        let fates = chunk.iter().map(|id| if id % 3 == 0 { dead(1) } else { retry(1, 9_000) });
        house.claim(HOOK, ALL).unwrap().resolve(each(fates.collect()));
        house.work();
    }
    let walk = |query: FailureQuery| {
        let mut offsets = Vec::new();
        let mut query = query;
        loop {
            let FailurePage { rows, next } = house.queue.failures(&query).unwrap();
            assert!(rows.len() <= query.limit);
            offsets.extend(rows.iter().map(|row| row.offset));
            if next.is_none() {
                return offsets;
            }
            query.after = next;
        }
    };
    let all = FailureQuery { limit: 7, ..FailureQuery::default() };
    assert_eq!(walk(all.clone()), ids);
    let dead: Vec<u64> = ids.iter().copied().filter(|id| id % 3 == 0).collect();
    assert_eq!(walk(FailureQuery { state: Some(RowState::Dead), ..all.clone() }), dead);
    assert_eq!(walk(FailureQuery { error_contains: Some("gave up".into()), limit: 1, ..all.clone() }), dead);
    assert!(walk(FailureQuery { failed_from: Some(Micros(1_001)), ..all.clone() }).is_empty());
    assert!(walk(FailureQuery { sink: Some(SinkId(1)), ..all }).is_empty());
}

#[test]
fn a_hundred_thousand_dead_rows_page_reopen_and_redrive() {
    const ROWS: u64 = 100_000;
    let mut config = tiny();
    (config.wal.segment_bytes, config.wal.budget_bytes) = (1 << 20, 16 << 20);
    (config.ledger.segment_bytes, config.failures.budget_bytes) = (64 << 10, 256 << 20);
    let disk = SimulatedDisk::new(1);
    let open = || {
        let mut house = House::open_with(&disk, &config, parking(&["hook"])).unwrap();
        house.work();
        house
    };
    let mut house = open();
    for start in (0..ROWS).step_by(1000) {
        house.accept(&(start..start + 1000).collect::<Vec<_>>()).unwrap();
        while !house.all(&dead(3)).is_empty() {}
        house.work();
    }
    assert_eq!(house.adds_up(ROWS).dead, ROWS);
    house.close();
    let mut house = open();
    assert_eq!(house.adds_up(ROWS).dead, ROWS);
    let after = Some((HOOK, ROWS / 2));
    let page = house.queue.failures(&FailureQuery { limit: 100, after, ..FailureQuery::default() }).unwrap();
    assert_eq!(page.rows.len(), 100);
    assert_eq!(page.rows[0].offset, ROWS / 2 + 1);
    assert_eq!(house.redrive(Selection::All, Redrive::Retry), ROWS);
    let claim = house.claim(HOOK, ALL).unwrap();
    assert_eq!(claim.batch.events.len(), 1000);
    drop(claim);
    assert_eq!(house.redrive(Selection::All, Redrive::Drop), ROWS);
    assert_eq!(house.adds_up(ROWS).dropped, ROWS);
}

#[test]
fn a_dropped_event_is_called_dropped_for_as_long_as_the_log_holds_it() {
    let (disk, mut house) = new();
    let dropped = || Fate::Dropped { reason: "let it go".to_owned() };
    house.accept(&[0, 1, 2, 3, 4]).unwrap();
    let fates = vec![Fate::Delivered, dropped(), retry(1, 0), dead(1), Fate::Delivered];
    house.claim(HOOK, ALL).unwrap().resolve(each(fates));
    house.work();
    let states = |house: &House| {
        let state = |offset| match house.queue.event(offset).unwrap() {
            Lookup::Found { sinks, .. } => sinks[0].1,
            other => panic!("{other:?}"),
        };
        (0..5).map(state).collect::<Vec<_>>()
    };
    use EventState::{Dead, Delivered, Dropped, Retrying};
    assert_eq!(states(&house), [Delivered, Dropped, Retrying, Dead, Delivered]);
    house.all(&dropped());
    assert_eq!(house.redrive(Selection::Offsets(vec![3]), Redrive::Drop), 1);
    house.work();
    let gone = [Delivered, Dropped, Dropped, Dropped, Delivered];
    assert_eq!(states(&house), gone);
    for disk in [disk.kill(), disk.power_loss(Policy::Drop, 0)] {
        let mut house = open_hook(&disk);
        assert_eq!(states(&house), gone, "also after a crash");
        house.accept(&[5]).unwrap();
        house.all(&Fate::Delivered);
        house.close();
        assert_eq!(states(&open_hook(&disk)), gone, "and after a stop");
    }
}

#[test]
fn a_ledger_that_does_not_say_what_was_dropped_makes_nobody_call_it_delivered() {
    let (disk, mut house) = new();
    house.accept(&[0, 1, 2]).unwrap();
    let fates = vec![Fate::Delivered, Fate::Dropped { reason: "let it go".to_owned() }];
    house.claim(HOOK, ALL).unwrap().resolve(each(fates));
    house.queue.shared.state().sinks[0].dropped = super::super::dropped::Dropped::default();
    house.close(); // as an older program would have left it
    let mut house = open_hook(&disk);
    house.all(&Fate::Delivered);
    house.work();
    house.accept(&[3]).unwrap();
    house.all(&Fate::Delivered);
    house.work();
    let state = |offset| match house.queue.event(offset).unwrap() {
        Lookup::Found { sinks, .. } => sinks[0].1,
        other => panic!("{other:?}"),
    };
    assert_eq!([state(0), state(1), state(3)], [EventState::Done, EventState::Done, EventState::Delivered]);
}
