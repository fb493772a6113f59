//! One promise a test.

use std::task::{Context, Poll, Waker};

use crate::disk::simulated::{Failure, PagesAfter, Policy, Times};
use crate::queue::Fate;
use crate::queue::{EventState, Lookup, QueueError, SinkState};

use super::*;

#[test]
fn what_is_accepted_is_claimed_in_order_and_acked_once_delivered() {
    let (_disk, mut house) = House::new();
    assert_eq!(house.accept(&[1, 2, 3]), Ok(accepted(3, 0)));
    assert_eq!(house.accept(&[4]), Ok(accepted(1, 3)));
    let first = house.claim(ARCHIVE, ClaimLimit { events: 2, bytes: 1 << 20 }).unwrap();
    assert_eq!((range_of(&first), ids_of(&first.batch)), (0..2, vec![1, 2]));
    let second = house.claim(ARCHIVE, ALL).unwrap();
    assert_eq!((range_of(&second), ids_of(&second.batch)), (2..4, vec![3, 4]));
    assert!(house.claim(ARCHIVE, ALL).is_none());
    second.resolve(Resolution::default());
    let sink = house.sink(ARCHIVE);
    assert_eq!((sink.acked_offset, sink.pending, sink.in_flight, sink.delivered), (0, 2, 2, 2));
    first.resolve(Resolution::default());
    let sink = house.sink(ARCHIVE);
    assert_eq!((sink.acked_offset, sink.pending, sink.in_flight, sink.delivered), (4, 0, 0, 4));
}

#[test]
fn a_claim_ends_at_its_byte_limit_but_has_one_event_at_least() {
    let (_disk, mut house) = House::new();
    house.accept(&[1, 2, 3]).unwrap();
    let two = 2 * text(1).len();
    let claim = house.claim(ARCHIVE, ClaimLimit { events: 10, bytes: two }).unwrap();
    assert_eq!(ids_of(&claim.batch), [1, 2]);
    claim.resolve(Resolution::default());
    let claim = house.claim(ARCHIVE, ClaimLimit { events: 10, bytes: 1 }).unwrap();
    assert_eq!(ids_of(&claim.batch), [3]);
    claim.resolve(Resolution::default());
}

#[test]
fn a_dropped_claim_goes_back_by_itself_and_comes_first_again() {
    let (_disk, mut house) = House::new();
    house.accept(&[1, 2, 3]).unwrap();
    let one = ClaimLimit { events: 1, ..ALL };
    drop(house.claim(ARCHIVE, one));
    assert_eq!(house.sink(ARCHIVE).in_flight, 0);
    assert_eq!(house.deliver_all(ARCHIVE), [1, 2, 3]);
}

#[test]
fn events_that_failed_come_back_and_the_others_do_not() {
    let (_disk, mut house) = House::new();
    house.accept(&[1, 2, 3, 4]).unwrap();
    let claim = house.claim(ARCHIVE, ALL).unwrap();
    let outcomes = vec![
        Fate::Delivered,
        Fate::Retry { reason: "later".into(), attempts: 1, due_at: Micros(0) },
        Fate::Delivered,
        Fate::Dead { reason: "never".into(), attempts: 1 },
    ];
    claim.resolve(Resolution { fates: Fates::Each(outcomes), token: None });
    let sink = house.sink(ARCHIVE);
    assert_eq!((sink.acked_offset, sink.pending, sink.delivered), (1, 2, 2));
    assert_eq!(sink.last_error.as_deref(), Some("never"));
    assert_eq!(house.deliver_all(ARCHIVE), [2, 4]);
    assert_eq!(house.sink(ARCHIVE).acked_offset, 4);
}

#[test]
fn a_duplicate_is_answered_as_one_after_the_sync_of_the_first() {
    let (_disk, mut house) = House::new();
    // Both in one group, and a batch that repeats itself.
    let mut first = house.post(&[1]).unwrap();
    let mut again = house.post(&[1]).unwrap();
    let mut twice = house.post(&[2, 2, 1, 3]).unwrap();
    assert_eq!(again.try_now(), None);
    house.committer.commit_pending().unwrap();
    assert_eq!(first.try_now(), Some(Ok(accepted(1, 0))));
    let duplicate = again.try_now().unwrap().unwrap();
    assert_eq!((duplicate.accepted, duplicate.duplicates), (0, 1));
    let mixed = twice.try_now().unwrap().unwrap();
    assert_eq!((mixed.accepted, mixed.duplicates, mixed.first_offset), (2, 2, 1));
    assert_eq!(house.deliver_all(ARCHIVE), [1, 2, 3]);
}

#[test]
fn duplicates_are_known_after_a_restart_even_when_their_segment_was_freed() {
    for clean in [true, false] {
        let (disk, mut house) = House::new();
        for id in 0..60 {
            house.accept(&[id]).unwrap();
            house.deliver_all(ARCHIVE);
            house.work();
        }
        assert!(house.status().first_offset > 60 - 16, "most of the window is not held any more");
        let disk = if clean {
            house.close();
            disk
        } else {
            drop(house);
            disk.power_loss(Policy::Drop, 0)
        };
        let mut house = House::open(&disk, &tiny(), &["archive"]);
        assert_eq!(house.status().next_offset, 60);
        for id in 60 - 16..60 {
            assert_eq!(house.accept(&[id]).unwrap().duplicates, 1, "{id} is within the last 16");
        }
        assert_eq!(house.accept(&[60 - 17]), Ok(accepted(1, 60)), "one more is outside");
    }
}

#[test]
fn another_dedupe_window_keeps_what_it_can() {
    let (disk, mut house) = House::new();
    for id in 0..40 {
        house.accept(&[id]).unwrap();
        house.deliver_all(ARCHIVE);
        house.work();
    }
    house.close();
    let mut config = tiny();
    config.wal.dedupe_window = 4;
    let mut house = House::open(&disk, &config, &["archive"]);
    assert_eq!(house.accept(&[36]).unwrap().duplicates, 1);
    assert_eq!(house.accept(&[35]).unwrap().accepted, 1);
    house.close();
    config.wal.dedupe_window = 0;
    let mut house = House::open(&disk, &config, &["archive"]);
    assert_eq!(house.accept(&[35, 35]).unwrap().accepted, 2);
}

#[test]
fn a_lost_or_damaged_ring_only_forgets_what_the_log_let_go() {
    for damage in [true, false] {
        let (disk, mut house) = House::new();
        for id in 0..12 {
            house.accept(&[id]).unwrap();
        }
        house.work();
        house.close();
        let ring = Path::new("/data/ledger/dedupe.ring");
        if damage {
            let file = disk.open(ring, Access::ReadWrite).unwrap();
            file.write_all_at(&[7; 1024], 0).unwrap();
        } else {
            disk.remove(ring).unwrap();
        }
        let mut house = House::open(&disk, &tiny(), &["archive"]);
        for id in 0..12 {
            assert_eq!(house.accept(&[id]).unwrap().duplicates, 1, "{id} is still in the log");
        }
    }
}

/// Posts single events from `id` on until one is refused; the next id and the refusal.
fn fill(house: &mut House, mut id: u64) -> (u64, Refusal) {
    loop {
        match house.accept(&[id]) {
            Ok(appended) => assert_eq!(appended.accepted, 1),
            Err(refusal) => return (id, refusal),
        }
        id += 1;
        while house.stock.step() == Step::Worked {}
    }
}

#[test]
fn a_full_log_refuses_and_goes_on_once_a_sink_has_caught_up() {
    let (disk, mut house) = House::new();
    let (stopped, refusal) = fill(&mut house, 0);
    assert_eq!(refusal, Refusal::WalFull);
    assert_eq!(house.queue.admit(400), Err(Refusal::WalFull));
    assert_eq!(house.status().refusing, None, "an empty request would still fit");
    assert!(house.status().wal_bytes <= tiny().wal.budget_bytes);
    assert_eq!(house.deliver_all(ARCHIVE), (0..stopped).collect::<Vec<_>>());
    house.work();
    assert_eq!(house.queue.admit(400), Ok(()));
    // The refused event is no duplicate, and no offset was lost.
    assert_eq!(house.accept(&[stopped]), Ok(accepted(1, stopped)));
    house.close();
    let house = House::open(&disk, &tiny(), &["archive"]);
    assert_eq!(house.deliver_all(ARCHIVE), [stopped]);
}

#[test]
fn a_group_that_does_not_fit_is_refused_in_part_and_stores_nothing_of_that_part() {
    let (_disk, mut house) = House::new();
    fill(&mut house, 0);
    house.deliver_all(ARCHIVE);
    house.work();
    // What is admitted by its bytes may still not fit into what is left of each segment.
    let next = house.status().next_offset;
    let mut receipts = Vec::new();
    for id in 1000.. {
        let ids: Vec<u64> = (id * 10..id * 10 + 7).collect();
        match house.post(&ids) {
            Ok(receipt) => receipts.push((id, receipt)),
            Err(_) => break,
        }
    }
    house.committer.commit_pending().unwrap();
    let mut offset = next;
    let mut refused = Vec::new();
    for (id, mut receipt) in receipts {
        match receipt.try_now().unwrap() {
            Ok(appended) => {
                assert_eq!(appended, accepted(7, offset));
                offset += 7;
            }
            Err(_) => refused.push(id),
        }
    }
    assert!(!refused.is_empty(), "the script should meet a segment's end");
    assert_eq!(house.status().next_offset, offset);
    house.work();
    house.deliver_all(ARCHIVE);
    house.work();
    for id in refused {
        assert_eq!(house.accept(&[id * 10]), Ok(accepted(1, offset)), "it is no duplicate of itself");
        offset += 1;
        house.deliver_all(ARCHIVE);
        house.work();
    }
}

#[test]
fn waiting_requests_are_bounded_by_their_bytes() {
    let disk = SimulatedDisk::new(1);
    let mut config = tiny();
    config.http.max_waiting_bytes = 1000;
    let mut house = House::open(&disk, &config, &["archive"]);
    let mut first = house.post(&[1]).unwrap();
    let mut second = house.post(&[2]).unwrap();
    assert_eq!(house.post(&[3]).unwrap_err(), Refusal::Overloaded);
    house.committer.commit_pending().unwrap();
    assert!(first.try_now().unwrap().is_ok() && second.try_now().unwrap().is_ok());
    // Alone, a request may be larger than that.
    assert_eq!(house.accept(&[3, 4, 5, 6]), Ok(accepted(4, 2)));
}

#[test]
fn whoever_waits_behind_a_commit_that_takes_too_long_is_refused_and_nothing_of_it_is_kept() {
    let (_disk, mut house) = House::new();
    let mut waiting = house.post(&[1]).unwrap();
    house.queue.shared.stall();
    assert_eq!(waiting.try_now().unwrap().unwrap_err(), Refusal::Overloaded);
    assert_eq!(house.post(&[2]).unwrap_err(), Refusal::Overloaded);
    assert_eq!(house.queue.status().refusing, Some(Refusal::Overloaded));
    house.queue.shared.waiting().stalled = false;
    assert_eq!(house.accept(&[1, 2]), Ok(accepted(2, 0)), "they are no duplicates of themselves");
}

#[test]
fn a_request_larger_than_a_segment_is_refused_for_good() {
    let (_disk, house) = House::new();
    let ids: Vec<u64> = (0..40).collect();
    assert!(
        matches!(house.post(&ids).unwrap_err(), Refusal::TooLarge { limit_bytes, .. } if limit_bytes < 8192)
    );
    assert_eq!(house.queue.admit(0), Ok(()));
}

#[test]
fn checkpoints_tokens_and_pauses_survive() {
    for clean in [true, false] {
        let disk = SimulatedDisk::new(1);
        let mut house = House::open(&disk, &tiny(), &["archive", "other"]);
        house.accept(&[1, 2, 3, 4, 5]).unwrap();
        let two = ClaimLimit { events: 2, ..ALL };
        let held = house.claim(OTHER, two).unwrap();
        let ahead = house.claim(OTHER, two).unwrap();
        ahead.resolve(Resolution { fates: Fates::AllDelivered, token: Some(vec![9, 9]) });
        let mut pause = house.queue.set_paused(ARCHIVE, true);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(pause.as_mut().poll(&mut cx).is_pending(), "a pause is told once it is durable");
        house.ledger.step().unwrap();
        assert!(matches!(pause.as_mut().poll(&mut cx), Poll::Ready(Ok(()))));
        drop(pause);
        std::mem::forget(held);
        let disk = if clean {
            house.close();
            disk
        } else {
            disk.power_loss(Policy::Drop, 0)
        };
        let house = House::open(&disk, &tiny(), &["archive", "other"]);
        assert_eq!(house.resumes[1].token, Some(vec![9, 9]));
        assert_eq!(house.sink(ARCHIVE).state, SinkState::Paused);
        assert!(house.claim(ARCHIVE, ALL).is_none());
        let other = house.sink(OTHER);
        assert_eq!((other.delivered, other.pending, other.acked_offset), (2, 3, 0));
        assert_eq!(house.deliver_all(OTHER), [1, 2, 5], "3 and 4 were delivered ahead");
        assert_eq!(house.sink(OTHER).acked_offset, 5);
    }
}

#[test]
fn a_sink_configured_as_paused_starts_paused_each_time() {
    let disk = SimulatedDisk::new(1);
    let mut sinks = infos(&["archive"]);
    sinks[0].starts_paused = true;
    for _ in 0..2 {
        let mut house = House::open_with(&disk, &tiny(), sinks.clone()).unwrap();
        house.work();
        assert_eq!(house.sink(ARCHIVE).state, SinkState::Paused);
        let mut resume = house.queue.set_paused(ARCHIVE, false);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(resume.as_mut().poll(&mut cx).is_pending());
        house.ledger.step().unwrap();
        assert!(matches!(resume.as_mut().poll(&mut cx), Poll::Ready(Ok(()))));
        drop(resume);
        assert_eq!(house.sink(ARCHIVE).state, SinkState::Running);
        house.close();
    }
}

#[test]
fn a_new_sink_gets_what_is_held_and_a_removed_one_pins_nothing() {
    let disk = SimulatedDisk::new(1);
    let mut house = House::open(&disk, &tiny(), &["archive", "other"]);
    for id in 0..20 {
        house.accept(&[id]).unwrap();
        house.work();
    }
    house.deliver_all(ARCHIVE);
    house.work();
    assert_eq!(house.status().first_offset, 0, "the other sink still needs all of it");
    house.close();

    let mut house = House::open(&disk, &tiny(), &["archive", "third"]);
    assert_eq!(house.deliver_all(OTHER), (0..20).collect::<Vec<_>>());
    assert_eq!(house.sink(OTHER).delivered, 20);
    house.work();
    assert!(house.status().first_offset > 0);
    house.close();

    // It comes back and goes on with what is held, and its counters speak of itself only.
    let house = House::open(&disk, &tiny(), &["archive", "other"]);
    let held = house.status().first_offset;
    assert_eq!(house.deliver_all(OTHER), (held..20).collect::<Vec<_>>());
    assert_eq!(house.sink(OTHER).delivered, 20 - held);
}

#[test]
fn a_failed_sync_is_final_and_everyone_is_told() {
    let (disk, mut house) = House::new();
    house.accept(&[1]).unwrap();
    let mut waiting = house.post(&[2]).unwrap();
    let mut also = house.post(&[1]).unwrap();
    disk.fail_sync(1, PagesAfter::Clean, Policy::Drop, Times::Once);
    assert!(house.committer.commit_pending().is_err());
    assert_eq!(waiting.try_now(), Some(Err(Refusal::StorageFailed)));
    assert_eq!(also.try_now(), Some(Err(Refusal::StorageFailed)));
    assert_eq!(house.post(&[3]).unwrap_err(), Refusal::StorageFailed);
    assert_eq!(house.queue.admit(1), Err(Refusal::StorageFailed));
    assert!(matches!(house.queue.claim_now(ARCHIVE, ALL), Err(QueueError::StorageFailed(_))));
    assert_eq!(house.status().refusing, Some(Refusal::StorageFailed));
}

#[test]
fn a_failed_ledger_is_final_too() {
    let (disk, mut house) = House::new();
    house.accept(&[1]).unwrap();
    house.deliver_all(ARCHIVE);
    disk.fail_sync(1, PagesAfter::Clean, Policy::Drop, Times::Once);
    assert!(house.ledger.step().is_err());
    assert_eq!(house.post(&[2]).unwrap_err(), Refusal::StorageFailed);
    let disk = disk.power_loss(Policy::Drop, 0);
    let house = House::open(&disk, &tiny(), &["archive"]);
    assert_eq!(house.deliver_all(ARCHIVE), [1], "at least once");
}

#[test]
fn nothing_is_freed_before_its_checkpoint_is_durable() {
    let (disk, mut house) = House::new();
    for id in 0..40 {
        house.accept(&[id]).unwrap();
        house.work();
    }
    house.deliver_all(ARCHIVE);
    disk.fail_sync(1, PagesAfter::Clean, Policy::Drop, Times::Once);
    assert!(house.ledger.step().is_err());
    let status = house.status();
    assert_eq!((status.sinks[0].acked_offset, status.first_offset), (40, 0));
}

#[test]
fn checkpoints_and_frees_go_on_while_the_disk_is_full() {
    let (disk, mut house) = House::new();
    let mut id = 0;
    // Full, but what a restart gives up it may take again.
    let free = || disk.free_bytes(Path::new("/data")).unwrap();
    let before = free();
    disk.set_capacity(before);
    disk.set_capacity(before - free());
    assert_eq!(free(), 0);
    let mut refused = 0;
    for _ in 0..2000 {
        match house.accept(&[id]) {
            Ok(_) => id += 1,
            Err(refusal) => {
                refused += 1;
                assert!(matches!(refusal, Refusal::StorageFull | Refusal::Overloaded), "{refusal:?}");
            }
        }
        house.deliver_all(ARCHIVE);
        house.work();
    }
    assert!(id > 1000, "{id} accepted, {refused} refused");
    assert_eq!(house.sink(ARCHIVE).acked_offset, id);
    // And a restart needs no room either.
    let disk = disk.power_loss(Policy::Drop, 0);
    let mut house = House::open(&disk, &tiny(), &["archive"]);
    assert_eq!(house.accept(&[id - 1]).unwrap().duplicates, 1);
    house.deliver_all(ARCHIVE);
    house.work();
    assert_eq!(house.sink(ARCHIVE).acked_offset, id);
}

#[test]
fn nothing_is_accepted_until_the_ledger_could_be_written() {
    let disk = SimulatedDisk::new(1);
    disk.set_capacity(0);
    let mut house = House::open_with(&disk, &tiny(), infos(&["archive"])).unwrap();
    assert_eq!(house.queue.admit(1), Err(Refusal::StorageFull));
    disk.set_capacity(1 << 30);
    house.work();
    assert_eq!(house.accept(&[1]), Ok(accepted(1, 0)));
}

#[test]
fn without_its_ledger_the_queue_delivers_again_and_never_gives_an_offset_twice() {
    let (disk, mut house) = House::new();
    for id in 0..60 {
        house.accept(&[id]).unwrap();
        house.deliver_all(ARCHIVE);
        house.work();
    }
    let held = house.status().first_offset;
    house.close();
    remove_files(&disk, "/data/ledger");
    let mut house = House::open(&disk, &tiny(), &["archive"]);
    let sink = house.sink(ARCHIVE);
    assert_eq!((sink.acked_offset, sink.pending, sink.delivered), (held, 60 - held, held));
    assert_eq!(house.deliver_all(ARCHIVE), (held..60).collect::<Vec<_>>());
    assert_eq!(house.accept(&[100]), Ok(accepted(1, 60)));
}

#[test]
fn segments_missing_at_the_beginning_are_told_as_lost_and_freed_ones_are_not() {
    let (disk, mut house) = House::new();
    for id in 0..60 {
        let _ = house.accept(&[id]);
        house.work();
    }
    let next = house.status().next_offset;
    house.close();
    let wal = Path::new("/data/wal");
    let mut names: Vec<_> = disk.list(wal).unwrap().into_iter().map(|entry| entry.name).collect();
    names.sort();
    disk.remove(&wal.join(&names[0])).unwrap();
    let mut house = House::open(&disk, &tiny(), &["archive"]);
    let first = house.status().first_offset;
    assert!(first > 0);
    assert_eq!(house.status().damaged_ranges, 1);
    assert_eq!(house.deliver_all(ARCHIVE), (first..next).collect::<Vec<_>>());
    assert_eq!(house.sink(ARCHIVE).delivered, next - first);
    house.work();
    house.close();
    let house = House::open(&disk, &tiny(), &["archive"]);
    assert_eq!(house.status().damaged_ranges, 1, "counted once");
    house.close();
    // Without the sink events are freed, and then its return finds nothing lost.
    let mut house = House::open(&disk, &tiny(), &["other"]);
    for id in 100..160 {
        house.accept(&[id]).unwrap();
        house.deliver_all(ARCHIVE);
        house.work();
    }
    house.close();
    let house = House::open(&disk, &tiny(), &["archive"]);
    assert!(house.status().first_offset > next);
    assert_eq!(house.status().damaged_ranges, 1);
}

#[test]
fn without_its_log_the_queue_never_gives_an_offset_twice() {
    let (disk, mut house) = House::new();
    for id in 0..30 {
        house.accept(&[id]).unwrap();
        house.work();
    }
    house.deliver_all(ARCHIVE);
    house.work();
    house.close();
    for entry in disk.list(Path::new("/data/wal")).unwrap() {
        disk.remove(&Path::new("/data/wal").join(entry.name)).unwrap();
    }
    let mut house = House::open(&disk, &tiny(), &["archive"]);
    assert_eq!(house.accept(&[100]), Ok(accepted(1, 30)));
    assert_eq!(house.deliver_all(ARCHIVE), [100]);
}

#[test]
fn an_event_can_be_looked_up_by_its_offset() {
    let (_disk, mut house) = House::new();
    house.accept(&[7, 8, 9]).unwrap();
    let claim = house.claim(ARCHIVE, ClaimLimit { events: 1, ..ALL }).unwrap();
    claim.resolve(Resolution::default());
    let held = house.claim(ARCHIVE, ClaimLimit { events: 1, ..ALL });
    for (offset, id, state) in
        [(0, 7, EventState::Delivered), (1, 8, EventState::InFlight), (2, 9, EventState::Pending)]
    {
        let found = Lookup::Found {
            accepted_at: Micros(5),
            json: text(id),
            sinks: vec![("archive".to_owned(), state)],
        };
        assert_eq!(house.queue.event(offset).unwrap(), found);
    }
    assert_eq!(house.queue.event(3).unwrap(), Lookup::NotYet);
    drop(held);
    for id in 10..40 {
        house.accept(&[id]).unwrap();
        house.deliver_all(ARCHIVE);
        house.work();
    }
    assert_eq!(house.queue.event(0).unwrap(), Lookup::Released);
}

#[test]
fn a_damaged_event_is_void_for_every_sink_and_counted_once() {
    let disk = SimulatedDisk::new(1);
    let mut house = House::open(&disk, &tiny(), &["archive", "other"]);
    for id in 0..20 {
        house.accept(&[id]).unwrap();
        house.work();
    }
    house.close();
    // The first segment holds offset 3 in full; flip one bit in its text.
    let segment = Path::new("/data/wal/00000000000000000000.seg");
    let file = disk.open(segment, Access::ReadWrite).unwrap();
    let mut bytes = vec![0; 8192];
    file.read_full_at(&mut bytes, 0).unwrap();
    let needle = br#"{"id":"3","#;
    let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
    file.write_all_at(b"X", at as u64 + 20).unwrap();

    for opening in 0..2 {
        let mut house = House::open(&disk, &tiny(), &["archive", "other"]);
        if opening == 0 {
            let intact: Vec<u64> = (0..20).filter(|id| *id != 3).collect();
            assert_eq!(house.deliver_all(ARCHIVE), intact);
        }
        house.work();
        assert_eq!(house.status().damaged_ranges, 1);
        let archive = house.sink(ARCHIVE);
        assert_eq!((archive.delivered, archive.pending, archive.acked_offset), (19, 0, 20));
        assert_eq!(house.sink(OTHER).pending, 19);
        assert_eq!(house.queue.event(3).unwrap(), Lookup::Void);
        if opening == 1 {
            assert_eq!(house.deliver_all(OTHER).len(), 19);
        }
        house.close();
    }
}

#[test]
fn a_drain_hands_nothing_out_but_lets_requests_under_way_finish() {
    let (disk, mut house) = House::new();
    house.accept(&[1]).unwrap();
    house.queue.begin_drain();
    assert!(house.claim(ARCHIVE, ALL).is_none());
    assert_eq!(house.queue.admit(1), Err(Refusal::ShuttingDown));
    assert_eq!(house.accept(&[2]), Ok(accepted(1, 1)));
    house.queue.close_appends();
    assert_eq!(house.post(&[3]).unwrap_err(), Refusal::ShuttingDown);
    house.close();
    let house = House::open(&disk, &tiny(), &["archive"]);
    assert_eq!(house.deliver_all(ARCHIVE), [1, 2]);
}

#[test]
fn claims_wait_for_commits_and_every_task_ends_with_the_drain() {
    let (_disk, house) = House::new();
    let House { queue, committer, ledger, .. } = house;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let writer = std::thread::spawn(move || ledger.run());
    runtime.block_on(async {
        let committing = tokio::spawn(committer.run());
        let claiming = {
            let queue = queue.clone();
            tokio::spawn(async move {
                let mut ids = Vec::new();
                while let Some(claim) = queue.claim(ARCHIVE, ALL).await.unwrap() {
                    ids.extend(ids_of(&claim.batch));
                    claim.resolve(Resolution::default());
                }
                ids
            })
        };
        for id in 0..8 {
            let receipt = queue.append(batch(&[id]), Micros(5)).unwrap();
            assert_eq!(receipt.await, Ok(accepted(1, id)));
        }
        queue.set_paused(ARCHIVE, true).await.unwrap();
        queue.set_paused(ARCHIVE, false).await.unwrap();
        while queue.status().sinks[0].delivered < 8 {
            tokio::task::yield_now().await;
        }
        queue.begin_drain();
        assert_eq!(claiming.await.unwrap(), (0..8).collect::<Vec<_>>());
        queue.close_appends();
        committing.await.unwrap().unwrap();
    });
    queue.stop_background();
    writer.join().unwrap().unwrap();
}

#[test]
fn a_disk_that_is_full_for_a_while_refuses_for_that_while() {
    let (disk, mut house) = House::new();
    let mut id = 0;
    while house.accept(&[id]).is_ok() {
        id += 1; // until the spare is used up, because nobody prepares another one
    }
    disk.fail_write(1, Failure::NoSpace, 100, Times::Once);
    assert_eq!(house.stock.step(), Step::Blocked);
    assert_eq!(house.post(&[id]).unwrap_err(), Refusal::StorageFull);
    assert_eq!(house.queue.admit(400), Err(Refusal::StorageFull));
    house.work();
    assert_eq!(house.accept(&[id]), Ok(accepted(1, id)));
    assert_eq!(house.deliver_all(ARCHIVE), (0..=id).collect::<Vec<_>>());
}
