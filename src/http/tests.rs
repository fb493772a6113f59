//! The server over real sockets, with a queue in memory behind it.

mod access;
mod described;
mod failures;
mod openapi;
mod tls;

use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::config::Listen;
use crate::event::{Micros, NewBatch};
use crate::queue::{
    Appended, BoxFuture, Claim, ClaimLimit, EventState, FailedEvent, FailurePage, FailureQuery, Lookup,
    QueueError, Receipt, Redrive, Selection, SinkId, SinkInfo, SinkState, SinkStatus, Status,
};

/// A queue that keeps texts in memory and answers as it is told.
#[derive(Default)]
struct Memory {
    texts: Mutex<Vec<String>>,
    refusing: Mutex<Option<Refusal>>,
    /// Receipts wait here while `holding`.
    held: Mutex<Vec<oneshot::Sender<Result<Appended, Refusal>>>>,
    holding: std::sync::atomic::AtomicBool,
    arrived: Notify,
    sinks: Vec<SinkInfo>,
    paused: Mutex<Vec<(SinkId, bool)>>,
    table: failures::Table,
}

impl Queue for Memory {
    fn admit(&self, _: u64) -> Result<(), Refusal> {
        self.refusing.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    fn append(&self, batch: NewBatch, _: Micros) -> Result<Receipt, Refusal> {
        if batch.len() > 1000 {
            return Err(Refusal::TooLarge { bytes: 2, limit_bytes: 1 });
        }
        let (answer, receipt) = Receipt::channel();
        let mut texts = self.texts.lock().unwrap();
        let appended =
            Appended { accepted: batch.len() as u64, duplicates: 0, first_offset: texts.len() as u64 };
        texts.extend(batch.iter().map(|(_, text)| String::from_utf8(text.to_vec()).unwrap()));
        if self.holding.load(Ordering::SeqCst) {
            self.held.lock().unwrap().push(answer);
            self.arrived.notify_one();
        } else {
            answer.send(Ok(appended)).unwrap();
        }
        Ok(receipt)
    }

    fn claim<'a>(&'a self, _: SinkId, _: ClaimLimit) -> BoxFuture<'a, Result<Option<Claim>, QueueError>> {
        Box::pin(async { Ok(None) })
    }

    fn set_paused<'a>(&'a self, sink: SinkId, paused: bool) -> BoxFuture<'a, Result<(), QueueError>> {
        self.paused.lock().unwrap().push((sink, paused));
        Box::pin(async { Ok(()) })
    }

    fn set_backing_off(&self, _: SinkId, _: Option<String>) {}

    fn event(&self, offset: u64) -> Result<Lookup, QueueError> {
        Ok(match offset {
            0 => Lookup::Found {
                accepted_at: Micros(0),
                json:
                    br#"{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{"b":1.0,"a":1e400}}"#
                        .to_vec(),
                sinks: vec![("z".into(), EventState::Pending), ("a".into(), EventState::InFlight)],
            },
            1 => Lookup::Released,
            2 => Lookup::Void,
            3 => return Err(QueueError::StorageFailed("gone".into())),
            _ => Lookup::NotYet,
        })
    }

    fn failures(&self, query: &FailureQuery) -> Result<FailurePage, QueueError> {
        Ok(self.table.page(query))
    }

    fn failure(&self, sink: SinkId, offset: u64) -> Result<Option<FailedEvent>, QueueError> {
        Ok(self.table.event(sink, offset))
    }

    fn redrive<'a>(
        &'a self,
        sink: SinkId,
        selection: Selection,
        action: Redrive,
    ) -> BoxFuture<'a, Result<u64, QueueError>> {
        Box::pin(async move { self.table.change(sink, selection, action) })
    }

    fn sinks(&self) -> &[SinkInfo] {
        &self.sinks
    }

    fn pending_since(&self) -> Vec<Option<Micros>> {
        vec![None; self.sinks.len()]
    }

    fn status(&self) -> Status {
        Status {
            index_rebuilds: 0,
            first_offset: 1,
            next_offset: 3,
            wal_bytes: 4,
            wal_budget_bytes: 5,
            segments: 6,
            voids: 8,
            damaged_ranges: 7,
            refusing: self.refusing.lock().unwrap().clone(),
            sinks: vec![SinkStatus {
                name: "archive".into(),
                kind: "json_file",
                state: SinkState::BackingOff,
                acked_offset: 1,
                pending: 2,
                last_error: Some("full".into()),
                ..SinkStatus::default()
            }],
            ..Status::default()
        }
    }
}

impl Memory {
    fn refuse(&self, refusal: Option<Refusal>) {
        *self.refusing.lock().unwrap() = refusal;
    }

    fn hold(&self) {
        self.holding.store(true, Ordering::SeqCst);
    }

    async fn held_receipt(&self) -> oneshot::Sender<Result<Appended, Refusal>> {
        loop {
            if let Some(held) = self.held.lock().unwrap().pop() {
                return held;
            }
            in_time(self.arrived.notified()).await;
        }
    }
}

/// A hang is a failure, not a hanging test.
async fn in_time<F: Future>(work: F) -> F::Output {
    timeout(Duration::from_secs(20), work).await.expect("hangs")
}

struct Running {
    address: std::net::SocketAddr,
    app: Arc<App>,
    queue: Arc<Memory>,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<()>,
}

async fn start(change: impl FnOnce(&mut config::Http)) -> Running {
    let running = start_recovering(change).await;
    running.app.serving(running.queue.clone());
    running
}

async fn start_recovering(change: impl FnOnce(&mut config::Http)) -> Running {
    let mut limits = Limits::of(&Config::default());
    let http = &mut limits.http;
    (http.max_body_bytes, http.max_event_bytes) = (100_000, 10_000);
    // Nothing but the test of a deadline ever meets one.
    (http.header_timeout, http.body_timeout, http.idle_timeout) =
        (Duration::from_secs(60), Duration::from_secs(60), Duration::from_secs(60));
    change(http);
    let listener = Listener::bind(&Listen::Tcp(([127, 0, 0, 1], 0).into())).unwrap();
    let address = listener.addresses().next().unwrap();
    let app = App::new(Handle::current());
    let sink = SinkInfo {
        name: "archive".into(),
        kind: "json_file",
        starts_paused: false,
        parks: false,
        order: None,
    };
    let queue = Arc::new(Memory { sinks: vec![sink], ..Memory::default() });
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, app.clone(), limits, async {
        let _ = stopped.await;
    }));
    Running { address, app, queue, stop: Some(stop), server }
}

impl Running {
    async fn client(&self) -> Client<TcpStream> {
        Client { stream: TcpStream::connect(self.address).await.unwrap(), buffer: Vec::new() }
    }

    async fn ask(&self, request: impl AsRef<[u8]>) -> Reply {
        let mut client = self.client().await;
        client.send(&request).await;
        let reply = client.reply().await;
        let line = request.as_ref().split(|b| *b == b'\r').next().unwrap();
        let line = String::from_utf8_lossy(line);
        let mut words = line.split(' ');
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let answer = described::Answer {
            status: reply.status,
            content_type: reply.header("content-type"),
            retry_after: reply.header("retry-after"),
            body: reply.body.as_bytes(),
        };
        if let Err(wrong) = described::check(method, target, &answer) {
            panic!("{line} is not answered as docs/openapi.json says: {wrong}\n{reply:?}");
        }
        reply
    }

    fn texts(&self) -> Vec<String> {
        self.queue.texts.lock().unwrap().clone()
    }
}

struct Client<S> {
    stream: S,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")))
    }

    fn slug(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let document: serde_json::Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(document["status"], self.status);
        assert!(document["title"].is_string() && document["detail"].is_string());
        let wait = self.header("retry-after").map(|s| s.parse::<u64>().unwrap());
        assert_eq!(wait.is_some_and(|s| s >= 1), matches!(self.status, 429 | 503), "{self:?}");
        document["type"].as_str().unwrap().strip_prefix("/problems/").unwrap().to_owned()
    }
}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Client<S> {
    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        in_time(self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    /// More bytes; false at the end of the connection.
    async fn fill(&mut self) -> bool {
        in_time(self.stream.read_buf(&mut self.buffer)).await.is_ok_and(|n| n > 0)
    }

    async fn reply(&mut self) -> Reply {
        let end = loop {
            match self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                Some(end) => break end + 4,
                None => assert!(self.fill().await, "closed before an answer: {:?}", self.buffer),
            }
        };
        let head = String::from_utf8(self.buffer.drain(..end).collect()).unwrap();
        let mut reply = Reply { status: head[9..12].parse().unwrap(), head, body: String::new() };
        let len = reply.header("content-length").map_or(0, |len| len.parse().unwrap());
        while self.buffer.len() < len {
            assert!(self.fill().await, "closed within an answer");
        }
        reply.body = String::from_utf8(self.buffer.drain(..len).collect()).unwrap();
        reply
    }

    async fn is_closed(&mut self) -> bool {
        self.buffer.is_empty() && !self.fill().await
    }
}

const JSON: &str = "content-type: application/json\r\n";

fn post(headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let len = body.len();
    let head = format!("POST /v1/events HTTP/1.1\r\nhost: x\r\n{headers}content-length: {len}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")
}

#[tokio::test]
async fn an_accepted_request_is_answered_202_with_its_offsets() {
    let running = start(|_| {}).await;
    let mut client = running.client().await;
    client.send(post(&format!("{JSON}idempotency-key: k\r\n"), "1")).await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.header("content-type")), (202, Some("application/json")));
    assert_eq!(reply.body, r#"{"accepted":1,"duplicates":0,"first_offset":0,"last_offset":0,"id":"k"}"#);
    client.send(post("content-type: application/x-ndjson\r\n", "1\n2\n3")).await;
    assert_eq!(
        client.reply().await.body,
        r#"{"accepted":3,"duplicates":0,"first_offset":1,"last_offset":3}"#
    );
    client.send(post(JSON, "[]")).await;
    assert_eq!(
        client.reply().await.body,
        r#"{"accepted":0,"duplicates":0,"first_offset":null,"last_offset":null}"#
    );
    client.send(post("ce-id: 1\r\nce-source: /s\r\nce-type: t\r\nce-specversion: 1.0\r\n", "")).await;
    assert!(client.reply().await.body.ends_with(r#","id":"1"}"#));
    assert_eq!(running.texts().len(), 5);
}

/// The express lane and the general way, told apart by whether the request is there at once.
#[tokio::test]
async fn a_request_gets_the_same_answer_whole_and_in_pieces() {
    let event = r#"{"specversion":"1.0","id":"a","source":"/s","type":"t"}"#;
    let structured = "content-type: application/cloudevents+json\r\n";
    for (headers, body) in [
        (structured, event),
        (JSON, "5"),
        (JSON, "[]"),
        (JSON, "{"),
        (JSON, "\"\\ud800\""),
        ("content-type: application/x-ndjson\r\n", "1\n2\n"),
        ("content-type: application/x-ndjson\r\n", "1\n{\n"),
        (structured, "{}"),
    ] {
        let request = post(headers, body);
        let running = start(|_| {}).await;
        let mut answers = Vec::new();
        for at in [request.len(), request.len() - body.len(), request.len() - 1, 10] {
            running.queue.texts.lock().unwrap().clear();
            let mut client = running.client().await;
            client.send(&request[..at]).await;
            // An answer on another connection: by then the first piece has been read.
            assert_eq!(running.ask(get("/livez")).await.status, 200);
            client.send(&request[at..]).await;
            let reply = client.reply().await;
            let names: Vec<String> = reply
                .head
                .lines()
                .filter_map(|line| line.split_once(": "))
                .map(|(n, _)| n.to_owned())
                .collect();
            let mut body: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
            if body["id"] != "a" {
                body["id"].take(); // made up
            }
            answers.push((reply.status, names, body, running.texts().len()));
        }
        answers.dedup();
        assert_eq!(answers.len(), 1, "{body}: {answers:?}");
    }
}

#[tokio::test]
async fn requests_sent_at_once_are_answered_one_after_the_other_whichever_way_each_goes() {
    let running = start(|_| {}).await;
    let mut client = running.client().await;
    let kept = post(JSON, "1");
    let general = post(&format!("{JSON}idempotency-key: k\r\n"), "2");
    client.send([&kept[..], &kept, &general, &kept, &general].concat()).await;
    for (offset, named) in [(0, false), (1, false), (2, true), (3, false), (4, true)] {
        let body: serde_json::Value = serde_json::from_str(&client.reply().await.body).unwrap();
        assert_eq!((&body["first_offset"], body["id"] == "k"), (&offset.into(), named));
    }
}

#[tokio::test]
async fn no_202_before_the_receipt_and_none_at_all_when_storage_fails() {
    let running = start(|_| {}).await;
    running.queue.hold();
    let mut client = running.client().await;
    client.send(post(JSON, "1")).await;
    let receipt = running.queue.held_receipt().await;
    // The other routes answer while the hot one waits; if a 202 were on its way, it would be here.
    assert_eq!(running.ask(get("/livez")).await.status, 200);
    assert!(timeout(Duration::ZERO, client.fill()).await.is_err());
    receipt.send(Ok(Appended { accepted: 1, duplicates: 0, first_offset: 0 })).unwrap();
    assert_eq!(client.reply().await.status, 202);
    client.send(post(JSON, "1")).await;
    drop(running.queue.held_receipt().await);
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.slug().as_str()), (503, "storage-failed"));
}

#[tokio::test]
async fn refused_requests_get_the_problem_the_contract_names_and_leave_nothing() {
    let running = start(|_| {}).await;
    let big = "x".repeat(10_000);
    let huge = format!("[{}1]", "1,".repeat(60_000));
    let batch = "content-type: application/cloudevents-batch+json\r\n";
    for (request, status, slug) in [
        (post(JSON, "{"), 400, "malformed"),
        (post(JSON, b"\"\xff\""), 400, "malformed"),
        (post(JSON, ""), 400, "malformed"),
        (post(JSON, r#"{"specversion":"1.0"}"#), 400, "malformed"),
        (post(batch, "[1]"), 400, "malformed"),
        (post("ce-id: 1\r\n", "1"), 400, "malformed"),
        (post(JSON, "[".repeat(50_000)), 400, "malformed"),
        (post("content-type: text/plain\r\n", "1"), 415, "unsupported-media-type"),
        (post("", "1"), 415, "unsupported-media-type"),
        (post("content-type: application/cloudevents+avro\r\n", "1"), 415, "unsupported-media-type"),
        (post(&format!("{JSON}content-encoding: br\r\n"), "1"), 415, "unsupported-media-type"),
        (post(&format!("{JSON}content-encoding: gzip\r\n"), "1"), 400, "malformed"),
        (post(JSON, format!("\"{big}\"")), 413, "too-large"),
        (post(JSON, huge), 413, "too-large"),
        // What the queue says of a batch beyond a segment.
        (post(JSON, format!("[{}1]", "1,".repeat(1000))), 413, "too-large"),
    ] {
        let reply = running.ask(&request).await;
        let shown = String::from_utf8_lossy(&request[..request.len().min(200)]).into_owned();
        assert_eq!((reply.status, reply.slug().as_str()), (status, slug), "{shown}");
    }
    let reply = running.ask(post(batch, "[1,{}]")).await;
    let document: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
    assert_eq!(document["errors"][1]["index"], 1);
    assert!(document["errors"][0]["detail"].is_string());
    assert_eq!(running.texts(), [""; 0]);
}

#[tokio::test]
async fn a_length_over_the_limit_is_answered_before_the_body_and_the_client_can_read_it() {
    let running = start(|_| {}).await;
    let mut client = running.client().await;
    client.send("POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 5000000\r\n\r\n").await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.slug().as_str()), (413, "too-large"));
    assert_eq!(reply.header("connection"), Some("close"));
    // A client that sends everything first still finds the answer, not a reset.
    let mut client = running.client().await;
    client.send(post(JSON, "1".repeat(5_000_000))).await;
    assert_eq!(client.reply().await.status, 413);
    assert!(client.is_closed().await);
    // 2^64 and beyond are no lengths.
    let reply = running
        .ask("POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-length: 18446744073709551616\r\n\r\n")
        .await;
    assert_eq!(reply.status, 400);
}

#[tokio::test]
async fn chunked_bodies_are_read_and_bounded() {
    let running = start(|_| {}).await;
    let head = "POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut client = running.client().await;
    client.send(head).await;
    for piece in ["3\r\n[1,\r\n", "2;ext=1\r\n 2\r\n", "1\r\n]\r\n", "0\r\nTrailer: x\r\n\r\n"] {
        client.send(piece).await;
    }
    assert!(client.reply().await.body.starts_with(r#"{"accepted":2,"#));
    client.send(format!("{head}0\r\n\r\n")).await;
    assert_eq!(client.reply().await.slug(), "malformed");
    client.send(head).await;
    let piece = format!("4e20\r\n{}\r\n", "1".repeat(20_000));
    client.send(piece.repeat(6)).await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.header("connection")), (413, Some("close")));
    for broken in ["zz\r\n", "ffffffffffffffffff\r\n"] {
        let mut client = running.client().await;
        client.send(format!("{head}{broken}")).await;
        assert!(client.is_closed().await || client.reply().await.status == 400);
    }
    assert_eq!(running.texts().len(), 2);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let running = start(|_| {}).await;
    let mut client = running.client().await;
    let three = [post(JSON, "1"), get("/livez").into_bytes(), post(JSON, "{"), post(JSON, "2")].concat();
    client.send(three).await;
    assert!(client.reply().await.body.contains(r#""first_offset":0"#));
    assert_eq!(client.reply().await.status, 200);
    assert_eq!(client.reply().await.status, 400);
    assert!(client.reply().await.body.contains(r#""first_offset":1"#));
}

#[tokio::test]
async fn a_client_that_expects_100_gets_it_only_for_a_body_that_is_wanted() {
    let running = start(|_| {}).await;
    let head = |len: usize| {
        format!(
            "POST /v1/events HTTP/1.1\r\nhost: x\r\n{JSON}expect: 100-continue\r\ncontent-length: {len}\r\n\r\n"
        )
    };
    let mut client = running.client().await;
    client.send(head(1)).await;
    assert_eq!(client.reply().await.status, 100);
    client.send("1").await;
    assert_eq!(client.reply().await.status, 202);
    client.send(head(5_000_000)).await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.header("connection")), (413, Some("close")));
    running.queue.refuse(Some(Refusal::WalFull));
    assert_eq!(running.ask(head(1)).await.slug(), "wal-full");
}

#[tokio::test]
async fn what_the_queue_refuses_is_told_and_a_small_request_keeps_its_connection() {
    let running = start(|_| {}).await;
    let mut client = running.client().await;
    for (refusal, status, slug) in [
        (Refusal::WalFull, 429, "wal-full"),
        (Refusal::Overloaded, 429, "overloaded"),
        (Refusal::StorageFull, 503, "storage-full"),
        (Refusal::StorageFailed, 503, "storage-failed"),
        (Refusal::ShuttingDown, 503, "shutting-down"),
    ] {
        running.queue.refuse(Some(refusal));
        client.send(post(JSON, "1")).await;
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.slug().as_str()), (status, slug));
        assert_eq!(reply.header("connection"), None);
    }
    // A body that has not come is not waited for.
    client.send(format!("POST /v1/events HTTP/1.1\r\nhost: x\r\n{JSON}content-length: 9\r\n\r\n")).await;
    assert_eq!(client.reply().await.header("connection"), Some("close"));
}

#[tokio::test]
async fn encoded_bodies_are_decoded_within_the_limits() {
    use std::io::Write;
    let gzip = |text: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = |text: &[u8]| zstd::encode_all(text, 1).unwrap();
    let running = start(|http| http.max_body_bytes = 3_000_000).await;
    let small = b"[1,2]".to_vec();
    // Larger than what is decoded on the ingest thread, encoded and not.
    let large = [&b"["[..], " ".repeat(2_000_000).as_bytes(), b"1]"].concat();
    let bomb = vec![b' '; 20_000_000];
    let header = |coding: &str| format!("{JSON}content-encoding: {coding}\r\n");
    for (body, status) in [(&small, 202), (&large, 202), (&bomb, 413)] {
        assert_eq!(running.ask(post(&header("gzip"), gzip(body))).await.status, status);
        assert_eq!(running.ask(post(&header("x-gzip"), gzip(body))).await.status, status);
        assert_eq!(running.ask(post(&header("zstd"), zstd(body))).await.status, status);
        assert_eq!(running.ask(post(&header("identity"), body)).await.status, status);
    }
    assert_eq!(running.ask(post(&header("gzip"), zstd(&small))).await.slug(), "malformed");
    assert_eq!(running.ask(post(&header("gzip, zstd"), &small)).await.slug(), "unsupported-media-type");
}

#[tokio::test]
async fn requests_together_hold_no_more_bytes_than_allowed() {
    let running = start(|http| http.max_buffered_bytes = 1000).await;
    assert_eq!(running.ask(post(JSON, " ".repeat(999) + "1")).await.status, 202);
    let reply = running.ask(post(JSON, " ".repeat(1000) + "1")).await;
    assert_eq!((reply.status, reply.slug().as_str()), (429, "overloaded"));
    // What was held was given back each time.
    assert_eq!(running.ask(post(JSON, " ".repeat(999) + "1")).await.status, 202);
}

#[tokio::test]
async fn a_slow_body_gets_408_and_a_slow_header_or_an_idle_connection_is_closed() {
    let short = Duration::from_millis(60);
    let running = start(|http| http.body_timeout = short).await;
    for head in ["content-length: 9", "transfer-encoding: chunked"] {
        let mut client = running.client().await;
        client.send(format!("POST /v1/events HTTP/1.1\r\nhost: x\r\n{JSON}{head}\r\n\r\n")).await;
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.slug().as_str()), (408, "request-timeout"));
        assert_eq!(reply.header("connection"), Some("close"));
        assert!(client.is_closed().await);
    }
    let running = start(|http| http.header_timeout = short).await;
    for begun in ["", "POST /v1/events HT"] {
        let mut client = running.client().await;
        client.send(begun).await;
        assert!(client.is_closed().await);
    }
    // The second header of a connection is no less urgent than the first.
    let mut client = running.client().await;
    client.send(get("/livez")).await;
    assert_eq!(client.reply().await.status, 200);
    client.send("GET /li").await;
    assert!(client.is_closed().await);
    let running = start(|http| http.idle_timeout = short).await;
    let mut client = running.client().await;
    client.send(get("/livez")).await;
    assert_eq!(client.reply().await.status, 200);
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn a_client_that_takes_no_answers_is_let_go() {
    let running = start(|http| http.body_timeout = Duration::from_millis(60)).await;
    let mut client = running.client().await;
    let many = get("/v1/status").repeat(1000);
    // Sends without end and reads nothing, until the server has enough of it.
    in_time(async { while client.stream.write_all(many.as_bytes()).await.is_ok() {} }).await;
}

#[tokio::test]
async fn a_body_in_a_transfer_coding_that_nobody_undoes_is_refused() {
    let running = start(|_| {}).await;
    for coding in ["gzip, chunked", "gzip\r\ntransfer-encoding: chunked"] {
        let head =
            format!("POST /v1/events HTTP/1.1\r\nhost: x\r\n{JSON}transfer-encoding: {coding}\r\n\r\n");
        let reply = running.ask(head + "1\r\n1\r\n0\r\n\r\n").await;
        assert_eq!((reply.status, reply.slug().as_str()), (400, "malformed"), "{coding}");
    }
    assert_eq!(running.texts(), [""; 0]);
}

#[tokio::test]
async fn what_was_sent_before_the_end_is_answered_and_told_that_it_is_the_last() {
    let mut running = start(|_| {}).await;
    let mut open = Vec::new();
    for _ in 0..20 {
        let mut client = running.client().await;
        client.send(get("/readyz")).await;
        assert_eq!(client.reply().await.status, 200);
        open.push(client);
    }
    for _ in 0..20 {
        open.push(running.client().await);
    }
    // Everything below happens before the server's thread, which is this one, looks again.
    for client in &mut open {
        assert!(client.stream.try_write(&post(JSON, "1")).unwrap() > 0);
    }
    drop(running.stop.take());
    for client in &mut open {
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.slug().as_str()), (503, "shutting-down"));
        assert_eq!(reply.header("connection"), Some("close"));
        assert!(client.is_closed().await);
    }
}

#[tokio::test]
async fn a_request_that_waits_for_the_disk_meets_no_client_deadline() {
    let short = Duration::from_millis(20);
    let running = start(|http| {
        (http.header_timeout, http.body_timeout, http.idle_timeout) = (short, short, short);
    })
    .await;
    running.queue.hold();
    let mut client = running.client().await;
    client.send(post(JSON, "1")).await;
    let receipt = running.queue.held_receipt().await;
    // Longer than every deadline there is: other connections have come and gone by theirs.
    for _ in 0..3 {
        assert!(running.client().await.is_closed().await);
    }
    receipt.send(Ok(Appended { accepted: 1, duplicates: 0, first_offset: 0 })).unwrap();
    assert_eq!(client.reply().await.status, 202);
}

#[tokio::test]
async fn ambiguous_lengths_are_never_taken_twice() {
    let running = start(|_| {}).await;
    let smuggled = "0\r\n\r\nPOST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1\r\n\r\n7";
    for lengths in [
        "content-length: 4\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 4",
        "content-length: 4\r\ncontent-length: 5",
        "transfer-encoding: chunked, identity",
        "content-length: +4",
    ] {
        let mut client = running.client().await;
        client
            .send(format!("POST /v1/events HTTP/1.1\r\nhost: x\r\n{JSON}{lengths}\r\n\r\n{smuggled}"))
            .await;
        let status = client.reply().await.status;
        assert!((400..500).contains(&status), "{lengths}: {status}");
        assert!(client.is_closed().await, "{lengths}");
    }
    assert_eq!(running.texts(), [""; 0]);
}

#[tokio::test]
async fn with_length_and_chunks_the_chunks_count_and_nothing_behind_them_is_a_request() {
    let running = start(|_| {}).await;
    let behind = post(JSON, "8");
    for lengths in
        ["content-length: 4\r\ntransfer-encoding: chunked", "transfer-encoding: chunked\r\ncontent-length: 4"]
    {
        let mut client = running.client().await;
        let head = format!("POST /v1/events HTTP/1.1\r\nhost: x\r\n{JSON}{lengths}\r\n\r\n");
        client.send([format!("{head}1\r\n7\r\n0\r\n\r\n").into_bytes(), behind.clone()].concat()).await;
        assert_eq!(client.reply().await.status, 202, "{lengths}");
        assert!(client.is_closed().await, "{lengths}");
    }
    assert_eq!(running.texts().len(), 2, "one event a request, and none of what came behind");
}

#[tokio::test]
async fn a_client_that_ends_its_side_still_gets_its_answer() {
    let running = start(|_| {}).await;
    let mut client = running.client().await;
    client.send(post(JSON, "1")).await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.reply().await.status, 202);
    assert!(client.is_closed().await);
    // One that leaves within its body leaves nothing behind.
    let mut client = running.client().await;
    client.send(format!("POST /v1/events HTTP/1.1\r\nhost: x\r\n{JSON}content-length: 9\r\n\r\n1")).await;
    client.stream.shutdown().await.unwrap();
    assert!(client.is_closed().await);
    assert_eq!(running.texts().len(), 1);
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let running = start(|http| http.max_connections = 2).await;
    let mut kept = running.client().await;
    kept.send(get("/livez")).await;
    assert_eq!(kept.reply().await.status, 200);
    let mut second = running.client().await;
    second.send(get("/livez")).await;
    assert_eq!(second.reply().await.status, 200);
    let mut third = running.client().await;
    third.send(post(JSON, "1")).await;
    let reply = third.reply().await;
    assert_eq!((reply.status, reply.slug().as_str()), (429, "overloaded"));
    assert!(third.is_closed().await);
    kept.send(post(JSON, "1")).await;
    assert_eq!(kept.reply().await.status, 202);
    assert_eq!(running.texts().len(), 1);
}

#[tokio::test]
async fn while_recovering_the_listener_answers_and_accepts_nothing() {
    let running = start_recovering(|_| {}).await;
    let reply = running.ask(post(JSON, "1")).await;
    assert_eq!((reply.status, reply.slug().as_str()), (503, "recovering"));
    assert_eq!(running.ask(get("/readyz")).await.slug(), "recovering");
    assert_eq!(running.ask(get("/livez")).await.status, 200);
    assert_eq!(running.ask(get("/v1/events/0")).await.status, 503);
    let status = running.ask(get("/v1/status")).await;
    assert!(status.body.contains(r#""state":"recovering""#), "{status:?}");
    running.app.serving(running.queue.clone());
    assert_eq!(running.ask(get("/readyz")).await.status, 200);
    assert_eq!(running.ask(post(JSON, "1")).await.status, 202);
}

#[tokio::test]
async fn draining_finishes_what_is_under_way_and_refuses_what_is_new() {
    let mut running = start(|_| {}).await;
    running.queue.hold();
    let mut under_way = running.client().await;
    under_way.send(post(JSON, "1")).await;
    let receipt = running.queue.held_receipt().await;
    let mut open = running.client().await;
    open.send(get("/readyz")).await;
    assert_eq!(open.reply().await.status, 200);

    running.app.draining();
    assert!(timeout(Duration::ZERO, running.app.requests_finished()).await.is_err());
    open.send(post(JSON, "2")).await;
    let reply = open.reply().await;
    assert_eq!((reply.status, reply.slug().as_str()), (503, "shutting-down"));
    assert_eq!(reply.header("connection"), Some("close"));
    assert_eq!(running.ask(get("/readyz")).await.slug(), "shutting-down");
    assert_eq!(running.ask(get("/livez")).await.status, 200);

    let mut idle = running.client().await;
    idle.send(get("/v1/status")).await;
    assert!(idle.reply().await.body.contains(r#""state":"draining""#));
    // Half a header is no request under way.
    let mut half = running.client().await;
    half.send(get("/livez") + "GET /li").await;
    assert_eq!(half.reply().await.status, 200);
    drop(running.stop.take());
    assert!(idle.is_closed().await);
    assert!(half.is_closed().await);
    assert!(!running.server.is_finished());
    receipt.send(Ok(Appended { accepted: 1, duplicates: 0, first_offset: 0 })).unwrap();
    let reply = under_way.reply().await;
    assert_eq!((reply.status, reply.header("connection")), (202, Some("close")));
    assert!(under_way.is_closed().await);
    in_time(running.app.requests_finished()).await;
    in_time(&mut running.server).await.unwrap();
    assert_eq!(running.texts().len(), 1);
}

#[tokio::test]
async fn health_follows_the_storage() {
    let running = start(|_| {}).await;
    for (refusal, slug) in [(Refusal::WalFull, "wal-full"), (Refusal::StorageFull, "storage-full")] {
        running.queue.refuse(Some(refusal));
        let reply = running.ask(get("/readyz")).await;
        assert_eq!((reply.status, reply.slug().as_str()), (503, slug));
        assert_eq!(running.ask(get("/healthz")).await.status, 200);
    }
    running.queue.refuse(Some(Refusal::StorageFailed));
    assert_eq!(running.ask(get("/livez")).await.slug(), "storage-failed");
    assert!(running.ask(get("/v1/status")).await.body.contains(r#""state":"failed""#));
    running.queue.refuse(None);
    assert_eq!(running.ask(get("/livez")).await.status, 200);
    running.app.failed();
    assert_eq!(running.ask(get("/healthz")).await.status, 503);
    assert_eq!(running.ask(post(JSON, "1")).await.slug(), "storage-failed");
}

#[tokio::test]
async fn operators_routes_answer_as_the_contract_says() {
    let running = start(|_| {}).await;
    let status = running.ask(get("/v1/status")).await;
    let (start, rest) = status.body.split_once(r#""uptime_seconds":"#).unwrap();
    assert_eq!(start, format!(r#"{{"version":"{}","#, env!("CARGO_PKG_VERSION")));
    let (uptime, rest) = rest.split_once(',').unwrap();
    assert!(uptime.parse::<f64>().is_ok());
    assert_eq!(
        rest,
        r#""state":"serving","wal":{"first_offset":1,"next_offset":3,"bytes":4,"budget_bytes":5,"segments":6,"voids":8,"damaged_ranges":7},"failures":{"index_rebuilds":0},"sinks":[{"name":"archive","type":"json_file","state":"backing_off","acked_offset":1,"pending":2,"in_flight":0,"retrying":0,"dead":0,"delivered":0,"dropped":0,"skipped":0,"last_error":"full"}]}"#
    );
    assert_eq!(
        running.ask(get("/v1/events/0")).await.body,
        r#"{"offset":0,"time":"1970-01-01T00:00:00.000000Z","event":{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{"b":1.0,"a":1e400}},"sinks":{"z":"pending","a":"in_flight"}}"#
    );
    for (path, status, slug) in [
        ("/v1/events/1", 404, "released"),
        ("/v1/events/2", 404, "not-found"),
        ("/v1/events/3", 503, "storage-failed"),
        ("/v1/events/4", 404, "not-found"),
        ("/v1/events/x", 400, "malformed"),
        ("/v1/events/18446744073709551616", 400, "malformed"),
        ("/nothing", 404, "not-found"),
        ("/", 404, "not-found"),
        ("/v1/events/", 404, "not-found"),
    ] {
        let reply = running.ask(get(path)).await;
        assert_eq!((reply.status, reply.slug().as_str()), (status, slug), "{path}");
    }
    let call = |path: &str| format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(
        running.ask(call("/v1/sinks/archive/pause")).await.body,
        r#"{"name":"archive","paused":true}"#
    );
    assert_eq!(running.ask(call("/v1/sinks/archive/resume")).await.status, 200);
    assert_eq!(running.ask(call("/v1/sinks/other/pause")).await.slug(), "not-found");
    assert_eq!(*running.queue.paused.lock().unwrap(), [(SinkId(0), true), (SinkId(0), false)]);
}

#[tokio::test]
async fn a_method_that_is_not_known_is_told_which_are() {
    let running = start(|_| {}).await;
    let call = |method: &str, path: &str| {
        format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
    };
    for (method, path, allow) in [
        ("GET", "/v1/events", "POST"),
        ("OPTIONS", "/v1/events", "POST"),
        ("PUT", "/v1/events", "POST"),
        ("POST", "/livez", "GET,HEAD"),
        ("DELETE", "/v1/events/0", "GET,HEAD"),
        ("GET", "/v1/sinks/archive/pause", "POST"),
    ] {
        let reply = running.ask(call(method, path)).await;
        assert_eq!((reply.status, reply.slug().as_str()), (405, "method-not-allowed"), "{method} {path}");
        assert_eq!(reply.header("allow"), Some(allow), "{method} {path}");
    }
    let mut client = running.client().await;
    client.send("HEAD /livez HTTP/1.1\r\nhost: x\r\n\r\n").await;
    client.send(get("/livez")).await;
    while client.buffer.windows(4).filter(|w| w == b"\r\n\r\n").count() < 2 {
        assert!(client.fill().await);
    }
    let text = String::from_utf8_lossy(&client.buffer).into_owned();
    let (head, rest) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && rest.starts_with("HTTP/1.1 200"), "{text}");
}

#[tokio::test]
async fn the_webhook_handshake_is_answered_where_it_is_switched_on() {
    let ask = "OPTIONS /v1/events HTTP/1.1\r\nhost: x\r\nwebhook-request-origin: a.example\r\nwebhook-request-rate: 120\r\n\r\n";
    let running = start(|http| http.webhook_allowed_origin = Some("a.example".into())).await;
    let reply = running.ask(ask).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("webhook-allowed-origin"), Some("a.example"));
    assert_eq!(reply.header("webhook-allowed-rate"), Some("*"));
    assert_eq!(reply.header("allow"), Some("POST,OPTIONS"));
    assert_eq!(running.ask(ask.replace("a.example", "b.example")).await.slug(), "forbidden");
    let running = start(|http| http.webhook_allowed_origin = Some("*".into())).await;
    assert_eq!(running.ask(ask).await.header("webhook-allowed-origin"), Some("*"));
    assert_eq!(running.ask("OPTIONS /v1/events HTTP/1.1\r\nhost: x\r\n\r\n").await.status, 204);
}

#[tokio::test]
async fn a_body_where_none_is_read_ends_the_connection_and_not_the_server() {
    let running = start(|_| {}).await;
    let mut client = running.client().await;
    client
        .send(format!(
            "POST /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n{}",
            "x".repeat(1_000_000)
        ))
        .await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.header("connection")), (404, Some("close")));
    assert!(client.is_closed().await);
    for rubbish in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"\r\n\r\nxyz\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut client = running.client().await;
        client.send(rubbish).await;
        assert!(client.is_closed().await || (400..=505).contains(&client.reply().await.status));
    }
    let bomb = format!("GET /livez HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(200));
    assert_eq!(running.ask(bomb).await.status, 431);
    let bomb = format!("GET /livez HTTP/1.1\r\nx: {}", "y".repeat(40_000));
    assert_eq!(running.ask(bomb).await.status, 431);
    let bomb = format!("GET /{} HTTP/1.1\r\n\r\n", "y".repeat(40_000));
    assert!((400..500).contains(&running.ask(bomb).await.status));
    assert_eq!(running.ask(get("/livez")).await.status, 200);
}

#[tokio::test]
async fn a_unix_socket_serves_too_and_a_stale_one_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("eventflow.sock");
    for _ in 0..2 {
        let listener = Listener::bind(&Listen::Unix(path.clone())).unwrap();
        assert!(Listener::bind(&Listen::Unix(path.clone())).is_err(), "a live socket stays");
        let app = App::new(Handle::current());
        let limits = Limits::of(&Config::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, app, limits, async {
            let _ = stopped.await;
        }));
        let stream = UnixStream::connect(&path).await.unwrap();
        let mut client = Client { stream, buffer: Vec::new() };
        client.send(get("/livez")).await;
        assert_eq!(client.reply().await.status, 200);
        drop(stop);
        in_time(server).await.unwrap();
    }
}

#[test]
fn a_lack_of_descriptors_pauses_accepting_and_a_broken_connection_does_not() {
    let kind = |number| is_of_one_connection(&io::Error::from_raw_os_error(number));
    assert!(kind(103) && kind(104) && kind(4)); // ECONNABORTED, ECONNRESET, EINTR
    assert!(!kind(23) && !kind(24) && !kind(12)); // ENFILE, EMFILE, ENOMEM
}

#[tokio::test]
async fn the_only_event_of_a_batch_is_named_too() {
    let running = start(|_| {}).await;
    let event = r#"{"specversion":"1.0","id":"only","source":"/s","type":"t"}"#;
    for headers in [JSON, "content-type: application/cloudevents-batch+json\r\n"] {
        let reply = running.ask(post(headers, format!("[{event}]"))).await;
        assert!(reply.body.ends_with(r#","id":"only"}"#), "{reply:?}");
    }
    assert_eq!(running.texts(), [event, event]);
}

#[tokio::test]
async fn an_idle_connection_gives_up_its_buffers_and_serves_on() {
    let running = start(|_| {}).await;
    let edge = Arc::new(Edge {
        date: express::Date::default(),
        app: running.app.clone(),
        limits: Limits::of(&Config::default()),
        event_limits: EventLimits { max_event: 1000, max_batch: 1000 },
        budget: Budget::new(1000),
        router: axum::Router::new(),
    });
    let parked = Arc::strong_count(&edge) + 1;
    let long = Duration::from_secs(60);
    let now = Deadlines { header: long, idle: long, body: long, linger: long, park: Duration::ZERO };
    let (clock, mut listener) =
        (Clock::begin(), Listener::bind(&Listen::Tcp(([127, 0, 0, 1], 0).into())).unwrap());
    let stream = TcpStream::connect(listener.addresses().next().unwrap()).await.unwrap();
    let Stream::Tcp(accepted, _) = listener.accept().await.unwrap() else { unreachable!() };
    let task = tokio::spawn(connection::serve(accepted, clock.clone(), edge.clone()));
    let mut client = Client { stream, buffer: Vec::new() };
    // Half a request behind a whole one is kept over the parking.
    for half in [0, 1, 40] {
        let next = post(JSON, "2");
        client.send([&post(JSON, "1"), &next[..half]].concat()).await;
        assert_eq!(client.reply().await.status, 202);
        clock.sweep(&now, Duration::ZERO);
        in_time(async {
            while half == 0 && Arc::strong_count(&edge) > parked {
                tokio::task::yield_now().await;
            }
        })
        .await;
        client.send(&next[half..]).await;
        assert_eq!(client.reply().await.status, 202);
    }
    assert_eq!(running.texts().len(), 6);
    drop(client);
    in_time(task).await.unwrap();
}

#[tokio::test]
async fn several_sockets_that_were_passed_are_all_accepted_from() {
    let sockets = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let addresses = sockets.each_ref().map(|socket| socket.local_addr().unwrap());
    let mut listener = Listener::adopt(sockets.map(Into::into).into()).unwrap();
    assert_eq!(listener.addresses().collect::<Vec<_>>(), addresses);
    for address in addresses.into_iter().chain(addresses) {
        let client = std::net::TcpStream::connect(address).unwrap();
        let Stream::Tcp(accepted, _) = listener.accept().await.unwrap() else { unreachable!() };
        assert_eq!(accepted.peer_addr().unwrap(), client.local_addr().unwrap());
    }
}

#[tokio::test]
async fn a_connection_answers_without_delay_and_one_that_was_reset_is_known_at_once() {
    let bound = Listener::bind(&Listen::Tcp(([127, 0, 0, 1], 0).into())).unwrap();
    let passed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for mut listener in [bound, Listener::adopt(vec![passed.into()]).unwrap()] {
        let address = listener.addresses().next().unwrap();
        let kept = std::net::TcpStream::connect(address).unwrap();
        let reset = std::net::TcpStream::connect(address).unwrap();
        std::io::Write::write_all(&mut (&reset), b"POST /v1/ev").unwrap();
        rustix::net::sockopt::set_socket_linger(&reset, Some(Duration::ZERO)).unwrap();
        drop(reset);
        let stream = listener.accept().await.unwrap();
        assert!(!stream.is_reset());
        let Stream::Tcp(accepted, _) = stream else { unreachable!() };
        assert_eq!(accepted.peer_addr().unwrap(), kept.local_addr().unwrap());
        assert!(accepted.nodelay().unwrap());
        assert!(listener.accept().await.unwrap().is_reset());
    }
}

#[tokio::test]
async fn who_connects_just_before_the_end_is_answered() {
    let mut running = start(|_| {}).await;
    let mut client = running.client().await;
    running.stop.take().unwrap().send(()).unwrap();
    running.app.reaches(State::Draining).await;
    tokio::task::yield_now().await;
    client.send(post(JSON, "1")).await;
    assert_eq!(client.reply().await.slug(), "shutting-down");
    running.server.await.unwrap();
}
