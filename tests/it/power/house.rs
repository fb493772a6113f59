//! The pipeline without its threads: every part the daemon would put on one is stepped by hand, so
//! that a run is one sequence of disk operations, the same for the same seed.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use eventflow::config::{Compress, Config, Layout, SinkConfig, SinkKind};
use eventflow::disk::simulated::Random;
use eventflow::disk::{Disk, SimulatedDisk};
use eventflow::event::{Micros, NewBatch, dedupe_tag};
use eventflow::log::{Report, Step, Stock};
use eventflow::queue::embedded::{Committer, EmbeddedQueue, Ledger, Opened, open, resume_token};
use eventflow::queue::{Claim, ClaimLimit, Fates, Queue, Receipt, Refusal, Resolution, SinkId, SinkInfo};
use eventflow::sink::json_file::layout::Tree;
use eventflow::sink::json_file::verify::{Verdict, verify};
use eventflow::sink::json_file::{Finisher, JsonFile, Options, Step as FileStep};
use eventflow::sink::{Batch, Outcomes, Sink};

/// The real archive.
pub const ARCHIVE: SinkId = SinkId(0);
/// A target in memory that takes batches in any order, at least once.
pub const MIRROR: SinkId = SinkId(1);
/// More events than the log holds once its sinks are done, so that the ring has to know the rest.
pub const WINDOW: u64 = 64;
/// Files the log may have.
pub const SEGMENTS: u64 = 5;

/// Tiny segments: everything rolls, fills up, is freed and used again all the time.
pub fn config() -> Config {
    let mut config = Config { data_dir: PathBuf::from("/data"), ..Config::default() };
    config.wal.segment_bytes = 8192;
    config.wal.budget_bytes = SEGMENTS * 8192;
    config.wal.spares = 1;
    config.wal.min_free_disk_bytes = 0;
    config.wal.dedupe_window = WINDOW;
    config.ledger.segment_bytes = 8192;
    config.failures.budget_bytes = 16 * 16384;
    config.http.max_event_bytes = 2048; // decides the least segment of the failure table
    config.sinks[0].kind = SinkKind::JsonFile {
        path: PathBuf::from("archive"),
        layout: Layout::default(),
        rotate_size_bytes: 6000,
        rotate_every: Duration::from_secs(3600),
        rotate_count: None,
        compress: Compress::Zstd,
        retain_age: None,
        retain_size_bytes: None,
    };
    config.sinks.push(SinkConfig::embedded("mirror"));
    config
}

/// The text of the event with this number; nothing else ever has it.
pub fn text(id: u64) -> String {
    let between = if id.is_multiple_of(3) { "\r\n " } else { "" };
    let fill = Random::new(id).below(700) as usize;
    let (source, data) = (source(id), "x".repeat(fill));
    format!(r#"{{"specversion":"1.0","id":"e{id}",{between}"source":"{source}","type":"t","data":"{data}"}}"#)
}

fn source(id: u64) -> String {
    format!("/power/{}", id % 5)
}

/// The number of the event with this text, which must be exactly its own.
pub fn id_of(json: &[u8]) -> u64 {
    let json = std::str::from_utf8(json).expect("an event is text");
    let from = json.find(r#""id":"e"#).expect("an event of this test") + 7;
    let digits: String = json[from..].chars().take_while(char::is_ascii_digit).collect();
    let id = digits.parse().expect("a number");
    assert_eq!(json, text(id), "an event's bytes are those that were sent");
    id
}

/// A request as the edge hands it over: as it was sent, or rendered anew.
fn request(ids: &[u64]) -> NewBatch {
    let is_verbatim = ids[0].is_multiple_of(2);
    let body: String = ids.iter().map(|id| text(*id) + "\n").collect();
    let mut batch = NewBatch::over(Bytes::from(if is_verbatim { body } else { String::new() }));
    let mut start = 0;
    for id in ids {
        let (text, tag) = (text(*id), dedupe_tag(&source(*id), &format!("e{id}")));
        if is_verbatim {
            batch.push_verbatim(start..start + text.len(), tag);
            start += text.len() + 1;
        } else {
            batch.push_rendered(tag, |out| out.extend_from_slice(text.as_bytes()));
        }
    }
    batch
}

/// One process: the parts that a daemon would run.
pub struct House {
    pub queue: Arc<EmbeddedQueue>,
    pub committer: Committer,
    pub ledger: Ledger,
    pub stock: Stock,
    pub archive: JsonFile,
    /// What is done with its finished files.
    pub finisher: Finisher,
    /// Batches on their way to the mirror.
    pub in_flight: Vec<Claim>,
    pub report: Report,
    ledger_report: Report,
    clock: Arc<AtomicI64>,
}

impl House {
    /// Opens everything as the daemon does, after nothing worse than a crash. `now` is what the clock says.
    pub fn open(disk: Arc<dyn Disk>, salts: u64, now: Micros) -> House {
        let house = Self::open_damaged(disk, salts, now);
        for report in [&house.report, &house.ledger_report] {
            assert!(report.damage.is_empty(), "a crash is no damage: {:?}", report.damage);
            assert!(report.foreign.is_empty(), "files of our own: {:?}", report.foreign);
        }
        house
    }

    /// Opens everything as the daemon does, whatever has become of the files.
    pub fn open_damaged(disk: Arc<dyn Disk>, salts: u64, now: Micros) -> House {
        let config = config();
        let infos = config.sinks.iter().map(|sink| SinkInfo {
            name: sink.name.clone(),
            kind: sink.kind.name(),
            starts_paused: sink.paused,
            parks: !sink.kind.keeps_order(),
            order: None,
        });
        let mut random = Random::new(salts);
        let clock = Arc::new(AtomicI64::new(now.0));
        let tells = Arc::clone(&clock);
        let opened = open(
            Arc::clone(&disk),
            &config,
            infos.collect(),
            Box::new(move || random.next_u64()),
            Arc::new(move || Micros(tells.load(Ordering::Relaxed))),
        );
        let Opened { queue, committer, ledger, stock, mut resumes, wal_report, ledger_report, .. } =
            opened.expect("an opening never refuses");
        let refusing = queue.status().refusing;
        assert!(!matches!(refusing, Some(Refusal::StorageFull)), "there is room, and it says: {refusing:?}");
        let options = Options::of(&config.sinks[0], &config.data_dir).expect("an archive");
        let archive = JsonFile::open(disk, options, resumes.swap_remove(0));
        let archive = archive.expect("an opening never refuses");
        let finisher = archive.finisher();
        let in_flight = Vec::new();
        House {
            queue,
            committer,
            ledger,
            stock,
            archive,
            finisher,
            in_flight,
            report: wal_report,
            ledger_report,
            clock,
        }
    }

    pub fn post(&self, ids: &[u64], at: Micros) -> Result<Receipt, Refusal> {
        self.clock.store(at.0, Ordering::Relaxed);
        self.queue.append(request(ids), at)
    }

    pub fn claim(&self, sink: SinkId, events: usize, bytes: usize) -> Option<Claim> {
        self.queue.claim_now(sink, ClaimLimit { events, bytes }).expect("the disk reads")
    }

    /// Delivers a batch to the archive; what comes back is durable there.
    pub fn archive(&mut self, batch: &Batch) -> Resolution {
        let mut answer = self.archive.deliver(batch);
        let Poll::Ready(answer) = poll(&mut answer) else { panic!("the archive blocks, it does not wait") };
        let delivery = answer.expect("the disk writes");
        assert!(matches!(delivery.outcomes, Outcomes::AllDelivered));
        Resolution { fates: Fates::AllDelivered, token: delivery.token }
    }

    /// Pauses or resumes a sink; `told` is called once that is durable.
    pub fn pause(&mut self, sink: SinkId, paused: bool) {
        let queue = Arc::clone(&self.queue);
        let mut asked = queue.set_paused(sink, paused);
        assert!(poll(&mut asked).is_pending(), "nobody is told before it is durable");
        self.ledger.step().expect("the disk works");
        assert!(matches!(poll(&mut asked), Poll::Ready(Ok(()))));
    }

    /// What the threads in the background would do until all is quiet.
    pub fn settle(&mut self) {
        let rounds = (0..1000).take_while(|_| self.ledger.step().expect("the disk works")).count();
        let steps = (0..1000).take_while(|_| self.stock.step() == Step::Worked).count();
        let now = Micros(self.clock.load(Ordering::Relaxed));
        let mut finish = || self.finisher.step(now).expect("the disk works");
        let files = (0..1000).take_while(|_| finish() == FileStep::Worked).count();
        assert!(rounds < 1000 && steps < 1000 && files < 1000, "it never comes to rest");
    }

    /// The last writes of an orderly stop, once nothing is under way any more.
    pub fn stop(mut self) {
        self.committer.close().expect("the disk works");
        self.archive.close().expect("the disk works");
        self.queue.stop_background();
        self.ledger.close().expect("the disk works");
    }
}

fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    std::pin::Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// One line of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub offset: u64,
    pub id: u64,
    pub accepted_at: Micros,
}

fn is_event_file(path: &PathBuf) -> bool {
    path.starts_with("/data/archive") && path != Path::new("/data/archive/manifest.ndjson")
}

/// The archive as a stranger reads it: files in the order of their names' offsets. Every byte of it
/// is accounted for, and every name says what is in the file.
pub fn archive(disk: &SimulatedDisk) -> Vec<Line> {
    let mut files: Vec<(u64, PathBuf)> = Vec::new();
    for path in disk.files().into_iter().filter(is_event_file) {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        let plain = name.strip_suffix(".zst").unwrap_or(name);
        let first = plain.strip_prefix("events-").and_then(|name| name.strip_suffix(".ndjson"));
        let first = first.and_then(|digits| digits.parse().ok());
        files.push((first.unwrap_or_else(|| panic!("no archive file: {}", path.display())), path));
    }
    files.sort();
    let mut lines = Vec::new();
    for (first, path) in files {
        let mut bytes = disk.read_file(&path).expect("a file");
        if path.extension().is_some_and(|ending| ending == "zst") {
            bytes = zstd::decode_all(&bytes[..]).expect("a whole file");
        }
        let text = String::from_utf8(bytes).expect("UTF-8");
        assert!(text.is_empty() || text.ends_with('\n'), "half a line in {}", path.display());
        let before = lines.len();
        lines.extend(text.lines().map(read_line));
        if let Some(line) = lines.get(before) {
            assert_eq!(line.offset, first, "{} begins elsewhere", path.display());
            let (year, month, day) = line.accepted_at.date();
            let dir = format!("/data/archive/{year:04}/{month:02}/{day:02}");
            assert_eq!(path.parent(), Some(Path::new(&dir)));
        }
    }
    assert!(lines.is_sorted_by(|a, b| a.offset < b.offset), "offsets ascend, none twice: {lines:?}");
    lines
}

/// The lines of a damaged archive, and those that are not as they were written, with their files.
pub fn archive_lines(disk: &SimulatedDisk) -> (Vec<Line>, Vec<(PathBuf, String)>) {
    let (mut lines, mut mangled) = (Vec::new(), Vec::new());
    for path in disk.files().into_iter().filter(is_event_file) {
        let mut bytes = disk.read_file(&path).expect("a file");
        if path.extension().is_some_and(|ending| ending == "zst") {
            let mut text = Vec::new();
            // Where it cannot be decompressed any further, it ends.
            let _ = zstd::Decoder::new(&bytes[..]).map(|mut from| from.read_to_end(&mut text));
            bytes = text;
        }
        for line in String::from_utf8_lossy(&bytes).lines() {
            match undamaged(line).filter(|read| read.text() == line) {
                Some(read) => lines.push(read),
                None => mangled.push((path.clone(), line.to_owned())),
            }
        }
    }
    (lines, mangled)
}

/// What `eventflow archive verify` says.
pub fn judge(disk: &SimulatedDisk) -> Verdict {
    let config = config();
    let token = resume_token(disk, &config, &config.sinks[0].name).expect("a ledger");
    verify(disk, &Tree::of("/data/archive"), token.as_deref(), 1, &|_, _| ()).expect("the disk reads")
}

/// Takes a line apart and compares each byte of it.
fn read_line(line: &str) -> Line {
    let read = undamaged(line).unwrap_or_else(|| panic!("not of this test: {line}"));
    assert_eq!(line, read.text(), "not as it was sent");
    read
}

/// What a line says it is; `None` when that cannot be seen any more.
fn undamaged(line: &str) -> Option<Line> {
    let take = |name: &str| {
        let from = line.find(name)? + name.len() + 3;
        line.get(from..)?.split_once('"').map(|(value, _)| value)
    };
    Some(Line {
        offset: take("\"eventflowoffset")?.parse().ok()?,
        id: take("\"id")?.get(1..)?.parse().ok()?,
        accepted_at: Micros::parse_rfc3339(take("\"eventflowtime")?)?,
    })
}

impl Line {
    /// The line that the archive has for this event.
    fn text(&self) -> String {
        let sent = text(self.id).replace(['\r', '\n'], " ");
        let body = sent.strip_suffix('}').expect("an object");
        let (offset, time) = (self.offset, self.accepted_at.to_rfc3339());
        format!(r#"{body},"eventflowoffset":"{offset}","eventflowtime":"{time}"}}"#)
    }
}
