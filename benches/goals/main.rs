//! `cargo bench`: the goals, each as a ratio of two things measured in the same run.
//!
//! Machines and hours differ by a factor of two, so no absolute figure means anything; what is compared
//! is measured in turns, round after round, and the median of the rounds' ratios is printed and drawn
//! (`docs/goals.svg`, `docs/rates.svg`).
//!
//! `EVENTFLOW_BENCH_SECONDS` (default 300) is about how long it may take; `EVENTFLOW_BENCH_DIR` is
//! where it writes (default: the build's temporary directory, so that it is a disk and no tmpfs).
//! `cargo bench --bench goals -- ready idle` runs only those parts: rounds, slow, ready, idle, overload,
//! calls; and `large`, which takes 12 GiB of disk and runs only when it is named. `-- --load ADDRESS CONNECTIONS SECONDS` only makes load (0 connections: NDJSON over 16), for a
//! profile of whatever listens there.

mod floor;
#[path = "../../tests/it/harness.rs"]
#[allow(dead_code)]
mod harness;
mod load;
mod overload;
mod plot;
mod process;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use harness::{Daemon, eventflow};
use load::{HTTP_NDJSON, HTTP_SINGLE, Measured, NDJSON_EVENTS, Numbers, REDIS_XADD};
use process::{ProcessorTime, SystemCalls, resident_bytes};

const CONNECTIONS: [usize; 4] = [1, 16, 64, 256];
const ROUNDS: u32 = 5;

/// All of the log's room in segments that are written beforehand: what a log that has run for a while
/// has. Otherwise half of what is measured would be the writing of zeros.
const SETTINGS: &[(&str, &str)] = &[
    ("EVENTFLOW_WAL__BUDGET", "2176MiB"),
    ("EVENTFLOW_WAL__SEGMENT", "128MiB"),
    ("EVENTFLOW_WAL__SPARES", "16"),
    ("EVENTFLOW_TELEMETRY__LEVEL", "warn"),
];
/// All of it but a segment, for which blocks that the file system takes for itself may leave no room.
const PREPARED_BYTES: f64 = (2048u64 << 20) as f64;

/// A log that is full at once.
const SMALL: &[(&str, &str)] = &[
    ("EVENTFLOW_WAL__BUDGET", "64MiB"),
    ("EVENTFLOW_WAL__SEGMENT", "8MiB"),
    ("EVENTFLOW_TELEMETRY__LEVEL", "warn"),
];

/// Each figure of each round, by name.
#[derive(Default)]
struct Figures(BTreeMap<String, Vec<f64>>);

impl Figures {
    fn add(&mut self, name: impl Into<String>, value: f64) {
        self.0.entry(name.into()).or_default().push(value);
    }

    /// The names of all figures.
    fn names(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    /// One figure, as measured.
    fn of(&self, name: &str) -> Spread {
        Spread::of(self.0.get(name).cloned().unwrap_or_default())
    }

    /// The ratio of two figures, round by round.
    fn ratio(&self, above: &str, below: &str) -> Spread {
        self.paired(above, below, |a, b| a / b)
    }

    /// The difference of two figures, round by round.
    fn difference(&self, more: &str, less: &str) -> Spread {
        self.paired(more, less, |a, b| a - b)
    }

    fn paired(&self, one: &str, other: &str, combine: fn(f64, f64) -> f64) -> Spread {
        let (Some(one), Some(other)) = (self.0.get(one), self.0.get(other)) else {
            return Spread::of(Vec::new());
        };
        Spread::of(one.iter().zip(other).map(|(a, b)| combine(*a, *b)).collect())
    }
}

/// The median of the rounds, and how far they lie apart: a median within a wide spread says little.
#[derive(Clone, Copy)]
struct Spread {
    low: f64,
    median: f64,
    high: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self { low: at(0), median: at(values.len() / 2), high: at(values.len().saturating_sub(1)) }
    }

    /// In another unit.
    fn map(self, convert: impl Fn(f64) -> f64) -> Self {
        Self { low: convert(self.low), median: convert(self.median), high: convert(self.high) }
    }
}

/// What every measurement needs.
struct Bench {
    folder: PathBuf,
    slice: Duration,
    numbers: Numbers,
    figures: Figures,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    match arguments.first().map(String::as_str) {
        Some(floor::NOTHING) => return floor::serve_nothing(&arguments[1]),
        Some("--load") => return only_load(&arguments[1..]),
        _ => {}
    }
    if cfg!(debug_assertions) {
        println!("figures of a debug build say nothing; run `cargo bench`");
        return;
    }
    let seconds = std::env::var("EVENTFLOW_BENCH_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(300.0);
    let place =
        std::env::var_os("EVENTFLOW_BENCH_DIR").map_or(env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from);
    let folder = tempfile::tempdir_in(place).expect("a writable folder");
    // About 17 slices a round; what is around them takes as long again as half of them.
    let slice = Duration::from_secs_f64((seconds / f64::from(ROUNDS) / 17.0 / 1.8).max(0.2));
    let mut bench = Bench {
        folder: folder.path().to_path_buf(),
        slice,
        numbers: Numbers::new(),
        figures: Figures::default(),
    };
    println!(
        "{ROUNDS} rounds, {slice:.1?} a measurement, events of 256 bytes, in {}",
        folder.path().display()
    );
    let wanted = |part: &str| arguments.is_empty() || arguments.iter().any(|a| a == part);
    for round in (1..=ROUNDS).filter(|_| wanted("rounds")) {
        let begun = Instant::now();
        bench.round();
        println!("round {round}: {:.0?}", begun.elapsed());
    }
    let parts: [(&str, Part); 5] = [
        ("slow", Bench::slow_syncs),
        ("ready", Bench::with_much_waiting),
        ("idle", Bench::idle_connections),
        ("overload", Bench::overload),
        ("calls", Bench::system_calls),
    ];
    for (name, part) in parts.into_iter().filter(|(name, _)| wanted(name)) {
        let begun = Instant::now();
        part(&mut bench);
        println!("{name}: {:.0?}", begun.elapsed());
    }
    if arguments.iter().any(|part| part == "large") {
        bench.ten_gib_waiting();
    }
    report::tell(&bench.figures, arguments.is_empty());
}

/// One part of the measuring.
type Part = fn(&mut Bench);

/// Load and nothing else.
fn only_load(arguments: &[String]) {
    let [address, connections, seconds] = arguments else { panic!("--load ADDRESS CONNECTIONS SECONDS") };
    let address: SocketAddr = address.parse().expect("an address");
    let connections: usize = connections.parse().expect("a number");
    let time = Duration::from_secs(seconds.parse().expect("seconds"));
    // Other numbers each time, so that no event is a duplicate of an earlier run's.
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock");
    let first = (now.as_millis() as u64 % (1 << 33)) << 12;
    let measured = match connections {
        0 => load::few_connections(address, 16, 1, time, &HTTP_NDJSON, first),
        many => load::many_connections(address, many, time, &HTTP_SINGLE, first),
    };
    println!("{:.0} answers a second", measured.rate());
}

impl Bench {
    fn single(&mut self, address: std::net::SocketAddr, connections: usize, redis: bool) -> Measured {
        let protocol = if redis { &REDIS_XADD } else { &HTTP_SINGLE };
        load::many_connections(address, connections, self.slice, protocol, self.numbers.take())
    }

    fn ndjson(&mut self, address: std::net::SocketAddr, time: Duration) -> f64 {
        let first = self.numbers.take();
        load::few_connections(address, 16, 1, time, &HTTP_NDJSON, first).rate() * NDJSON_EVENTS as f64
    }

    fn round(&mut self) {
        let folder = self.folder.join("round");
        std::fs::create_dir(&folder).expect("a writable folder");
        let mut disk = floor::Disk::prepare(&folder);
        let nothing = floor::nothing();
        let redis = floor::redis(&folder.join("redis"));
        let daemon = prepared(&folder.join("eventflow"));
        for connections in CONNECTIONS {
            if connections == 1 {
                let p50 = disk.sync_p50(self.slice / 2);
                self.figures.add("sync p50", p50);
            }
            if let Some(redis) = &redis {
                let rate = self.single(redis.address, connections, true).rate();
                self.figures.add(format!("redis {connections}"), rate);
            }
            alone(&daemon);
            let from = next_offset(&daemon);
            let before = ProcessorTime::of(daemon.process());
            let measured = self.single(daemon.address, connections, false);
            let used = ProcessorTime::of(daemon.process());
            self.figures.add(format!("single {connections}"), measured.rate());
            let each = 1e6 / measured.answers as f64;
            self.figures.add(format!("single {connections} user µs"), (used.user - before.user) * each);
            self.figures.add(format!("single {connections} kernel µs"), (used.kernel - before.kernel) * each);
            match connections {
                1 => self.figures.add("single p50", measured.percentile(0.5)),
                16 => {
                    let syncs = syncs(&daemon.data_dir, from) / measured.answers as f64;
                    self.figures.add("syncs per ack", syncs);
                }
                64 => {
                    let rate = self.single(nothing.address, connections, false).rate();
                    self.figures.add("nothing 64", rate);
                    together(&daemon);
                    let rate = self.single(daemon.address, connections, false).rate();
                    self.figures.add("archived 64", rate);
                }
                _ => {}
            }
        }
        let raw = disk.bytes_per_second(self.slice / 2);
        self.figures.add("raw bytes", raw);
        alone(&daemon);
        let before = ProcessorTime::of(daemon.process());
        let from = next_offset(&daemon);
        let events = self.ndjson(daemon.address, self.slice);
        let used = ProcessorTime::of(daemon.process());
        let each = 1e6 / (next_offset(&daemon) - from) as f64;
        self.figures.add("ndjson line user µs", (used.user - before.user) * each);
        self.figures.add("ndjson line kernel µs", (used.kernel - before.kernel) * each);
        self.figures.add("ndjson", events);
        self.figures.add("ndjson bytes", events * (load::EVENT_BYTES as f64 + 1.0));
        if let Some(redis) = &redis {
            let first = self.numbers.take();
            let measured = load::few_connections(redis.address, 4, 256, self.slice, &REDIS_XADD, first);
            self.figures.add("redis pipeline", measured.rate());
        }
        let archived = archive_bytes(&daemon);
        let begun = Instant::now();
        together(&daemon);
        let drained = (archive_bytes(&daemon) - archived) / begun.elapsed().as_secs_f64();
        self.figures.add("drained bytes", drained);
        let events = self.ndjson(daemon.address, self.slice);
        self.figures.add("ndjson archived", events);
        daemon.kill();
        drop((redis, nothing, disk));
        std::fs::remove_dir_all(&folder).expect("ours to remove");
    }

    /// Acks per sync at 64 connections when each sync takes 2 ms longer.
    fn slow_syncs(&mut self) {
        let folder = self.folder.join("slow");
        let plain = eventflow(&[]);
        let mut traced = Command::new("strace");
        traced
            .args(["-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fdatasync", "-e"])
            .arg("inject=fdatasync:delay_exit=2000")
            .arg(plain.get_program())
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&folder)
            .envs([("EVENTFLOW_TELEMETRY__LEVEL", "warn")]);
        if Command::new("strace").arg("-V").output().is_err() {
            return println!("skipped: strace, which slows the syncs down for goal 3, is not installed");
        }
        let daemon = Daemon::spawn(traced, &folder).listening();
        harness::eventually("ready", || {
            daemon.client().get("/readyz").is_ok_and(|a| a.status == 200).then_some(())
        });
        pause(&daemon, true);
        let from = next_offset(&daemon);
        let measured = self.single(daemon.address, 64, false);
        let acks_per_sync = measured.answers as f64 / syncs(&folder, from);
        self.figures.add("acks per slow sync", acks_per_sync / 64.0);
        daemon.kill();
    }

    /// With one and with five million events waiting: from the start of the process to ready, what it
    /// holds in memory then, and how long it takes to verify the log.
    fn with_much_waiting(&mut self) {
        let folder = self.folder.join("ready");
        let mut daemon = prepared(&folder);
        pause(&daemon, true);
        for millions in [1, 5] {
            while next_offset(&daemon) < millions * 1_000_000 {
                self.ndjson(daemon.address, Duration::from_millis(100));
            }
            for _ in 0..ROUNDS {
                let took;
                (daemon, took) = killed_and_ready(daemon, &folder, SETTINGS);
                self.figures.add(format!("ready {millions}M"), took);
                self.figures.add(format!("memory {millions}M"), resident_bytes(daemon.process()));
            }
        }
        let wal = folder.join("wal");
        daemon.terminate();
        for _ in 0..ROUNDS {
            self.figures.add("raw read", floor::read_bytes_per_second(&wal));
            let begun = Instant::now();
            let verified =
                eventflow(&["wal", "verify", "--data-dir"]).arg(&folder).output().expect("it runs");
            assert!(verified.status.success(), "{}", harness::words(&verified));
            let bytes: u64 = segments(&wal).map(|file| file.metadata().expect("there").len()).sum();
            self.figures.add("verified bytes", bytes as f64 / begun.elapsed().as_secs_f64());
        }
        std::fs::remove_dir_all(&folder).expect("ours to remove");
    }

    /// How long a daemon with 10 GiB waiting takes to be ready after a kill, and with how much memory.
    fn ten_gib_waiting(&mut self) {
        let folder = self.folder.join("large");
        let settings =
            [SETTINGS, &[("EVENTFLOW_WAL__BUDGET", "12GiB"), ("EVENTFLOW_WAL__SPARES", "2")]].concat();
        let mut daemon = Daemon::start(&folder, &settings);
        pause(&daemon, true);
        while daemon.status()["wal"]["bytes"].as_u64().is_none_or(|bytes| bytes < 10 << 30) {
            self.ndjson(daemon.address, Duration::from_millis(500));
        }
        let waiting = next_offset(&daemon);
        for _ in 0..ROUNDS {
            let took;
            (daemon, took) = killed_and_ready(daemon, &folder, &settings);
            let memory = resident_bytes(daemon.process()) / 1e6;
            println!("10 GiB in {waiting} events waiting: ready in {took:.3} s, {memory:.1} MB");
        }
        daemon.kill();
        std::fs::remove_dir_all(&folder).expect("ours to remove");
    }

    /// Ten thousand clients that have posted one event each and now keep their connections.
    fn idle_connections(&mut self) {
        let wanted = 10_000;
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        if limit.is_some_and(|files| files < wanted + 100) {
            return println!("skipped: 10,000 connections need `ulimit -n 11000` or more");
        }
        let daemon = prepared(&self.folder.join("idle"));
        let mut request = (HTTP_SINGLE.request)(1);
        let first = self.numbers.take();
        let connections: Vec<_> = (0..wanted)
            .map(|number| load::one_request(daemon.address, request.numbered(first + number)))
            .collect();
        self.figures.add("memory 10000 at once", resident_bytes(daemon.process()));
        // Half a minute is the longest that anything is kept for a connection's next request.
        std::thread::park_timeout(Duration::from_secs(5));
        self.figures.add("memory 10000 idle", resident_bytes(daemon.process()));
        drop(connections);
        daemon.kill();
    }

    /// Twice as many requests as the daemon can take; and requests that it must refuse, its log being full.
    fn overload(&mut self) {
        let daemon = prepared(&self.folder.join("overload"));
        pause(&daemon, true);
        for _ in 0..ROUNDS {
            let peak = self.single(daemon.address, 256, false).rate();
            let first = self.numbers.take();
            let time = self.slice * 3;
            let outcome = overload::open_loop(daemon.address, OVERLOAD_CONNECTIONS, 2.0 * peak, time, first);
            self.figures.add("overload accepted", outcome.accepted_rate() / peak);
            self.figures
                .add("overload refused", outcome.refused.len() as f64 / outcome.accepted.len() as f64);
            self.figures.add("overload p99 ms", load::percentile(&outcome.accepted, 0.99) / 1e6);
            let offered = outcome.unsent + (outcome.accepted.len() + outcome.refused.len()) as u64;
            self.figures.add("overload unsent", outcome.unsent as f64 / offered as f64);
        }
        daemon.kill();
        let daemon = Daemon::start(&self.folder.join("full"), SMALL);
        pause(&daemon, true);
        let rate = 20_000.0;
        let mut left = ROUNDS;
        while left > 0 {
            let first = self.numbers.take();
            let time = self.slice * 3;
            let outcome = overload::open_loop(daemon.address, OVERLOAD_CONNECTIONS, rate, time, first);
            if !outcome.accepted.is_empty() {
                continue; // not full yet
            }
            left -= 1;
            self.figures.add("refusal p99 ms", load::percentile(&outcome.refused, 0.99) / 1e6);
            self.figures
                .add("refusals a second", outcome.refused.len() as f64 / outcome.elapsed.as_secs_f64());
        }
        daemon.kill();
    }

    /// System calls an event, by name.
    fn system_calls(&mut self) {
        let folder = self.folder.join("calls");
        let daemon = prepared(&folder);
        pause(&daemon, true);
        for (what, connections) in [("single 1", 1), ("single 64", 64), ("ndjson line", 0)] {
            let Some(calls) = SystemCalls::of(daemon.process(), &folder) else {
                return println!("skipped: strace, which counts system calls, is not installed");
            };
            let from = next_offset(&daemon);
            match connections {
                0 => drop(self.ndjson(daemon.address, self.slice)),
                many => drop(self.single(daemon.address, many, false)),
            }
            let events = (next_offset(&daemon) - from) as f64;
            let counted = calls.counted();
            self.figures.add(format!("calls: {what}, all"), counted.values().sum::<f64>() / events);
            for (name, calls) in counted.into_iter().filter(|(_, calls)| *calls > events / 1000.0) {
                self.figures.add(format!("calls: {what}, {name}"), calls / events);
            }
        }
        daemon.kill();
    }
}

/// Enough for twice the load, if answers came at once.
const OVERLOAD_CONNECTIONS: usize = 1024;

/// A daemon whose log is written beforehand.
fn prepared(data_dir: &Path) -> Daemon {
    let daemon = Daemon::start(data_dir, SETTINGS);
    harness::eventually("all segments to be prepared", || {
        let wal = daemon.status()["wal"]["bytes"].as_f64()?;
        (wal >= PREPARED_BYTES).then_some(())
    });
    daemon
}

/// Kills a daemon and starts it again; how many seconds it took to be ready.
fn killed_and_ready(daemon: Daemon, folder: &Path, settings: &[(&str, &str)]) -> (Daemon, f64) {
    daemon.kill();
    let begun = Instant::now();
    let daemon = Daemon::start(folder, settings);
    (daemon, begun.elapsed().as_secs_f64())
}

fn pause(daemon: &Daemon, paused: bool) {
    let path = format!("/v1/sinks/archive/{}", if paused { "pause" } else { "resume" });
    let answer = daemon.client().request("POST", &path, &[], b"").expect("answered");
    assert!(answer.status < 300, "{}", answer.text());
}

/// Everything archived, then the archive at rest: what follows is ingest alone.
fn alone(daemon: &Daemon) {
    pause(daemon, false);
    daemon.drained();
    pause(daemon, true);
}

/// Everything archived, and the archive at work.
fn together(daemon: &Daemon) {
    pause(daemon, false);
    daemon.drained();
}

fn next_offset(daemon: &Daemon) -> u64 {
    daemon.status()["wal"]["next_offset"].as_u64().expect("an offset")
}

/// Bytes the archive holds.
fn archive_bytes(daemon: &Daemon) -> f64 {
    let files = harness::files_below(&daemon.data_dir.join("archive"));
    files.iter().map(|file| file.metadata().expect("there").len() as f64).sum()
}

/// The segments of a log.
fn segments(wal: &Path) -> impl Iterator<Item = PathBuf> {
    harness::files_below(wal).into_iter().filter(|file| file.extension().is_some_and(|e| e == "seg"))
}

/// Group commits from an offset on, counted in the log itself: frames of one group say the same about
/// how far the log was durable before them.
fn syncs(data_dir: &Path, from: u64) -> f64 {
    let mut groups = BTreeSet::new();
    for file in segments(&data_dir.join("wal")) {
        let bytes = std::fs::read(&file).expect("readable");
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let half = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize;
        let (salt, mut at) = (number(24), 4096);
        while at + 64 <= bytes.len() && &bytes[at..at + 4] == b"EVFR" && number(at + 8) == salt {
            let (records, payload) = (half(at + 40), half(at + 44));
            if records > 0 && number(at + 16) >= from {
                groups.insert(number(at + 24));
            }
            at += (64 + 24 * records + payload).next_multiple_of(8);
        }
    }
    groups.len() as f64
}
