//! Runs the real binary and looks at it from outside: processes, HTTP, the files it leaves.
//!
//! Nothing here sleeps for a guessed time: every wait is for a condition that can be observed, with
//! a deadline after which the test fails and says what it waited for.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

#[path = "../../src/http/tests/described.rs"]
mod described;

/// How long anything may take before the test says that it hangs.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until `look` finds something.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited {DEADLINE:?} in vain for: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// The binary with a clean environment for configuration.
pub fn eventflow(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eventflow"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("EVENTFLOW_")) {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs a verb to its end.
pub fn run(arguments: &[&str]) -> Output {
    eventflow(arguments).output().expect("the binary runs")
}

/// What a finished process wrote to stderr.
pub fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A tool below `target` that a script of ours puts there; `None`, and said, where it is not and `required` is no
/// variable of the environment.
pub fn installed(path: &str, script: &str, required: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target").join(path);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os(required).is_none(), "{} is not there: run {script}", path.display());
    println!("skipped: {} is not there; {script} puts it there", path.display());
    None
}

/// Settings with which every test rolls and reuses segments.
pub const TINY: &[(&str, &str)] = &[("EVENTFLOW_WAL__SEGMENT", "64KiB"), ("EVENTFLOW_WAL__BUDGET", "4MiB")];

/// Settings with room for the whole corpus in one request, and no more to write at each start.
pub const ROOMY: &[(&str, &str)] = &[("EVENTFLOW_WAL__SEGMENT", "8MiB"), ("EVENTFLOW_WAL__BUDGET", "64MiB")];

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    pub address: SocketAddr,
    pub data_dir: PathBuf,
    said: Arc<Mutex<String>>,
}

impl Daemon {
    /// Starts on `data_dir` with a port of the kernel's choice and waits until it is ready.
    pub fn start(data_dir: &Path, settings: &[(&str, &str)]) -> Daemon {
        let daemon = Self::launch(data_dir, settings).listening();
        eventually("the daemon to be ready", || {
            let answer = Client::to(daemon.address).get("/readyz").ok()?;
            (answer.status == 200).then_some(())
        });
        daemon
    }

    /// Starts the process and waits for nothing.
    pub fn launch(data_dir: &Path, settings: &[(&str, &str)]) -> Daemon {
        let mut command = eventflow(&["serve", "--listen", "127.0.0.1:0"]);
        command.arg("--data-dir").arg(data_dir).envs(settings.iter().copied());
        Self::spawn(command, data_dir)
    }

    /// Starts a prepared command.
    pub fn spawn(mut command: Command, data_dir: &Path) -> Daemon {
        let mut child =
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        let said = Arc::new(Mutex::new(String::new()));
        let stderr = child.stderr.take().expect("stderr is piped");
        let collector = Arc::clone(&said);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut said = collector.lock().expect("nobody panics with it");
                if said.len() < 1 << 20 {
                    said.push_str(&line);
                    said.push('\n');
                }
            }
        });
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Daemon { child, address: nowhere, data_dir: data_dir.to_path_buf(), said }
    }

    /// Waits until the process listens and learns where, as the kernel tells it.
    pub fn listening(mut self) -> Daemon {
        self.address = eventually("the daemon to listen", || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("the daemon ended with {status} instead of listening:\n{}", self.said());
            }
            let process = self.process();
            [process].into_iter().chain(children(process)).find_map(listening_address)
        });
        self
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it is ours")
    }

    /// Where it listens, if it does by now.
    pub fn look(&mut self) -> Option<SocketAddr> {
        let process = self.process();
        self.address = listening_address(process)?;
        Some(self.address)
    }

    /// Everything it wrote to stderr so far.
    pub fn said(&self) -> String {
        self.said.lock().expect("nobody panics with it").clone()
    }

    pub fn client(&self) -> Client {
        Client::to(self.address)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A post of this event whose body the daemon waits for: it has said "100 Continue", so it is under way.
    pub fn half_a_request(&self, event: &str) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        write!(
            stream,
            "POST /v1/events HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nexpect: 100-continue\r\n\r\n",
            event.len()
        )
        .expect("sent");
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).expect("an answer");
        assert!(line.starts_with("HTTP/1.1 100"), "{line}");
        reader.read_line(&mut line).expect("the empty line behind it");
        reader
    }

    /// `GET /v1/status`.
    pub fn status(&self) -> Value {
        let answer = self.client().get("/v1/status").expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
        serde_json::from_slice(&answer.body).expect("status is JSON")
    }

    /// Waits until the archive holds everything that was accepted; returns the status that said so.
    pub fn drained(&self) -> Value {
        eventually("the archive to hold everything", || {
            let status = self.status();
            let done = status["sinks"]
                .as_array()?
                .iter()
                .all(|sink| sink["pending"] == 0 && sink["acked_offset"] == status["wal"]["next_offset"]);
            done.then_some(status)
        })
    }

    /// Its process id.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and the body buried.
    pub fn kill(mut self) {
        for process in children(self.process()) {
            let _ = Command::new("kill").args(["-KILL", &process.to_string()]).status();
        }
        self.child.kill().expect("it was running");
        self.child.wait().expect("it is ours");
    }

    pub fn signal(&self, name: &str) {
        let done = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.process())]).status();
        assert!(done.expect("a shell").success(), "kill -{name}");
    }

    /// SIGTERM, and the exit status.
    pub fn terminate(self) -> ExitStatus {
        self.signal("TERM");
        self.wait()
    }

    pub fn wait(mut self) -> ExitStatus {
        eventually("the daemon to end", || self.child.try_wait().expect("it is ours"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the daemon said:\n{}", self.said());
        }
    }
}

/// Processes that a process started, when a tracer runs the daemon.
fn children(process: u32) -> Vec<u32> {
    let list = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
    list.unwrap_or_default().split_whitespace().filter_map(|p| p.parse().ok()).collect()
}

/// The TCP address on which a process listens, from /proc: sockets it holds × sockets in LISTEN.
fn listening_address(process: u32) -> Option<SocketAddr> {
    let held: Vec<String> = std::fs::read_dir(format!("/proc/{process}/fd"))
        .ok()?
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|target| Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_string()))
        .collect();
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        if *state != "0A" || !held.iter().any(|h| h == inode) {
            return None;
        }
        // The tests only ever listen on loopback.
        let port = u16::from_str_radix(local.split_once(':')?.1, 16).ok()?;
        Some(SocketAddr::from(([127, 0, 0, 1], port)))
    })
}

/// One kept-alive HTTP/1.1 connection, plain enough to see what goes over the wire.
pub struct Client {
    address: SocketAddr,
    stream: Option<BufReader<TcpStream>>,
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// The slug of a problem document, which must be one.
    pub fn slug(&self) -> String {
        assert_eq!(
            self.headers.get("content-type").map(String::as_str),
            Some("application/problem+json"),
            "{self:?}"
        );
        let problem = self.json();
        assert_eq!(problem["status"], self.status);
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{problem}");
        let slug = problem["type"].as_str().and_then(|t| t.strip_prefix("/problems/"));
        slug.expect("type is /problems/<slug>").to_string()
    }
}

impl Answer {
    /// Panics unless `docs/openapi.json` knows such an answer.
    fn is_described(&self, method: &str, path: &str) {
        let header = |name| self.headers.get(name).map(String::as_str);
        let seen = described::Answer {
            status: self.status,
            content_type: header("content-type"),
            retry_after: header("retry-after"),
            body: &self.body,
        };
        if let Err(wrong) = described::check(method, path, &seen) {
            panic!("{method} {path} is not answered as docs/openapi.json says: {wrong}\n{}", self.text());
        }
    }
}

impl Client {
    pub fn to(address: SocketAddr) -> Client {
        Client { address, stream: None }
    }

    pub fn get(&mut self, path: &str) -> std::io::Result<Answer> {
        self.request("GET", path, &[], b"")
    }

    pub fn post(&mut self, media_type: &str, body: &[u8]) -> std::io::Result<Answer> {
        self.request("POST", "/v1/events", &[("content-type", media_type)], body)
    }

    /// The status of an answer that is not compared with the description: one to HEAD, which names a length
    /// and has no body, or one of a listener that does not serve every route.
    pub fn status(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> std::io::Result<u16> {
        let mut stream = BufReader::new(TcpStream::connect(self.address)?);
        stream.get_ref().set_read_timeout(Some(DEADLINE))?;
        let mut message =
            format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n");
        for (name, value) in headers {
            message += &format!("{name}: {value}\r\n");
        }
        stream.get_mut().write_all(format!("{message}\r\n").as_bytes())?;
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        status.ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidData, line))
    }

    /// One request and its answer; after an error the next request opens a new connection.
    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> std::io::Result<Answer> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(self.address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(DEADLINE))?;
                stream.set_write_timeout(Some(DEADLINE))?;
                BufReader::new(stream)
            }
        };
        let mut message = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.address).into_bytes();
        for (name, value) in headers {
            message.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        message.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
        message.extend_from_slice(body);
        stream.get_mut().write_all(&message)?;
        let answer = read_answer(&mut stream)?;
        answer.is_described(method, path);
        if answer.headers.get("connection").is_none_or(|c| !c.eq_ignore_ascii_case("close")) {
            self.stream = Some(stream);
        }
        Ok(answer)
    }
}

fn read_answer(stream: &mut BufReader<TcpStream>) -> std::io::Result<Answer> {
    let bad = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_string());
    let mut line = String::new();
    let mut next = |stream: &mut BufReader<TcpStream>| {
        line.clear();
        match stream.read_line(&mut line)? {
            0 => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)),
            _ => Ok(line.trim_end().to_string()),
        }
    };
    let first = next(stream)?;
    let status = first.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| bad(&first))?;
    let mut headers = BTreeMap::new();
    loop {
        let header = next(stream)?;
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(':').ok_or_else(|| bad(&header))?;
        headers.insert(name.to_ascii_lowercase(), value.trim().to_string());
    }
    let mut body = Vec::new();
    if headers.get("transfer-encoding").is_some_and(|t| t == "chunked") {
        loop {
            let size = next(stream)?;
            let size = usize::from_str_radix(&size, 16).map_err(|_| bad(&size))?;
            let start = body.len();
            body.resize(start + size, 0);
            stream.read_exact(&mut body[start..])?;
            next(stream)?;
            if size == 0 {
                break;
            }
        }
    } else {
        let length = headers.get("content-length").map_or(Ok(0), |l| l.parse().map_err(|_| bad(l)))?;
        body.resize(length, 0);
        stream.read_exact(&mut body)?;
    }
    Ok(Answer { status, headers, body })
}

/// One line of the archive.
#[derive(Debug, Clone)]
pub struct Archived {
    pub offset: u64,
    pub source: String,
    pub id: String,
    /// The `data` member's text, byte for byte.
    pub data: Option<String>,
    /// The whole line.
    pub line: String,
}

/// Every line of the archive below a data directory, in the order of the files.
pub fn archive(data_dir: &Path) -> Vec<Archived> {
    let mut found = Vec::new();
    for file in files_below(&data_dir.join("archive")) {
        let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if !(name.starts_with("events-") && name.ends_with(".ndjson")) {
            continue;
        }
        let text = std::fs::read_to_string(&file).expect("the archive is UTF-8");
        assert!(text.is_empty() || text.ends_with('\n'), "{} ends inside a line", file.display());
        found.extend(text.lines().map(archived));
    }
    found
}

fn archived(line: &str) -> Archived {
    #[derive(serde::Deserialize)]
    struct Line<'a> {
        eventflowoffset: String,
        source: String,
        id: String,
        #[serde(borrow, default)]
        data: Option<&'a serde_json::value::RawValue>,
    }
    let parsed: Line<'_> = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    Archived {
        offset: parsed.eventflowoffset.parse().expect("eventflowoffset is decimal"),
        source: parsed.source,
        id: parsed.id,
        data: parsed.data.map(|d| d.get().to_string()),
        line: line.to_string(),
    }
}

/// All files below a folder, sorted by path.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![folder.to_path_buf()];
    while let Some(dir) = waiting.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten() {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() { waiting.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

/// A small generator (SplitMix64): the seed is printed, so that a run can be had again.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
