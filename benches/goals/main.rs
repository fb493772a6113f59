//! `cargo bench`: the goals, each as a ratio of two things measured in the same run.
//!
//! Machines and hours differ by a factor of two, so no absolute figure means anything; what is compared
//! is measured in turns, round after round, and the median of the rounds' ratios is printed.
//! `EVENTFLOW_BENCH_SECONDS` (default 150) is about how long it may take; `EVENTFLOW_BENCH_DIR` is
//! where it writes (default: the build's temporary directory, so that it is a disk and no tmpfs).

mod floor;
#[path = "../../tests/it/harness.rs"]
#[allow(dead_code)]
mod harness;
mod load;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use harness::{Daemon, eventflow};
use load::{HTTP_NDJSON, HTTP_SINGLE, Measured, NDJSON_EVENTS, Numbers, REDIS_XADD};

const CONNECTIONS: [usize; 4] = [1, 16, 64, 256];
const ROUNDS: u32 = 3;

/// Room for what piles up while the sink is paused, in segments that are written beforehand: what a
/// log that has run for a while has, too.
const SETTINGS: &[(&str, &str)] = &[
    ("EVENTFLOW_WAL__BUDGET", "8GiB"),
    ("EVENTFLOW_WAL__SPARES", "16"),
    ("EVENTFLOW_TELEMETRY__LEVEL", "warn"),
];

/// Each figure of each round, by name.
#[derive(Default)]
struct Figures(BTreeMap<String, Vec<f64>>);

impl Figures {
    fn add(&mut self, name: impl Into<String>, value: f64) {
        self.0.entry(name.into()).or_default().push(value);
    }

    /// One figure, as measured.
    fn of(&self, name: &str) -> Spread {
        Spread::of(self.0.get(name).cloned().unwrap_or_default())
    }

    /// The ratio of two figures, round by round.
    fn ratio(&self, above: &str, below: &str) -> Spread {
        let (Some(above), Some(below)) = (self.0.get(above), self.0.get(below)) else {
            return Spread::of(Vec::new());
        };
        Spread::of(above.iter().zip(below).map(|(a, b)| a / b).collect())
    }
}

/// The median of the rounds, and how far they lie apart: a median within a wide spread says little.
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
}

/// What every measurement needs.
struct Bench {
    folder: PathBuf,
    slice: Duration,
    numbers: Numbers,
    figures: Figures,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|a| a == floor::NOTHING) {
        return floor::serve_nothing(&arguments[2]);
    }
    if cfg!(debug_assertions) {
        println!("figures of a debug build say nothing; run `cargo bench`");
        return;
    }
    let seconds = std::env::var("EVENTFLOW_BENCH_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(150.0);
    let place =
        std::env::var_os("EVENTFLOW_BENCH_DIR").map_or(env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from);
    let folder = tempfile::tempdir_in(place).expect("a writable folder");
    // About 15 slices a round; what is around them takes as long again as a third of them.
    let slice = Duration::from_secs_f64((seconds / f64::from(ROUNDS) / 15.0 / 1.6).max(0.2));
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
    for round in 1..=ROUNDS {
        let begun = Instant::now();
        bench.round();
        println!("round {round}: {:.0?}", begun.elapsed());
    }
    bench.slow_syncs();
    bench.time_to_ready();
    bench.report();
}

impl Bench {
    fn single(&mut self, address: std::net::SocketAddr, connections: usize, redis: bool) -> Measured {
        let protocol = if redis { &REDIS_XADD } else { &HTTP_SINGLE };
        load::many_connections(address, connections, self.slice, protocol, self.numbers.take())
    }

    fn ndjson(&mut self, address: std::net::SocketAddr, time: Duration) -> f64 {
        // A request's number counts thousands of events.
        let first = self.numbers.take() / NDJSON_EVENTS;
        load::few_connections(address, 16, 1, time, &HTTP_NDJSON, first).rate() * NDJSON_EVENTS as f64
    }

    fn round(&mut self) {
        let folder = self.folder.join("round");
        std::fs::create_dir(&folder).expect("a writable folder");
        let mut disk = floor::Disk::prepare(&folder);
        let nothing = floor::nothing();
        let redis = floor::redis(&folder.join("redis"));
        let daemon = Daemon::start(&folder.join("eventflow"), SETTINGS);
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
            let measured = self.single(daemon.address, connections, false);
            self.figures.add(format!("single {connections}"), measured.rate());
            match connections {
                1 => self.figures.add("single p50", measured.p50()),
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
        let events = self.ndjson(daemon.address, self.slice);
        self.figures.add("ndjson", events);
        self.figures.add("ndjson bytes", events * (load::EVENT_BYTES as f64 + 1.0));
        if let Some(redis) = &redis {
            let first = self.numbers.take();
            let measured = load::few_connections(redis.address, 4, 256, self.slice, &REDIS_XADD, first);
            self.figures.add("redis pipeline", measured.rate());
        }
        together(&daemon);
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

    /// From the start of the process to ready, with one and with five million events waiting.
    fn time_to_ready(&mut self) {
        let folder = self.folder.join("ready");
        let mut daemon = Daemon::start(&folder, SETTINGS);
        pause(&daemon, true);
        for millions in [1, 5] {
            while next_offset(&daemon) < millions * 1_000_000 {
                self.ndjson(daemon.address, Duration::from_millis(100));
            }
            for _ in 0..5 {
                daemon.kill();
                let begun = Instant::now();
                daemon = Daemon::start(&folder, SETTINGS);
                self.figures.add(format!("ready {millions}M"), begun.elapsed().as_secs_f64());
                self.figures.add(format!("memory {millions}M"), resident_bytes(&daemon));
            }
        }
        daemon.kill();
    }

    fn report(&self) {
        let f = &self.figures;
        println!("\n{:4} {:52} {:>8} {:>9}  {:4} rounds", "goal", "what", "measured", "reach", "ok");
        let row = |goal: &str, what: &str, measured: Spread, at_least: bool, reach: f64| {
            let Spread { low, median, high } = measured;
            let ok = match (median.is_nan(), at_least) {
                (true, _) => "–",
                (_, true) if median >= reach => "yes",
                (_, false) if median <= reach => "yes",
                _ => "no",
            };
            let sign = if at_least { '≥' } else { '≤' };
            println!("{goal:4} {what:52} {median:8.3} {sign}{reach:8.2}  {ok:4} {low:.3}–{high:.3}");
        };
        for (connections, reach) in CONNECTIONS.into_iter().zip([1.2, 1.4, 1.5, 1.5]) {
            let what = format!("single durable POST ÷ Redis always, {connections} conns");
            let measured = f.ratio(&format!("single {connections}"), &format!("redis {connections}"));
            row("1", &what, measured, true, reach);
        }
        row(
            "2",
            "single durable POST ÷ axum doing nothing, 64 conns",
            f.ratio("single 64", "nothing 64"),
            true,
            0.9,
        );
        row("3", "syncs per ack, 16 conns", f.of("syncs per ack"), false, 0.10);
        row("3", "acks per sync ÷ conns, 64 conns, syncs + 2 ms", f.of("acks per slow sync"), true, 0.6);
        row("4", "p50 at 1 conn ÷ fdatasync p50", f.ratio("single p50", "sync p50"), false, 1.5);
        row(
            "5",
            "NDJSON bytes/s ÷ raw write + fdatasync of 1 MiB",
            f.ratio("ndjson bytes", "raw bytes"),
            true,
            0.18,
        );
        row("5", "NDJSON events/s ÷ Redis 4 × 256 in flight", f.ratio("ndjson", "redis pipeline"), true, 6.0);
        row(
            "6",
            "single, archive written ÷ ingest alone, 64 conns",
            f.ratio("archived 64", "single 64"),
            true,
            0.85,
        );
        row("6", "NDJSON, archive written ÷ ingest alone", f.ratio("ndjson archived", "ndjson"), true, 0.6);
        row("8", "time to ready, 5M waiting ÷ 1M", f.ratio("ready 5M", "ready 1M"), false, 1.2);
        println!("\nin this run only, medians:");
        for name in f.0.keys() {
            println!("  {name:20} {:>16.6}", f.of(name).median);
        }
    }
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

/// Memory the daemon holds.
fn resident_bytes(daemon: &Daemon) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{}/statm", daemon.process())).expect("running");
    let pages: f64 = text.split(' ').nth(1).and_then(|p| p.parse().ok()).expect("a number of pages");
    pages * 4096.0
}

/// Group commits from an offset on, counted in the log itself: frames of one group say the same about
/// how far the log was durable before them.
fn syncs(data_dir: &Path, from: u64) -> f64 {
    let mut groups = BTreeSet::new();
    for file in harness::files_below(&data_dir.join("wal")) {
        if file.extension().is_none_or(|e| e != "seg") {
            continue;
        }
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
