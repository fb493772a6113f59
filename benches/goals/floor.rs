//! What the figures are measured against: the disk itself, a server that does nothing, and Redis.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The disk through `pwrite` and `fdatasync` on blocks that are already written.
pub struct Disk {
    file: std::fs::File,
    size: u64,
    at: u64,
}

impl Disk {
    pub fn prepare(folder: &Path) -> Disk {
        let file = std::fs::File::options()
            .create(true)
            .truncate(true)
            .write(true)
            .open(folder.join("floor"))
            .expect("a writable folder");
        let size = 256 << 20;
        let zeros = vec![0; 1 << 20];
        for piece in 0..size >> 20 {
            file.write_all_at(&zeros, piece << 20).expect("room on the disk");
        }
        file.sync_all().expect("a disk that syncs");
        Disk { file, size, at: 0 }
    }

    fn append(&mut self, bytes: &[u8]) {
        if self.at + bytes.len() as u64 > self.size {
            self.at = 0;
        }
        self.file.write_all_at(bytes, self.at).expect("a disk that writes");
        self.file.sync_data().expect("a disk that syncs");
        self.at += bytes.len() as u64;
    }

    /// The median of an append of 256 bytes made durable, in nanoseconds.
    pub fn sync_p50(&mut self, time: Duration) -> f64 {
        let begun = Instant::now();
        let mut took = Vec::new();
        while begun.elapsed() < time {
            let start = Instant::now();
            self.append(&[b'x'; 256]);
            took.push(start.elapsed().as_nanos() as u64);
        }
        took.sort_unstable();
        took[took.len() / 2] as f64
    }

    /// Bytes a second, 1 MiB made durable at a time.
    pub fn bytes_per_second(&mut self, time: Duration) -> f64 {
        let piece = vec![b'x'; 1 << 20];
        let (begun, mut bytes) = (Instant::now(), 0);
        while begun.elapsed() < time {
            self.append(&piece);
            bytes += piece.len();
        }
        bytes as f64 / begun.elapsed().as_secs_f64()
    }
}

/// Every byte of a log's segments read in large pieces and summed up with CRC-32.
pub fn read_bytes_per_second(wal: &Path) -> f64 {
    let begun = Instant::now();
    let (mut piece, mut bytes) = (vec![0; 1 << 20], 0);
    for path in super::segments(wal) {
        let file = std::fs::File::open(path).expect("readable");
        let mut crc = crc32fast::Hasher::new();
        let mut at = 0;
        loop {
            let count = file.read_at(&mut piece, at).expect("readable");
            if count == 0 {
                break;
            }
            crc.update(&piece[..count]);
            at += count as u64;
        }
        std::hint::black_box(crc.finalize());
        bytes += at;
    }
    bytes as f64 / begun.elapsed().as_secs_f64()
}

/// A process that ends with the measurement.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago.
fn free_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound")
}

fn when_listening(child: Child, address: SocketAddr) -> Server {
    let end = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < end, "{address} does not listen");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    Server { child, address }
}

/// Redis with a stream, synced before each answer; `None` when it is not installed.
pub fn redis(folder: &Path) -> Option<Server> {
    std::fs::create_dir_all(folder).expect("a writable folder");
    let address = free_port();
    let child = Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--dir"])
        .arg(folder)
        .args(["--save", "", "--appendonly", "yes", "--appendfsync", "always"])
        .args(["--auto-aof-rewrite-percentage", "0", "--maxclients", "2000"])
        .stdout(Stdio::null())
        .spawn()
        .ok()?;
    Some(when_listening(child, address))
}

/// The argument that makes this binary the server that does nothing.
pub const NOTHING: &str = "--serve-nothing";

/// axum, answering 202 without doing anything, in a process of its own.
pub fn nothing() -> Server {
    let address = free_port();
    let own = std::env::current_exe().expect("this binary");
    let child = Command::new(own).arg(NOTHING).arg(address.to_string()).spawn().expect("this binary runs");
    when_listening(child, address)
}

/// Runs that server until it is killed.
pub fn serve_nothing(address: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let answer = |_body: axum::body::Bytes| async {
            let json = r#"{"accepted":1,"duplicates":0,"first_offset":0,"last_offset":0,"id":"0"}"#;
            (axum::http::StatusCode::ACCEPTED, [("content-type", "application/json")], json)
        };
        let routes = axum::Router::new().route("/v1/events", axum::routing::post(answer));
        let listener = tokio::net::TcpListener::bind(address).await.expect("a free port");
        axum::serve(listener, routes).await.expect("serves until it is killed");
    });
}
