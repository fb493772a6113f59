//! Random scripts against a naive model that keeps every event as one entry.
//!
//! After every step, for every sink: accepted = delivered + pending, and each number is what the
//! model says.

use proptest::prelude::*;

use crate::disk::simulated::Policy;
use crate::queue::Fate;

use super::*;

const SINKS: [&str; 2] = ["archive", "other"];

#[derive(Debug, Clone)]
enum Script {
    /// One group of requests, each with these ids.
    Group(Vec<Vec<u64>>),
    Claim {
        sink: usize,
        events: usize,
    },
    /// Ends a claim: each event is delivered where its bit is set.
    Settle {
        claim: usize,
        delivered: u64,
    },
    GiveBack {
        claim: usize,
    },
    Work,
    Stop,
    Kill,
    PowerLoss,
}

fn script() -> impl Strategy<Value = Script> {
    prop_oneof![
        5 => prop::collection::vec(prop::collection::vec(0u64..60, 1..6), 1..4).prop_map(Script::Group),
        5 => (0usize..2, 1usize..8).prop_map(|(sink, events)| Script::Claim { sink, events }),
        4 => (any::<usize>(), any::<u64>()).prop_map(|(claim, bits)| Script::Settle { claim, delivered: bits }),
        3 => any::<usize>().prop_map(|claim| Script::Settle { claim, delivered: u64::MAX }),
        1 => any::<usize>().prop_map(|claim| Script::GiveBack { claim }),
        4 => Just(Script::Work),
        1 => Just(Script::Stop),
        1 => Just(Script::Kill),
        1 => Just(Script::PowerLoss),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Pending,
    InFlight,
    Delivered,
}

#[derive(Debug, Default)]
struct Model {
    /// The id at each offset.
    ids: Vec<u64>,
    sinks: [Vec<At>; 2],
    /// What the last checkpoint said.
    durable: [Vec<At>; 2],
}

impl Model {
    fn accept(&mut self, ids: &[u64], window: usize) -> Appended {
        let mut appended = Appended { first_offset: self.ids.len() as u64, ..Appended::default() };
        for id in ids {
            if self.ids[self.ids.len().saturating_sub(window)..].contains(id) {
                appended.duplicates += 1;
            } else {
                appended.accepted += 1;
                self.ids.push(*id);
                self.sinks.iter_mut().for_each(|sink| sink.push(At::Pending));
            }
        }
        appended
    }

    fn checkpoint(&mut self) {
        self.durable = self.sinks.clone();
    }

    /// Claims are gone; with `lost`, also what no checkpoint says.
    fn restart(&mut self, lost: bool) {
        for (sink, durable) in self.sinks.iter_mut().zip(&self.durable) {
            for (offset, at) in sink.iter_mut().enumerate() {
                let kept = if lost { durable.get(offset).copied().unwrap_or(At::Pending) } else { *at };
                *at = if kept == At::Delivered { At::Delivered } else { At::Pending };
            }
        }
    }

    fn check(&self, house: &House) {
        let status = house.status();
        assert_eq!(status.next_offset, self.ids.len() as u64);
        for (sink, shown) in self.sinks.iter().zip(&status.sinks) {
            let count = |wanted| sink.iter().filter(|at| **at == wanted).count() as u64;
            assert_eq!(shown.delivered + shown.pending, status.next_offset, "the identity");
            assert_eq!(shown.delivered, count(At::Delivered));
            assert_eq!(shown.in_flight, count(At::InFlight));
            let acked = sink.iter().position(|at| *at != At::Delivered).unwrap_or(sink.len());
            assert_eq!(shown.acked_offset, acked as u64);
            assert!(status.first_offset <= acked as u64, "nothing is freed that a sink still needs");
        }
    }
}

struct Run {
    disk: SimulatedDisk,
    config: Config,
    house: Option<House>,
    claims: Vec<Claim>,
    /// The sink of each claim.
    owners: Vec<usize>,
    model: Model,
}

impl Run {
    fn step(&mut self, step: Script) {
        let house = self.house.as_mut().expect("it is open between steps");
        match step {
            Script::Group(requests) => {
                let receipts: Vec<_> =
                    requests.iter().filter_map(|ids| Some((ids, house.post(ids).ok()?))).collect();
                house.committer.commit_pending().unwrap();
                for (ids, mut receipt) in receipts {
                    if let Ok(appended) = receipt.try_now().unwrap() {
                        let window = self.config.wal.dedupe_window as usize;
                        let expected = self.model.accept(ids, window);
                        assert_eq!(
                            (appended.accepted, appended.duplicates),
                            (expected.accepted, expected.duplicates)
                        );
                        if appended.accepted > 0 {
                            assert_eq!(appended.first_offset, expected.first_offset);
                        }
                    }
                }
            }
            Script::Claim { sink, events } => {
                let at = &mut self.model.sinks[sink];
                let first = at.iter().position(|at| *at == At::Pending);
                let claim = house.claim(SinkId(sink as u16), ClaimLimit { events, ..ALL });
                assert_eq!(claim.as_ref().map(|c| range_of(c).start), first.map(|first| first as u64));
                let Some(claim) = claim else { return };
                let range = range_of(&claim).start as usize..range_of(&claim).end as usize;
                assert_eq!(ids_of(&claim.batch), self.model.ids[range.clone()]);
                assert!(at[range.clone()].iter().all(|at| *at == At::Pending));
                at[range].fill(At::InFlight);
                self.claims.push(claim);
                self.owners.push(sink);
            }
            Script::Settle { claim, delivered } => {
                let Some((sink, claim)) = self.take(claim) else { return };
                let outcome = |i: u64| match delivered >> (i % 64) & 1 {
                    1 => Fate::Delivered,
                    _ => Fate::Retry { reason: "not now".to_owned(), attempts: 1, due_at: Micros(0) },
                };
                let outcomes: Vec<_> =
                    (0..range_of(&claim).end - range_of(&claim).start).map(outcome).collect();
                for (offset, outcome) in range_of(&claim).zip(&outcomes) {
                    let is_done = *outcome == Fate::Delivered;
                    self.model.sinks[sink][offset as usize] =
                        if is_done { At::Delivered } else { At::Pending };
                }
                claim.resolve(Resolution { fates: Fates::Each(outcomes), token: None });
            }
            Script::GiveBack { claim } => {
                let Some((sink, claim)) = self.take(claim) else { return };
                let range = range_of(&claim).start as usize..range_of(&claim).end as usize;
                self.model.sinks[sink][range].fill(At::Pending);
            }
            Script::Work => {
                house.work();
                self.model.checkpoint();
            }
            Script::Stop => {
                self.forget_claims();
                self.model.restart(false);
                self.model.checkpoint();
                self.house.take().expect("it is open").close();
                self.reopen();
            }
            Script::Kill => {
                self.disk = self.disk.kill();
                self.forget_claims();
                self.model.restart(true);
                self.reopen();
            }
            Script::PowerLoss => {
                self.disk = self.disk.power_loss(Policy::Drop, 0);
                self.forget_claims();
                self.model.restart(true);
                self.reopen();
            }
        }
    }

    fn take(&mut self, claim: usize) -> Option<(usize, Claim)> {
        let at = claim.checked_rem(self.claims.len())?;
        Some((self.owners.swap_remove(at), self.claims.swap_remove(at)))
    }

    fn forget_claims(&mut self) {
        self.claims.clear();
        self.owners.clear();
    }

    fn reopen(&mut self) {
        self.house = None;
        self.house = Some(House::open(&self.disk, &self.config, &SINKS));
        self.model.checkpoint();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_number_adds_up_at_every_step(scripts in prop::collection::vec(script(), 0..80), window in 0u64..20) {
        let disk = SimulatedDisk::new(1);
        let config = { let mut c = tiny(); c.wal.dedupe_window = window; c };
        let house = Some(House::open(&disk, &config, &SINKS));
        let mut run = Run { disk, config, house, claims: vec![], owners: vec![], model: Model::default() };
        for script in scripts {
            run.step(script);
            run.model.check(run.house.as_ref().unwrap());
        }
    }
}
