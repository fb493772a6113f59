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

    /// The time within which this part of the answers came, in nanoseconds.
    pub fn percentile(&self, part: f64) -> f64 {
        percentile(&self.latencies, part)
    }
}

/// The value that this part of all values does not exceed.
pub fn percentile(values: &[u32], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted
        .get(((sorted.len() as f64 * part) as usize).min(sorted.len().max(1) - 1))
        .map_or(f64::NAN, |n| f64::from(*n))
}

/// What is sent again and again: written once, then only numbered anew, because writing a thousand
/// events a request costs the load as much as reading them costs the server.
pub struct Request {
    bytes: Vec<u8>,
    /// Where the digits of each event's id end.
    ids: Vec<usize>,
}

/// Digits of an id that are written anew; the ones before them stay zero.
const ID_DIGITS: usize = 14;

impl Request {
    /// Events it holds.
    pub fn events(&self) -> u64 {
        self.ids.len() as u64
    }

    /// The bytes, with ids from `first` on.
    pub fn numbered(&mut self, first: u64) -> &[u8] {
        for (mut number, end) in (first..).zip(&self.ids) {
            for digit in self.bytes[end - ID_DIGITS..*end].iter_mut().rev() {
                *digit = b'0' + (number % 10) as u8;
                number /= 10;
            }
        }
        &self.bytes
    }
}

/// What is spoken.
pub struct Protocol {
    /// A request, or `depth` of them written at once.
    pub request: fn(depth: u64) -> Request,
    /// The answer at the front, if all of it is here.
    pub answer: fn(&[u8]) -> Option<Answer>,
}

/// One answer.
#[derive(Clone, Copy)]
pub struct Answer {
    /// Its length.
    pub bytes: usize,
    /// Whether it says yes.
    pub accepts: bool,
}

impl Protocol {
    /// The length of a complete answer at the front. Panics on a refusal.
    fn accepted(&self, bytes: &[u8]) -> Option<usize> {
        let answer = (self.answer)(bytes)?;
        assert!(answer.accepts, "refused: {}", String::from_utf8_lossy(bytes));
        Some(answer.bytes)
    }
}

/// Appends an event of 256 bytes as a structured CloudEvent; returns where its id ends.
pub fn event(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(b"{\"specversion\":\"1.0\",\"id\":\"00000000000000000000");
    let id_end = out.len();
    out.extend_from_slice(
        b"\",\"source\":\"/bench\",\"type\":\"com.example.measured\",\"datacontenttype\":\"application/json\",\
          \"data\":{\"reading\":21.5,\"unit\":\"C\",\"text\":\"",
    );
    out.resize(start + EVENT_BYTES - 3, b'x');
    out.extend_from_slice(b"\"}}");
    id_end
}

fn http_head(media_type: &str, length: usize) -> Vec<u8> {
    format!(
        "POST /v1/events HTTP/1.1\r\nhost: bench\r\ncontent-type: {media_type}\r\ncontent-length: {length}\r\n\r\n"
    )
    .into_bytes()
}

/// One event a POST.
pub const HTTP_SINGLE: Protocol = Protocol {
    request: |_| {
        let mut bytes = http_head("application/cloudevents+json", EVENT_BYTES);
        let ids = vec![event(&mut bytes)];
        Request { bytes, ids }
    },
    answer: http_answer,
};

/// Events of one NDJSON request.
pub const NDJSON_EVENTS: u64 = 1000;

/// A thousand events a POST.
pub const HTTP_NDJSON: Protocol = Protocol {
    request: |_| {
        let mut bytes = http_head("application/x-ndjson", (EVENT_BYTES + 1) * NDJSON_EVENTS as usize);
        let mut ids = Vec::new();
        for _ in 0..NDJSON_EVENTS {
            ids.push(event(&mut bytes));
            bytes.push(b'\n');
        }
        Request { bytes, ids }
    },
    answer: http_answer,
};

fn http_answer(bytes: &[u8]) -> Option<Answer> {
    let head = &bytes[..memchr::memmem::find(bytes, b"\r\n\r\n")? + 4];
    let at = memchr::memmem::find(head, b"content-length: ").expect("answers state their length") + 16;
    let length = head[at..].iter().take_while(|b| b.is_ascii_digit());
    let length = length.fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0'));
    let complete = bytes.len() >= head.len() + length;
    complete.then_some(Answer { bytes: head.len() + length, accepts: head.starts_with(b"HTTP/1.1 202") })
}

/// Entries appended to a Redis stream.
pub const REDIS_XADD: Protocol = Protocol {
    request: |depth| {
        let (mut bytes, mut ids) = (Vec::new(), Vec::new());
        for _ in 0..depth {
            bytes.extend_from_slice(b"*5\r\n$4\r\nXADD\r\n$1\r\ns\r\n$1\r\n*\r\n$1\r\ne\r\n$256\r\n");
            ids.push(event(&mut bytes));
            bytes.extend_from_slice(b"\r\n");
        }
        Request { bytes, ids }
    },
    answer: |bytes| {
        let line = memchr::memchr(b'\n', bytes)? + 1;
        if bytes[0] != b'$' {
            return Some(Answer { bytes: line, accepts: false });
        }
        let length = bytes[1..line - 2].iter().fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0'));
        let complete = bytes.len() >= line + length + 2;
        complete.then_some(Answer { bytes: line + length + 2, accepts: true })
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

/// Sends one request over a connection of its own and waits for the answer.
pub fn one_request(address: SocketAddr, request: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.write_all(request).expect("the server reads");
    let (mut buffer, mut count) = ([0; 4096], 0);
    while HTTP_SINGLE.accepted(&buffer[..count]).is_none() {
        let read = stream.read(&mut buffer[count..]).expect("the server answers");
        assert!(read > 0, "the server closed a connection");
        count += read;
    }
    stream
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
    let (mut number, mut request) = (first, (protocol.request)(1));
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
        connection.sent = now;
        let bytes = request.numbered(number);
        connection.stream.write_all(bytes).expect("a small request fits the socket's buffer");
        number += 1;
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
                protocol.accepted(&buffer[..count])
            } else {
                connection.received.extend_from_slice(&buffer[..count]);
                protocol.accepted(&connection.received)
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
                    let mut request = (protocol.request)(depth);
                    let (mut received, mut answers) = (Vec::new(), 0);
                    let mut buffer = [0; 1 << 16];
                    let mut number = first + connection * (1 << 26);
                    while begun.elapsed() < time {
                        stream.write_all(request.numbered(number)).expect("the server reads");
                        number += request.events();
                        let mut waiting = depth;
                        while waiting > 0 {
                            let count = stream.read(&mut buffer).expect("the server answers");
                            assert!(count > 0, "the server closed a connection");
                            received.extend_from_slice(&buffer[..count]);
                            let mut used = 0;
                            while let Some(length) = protocol.accepted(&received[used..]) {
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
