//! What can be told of a queue's directory without opening it.

use std::task::{Context, Waker};

use super::*;
use crate::config::SinkConfig;
use crate::queue::embedded::{FailuresOnDisk, known_durable};
use crate::queue::{FailureQuery, FailureRow, Fate, Redrive, Selection};

/// A queue whose sinks park: some rows dead, some retrying, some changed or gone since, told again
/// by the cleaning of a small table.
fn troubled() -> (SimulatedDisk, House) {
    let disk = SimulatedDisk::new(3);
    let mut infos = infos(&["first", "second"]);
    infos.iter_mut().for_each(|info| info.parks = true);
    let mut house = House::open_with(&disk, &configured(), infos).unwrap();
    house.work();
    for round in 0..20u64 {
        let ids: Vec<u64> = (round * 10..round * 10 + 10).collect();
        house.accept(&ids).unwrap();
        for sink in [ARCHIVE, OTHER] {
            while let Some(claim) = house.claim(sink, ALL) {
                let fates = claim.batch.events.iter().enumerate().map(|(index, event)| {
                    let attempts = claim.attempts(index) + 1;
                    let reason = format!("failed {attempts} times");
                    match event.offset % 4 {
                        0 => Fate::Dead { reason, attempts },
                        1 if attempts < 3 => Fate::Retry { reason, attempts, due_at: Micros(0) },
                        1 => Fate::Dead { reason, attempts },
                        2 if event.offset > 150 => Fate::Retry { reason, attempts, due_at: Micros(i64::MAX) },
                        _ => Fate::Delivered,
                    }
                });
                let fates = Fates::Each(fates.collect());
                claim.resolve(Resolution { fates, token: None });
                house.work();
            }
            let old: Vec<u64> = (round * 10..round * 10 + 7).collect();
            drop_rows(&mut house, sink, old);
        }
    }
    (disk, house)
}

fn configured() -> Config {
    let mut config = tiny();
    let sink = config.sinks[0].clone();
    config.sinks =
        ["first", "second"].map(|name| SinkConfig { name: name.to_owned(), ..sink.clone() }).into();
    config
}

fn drop_rows(house: &mut House, sink: SinkId, offsets: Vec<u64>) {
    let queue = Arc::clone(&house.queue);
    let mut dropped = queue.redrive(sink, Selection::Offsets(offsets), Redrive::Drop);
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..1000 {
        if dropped.as_mut().poll(&mut cx).is_ready() {
            return;
        }
        house.ledger.step().unwrap();
    }
    panic!("the change does not end");
}

fn all() -> FailureQuery {
    FailureQuery { limit: 7, ..FailureQuery::default() }
}

fn rows_of(
    mut page: impl FnMut(&FailureQuery) -> crate::queue::FailurePage,
    mut query: FailureQuery,
) -> Vec<FailureRow> {
    let mut rows = Vec::new();
    loop {
        let page = page(&query);
        assert!(page.rows.len() <= query.limit);
        rows.extend(page.rows);
        match page.next {
            Some(next) => query.after = Some(next),
            None => return rows,
        }
    }
}

#[test]
fn rows_on_the_disk_are_the_rows_of_the_queue_live_and_stopped() {
    let (disk, house) = troubled();
    let before = disk.operations();
    let dead = FailureQuery { state: Some(crate::queue::RowState::Dead), sink: Some(OTHER), ..all() };
    let expected =
        [all(), dead.clone()].map(|query| rows_of(|query| house.queue.failures(query).unwrap(), query));
    assert!(expected[0].len() > expected[1].len() && expected[1].len() > 10, "there is something to see");
    let look = |disk: &SimulatedDisk| {
        let mut seen = FailuresOnDisk::open(disk, &configured()).unwrap();
        let rows = [all(), dead.clone()].map(|query| rows_of(|query| seen.page(query).unwrap(), query));
        for row in &rows[0] {
            let found = seen.one(row.sink, row.offset).unwrap().unwrap();
            assert_eq!((&found.row, found.json), (row, text(row.offset)));
        }
        assert_eq!((seen.one(ARCHIVE, 0).unwrap(), seen.unreadable()), (None, 0));
        rows
    };
    assert_eq!(look(&disk), expected);
    assert_eq!(disk.operations(), before, "nothing is written");
    assert_eq!(known_durable(&disk, &configured()).unwrap(), 200);
    house.close();
    assert_eq!(look(&disk), expected);
    assert_eq!(known_durable(&disk, &configured()).unwrap(), 200);
}

#[test]
fn a_look_that_the_daemon_overtakes_finds_the_rows_where_they_are_by_then() {
    let (disk, mut house) = troubled();
    let mut seen = FailuresOnDisk::open(&disk, &configured()).unwrap();
    let before = rows_of(|query| seen.page(query).unwrap(), all());
    // So much is parked and dropped that the table is cleaned over and over.
    for round in 20..80u64 {
        let ids: Vec<u64> = (round * 10..round * 10 + 10).collect();
        house.accept(&ids).unwrap();
        for sink in [ARCHIVE, OTHER] {
            while let Some(claim) = house.claim(sink, ALL) {
                let dead = Fate::Dead { reason: "no".into(), attempts: 1 };
                let fates = Fates::Each(vec![dead; claim.batch.events.len()]);
                claim.resolve(Resolution { fates, token: None });
                house.work();
            }
            drop_rows(&mut house, sink, ids.clone());
        }
    }
    let after = rows_of(|query| seen.page(query).unwrap(), all());
    assert_eq!(after, before);
    assert_eq!(seen.unreadable(), 0);
}

#[test]
fn where_there_is_nothing_nothing_is_known() {
    let disk = SimulatedDisk::new(1);
    assert_eq!(known_durable(&disk, &configured()).unwrap(), 0);
    let mut seen = FailuresOnDisk::open(&disk, &configured()).unwrap();
    assert_eq!(seen.page(&all()).unwrap(), crate::queue::FailurePage::default());
    assert_eq!(seen.one(ARCHIVE, 0).unwrap(), None);
}
