//! Clients that mean no good, next to one that does.
//!
//! Each attack runs against a daemon while a healthy client (the canary) posts to it and asks for its
//! health. The same canary asks a second daemon that nobody attacks, in turns: what only a busy machine
//! makes slow is slow at both, what the attack makes slow at one. Afterwards the attackers must be let
//! go, the memory must be what it was, and the archive must hold the canary's events and nothing else.

mod attacks;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::{Client, DEADLINE, Daemon, TINY, archive, eventually};
use attacks::{ATTACKS, Siege};

/// Longer than this a healthy client must never wait because of somebody else.
const CANARY_LIMIT: Duration = Duration::from_millis(250);

/// Least requests of the canary during one attack.
const ROUNDS: usize = 40;

/// What all attacks together may add to the daemon's memory and leave there.
const MEMORY_LIMIT_BYTES: u64 = 64 << 20;

/// Small limits and short deadlines, so that an attack meets them within a test.
const SETTINGS: &[(&str, &str)] = &[
    ("EVENTFLOW_WAL__SEGMENT", "1MiB"),
    ("EVENTFLOW_WAL__BUDGET", "16MiB"),
    ("EVENTFLOW_HTTP__MAX_BODY", "1MiB"),
    ("EVENTFLOW_HTTP__MAX_EVENT", "256KiB"),
    ("EVENTFLOW_HTTP__MAX_BUFFERED", "16MiB"),
    ("EVENTFLOW_HTTP__HEADER_TIMEOUT", "1s"),
    ("EVENTFLOW_HTTP__BODY_TIMEOUT", "1s"),
    ("EVENTFLOW_HTTP__IDLE_TIMEOUT", "2s"),
];

/// A number from `/proc/<process>/status`, in bytes where it is one of memory.
fn memory_bytes(daemon: &Daemon, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.process())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    number.expect("a line of /proc/<process>/status") * 1024
}

fn open_sockets(daemon: &Daemon) -> usize {
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", daemon.process())).expect("it runs");
    let targets = descriptors.filter_map(|descriptor| std::fs::read_link(descriptor.ok()?.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A daemon, its canary, and how many of the canary's events it took.
struct Watched {
    daemon: Daemon,
    canary: Client,
    posted: usize,
    _dir: tempfile::TempDir,
}

impl Watched {
    fn start(settings: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let daemon = Daemon::start(dir.path(), settings);
        Self { canary: daemon.client(), daemon, posted: 0, _dir: dir }
    }

    /// One post and one look at its health; how long the slower of the two took.
    fn round(&mut self) -> Duration {
        let event =
            format!(r#"{{"specversion":"1.0","id":"{}","source":"/canary","type":"song"}}"#, self.posted);
        let began = Instant::now();
        let answer = self.canary.post("application/cloudevents+json", event.as_bytes());
        let post_took = began.elapsed();
        let answer = answer.expect("the canary is answered");
        assert_eq!(answer.status, 202, "{}", answer.text());
        self.posted += 1;
        let began = Instant::now();
        let health = Client::to(self.daemon.address).get("/livez").expect("health is answered");
        assert_eq!(health.status, 200);
        post_took.max(began.elapsed())
    }
}

/// The canary's waits at both daemons while `attack` runs against the first.
fn waits(
    attacked: &mut Watched,
    alone: &mut Watched,
    attack: fn(&Siege),
    turns: usize,
) -> [Vec<Duration>; 2] {
    // The last attack may have taken longer than a connection may be idle.
    for watched in [&mut *attacked, &mut *alone] {
        watched.canary = watched.daemon.client();
    }
    let siege = Siege::of(attacked.daemon.address);
    let mut waits = [Vec::new(), Vec::new()];
    std::thread::scope(|scope| {
        let attacker = scope.spawn(|| attack(&siege));
        let _lifted = siege.lifted_in_the_end();
        let end = Instant::now() + DEADLINE;
        while (siege.turns() < turns || waits[0].len() < ROUNDS) && !attacker.is_finished() {
            assert!(Instant::now() < end, "the attack takes no turns");
            waits[0].push(attacked.round());
            waits[1].push(alone.round());
        }
    });
    waits
}

/// The longest but two: on a machine shared with other tests a thread may be put aside at any time.
fn nearly_longest(waits: &mut [Duration]) -> Duration {
    waits.sort();
    waits[waits.len() - 3]
}

#[test]
fn no_hostile_client_slows_a_healthy_one_down_stays_or_gets_anything_archived() {
    let (mut attacked, mut alone) = (Watched::start(SETTINGS), Watched::start(SETTINGS));
    attacked.round();
    let (memory_before, sockets_before) =
        (memory_bytes(&attacked.daemon, "VmRSS"), open_sockets(&attacked.daemon));
    for (name, attack, turns) in ATTACKS {
        let [mut at_attacked, mut at_alone] = waits(&mut attacked, &mut alone, *attack, *turns);
        let (slow, usual) = (nearly_longest(&mut at_attacked), nearly_longest(&mut at_alone));
        println!("{name}: the canary waited {slow:?}, and {usual:?} where nobody attacks");
        assert!(slow <= usual + CANARY_LIMIT, "{name}: {at_attacked:?}, elsewhere {at_alone:?}");
        eventually(&format!("the daemon to let go of: {name}"), || {
            // The canary's own connection, and one more for a look that just ended.
            (open_sockets(&attacked.daemon) <= sockets_before + 2).then_some(())
        });
    }
    let peak = memory_bytes(&attacked.daemon, "VmHWM");
    println!("memory: {memory_before} bytes before, {peak} at its peak");
    assert!(peak <= memory_before + MEMORY_LIMIT_BYTES, "{memory_before} bytes grew to {peak}");

    let status = attacked.daemon.drained();
    assert_eq!(status["wal"]["next_offset"], attacked.posted, "an attacker's event was stored");
    let data_dir = attacked.daemon.data_dir.clone();
    let said = attacked.daemon.said();
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(attacked.daemon.terminate().code(), Some(0));
    let sources: Vec<String> = archive(&data_dir).into_iter().map(|a| a.source).collect();
    assert_eq!(sources.len(), attacked.posted, "{}", text(&data_dir));
    assert!(sources.iter().all(|source| source == "/canary"));
}

/// Idle connections that must cost little.
const IDLE: usize = 10_000;

/// Opens connections until there are [`IDLE`], or as many as this process may hold.
fn idle_connections(to: SocketAddr) -> Vec<TcpStream> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    setrlimit(Resource::Nofile, raised).expect("a soft limit may be raised to the hard one");
    // What other tests of this process hold at the same time must fit beside them.
    let room = limit.maximum.map_or(usize::MAX, |files| (files as usize).saturating_sub(1000));
    (0..IDLE.min(room)).map(|_| TcpStream::connect(to).expect("connected")).collect()
}

#[test]
fn ten_thousand_idle_connections_cost_little_and_others_are_served() {
    // Room for the canary beside them, and time enough for all to be there at once.
    let room = [
        ("EVENTFLOW_HTTP__MAX_CONNECTIONS", "10100"),
        ("EVENTFLOW_HTTP__HEADER_TIMEOUT", "5m"),
        ("EVENTFLOW_HTTP__IDLE_TIMEOUT", "5m"),
    ];
    let settings = [TINY, &room].concat();
    let mut watched = Watched::start(&settings);
    watched.round();
    let memory_before = memory_bytes(&watched.daemon, "VmRSS");
    let sockets_before = open_sockets(&watched.daemon);
    let idle = idle_connections(watched.daemon.address);
    // Half of them have posted something before they fell silent.
    for stream in idle.iter().step_by(2) {
        let post = "POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1\r\n\r\n1";
        (&mut &*stream).write_all(post.as_bytes()).expect("taken");
    }
    eventually("every connection to be accepted", || {
        watched.round();
        (open_sockets(&watched.daemon) > idle.len()).then_some(())
    });
    let grown = eventually("idle connections to cost little", || {
        watched.round();
        let grown = memory_bytes(&watched.daemon, "VmRSS").saturating_sub(memory_before);
        (grown <= MEMORY_LIMIT_BYTES).then_some(grown)
    });
    println!("{} idle connections: {grown} bytes more", idle.len());
    drop(idle);
    eventually("every connection to be let go", || {
        (open_sockets(&watched.daemon) <= sockets_before + 2).then_some(())
    });
    watched.round();
}
