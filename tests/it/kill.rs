//! A daemon that is killed again and again under load: what it acknowledged is in the archive
//! exactly once and in order, whatever it was doing when it died.
//!
//! SIGKILL keeps the page cache, so this proves nothing about syncs; the simulated disk does.
//!
//! `EVENTFLOW_KILL_ROUNDS` (default 10) and `EVENTFLOW_KILL_SEED` (default: a new one, printed).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::harness::{Archived, Client, Daemon, Random, TINY, archive, eventually, run, words};

const CLIENTS: u64 = 16;

/// One request and what is known of its fate.
struct Sent {
    source: String,
    ids: Vec<String>,
    /// Offsets from the 202, if it was one and appended anew.
    offsets: Option<(u64, u64)>,
    acknowledged: bool,
}

/// The payload that belongs to an id, of varying length.
fn payload(id: &str) -> String {
    let sum = id.bytes().fold(17u64, |sum, b| sum.wrapping_mul(31).wrapping_add(u64::from(b)));
    format!("{{\"of\":\"{id}\",\"fill\":\"{}\"}}", "x".repeat((sum % 700) as usize))
}

fn event(source: &str, id: &str) -> String {
    format!(r#"{{"specversion":"1.0","id":"{id}","source":"{source}","type":"kill","data":{}}}"#, payload(id))
}

/// Posts one request; `None` when its fate is unknown.
fn post(client: &mut Client, sent: &Sent, batch: bool) -> Option<(u16, serde_json::Value)> {
    let events: Vec<String> = sent.ids.iter().map(|id| event(&sent.source, id)).collect();
    let answer = match (batch, events.as_slice()) {
        (false, [one]) => client.post("application/cloudevents+json", one.as_bytes()),
        (true, _) => {
            client.post("application/cloudevents-batch+json", format!("[{}]", events.join(",")).as_bytes())
        }
        (false, _) => client.post("application/x-ndjson", events.join("\n").as_bytes()),
    };
    let answer = answer.ok()?;
    Some((answer.status, serde_json::from_slice(&answer.body).ok()?))
}

/// One client's life in one round: sends until the daemon is gone.
fn load(
    daemon: &Daemon,
    round: u64,
    number: u64,
    seed: u64,
    acks: &AtomicU64,
    stop: &AtomicBool,
) -> Vec<Sent> {
    let mut random = Random(seed ^ (number << 32));
    let mut client = daemon.client();
    let mut history = Vec::new();
    for request in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let events = if random.below(3) == 0 { 1 + random.below(20) } else { 1 };
        let mut sent = Sent {
            source: format!("/client/{number}"),
            ids: (0..events).map(|i| format!("r{round}-c{number}-{request}-{i}")).collect(),
            offsets: None,
            acknowledged: false,
        };
        let gone = match post(&mut client, &sent, random.below(2) == 0) {
            Some((202, answer)) => {
                assert_eq!(answer["accepted"], events, "{answer}");
                assert_eq!(answer["duplicates"], 0, "{answer}");
                sent.offsets = answer["first_offset"].as_u64().zip(answer["last_offset"].as_u64());
                assert!(sent.offsets.is_some(), "{answer}");
                sent.acknowledged = true;
                acks.fetch_add(1, Ordering::Relaxed);
                false
            }
            Some((429, _)) => {
                // Refused: nothing of it may ever show up, which the end of the test sees, because
                // a refused request is not in the history at all.
                std::thread::park_timeout(Duration::from_millis(1));
                continue;
            }
            Some((status, answer)) => panic!("{status}: {answer}"),
            None => true,
        };
        history.push(sent);
        if gone {
            break;
        }
    }
    history
}

/// Posts again what got no answer, as a careful client does; it must end as one copy.
fn settle(daemon: &Daemon, history: &mut [Sent]) {
    let mut client = daemon.client();
    for sent in history.iter_mut().filter(|s| !s.acknowledged) {
        let (status, answer) = eventually("an answer to a repeated request", || {
            post(&mut client, sent, true).filter(|(status, _)| *status != 429)
        });
        assert_eq!(status, 202, "{answer}");
        let (accepted, duplicates) = (answer["accepted"].as_u64(), answer["duplicates"].as_u64());
        let whole = sent.ids.len() as u64;
        assert!(
            (accepted, duplicates) == (Some(whole), Some(0))
                || (accepted, duplicates) == (Some(0), Some(whole)),
            "a request of {whole} was there in part: {answer}"
        );
        sent.acknowledged = true;
    }
}

#[test]
fn what_was_acknowledged_survives_being_killed_at_any_moment_exactly_once_and_in_order() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let rounds = number("EVENTFLOW_KILL_ROUNDS").unwrap_or(10);
    let seed = number("EVENTFLOW_KILL_SEED").unwrap_or_else(|| {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.expect("after 1970").subsec_nanos().into()
    });
    println!("EVENTFLOW_KILL_SEED={seed} EVENTFLOW_KILL_ROUNDS={rounds}");
    let mut random = Random(seed);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut history: Vec<Sent> = Vec::new();
    let mut nested = 0;
    for round in 0..rounds {
        // Sometimes it dies while it recovers, too.
        while random.below(3) == 0 {
            let daemon = Daemon::launch(dir.path(), TINY);
            std::thread::park_timeout(Duration::from_micros(random.below(40_000)));
            daemon.kill();
            nested += 1;
        }
        let daemon = Daemon::start(dir.path(), TINY);
        if random.below(2) == 0 {
            settle(&daemon, &mut history);
        }
        let (acks, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let (enough, spin) = (random.below(400), random.below(3_000));
        let seeds: Vec<u64> = (0..CLIENTS).map(|_| random.next()).collect();
        let killed = std::thread::scope(|scope| {
            let clients: Vec<_> = seeds
                .iter()
                .zip(0..)
                .map(|(seed, number)| {
                    let (daemon, acks, stop) = (&daemon, &acks, &stop);
                    scope.spawn(move || load(daemon, round, number, *seed, acks, stop))
                })
                .collect();
            eventually("enough acknowledgements", || (acks.load(Ordering::Relaxed) >= enough).then_some(()));
            std::thread::park_timeout(Duration::from_micros(spin));
            daemon.signal("KILL");
            stop.store(true, Ordering::Relaxed);
            clients.into_iter().flat_map(|c| c.join().expect("a client that ends")).collect::<Vec<_>>()
        });
        daemon.wait();
        history.extend(killed);
    }
    let daemon = Daemon::start(dir.path(), TINY);
    let status = daemon.drained();
    assert_eq!(status["wal"]["damaged_ranges"], 0, "{status}");
    assert_eq!(daemon.terminate().code(), Some(0));
    let archived = archive(dir.path());
    judge(&history, &archived);
    let verified = run(&["wal", "verify", "--data-dir", dir.path().to_str().expect("UTF-8")]);
    assert_eq!(verified.status.code(), Some(0), "{}", words(&verified));
    let answered = history.iter().filter(|s| s.acknowledged).count();
    println!(
        "{rounds} kills and {nested} during recovery; {answered} of {} requests acknowledged, {} events archived",
        history.len(),
        archived.len()
    );
}

/// The archive against everything that was sent.
fn judge(history: &[Sent], archived: &[Archived]) {
    assert!(archived.is_sorted_by(|a, b| a.offset < b.offset), "offsets must ascend without repeat");
    let mut found: HashMap<(&str, &str), u64> = HashMap::new();
    for line in archived {
        let again = found.insert((&line.source, &line.id), line.offset);
        assert!(again.is_none(), "twice in the archive: {}", line.line);
        assert_eq!(line.data.as_deref(), Some(payload(&line.id).as_str()), "changed: {}", line.line);
    }
    let mut expected = 0;
    for sent in history {
        let offsets: Vec<u64> = sent
            .ids
            .iter()
            .filter_map(|id| found.get(&(sent.source.as_str(), id.as_str())).copied())
            .collect();
        if sent.acknowledged {
            assert_eq!(offsets.len(), sent.ids.len(), "acknowledged and lost: {:?}", sent.ids);
        }
        assert!(
            offsets.is_empty() || offsets.len() == sent.ids.len(),
            "a batch in part: {} of {:?}",
            offsets.len(),
            sent.ids
        );
        assert!(offsets.windows(2).all(|w| w[1] == w[0] + 1), "a batch torn apart: {offsets:?}");
        if let Some((first, last)) = sent.offsets {
            assert_eq!(
                (offsets.first(), offsets.last()),
                (Some(&first), Some(&last)),
                "other offsets than told"
            );
        }
        expected += offsets.len();
    }
    assert_eq!(expected, archived.len(), "the archive holds what nobody sent");
}
