//! What becomes of single events: the bad ones are found, the others never wait for them.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn retry() -> Outcome {
    Outcome::Retry { reason: "no".into(), retry_after: None }
}

/// Answers each event by itself.
fn each(mut outcome: impl FnMut(u64) -> Outcome + Send + 'static) -> Script {
    Box::new(move |batch| {
        let outcomes = offsets(batch).into_iter().map(&mut outcome).collect();
        Act::Answer(Ok(Delivery { outcomes: Outcomes::Each(outcomes), token: None }))
    })
}

/// Breaks whenever a bad event is there.
fn breaks(bad: &'static [u64], how: fn() -> Act) -> Script {
    Box::new(move |batch| if offsets(batch).iter().any(|at| bad.contains(at)) { how() } else { fine() })
}

fn attempts(fates: &[Fate]) -> Vec<u32> {
    let attempts = fates.iter().filter_map(|fate| match fate {
        Fate::Retry { attempts, .. } | Fate::Dead { attempts, .. } => Some(*attempts),
        _ => None,
    });
    attempts.collect()
}

/// The bad ones are dead after ten attempts, all others were delivered, once.
fn assert_only_these_died(end: &End, events: u64, bad: &[u64]) {
    assert!(end.ended.is_ok());
    assert_eq!(end.book.fates.len() as u64, events);
    for (offset, fates) in &end.book.fates {
        if bad.contains(offset) {
            assert_eq!(attempts(fates), (1..=10).collect::<Vec<_>>(), "{offset}");
            assert!(matches!(fates.last(), Some(Fate::Dead { .. })), "{offset}");
        } else {
            assert_eq!(*fates, [Fate::Delivered], "{offset}");
        }
    }
}

fn thousand() -> SinkConfig {
    SinkConfig { batch: 1000, ..config() }
}

#[test]
fn an_event_that_fails_among_a_thousand_dies_alone_after_its_attempts() {
    let script = each(|at| if at == 137 { retry() } else { Outcome::Delivered });
    let end = run(vec![Supply::Events(1000)], script, thousand());
    assert_only_these_died(&end, 1000, &[137]);
    assert_eq!(end.calls.len(), 10);
    assert!(end.book.backing_off.is_empty(), "the sink itself was never in doubt");
}

#[test]
fn an_event_that_makes_the_sink_panic_is_found_and_the_others_are_delivered_once() {
    for bad in [&[0u64], &[137], &[999]] {
        for how in [|| Act::Panic, || Act::PanicBeforeFuture] {
            let end = run(vec![Supply::Events(1000)], breaks(bad, how), thousand());
            assert_only_these_died(&end, 1000, bad);
            assert!(end.calls.len() <= 2 * 10 + 1 + 9, "{} calls", end.calls.len());
            assert!(end.book.backing_off.is_empty(), "the sink itself was never in doubt");
        }
    }
}

#[test]
fn an_event_that_makes_the_sink_hang_is_found_in_bounded_time() {
    let end = run(vec![Supply::Events(1000)], breaks(&[500], || Act::Hang), thousand());
    assert_only_these_died(&end, 1000, &[500]);
    let reason = match end.book.fates[&500].last() {
        Some(Fate::Dead { reason, .. }) => reason.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(reason, "no answer within 10s");
    // Eleven timeouts to find it, nine more alone, and the waits between: below 0.2 s · 2⁹ in sum.
    assert!(end.took <= 20 * 10 * SECOND + 103 * SECOND, "{:?}", end.took);
}

#[test]
fn several_bad_events_side_by_side_and_apart_die_alone() {
    let bad: &[u64] = &[0, 1, 2, 3, 400, 401, 777, 998, 999];
    let end = run(vec![Supply::Events(1000), Supply::Events(500)], breaks(bad, || Act::Panic), thousand());
    assert_only_these_died(&end, 1500, bad);
}

#[test]
fn a_sink_that_breaks_on_everything_tries_single_events_with_waits_between() {
    let config = SinkConfig { retry: crate::config::Retry { max_attempts: 2, ..config().retry }, ..config() };
    let end = run(vec![Supply::Events(30)], Box::new(|_| Act::Panic), config);
    for (offset, fates) in &end.book.fates {
        assert_eq!(attempts(fates), [1, 2], "{offset}");
    }
    assert_eq!(end.book.fates.len(), 30);
    // Nobody is given up without having been alone, and what was not tried lost no attempt.
    let alone = |offset: u64| end.calls.iter().filter(|(events, _)| *events == [offset]).count();
    assert!((0..30).all(|offset| alone(offset) == 2));
    assert!(end.took > 30 * 60 * SECOND, "{:?}", end.took);
}

#[test]
fn a_sink_that_was_broken_gets_whole_batches_again() {
    let mut calls = 0;
    let script: Script = Box::new(move |_| {
        calls += 1;
        if calls <= 40 { Act::Panic } else { fine() }
    });
    let patient = crate::config::Retry { max_attempts: 100, ..config().retry };
    let end = run(vec![Supply::Events(1000)], script, SinkConfig { retry: patient, ..config() });
    assert!(end.book.fates.values().all(|fates| *fates.last().unwrap() == Fate::Delivered));
    assert_eq!(end.book.fates.len(), 1000);
    let largest = end.calls.iter().skip(40).map(|(events, _)| events.len()).max();
    assert_eq!(largest, Some(100));
    assert_eq!(end.book.backing_off.last(), Some(&None));
}

#[test]
fn an_outage_uses_no_attempt_of_an_event() {
    let mut calls = 0;
    let script: Script = Box::new(move |batch| {
        calls += 1;
        match calls {
            2..=9 => unavailable(None),
            _ => Act::Answer(Ok(Delivery {
                outcomes: Outcomes::Each(vec![retry(); batch.events.len()]),
                token: None,
            })),
        }
    });
    let end = run(vec![Supply::Events(1)], script, config());
    assert_eq!(attempts(&end.book.fates[&0]), (1..=10).collect::<Vec<_>>());
    assert_eq!(end.calls.len(), 18);
}

#[test]
fn an_outage_while_a_bad_event_is_looked_for_keeps_what_is_done_and_returns_the_rest() {
    // 0..4 breaks, 0..2 is delivered, 2..4 meets an outage.
    let script = acts(vec![Act::Panic, fine(), unavailable(None)]);
    let end = run(vec![Supply::Events(4)], script, config());
    assert!(end.book.fates.values().all(|fates| *fates == [Fate::Delivered]));
    let calls: Vec<Vec<u64>> = end.calls.into_iter().map(|(events, _)| events).collect();
    assert_eq!(calls, [vec![0, 1, 2, 3], vec![0, 1], vec![2, 3], vec![2, 3]]);
    assert_eq!(end.took, SECOND);
}

#[test]
fn a_drain_while_a_bad_event_is_looked_for_keeps_what_is_done_and_returns_the_rest() {
    let script: Script = Box::new(|batch| if offsets(batch).contains(&0) { Act::Hang } else { fine() });
    // 0..4 and 0..2 time out, 0 alone is under way when the drain begins.
    let end = run_until(vec![Supply::Events(4)], script, config(), Some(25 * SECOND));
    assert!(end.ended.is_ok());
    assert_eq!(end.took, 30 * SECOND, "what is under way may finish");
    assert_eq!(end.book.fates.keys().copied().collect::<Vec<_>>(), [0]);
    assert_eq!(attempts(&end.book.fates[&0]), [1]);
    assert_eq!(end.closed, 1);
}

#[test]
fn what_is_rejected_dies_at_once_and_with_policy_drop_is_dropped() {
    use crate::config::{Exhausted, Retry};
    let outcome = |at| match at {
        1 => Outcome::Reject { reason: "never".into() },
        2 => retry(),
        _ => Outcome::Delivered,
    };
    let end = run(vec![Supply::Events(4)], each(outcome), config());
    assert_eq!(end.book.fates[&1], [Fate::Dead { reason: "never".into(), attempts: 1 }]);
    let retry = Retry { max_attempts: 3, exhausted: Exhausted::Drop, ..Retry::default() };
    let end = run(vec![Supply::Events(4)], each(outcome), SinkConfig { retry, ..config() });
    assert_eq!(end.book.fates[&1], [Fate::Dropped { reason: "never".into() }]);
    assert_eq!(attempts(&end.book.fates[&2]), [1, 2]);
    assert_eq!(end.book.fates[&2].last(), Some(&Fate::Dropped { reason: "no".into() }));
    assert_eq!([&end.book.fates[&0], &end.book.fates[&3]], [&vec![Fate::Delivered], &vec![Fate::Delivered]]);
}

#[test]
fn an_event_is_not_tried_before_its_target_wants_it() {
    let mut calls = 0;
    let script = each(move |_| {
        calls += 1;
        match calls {
            1 => Outcome::Retry { reason: "429".into(), retry_after: Some(90 * SECOND) },
            _ => Outcome::Delivered,
        }
    });
    let end = run(vec![Supply::Events(1)], script, config());
    assert_eq!(end.took, 90 * SECOND);
    assert_eq!(end.book.fates[&0].len(), 2);
}

fn filtered(config: SinkConfig) -> SinkConfig {
    let mut config = config;
    config.filter.event_type = Some(crate::config::Pattern::parse("order.*").unwrap());
    config
}

#[test]
fn what_the_filter_does_not_match_is_skipped_and_costs_no_call() {
    let supply = || {
        vec![Supply::Types(&["order.a", "bill.a", "order.b", "bill.b"]), Supply::Types(&["bill.c", "bill.d"])]
    };
    let skipped = [1, 3, 4, 5];
    for config in [filtered(config()), filtered(ordered())] {
        let keeps_order = config.kind.keeps_order();
        let end = run(supply(), acts(vec![]), config);
        for (offset, fates) in &end.book.fates {
            let fate = if skipped.contains(offset) { Fate::Skipped } else { Fate::Delivered };
            assert_eq!(*fates, [fate], "{offset}");
        }
        assert_eq!(end.book.fates.len(), 6);
        let first = (vec![0, 2], vec![1..2, 3..4]);
        let second = (vec![], one(4..6));
        // An archive hears of what is not for it, so that its token passes it.
        assert_eq!(end.calls, if keeps_order { vec![first, second] } else { vec![first] });
    }
}

#[test]
fn fates_find_their_events_behind_skipped_ones_and_what_was_not_tried_goes_back_whole() {
    // The matching events are 1, 2, 4, 5: together they break, 1 and 2 go through, 4 and 5 meet an outage.
    let types = &["x", "order.a", "order.b", "x", "order.c", "order.d", "x"];
    let script = acts(vec![Act::Panic, fine(), unavailable(None)]);
    let end = run(vec![Supply::Types(types)], script, filtered(config()));
    for (offset, fates) in &end.book.fates {
        let fate = if [0, 3, 6].contains(offset) { Fate::Skipped } else { Fate::Delivered };
        assert_eq!(*fates, [fate], "{offset}");
    }
    let calls: Vec<Vec<u64>> = end.calls.into_iter().map(|(events, _)| events).collect();
    assert_eq!(calls, [vec![1, 2, 4, 5], vec![1, 2], vec![4, 5], vec![4, 5]]);
}

#[test]
fn workers_of_one_sink_share_an_outage_and_every_event_is_delivered_once() {
    let queue = FakeQueue::stocked((0..40).map(|_| Supply::Events(5)).collect());
    let owner = queue.owner.clone();
    let queue: Arc<dyn Queue> = Arc::new(queue);
    let config = SinkConfig { batch: 5, workers: 4, ..config() };
    let availability = Arc::new(Availability::new(&config));
    let (_stop, stopped) = watch::channel(false);
    let calls = Calls::default();
    let count = Arc::new(Mutex::new(0));
    let worker = || {
        let count = count.clone();
        let script: Script = Box::new(move |_| {
            let mut count = count.lock().unwrap();
            *count += 1;
            // Down from the start, and for a while.
            if *count <= 16 { unavailable(None) } else { fine() }
        });
        let sink = FakeSink { script, calls: calls.clone(), closed: Arc::default() };
        let worker = Worker {
            queue: queue.clone(),
            sink_id: SINK,
            config: config.clone(),
            sink: Box::new(sink),
            availability: availability.clone(),
            stop: stopped.clone(),
            pulse: Arc::default(),
        };
        let clock = owner.clone();
        worker.run_with(Box::new(|| u64::MAX), Box::new(move || clock.now()))
    };
    let took = runtime().block_on(async {
        let start = Instant::now();
        let (a, b, c, d) = tokio::join!(worker(), worker(), worker(), worker());
        assert!([a, b, c, d].iter().all(Result::is_ok));
        start.elapsed()
    });
    let book = owner.book();
    assert_eq!(book.fates.len(), 200);
    assert!(book.fates.values().all(|fates| *fates == [Fate::Delivered]));
    // Sixteen tries in vain by four workers are at most sixteen waits, and no fewer than four.
    let waits = book.backing_off.iter().filter(|reason| reason.is_some()).count();
    assert!((4..=16).contains(&waits), "{waits}");
    assert!(took >= (1 + 2 + 4 + 8) * SECOND, "{took:?}");
}
