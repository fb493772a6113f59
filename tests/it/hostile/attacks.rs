//! What hostile clients do: one function an attack, run until it is told to stop.
//!
//! Every loop is bounded by `stop` and every socket by a short timeout: an attacker that hangs would only
//! test itself. Errors are what an attacker expects, so they are ignored.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// The daemon under attack, and how the attack goes.
pub struct Siege {
    address: SocketAddr,
    stop: AtomicBool,
    turns: AtomicUsize,
}

impl Siege {
    pub fn of(address: SocketAddr) -> Self {
        Self { address, stop: AtomicBool::new(false), turns: AtomicUsize::new(0) }
    }

    /// Counts one turn of the attack; whether there is to be another.
    fn goes_on(&self) -> bool {
        self.turns.fetch_add(1, Ordering::Relaxed);
        !self.stop.load(Ordering::Relaxed)
    }

    /// How many turns the attack has taken.
    pub fn turns(&self) -> usize {
        self.turns.load(Ordering::Relaxed)
    }

    /// Ends the siege when dropped, so that a test that fails ends too.
    pub fn lifted_in_the_end(&self) -> impl Drop {
        struct Lifted<'a>(&'a AtomicBool);
        impl Drop for Lifted<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        Lifted(&self.stop)
    }

    fn connect(&self) -> Option<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        stream.set_write_timeout(Some(Duration::from_millis(50))).ok()?;
        Some(stream)
    }
}

type Attack = fn(&Siege);

/// Every attack with the name under which it is reported and the turns it must have taken. A turn of
/// those that wait takes 10 ms or more, so that theirs outlast the deadlines of the daemon.
pub const ATTACKS: &[(&str, Attack, usize)] = &[
    ("silent connections", silence, 250),
    ("slow headers", |siege| drip(siege, b"POST /v1/events HTTP/1.1\r\nhost: x\r\nx-slow: "), 150),
    ("slow bodies", |siege| drip(siege, &head("content-length: 100000\r\n")), 150),
    ("chunks that stop coming", |siege| drip(siege, &head("transfer-encoding: chunked\r\n")), 150),
    ("chunks without end", endless_chunks, 1000),
    ("headers without end", |siege| flood(siege, b"GET / HTTP/1.1\r\n", b"x-more: yes, more\r\n"), 300),
    ("one field without end", |siege| flood(siege, b"GET / HTTP/1.1\r\nx: ", b"aaaaaaaaaaaaaaaa"), 300),
    ("an address without end", |siege| flood(siege, b"GET /", b"aaaaaaaaaaaaaaaa"), 300),
    ("requests whose answers nobody reads", unread, 3000),
    ("connections reset half-way", resets, 1000),
    ("TLS on a plain port", |siege| once_each(siege, &[tls_hello()]), 50),
    ("bombs", |siege| once_each(siege, &bombs()), 70),
    ("lengths that lie", |siege| once_each(siege, &lying_lengths()), 120),
    ("texts that are no events", |siege| once_each(siege, &bad_texts()), 200),
];

/// Connections an attack holds at the same time.
const MANY: usize = 200;

/// The head of a post with these fields.
fn head(fields: &str) -> Vec<u8> {
    format!("POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{fields}\r\n")
        .into_bytes()
}

fn post(fields: &str, body: &[u8]) -> Vec<u8> {
    [head(&format!("{fields}content-length: {}\r\n", body.len())), body.to_vec()].concat()
}

/// Whether the other side has ended the connection, or has something to say; takes no time.
fn is_over(stream: &mut TcpStream) -> bool {
    let _ = stream.set_nonblocking(true);
    let over = match stream.read(&mut [0; 4096]) {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    };
    let _ = stream.set_nonblocking(false);
    over
}

/// Holds connections on which nothing is ever sent.
fn silence(siege: &Siege) {
    let mut held: Vec<Option<TcpStream>> = Vec::new();
    while siege.goes_on() {
        held.retain_mut(|slot| slot.as_mut().is_some_and(|stream| !is_over(stream)));
        held.resize_with(MANY, || siege.connect());
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// Sends a beginning on many connections, then a byte at a time on each.
fn drip(siege: &Siege, beginning: &[u8]) {
    let mut held: Vec<Option<TcpStream>> = Vec::new();
    let open = || {
        let mut stream = siege.connect()?;
        stream.write_all(beginning).ok()?;
        Some(stream)
    };
    while siege.goes_on() {
        held.retain_mut(|slot| {
            slot.as_mut().is_some_and(|stream| !is_over(stream) && stream.write_all(b"a").is_ok())
        });
        held.resize_with(MANY, open);
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// Sends a beginning, then the same piece for ever, as fast as it is taken, on a few connections in turn.
fn flood(siege: &Siege, beginning: &[u8], piece: &[u8]) {
    let piece = piece.repeat(1024);
    while siege.goes_on() {
        let Some(mut stream) = siege.connect() else { continue };
        let mut alive = stream.write_all(beginning).is_ok();
        while alive && siege.goes_on() {
            alive = stream.write_all(&piece).is_ok() && !is_over(&mut stream);
        }
    }
}

fn endless_chunks(siege: &Siege) {
    let chunk = [b"4000\r\n".as_slice(), &[b'1'; 0x4000], b"\r\n"].concat();
    flood(siege, &head("transfer-encoding: chunked\r\n"), &chunk);
}

/// Sends requests without end and reads no answer.
fn unread(siege: &Siege) {
    let requests = b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n".repeat(200);
    let mut held: Vec<Option<TcpStream>> = Vec::new();
    while siege.goes_on() {
        for slot in &mut held {
            // A part of a request may have been written: what follows it is nonsense, which is as good.
            if let Some(Err(error)) = slot.as_mut().map(|stream| stream.write(&requests))
                && error.kind() != ErrorKind::WouldBlock
            {
                *slot = None;
            }
        }
        held.retain(Option::is_some);
        held.resize_with(8, || siege.connect());
    }
}

/// Sends half a post and resets the connection.
fn resets(siege: &Siege) {
    let whole = post("", br#"{"never":"finished"}"#);
    for length in (1..whole.len()).cycle() {
        if !siege.goes_on() {
            return;
        }
        let Some(mut stream) = siege.connect() else { continue };
        let _ = stream.write_all(&whole[..length]);
        let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
    }
}

/// Sends each message on a connection of its own, takes whatever comes back, and begins again.
fn once_each(siege: &Siege, messages: &[Vec<u8>]) {
    for message in messages.iter().cycle() {
        if !siege.goes_on() {
            return;
        }
        let Some(mut stream) = siege.connect() else { continue };
        let _ = stream.write_all(message);
        let mut answer = [0; 4096];
        let taken = stream.read(&mut answer).unwrap_or(0);
        let answer = String::from_utf8_lossy(&answer[..taken]);
        let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        assert!(
            status.is_none_or(|status| status.starts_with('4')),
            "{:?} was answered {answer}",
            String::from_utf8_lossy(&message[..message.len().min(300)])
        );
    }
}

/// The first bytes of a TLS 1.3 handshake.
fn tls_hello() -> Vec<u8> {
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(), &[7; 500]].concat()
}

/// Small requests that would become large ones.
fn bombs() -> Vec<Vec<u8>> {
    let zeros = vec![b'0'; 64 << 20];
    let gzip = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&zeros).expect("to memory");
        encoder.finish().expect("to memory")
    };
    let zstd = zstd::encode_all(zeros.as_slice(), 1).expect("to memory");
    vec![
        post("content-encoding: gzip\r\n", &gzip),
        post("content-encoding: zstd\r\n", &zstd),
        post("content-encoding: gzip\r\n", &gzip[..gzip.len() / 2]),
        post("content-encoding: zstd\r\n", b"no zstd at all"),
        post("", "[".repeat(200_000).as_bytes()),
        post("", r#"{"a":"#.repeat(100_000).as_bytes()),
        post("", format!("[{}1]", "1,".repeat(600_000)).as_bytes()),
    ]
}

/// Requests whose length is not what it says, or that say two.
fn lying_lengths() -> Vec<Vec<u8>> {
    let fields = [
        "content-length: 18446744073709551616\r\n",
        "content-length: 18446744073709551615\r\n",
        "content-length: -1\r\n",
        "content-length: 0x10\r\n",
        "content-length: 1\r\ncontent-length: 2\r\n",
        "content-length: 1, 2\r\n",
        "transfer-encoding: chunked, gzip\r\n",
        "transfer-encoding: gzip\r\n",
    ];
    let mut found: Vec<Vec<u8>> =
        fields.iter().map(|fields| [head(fields), b"1\r\n".to_vec()].concat()).collect();
    for chunks in ["fffffffffffffffff\r\n1", "-1\r\n1\r\n", "zz\r\n1\r\n0\r\n\r\n", "1\r\n1X\r\n0\r\n\r\n"] {
        found.push([head("transfer-encoding: chunked\r\n"), chunks.as_bytes().to_vec()].concat());
    }
    found
}

/// Bodies that no event may come from.
fn bad_texts() -> Vec<Vec<u8>> {
    let texts: &[&[u8]] = &[
        b"\xff\xfe",
        b"\"\xed\xa0\x80\"",
        br#"{"specversion":"1.0","id":"1","source":"/x","type":"\ud800"}"#,
        br#"{"specversion":"1.0","id":"1","id":"2","source":"/x","type":"t"}"#,
        br#"{"specversion":"1.0","id":"","source":"/x","type":"t"}"#,
        br#"{"specversion":1.0,"id":"1","source":"/x","type":"t"}"#,
        b"1e",
        b"{\"a\":01}",
        b"nul",
        b"",
    ];
    texts.iter().map(|text| post("", text)).collect()
}
