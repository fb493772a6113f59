//! Closed-loop load with as little processor time as possible: it shares the cores with the server.

use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::epoll;

/// Bytes of one event in every measurement.
pub const EVENT_BYTES: usize = 256;

/// What a run of load measured.
pub struct Measured {
    /// Answers that said yes.
    pub answers: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// Time to each answer, in nanoseconds; only where one request was in flight a connection.
    pub latencies: Vec<u32>,
}

impl Measured {
    /// Answers a second.
    pub fn rate(&self) -> f64 {
        self.answers as f64 / self.elapsed.as_secs_f64()
    }

    /// The median time to an answer, in nanoseconds.
    pub fn p50(&self) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).map_or(f64::NAN, |n| f64::from(*n))
    }
}

/// What is spoken: how to write a request, and where a good answer ends.
pub struct Protocol {
    /// Appends one request, different from every other one.
    pub write: fn(&mut Vec<u8>, u64),
    /// Length of a complete answer at the front; `None` when more bytes are needed. Panics on a refusal.
    pub complete: fn(&[u8]) -> Option<usize>,
}

/// One event of 256 bytes as a structured CloudEvent.
pub fn event(out: &mut Vec<u8>, number: u64) {
    let start = out.len();
    write!(
        out,
        "{{\"specversion\":\"1.0\",\"id\":\"{number:020}\",\"source\":\"/bench\",\"type\":\"com.example.measured\",\
         \"datacontenttype\":\"application/json\",\"data\":{{\"reading\":21.5,\"unit\":\"C\",\"text\":\""
    )
    .expect("memory takes it");
    out.resize(start + EVENT_BYTES - 3, b'x');
    out.extend_from_slice(b"\"}}");
}

fn http_head(out: &mut Vec<u8>, media_type: &str, length: usize) {
    write!(
        out,
        "POST /v1/events HTTP/1.1\r\nhost: bench\r\ncontent-type: {media_type}\r\ncontent-length: {length}\r\n\r\n"
    )
    .expect("memory takes it");
}

/// One event a POST.
pub const HTTP_SINGLE: Protocol = Protocol {
    write: |out, number| {
        http_head(out, "application/cloudevents+json", EVENT_BYTES);
        event(out, number);
    },
    complete: http_complete,
};

/// Events of one NDJSON request.
pub const NDJSON_EVENTS: u64 = 1000;

/// A thousand events a POST.
pub const HTTP_NDJSON: Protocol = Protocol {
    write: |out, number| {
        http_head(out, "application/x-ndjson", (EVENT_BYTES + 1) * NDJSON_EVENTS as usize);
        for n in 0..NDJSON_EVENTS {
            event(out, number * NDJSON_EVENTS + n);
            out.push(b'\n');
        }
    },
    complete: http_complete,
};

fn http_complete(bytes: &[u8]) -> Option<usize> {
    let end = memchr::memmem::find(bytes, b"\r\n\r\n")? + 4;
    let head = &bytes[..end];
    assert!(head.starts_with(b"HTTP/1.1 202"), "refused: {}", String::from_utf8_lossy(bytes));
    let at = memchr::memmem::find(head, b"content-length: ").expect("answers state their length") + 16;
    let length = head[at..].iter().take_while(|b| b.is_ascii_digit());
    let length = length.fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0'));
    (bytes.len() >= end + length).then_some(end + length)
}

/// One entry appended to a Redis stream.
pub const REDIS_XADD: Protocol = Protocol {
    write: |out, number| {
        out.extend_from_slice(b"*5\r\n$4\r\nXADD\r\n$1\r\ns\r\n$1\r\n*\r\n$1\r\ne\r\n$256\r\n");
        event(out, number);
        out.extend_from_slice(b"\r\n");
    },
    complete: |bytes| {
        let line = memchr::memchr(b'\n', bytes)? + 1;
        assert_eq!(bytes[0], b'$', "refused: {}", String::from_utf8_lossy(bytes));
        let length = bytes[1..line - 2].iter().fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0'));
        (bytes.len() >= line + length + 2).then_some(line + length + 2)
    },
};

/// A source of numbers that are never used twice, so that no event is a duplicate.
pub struct Numbers(u64);

impl Numbers {
    pub fn new() -> Self {
        Self(0)
    }

    /// Sets aside plenty.
    pub fn take(&mut self) -> u64 {
        self.0 += 1 << 32;
        self.0
    }
}

struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    sent: Instant,
}

/// Small requests on many connections from one thread, one in flight on each.
pub fn many_connections(
    address: SocketAddr,
    connections: usize,
    time: Duration,
    protocol: &Protocol,
    first: u64,
) -> Measured {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("a descriptor");
    let (mut number, mut request) = (first, Vec::new());
    let mut open: Vec<Connection> = (0..connections)
        .map(|index| {
            let stream = TcpStream::connect(address).expect("the server listens");
            stream.set_nodelay(true).expect("a TCP socket");
            stream.set_nonblocking(true).expect("a socket");
            let data = epoll::EventData::new_u64(index as u64);
            epoll::add(&poll, &stream, data, epoll::EventFlags::IN).expect("watched");
            Connection { stream, received: Vec::with_capacity(4096), sent: Instant::now() }
        })
        .collect();
    let mut measured = Measured { answers: 0, elapsed: Duration::ZERO, latencies: Vec::new() };
    let begun = Instant::now();
    let mut send = |connection: &mut Connection, now: Instant| {
        request.clear();
        (protocol.write)(&mut request, number);
        number += 1;
        connection.sent = now;
        connection.stream.write_all(&request).expect("a small request fits the socket's buffer");
    };
    for connection in &mut open {
        send(connection, begun);
    }
    let mut buffer = [0; 4096];
    let mut events = [const { MaybeUninit::uninit() }; 256];
    let mut now = begun;
    while now.duration_since(begun) < time {
        let (ready, _) = epoll::wait(&poll, &mut events, None).expect("a descriptor of ours");
        now = Instant::now();
        for event in ready {
            let connection = &mut open[event.data.u64() as usize];
            let count = match connection.stream.read(&mut buffer) {
                Ok(0) => panic!("the server closed a connection"),
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(error) => panic!("{error}"),
            };
            let complete = if connection.received.is_empty() {
                (protocol.complete)(&buffer[..count])
            } else {
                connection.received.extend_from_slice(&buffer[..count]);
                (protocol.complete)(&connection.received)
            };
            if complete.is_some() {
                connection.received.clear();
                measured.answers += 1;
                measured.latencies.push(now.duration_since(connection.sent).as_nanos() as u32);
                send(connection, now);
            } else if connection.received.is_empty() {
                connection.received.extend_from_slice(&buffer[..count]);
            }
        }
    }
    measured.elapsed = begun.elapsed();
    measured
}

/// Large requests, or `depth` small ones written at once, on a few connections with a thread each.
pub fn few_connections(
    address: SocketAddr,
    connections: u64,
    depth: u64,
    time: Duration,
    protocol: &Protocol,
    first: u64,
) -> Measured {
    let begun = Instant::now();
    let answers = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..connections)
            .map(|connection| {
                scope.spawn(move || {
                    let mut stream = TcpStream::connect(address).expect("the server listens");
                    stream.set_nodelay(true).expect("a TCP socket");
                    let (mut request, mut received, mut answers) = (Vec::new(), Vec::new(), 0);
                    let mut buffer = [0; 1 << 16];
                    let mut number = first + connection * (1 << 24);
                    while begun.elapsed() < time {
                        request.clear();
                        for _ in 0..depth {
                            (protocol.write)(&mut request, number);
                            number += 1;
                        }
                        stream.write_all(&request).expect("the server reads");
                        let mut waiting = depth;
                        while waiting > 0 {
                            let count = stream.read(&mut buffer).expect("the server answers");
                            assert!(count > 0, "the server closed a connection");
                            received.extend_from_slice(&buffer[..count]);
                            let mut used = 0;
                            while let Some(length) = (protocol.complete)(&received[used..]) {
                                used += length;
                                waiting -= 1;
                                answers += 1;
                            }
                            received.drain(..used);
                        }
                    }
                    answers
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().expect("load that ends")).sum()
    });
    Measured { answers, elapsed: begun.elapsed(), latencies: Vec::new() }
}
