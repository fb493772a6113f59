//! Since when events wait.

use super::*;

#[test]
fn what_waits_for_each_sink_is_as_old_as_its_oldest_event() {
    let disk = SimulatedDisk::new(1);
    let mut house = House::open(&disk, &tiny(), &["archive", "other"]);
    assert_eq!(house.queue.pending_since(), [None, None]);
    for (id, at) in [(0, 10), (1, 20), (2, 30)] {
        let mut receipt = house.queue.append(batch(&[id]), Micros(at)).unwrap();
        house.committer.commit_pending().unwrap();
        receipt.try_now().unwrap().unwrap();
    }
    assert_eq!(house.queue.pending_since(), [Some(Micros(10)), Some(Micros(10))]);
    let one = ClaimLimit { events: 1, bytes: 1 << 20 };
    let held = house.claim(OTHER, one).unwrap();
    house.claim(OTHER, one).unwrap().resolve(Resolution::default());
    assert_eq!(house.queue.pending_since()[1], Some(Micros(10)), "in flight, and so not done");
    held.resolve(Resolution::default());
    assert_eq!(house.queue.pending_since(), [Some(Micros(10)), Some(Micros(30))]);
    house.deliver_all(ARCHIVE);
    assert_eq!(house.queue.pending_since(), [None, Some(Micros(30))]);
}

#[test]
fn groups_are_counted_once_each() {
    let (_disk, mut house) = House::new();
    let receipts = [house.post(&[0, 1]).unwrap(), house.post(&[1]).unwrap(), house.post(&[2]).unwrap()];
    house.committer.commit_pending().unwrap();
    drop(receipts);
    house.committer.commit_pending().unwrap(); // nothing waits: no group
    house.accept(&[3]).unwrap();
    let commits = house.status().commits;
    assert_eq!((commits.requests.sum, commits.events.sum, commits.duplicates), (4, 4, 1));
    for distribution in [&commits.requests, &commits.events, &commits.micros] {
        assert_eq!(distribution.counts.iter().sum::<u64>(), 2, "two groups");
    }
}
