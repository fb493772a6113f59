//! What the queue promises, driven step by step on a simulated disk with tiny segments.

mod behaviour;
mod copy;
mod crash;
mod crash_states;
mod failures;
mod failures_crash;
mod index;
mod lag;
mod model;
mod onlooker;
mod order;
mod order_crash;
mod repair;
#[cfg(feature = "schedules")]
mod schedules;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::config::Config;
use crate::disk::simulated::Random;
use crate::disk::{Access, Disk, DiskFile, EntryKind, SimulatedDisk};
use crate::event::{Micros, NewBatch};
use crate::log::{Entropy, Step, Stock};
use crate::queue::{
    Appended, Claim, ClaimLimit, Fates, Origin, Queue, Receipt, Refusal, Resolution, SinkId, SinkInfo,
    SinkStatus, Status,
};
use crate::sink::{Batch, Resume};

use super::index::Place;
use super::open::open_with;
use super::{Clock, Committer, EmbeddedQueue, Ledger, OpenError, Opened};

const ALL: ClaimLimit = ClaimLimit { events: 1000, bytes: 1 << 20 };
const ARCHIVE: SinkId = SinkId(0);
const OTHER: SinkId = SinkId(1);

/// Eight segments of 8 KiB, so that everything rolls, fills up and is freed all the time.
fn tiny() -> Config {
    let mut config = Config { data_dir: PathBuf::from("/data"), ..Config::default() };
    config.wal.segment_bytes = 8192;
    config.wal.budget_bytes = 8 * 8192;
    config.wal.spares = 1;
    config.wal.min_free_disk_bytes = 0;
    config.wal.dedupe_window = 16;
    config.ledger.segment_bytes = 16384;
    config.http.max_event_bytes = 1024;
    config.failures.budget_bytes = 16 * 16384;
    config.http.max_waiting_bytes = 1 << 20;
    config
}

fn infos(names: &[&str]) -> Vec<SinkInfo> {
    let info = |name: &&str| SinkInfo {
        name: (*name).to_owned(),
        kind: "toy",
        starts_paused: false,
        parks: false,
        order: None,
    };
    names.iter().map(info).collect()
}

fn entropy(seed: u64) -> Entropy {
    let mut random = Random::new(seed);
    Box::new(move || random.next_u64())
}

fn text(id: u64) -> Vec<u8> {
    format!(r#"{{"id":"{id}","pad":"{:>300}"}}"#, "").into_bytes()
}

fn tag(id: u64) -> u128 {
    (u128::from(id) + 1) << 70 | u128::from(id)
}

fn batch(ids: &[u64]) -> NewBatch {
    let mut batch = NewBatch::default();
    for id in ids {
        batch.push_rendered(tag(*id), |out| out.extend_from_slice(&text(*id)));
    }
    batch
}

/// A queue and the parts that a daemon would put threads around.
struct House {
    queue: Arc<EmbeddedQueue>,
    committer: Committer,
    ledger: Ledger,
    stock: Stock,
    resumes: Vec<Resume>,
    /// What the clock shows.
    time: Arc<AtomicI64>,
}

impl House {
    fn open_with(disk: &SimulatedDisk, config: &Config, sinks: Vec<SinkInfo>) -> Result<Self, OpenError> {
        Self::open_indexed(disk, config, sinks, None)
    }

    /// With the failure table's index at a place on the real disk.
    fn open_indexed(
        disk: &SimulatedDisk,
        config: &Config,
        sinks: Vec<SinkInfo>,
        index: Option<Place>,
    ) -> Result<Self, OpenError> {
        let time = Arc::new(AtomicI64::new(1_000));
        let shown = Arc::clone(&time);
        let clock: super::Clock = Arc::new(move || Micros(shown.load(Ordering::Relaxed)));
        let Opened { queue, committer, ledger, stock, resumes, ledger_report, wal_report } =
            open_with(Arc::new(disk.clone()), config, sinks, entropy(7), clock, index)?;
        assert_eq!((ledger_report.foreign, wal_report.foreign), (vec![], vec![]), "files of our own");
        Ok(Self { queue, committer, ledger, stock, resumes, time })
    }

    fn open(disk: &SimulatedDisk, config: &Config, sinks: &[&str]) -> Self {
        let mut house = Self::open_with(disk, config, infos(sinks)).unwrap();
        house.work();
        house
    }

    /// A new house on a new disk with one sink.
    fn new() -> (SimulatedDisk, Self) {
        let disk = SimulatedDisk::new(1);
        let house = Self::open(&disk, &tiny(), &["archive"]);
        (disk, house)
    }

    fn post(&self, ids: &[u64]) -> Result<Receipt, Refusal> {
        self.queue.append(batch(ids), Micros(5))
    }

    /// Posts and commits; one request in the group.
    fn accept(&mut self, ids: &[u64]) -> Result<Appended, Refusal> {
        let mut receipt = self.post(ids)?;
        assert_eq!(receipt.try_now(), None, "nothing is accepted before the sync");
        let _ = self.committer.commit_pending();
        receipt.try_now().unwrap()
    }

    /// What the threads in the background would do until all is quiet.
    fn work(&mut self) {
        self.try_work().expect("the disk works");
    }

    fn try_work(&mut self) -> Option<()> {
        while self.stock.step() == Step::Worked {}
        while self.ledger.step().ok()? {}
        while self.stock.step() == Step::Worked {}
        Some(())
    }

    fn claim(&self, sink: SinkId, limit: ClaimLimit) -> Option<Claim> {
        self.queue.claim_now(sink, limit).unwrap()
    }

    /// Claims and delivers everything there is; the ids in order.
    fn deliver_all(&self, sink: SinkId) -> Vec<u64> {
        let mut ids = Vec::new();
        while let Some(claim) = self.claim(sink, ALL) {
            ids.extend(ids_of(&claim.batch));
            claim.resolve(Resolution::default());
        }
        ids
    }

    fn status(&self) -> Status {
        self.queue.status()
    }

    fn sink(&self, sink: SinkId) -> SinkStatus {
        self.status().sinks[usize::from(sink.0)].clone()
    }

    /// An orderly stop.
    fn close(self) {
        self.try_close().expect("the disk works");
    }

    fn try_close(mut self) -> Option<()> {
        self.queue.begin_drain();
        self.queue.close_appends();
        self.committer.commit_pending().ok()?;
        self.committer.close().ok()?;
        self.queue.stop_background();
        self.ledger.close().ok()
    }
}

/// Removes every file in a directory, and leaves directories in it.
fn remove_files(disk: &SimulatedDisk, dir: &str) {
    let files = disk.list(Path::new(dir)).unwrap().into_iter().filter(|entry| entry.kind == EntryKind::File);
    files.for_each(|entry| disk.remove(&Path::new(dir).join(entry.name)).unwrap());
}

/// The offsets of a claim from the log.
fn range_of(claim: &Claim) -> Range<u64> {
    match &claim.origin {
        Origin::Log(range) => range.clone(),
        Origin::FailureTable => panic!("a claim from the failure table"),
    }
}

fn ids_of(batch: &Batch) -> Vec<u64> {
    batch.events.iter().map(|event| id_of(event.json)).collect()
}

fn id_of(json: &[u8]) -> u64 {
    let value: serde_json::Value = serde_json::from_slice(json).unwrap();
    let id = value["id"].as_str().unwrap().parse().unwrap();
    assert_eq!(json, text(id), "an event's bytes are what was accepted");
    id
}

fn accepted(events: u64, first_offset: u64) -> Appended {
    Appended { accepted: events, duplicates: 0, first_offset }
}

/// The smallest sink that is exactly-once with the queue's help: a file, cut back to its token.
struct Toy {
    file: Box<dyn DiskFile>,
    len: u64,
}

impl Toy {
    fn open(disk: &SimulatedDisk, resume: &Resume) -> std::io::Result<Self> {
        let dir = Path::new("/toy");
        let path = dir.join("lines");
        disk.create_dir_all(dir)?;
        let len = resume
            .token
            .as_ref()
            .map_or(0, |token| u64::from_le_bytes(*token.first_chunk().expect("the token is ours, 8 bytes")));
        let file = match disk.open(&path, Access::ReadWrite) {
            Ok(file) => file,
            Err(_) => disk.create(&path)?,
        };
        disk.sync_dir(dir)?;
        assert!(file.len()? >= len, "what a durable token speaks of is durable");
        file.set_len(len)?;
        Ok(Self { file, len })
    }

    fn deliver(&mut self, batch: &Batch) -> std::io::Result<Resolution> {
        let mut lines = String::new();
        for event in batch.events.iter() {
            lines += &format!("{} {}\n", event.offset, id_of(event.json));
        }
        self.file.write_all_at(lines.as_bytes(), self.len)?;
        self.file.sync_data()?;
        self.len += lines.len() as u64;
        Ok(Resolution { fates: Fates::AllDelivered, token: Some(self.len.to_le_bytes().to_vec()) })
    }

    /// Offset and id of each line.
    fn lines(&self) -> Vec<(u64, u64)> {
        let mut bytes = vec![0; self.len as usize];
        assert_eq!(self.file.read_full_at(&mut bytes, 0).unwrap(), bytes.len());
        let text = String::from_utf8(bytes).unwrap();
        let pair = |line: &str| {
            let (offset, id) = line.split_once(' ').unwrap();
            (offset.parse().unwrap(), id.parse().unwrap())
        };
        text.lines().map(pair).collect()
    }
}
