//! What must hold on whatever a crash has left: the promises, checked on the next life.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use eventflow::disk::SimulatedDisk;
use eventflow::queue::{Appended, Queue, SinkState, SinkStatus};

use super::house::{ARCHIVE, House, Line, MIRROR, SEGMENTS, WINDOW, archive, judge};
use super::script::{History, Run};

/// Starts on `disk`, where `history` is all that was known, delivers everything, and compares.
/// With `to_the_end` it also stops in order and starts once more.
pub fn check(disk: &SimulatedDisk, history: History, to_the_end: bool) {
    let known = history.clone();
    let mut run = Run::on(disk, Arc::new(disk.clone()), history, 0xc4ec);
    run.start();
    let status = run.house().queue.status();
    let end = status.next_offset;
    // A life with every file in use from its start to its stop has no segment to write a mark into; as
    // this start found them, not as they are after it has freed some. And what an earlier use of the file
    // has left right behind the mark may look like a torn write: then the start goes the safe way, says so,
    // and begins a new segment.
    let found = &run.house().report;
    if known.is_stopped() && found.segments < SEGMENTS && found.torn_tail.is_none() {
        assert!(found.clean_stop, "an orderly stop leaves its mark");
    }
    assert!(end >= known.promised_end(), "offset {end} is given again");
    let counted = at_start(&mut run, &known);

    run.deliver_all();
    run.house().settle();
    let lines = archive(disk);
    compare(&known, &lines);
    let judged = judge(disk);
    assert_eq!((judged.damage, judged.notes), (vec![], vec![]), "a crash damages no archive");
    assert_eq!((judged.events, judged.next_offset), (lines.len() as u64, end), "all of it, and nothing else");
    assert!(lines.iter().all(|line| line.offset < end), "an event from nowhere");
    for line in &lines {
        assert_eq!(run.history.shown.get(&line.offset).map(|shown| shown.0), Some(line.id));
        assert!(run.history.mirrored.contains_key(&line.offset), "the mirror never got {line:?}");
    }
    assert_eq!(counted, [lines.len() as u64; 2], "what was accepted, as the counters had it at the start");
    at_rest(run.house(), &lines, end);

    duplicates(&mut run, &known, end);
    let more = goes_on(&mut run, &known, &lines, end);
    if to_the_end {
        run.drain();
        run.start();
        run.deliver_all();
        run.house().settle();
        let end = run.house().queue.status().next_offset;
        let lines = archive(disk);
        assert_eq!(lines[..more.len()], more[..], "a restart changes nothing");
        at_rest(run.house(), &lines, end);
    }
}

/// What a sink's numbers say was accepted.
fn accepted(sink: &SinkStatus) -> u64 {
    sink.delivered + sink.dropped + sink.dead + sink.retrying + sink.pending + sink.skipped
}

/// Looks at the state of things right after a start and sets sinks going that are paused.
fn at_start(run: &mut Run, known: &History) -> [u64; 2] {
    let status = run.house().queue.status();
    assert_eq!(status.damaged_ranges, 0, "a crash damages nothing");
    let mirror = &status.sinks[1];
    let done = mirror.delivered + mirror.dropped + mirror.skipped;
    assert!(done <= known.mirrored.len() as u64, "the mirror is done with what it never got");
    for (sink, id) in status.sinks.iter().zip([ARCHIVE, MIRROR]) {
        let is_paused = sink.state == SinkState::Paused;
        assert!(known.may_be_paused(id).contains(&is_paused), "{} is paused: {is_paused}", sink.name);
    }
    run.resume();
    [accepted(&status.sinks[0]), accepted(&status.sinks[1])]
}

/// The archive against everything that was sent and answered.
fn compare(known: &History, lines: &[Line]) {
    let mut at: BTreeMap<u64, &Line> = BTreeMap::new();
    for line in lines {
        let again = at.insert(line.id, line);
        assert!(again.is_none(), "event {} twice, at {} too", line.id, line.offset);
    }
    for (id, home) in &known.homes {
        let line = at.get(id).unwrap_or_else(|| panic!("acknowledged event {id} at {} is lost", home.offset));
        assert_eq!((line.offset, line.accepted_at), (home.offset, home.accepted_at), "event {id} moved");
    }
    for (offset, (id, _)) in &known.shown {
        assert_eq!(
            at.get(id).map(|line| line.offset),
            Some(*offset),
            "event {id} was handed out and is gone"
        );
    }
    let mut sent = 0;
    let mut seen = BTreeSet::new();
    for request in &known.requests {
        let fresh: Vec<u64> = request.ids.iter().copied().filter(|id| seen.insert(*id)).collect();
        let found: Vec<&Line> = fresh.iter().filter_map(|id| at.get(id).copied()).collect();
        assert!(found.is_empty() || found.len() == fresh.len(), "request {:?} is there in part", request.ids);
        assert!(found.windows(2).all(|pair| pair[0].offset + 1 == pair[1].offset), "a request torn apart");
        if request.answer.is_some() {
            assert!(request.ids.iter().all(|id| at.contains_key(id)), "{:?} was acknowledged", request.ids);
        }
        sent += found.len();
    }
    assert_eq!(sent, lines.len(), "events that nobody sent, or that were refused");
}

/// Everything is delivered: the numbers say so, and agree with the archive.
fn at_rest(house: &House, lines: &[Line], end: u64) {
    let status = house.queue.status();
    assert_eq!(status.next_offset, end);
    assert_eq!(status.damaged_ranges, 0, "a crash damages nothing");
    for sink in &status.sinks {
        assert_eq!((sink.pending, sink.in_flight, sink.acked_offset), (0, 0, end), "{sink:?}");
        assert_eq!(accepted(sink), lines.len() as u64, "accepted is the sum: {sink:?}");
    }
    assert_eq!(status.sinks[0].delivered, lines.len() as u64, "the counter agrees with the archive");
}

/// What was acknowledged within the window is a duplicate, and costs nothing.
fn duplicates(run: &mut Run, known: &History, end: u64) {
    let in_window = |id: &u64| known.homes.get(id).is_some_and(|home| home.offset + WINDOW >= end);
    let answered = known.requests.iter().filter(|request| request.ids.iter().all(in_window));
    let mut expected = 0;
    for ids in answered.map(|request| request.ids.clone()).collect::<Vec<_>>() {
        expected += ids.len() as u64;
        assert!(run.post(ids), "there is room");
    }
    run.commit();
    assert_eq!(run.seen.duplicates, expected, "what was acknowledged is a duplicate");
    assert_eq!(run.house().queue.status().next_offset, end);
}

/// Requests without an answer are asked again, and a new one gets the next offset.
fn goes_on(run: &mut Run, known: &History, lines: &[Line], end: u64) -> Vec<Line> {
    let mut next = end;
    for ids in known.unanswered() {
        let is_there = lines.iter().any(|line| line.id == ids[ids.len() - 1]);
        let answer = answer(run, &ids);
        if is_there {
            assert_eq!(
                (answer.accepted, answer.duplicates),
                (0, ids.len() as u64),
                "{ids:?} is there already"
            );
        } else {
            assert!(answer.accepted > 0, "{ids:?} is not there");
            assert_eq!(answer.first_offset, next, "offsets go on");
            next += answer.accepted;
        }
    }
    let id = run.history.next_id;
    run.history.next_id += 1;
    assert_eq!(answer(run, &[id]), Appended { accepted: 1, duplicates: 0, first_offset: next });
    run.deliver_all();
    run.house().settle();
    let more = archive(&run.disk);
    assert_eq!(more[..lines.len()], *lines, "what is archived stays");
    assert_eq!(more.last().map(|line| (line.offset, line.id)), Some((next, id)));
    at_rest(run.house(), &more, next + 1);
    more
}

/// Posts a request when there is a spare segment for it.
fn answer(run: &mut Run, ids: &[u64]) -> Appended {
    run.house().settle();
    assert!(run.post(ids.to_vec()), "there is room");
    run.commit();
    let last = run.history.requests.last().expect("just posted");
    assert_eq!(last.ids, ids, "there is room");
    last.answer.expect("just committed").1
}
