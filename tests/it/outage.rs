//! A receiver that misbehaves in every way we know of, one after the other, beside healthy sinks.
//!
//! The test's thread looks at `/v1/status` all the time, while another posts; no look may show a number that does
//! not add up. Each misbehaviour lasts until it was met, so nothing here depends on how fast anything is.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::net::TcpSocket;
use tokio::runtime::Runtime;

use crate::harness::{Daemon, archive, eventually};
use crate::webhook;

#[allow(dead_code, clippy::unwrap_used, reason = "the sink's own tests use the rest of it, by their rules")]
#[path = "../../src/sink/webhook/tests/receiver.rs"]
mod receiver;

use receiver::{Receiver, Reply, ok, status};

/// Events posted while the receiver misbehaves in one way.
const EACH: u32 = 40;

/// What the receiver does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Nobody listens, and who was connected is cut off.
    Down,
    Hangs,
    /// Breaks off inside its answer.
    Resets,
    Fails,
    /// Asks for time with 429 and `Retry-After`.
    Throttles,
    /// Takes everything but some events, see [`is_refused`].
    Refuses,
    /// Accepts, and its answer never ends.
    Endless,
    /// Reads and perhaps uses a request, and resets before any answer.
    AcceptsAndResets,
    Healthy,
}

const IN_TURN: [Manner; 10] = [
    Manner::Down,
    Manner::Hangs,
    Manner::Resets,
    Manner::Fails,
    Manner::Throttles,
    Manner::Refuses,
    Manner::Endless,
    Manner::AcceptsAndResets,
    Manner::Down,
    Manner::Healthy,
];

/// Events that the receiver takes in no manner at all.
fn is_refused(number: u32) -> bool {
    let turn = IN_TURN.iter().position(|manner| *manner == Manner::Refuses);
    (number / EACH) as usize == turn.expect("it is in the list") && number % 10 == 7
}

/// What arrived, and how the receiver behaves.
struct Seen {
    manner: Manner,
    /// Requests since it behaves like this.
    requests: u32,
    /// Events of requests that were answered with 200.
    taken: BTreeSet<u32>,
}

impl Seen {
    fn reply(&mut self, body: &str) -> Reply {
        let events: Vec<Value> = serde_json::from_str(body).expect("a batch of events");
        let number = |event: &Value| u32::try_from(event["data"]["number"].as_u64().expect("ours"));
        let numbers: Vec<u32> = events.iter().map(|event| number(event).expect("small")).collect();
        self.requests += 1;
        if matches!(self.manner, Manner::Refuses | Manner::Endless | Manner::Healthy) {
            if numbers.iter().any(|number| is_refused(*number)) {
                return status(400, "", "not this one");
            }
            self.taken.extend(numbers);
        }
        match self.manner {
            Manner::Down | Manner::Hangs => Reply::Hang,
            Manner::Resets => Reply::ThenReset("HTTP/1.1 200 OK\r\ncontent-le".to_owned()),
            Manner::Fails => status(500, "", "out of order"),
            Manner::Throttles => status(429, "retry-after: 1\r\n", "slowly"),
            Manner::Endless => Reply::Endless,
            Manner::AcceptsAndResets => Reply::ThenReset(String::new()),
            Manner::Refuses | Manner::Healthy => ok(),
        }
    }
}

/// The receiver, whose port stays its own while it is down.
struct Endpoint {
    address: SocketAddr,
    /// A bound socket that does not listen refuses connections, and keeps the port.
    spare: TcpSocket,
    /// Ends with everything that runs on it: listener and connections.
    up: Option<Runtime>,
    seen: Arc<Mutex<Seen>>,
}

impl Endpoint {
    fn new() -> Self {
        let spare = bound(SocketAddr::from(([127, 0, 0, 1], 0)));
        let seen = Seen { manner: Manner::Down, requests: 0, taken: BTreeSet::new() };
        let address = spare.local_addr().expect("bound");
        Self { address, spare, up: None, seen: Arc::new(Mutex::new(seen)) }
    }

    fn behave(&mut self, manner: Manner) {
        {
            let mut seen = self.seen.lock().expect("nobody panics with it");
            (seen.manner, seen.requests) = (manner, 0);
        }
        // Connections that hang belong to the manner before.
        self.up = None;
        if manner == Manner::Down {
            return;
        }
        let runtime = Runtime::new().expect("a runtime");
        let socket = std::mem::replace(&mut self.spare, bound(self.address));
        let seen = self.seen.clone();
        runtime.block_on(async move {
            let listener = socket.listen(64).expect("it listens");
            Receiver::behind(listener, None, move |request| {
                seen.lock().expect("nobody panics with it").reply(&request.body)
            })
        });
        self.up = Some(runtime);
    }

    /// Whether the sink has met what the receiver does at present.
    fn is_met(&self, hook: &Value) -> bool {
        let seen = self.seen.lock().expect("nobody panics with it");
        match seen.manner {
            Manner::Down => {
                let error = hook["last_error"].as_str().unwrap_or_default();
                hook["state"] == "backing_off" && error.contains("refused")
            }
            _ => seen.requests >= 3,
        }
    }
}

fn bound(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseport(true).expect("two may hold the port");
    socket.bind(address).expect("a port");
    socket
}

/// Looks at the status, and lets no number pass that does not add up or goes back.
struct Onlooker<'a> {
    daemon: &'a Daemon,
    last: Value,
    looks: u32,
}

impl Onlooker<'_> {
    fn look(&mut self) -> Value {
        let now = self.daemon.status();
        let number = |of: &Value, name: &str| of[name].as_u64().expect("a number");
        let accepted = number(&now["wal"], "next_offset");
        for sink in now["sinks"].as_array().expect("sinks") {
            let parts = ["delivered", "dropped", "dead", "retrying", "pending", "skipped"];
            let sum: u64 = parts.iter().map(|part| number(sink, part)).sum();
            assert_eq!(sum, accepted, "it does not add up: {sink}");
            assert!(
                number(sink, "in_flight") <= number(sink, "pending") + number(sink, "retrying"),
                "{sink}"
            );
            // A daemon that has just begun to listen shows none.
            let mut before = self.last["sinks"].as_array().into_iter().flatten();
            let Some(before) = before.find(|before| before["name"] == sink["name"]) else { continue };
            for name in ["acked_offset", "delivered", "dropped", "dead", "skipped"] {
                assert!(number(before, name) <= number(sink, name), "{name} went back: {before} → {sink}");
            }
        }
        self.looks += 1;
        self.last = now.clone();
        now
    }

    /// Looks until every sink but `hook` has delivered `accepted` events, and the hook fulfils `then`.
    fn until(&mut self, what: &str, accepted: u32, then: impl Fn(&Value) -> bool) {
        eventually(what, || {
            let now = self.look();
            let sinks = now["sinks"].as_array()?;
            let (hook, beside): (Vec<_>, Vec<_>) = sinks.iter().partition(|sink| sink["name"] == "hook");
            let is_done = beside.iter().all(|sink| sink["delivered"] == accepted);
            (is_done && beside.len() == 2 && then(hook.first()?)).then_some(())
        });
    }
}

fn numbers(turn: usize) -> Range<u32> {
    let first = u32::try_from(turn).expect("few") * EACH;
    first..first + EACH
}

#[test]
fn nothing_is_lost_and_all_adds_up_beside_a_receiver_that_misbehaves_in_every_way() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut endpoint = Endpoint::new();
    let (healthy, arrived) = webhook::receiver(|_| 200);
    // No event is given up for failing often: the only dead ones are those that the receiver refuses.
    let more = format!(
        "backoff_max = \"5ms\"\ntimeout = \"200ms\"\nbatch = 8\nmode = \"batch\"\nworkers = 2\n\
         retry = {{ max_attempts = 100000, initial = \"1ms\", max = \"5ms\" }}\n\
         [[sink]]\nname = \"beside\"\ntype = \"webhook\"\nurl = \"http://{healthy}/\"\nallow_private = true\nmode = \"batch\""
    );
    let daemon = webhook::daemon(dir.path(), endpoint.address, &more);
    let mut onlooker = Onlooker { daemon: &daemon, last: Value::Null, looks: 0 };
    for (turn, manner) in IN_TURN.into_iter().enumerate() {
        endpoint.behave(manner);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for first in numbers(turn).step_by(4) {
                    webhook::post(&daemon, first..first + 4);
                }
            });
            let what = format!("the sinks beside one whose receiver is {manner:?}, and it to meet that");
            onlooker.until(&what, numbers(turn).end, |hook| endpoint.is_met(hook));
        });
    }
    let all = numbers(IN_TURN.len() - 1).end;
    let refused: BTreeSet<u32> = (0..all).filter(|number| is_refused(*number)).collect();
    onlooker.until("the hook to be done", all, |hook| hook["pending"] == 0 && hook["retrying"] == 0);
    println!("{} looks at the status", onlooker.looks);

    let taken = endpoint.seen.lock().expect("nobody panics with it").taken.clone();
    assert_eq!(taken, (0..all).filter(|number| !is_refused(*number)).collect(), "what arrived");
    let rows = daemon.client().get("/v1/failures?sink=hook&limit=1000").expect("an answer").json();
    let rows = rows["failures"].as_array().expect("rows").clone();
    assert_eq!(rows.len(), refused.len(), "{rows:?}");
    for row in &rows {
        assert_eq!(row["state"], "dead");
        let text = row.to_string();
        assert!(text.contains("the endpoint answered 400 Bad Request: not this one"), "{text}");
    }
    let arrived: String =
        arrived.lock().expect("nobody panics with it").iter().map(|(_, body)| body.as_str()).collect();
    assert!((0..all).all(|number| arrived.contains(&format!("\"number\":{number}}}"))), "beside it");
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_eq!(archive(&dir.path().join("data")).len(), all as usize);
}
