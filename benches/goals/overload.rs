//! Open-loop load: requests are due at a fixed rate, whatever the server does, and an answer's time
//! counts from when its request was due.
//!
//! One request is in flight a connection. One that is due while none is free is not sent: the client is
//! at a bound of its own, and waiting there would be counted as the server's. How many there were is told.

use std::io::{ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};

use super::load::{HTTP_SINGLE, Request};

/// What a run measured.
pub struct Outcome {
    /// Times of answers that said yes, in nanoseconds from when each request was due.
    pub accepted: Vec<u32>,
    /// The same of those that said no.
    pub refused: Vec<u32>,
    /// Requests for which no connection was free when they were due.
    pub unsent: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl Outcome {
    /// Requests accepted a second.
    pub fn accepted_rate(&self) -> f64 {
        self.accepted.len() as f64 / self.elapsed.as_secs_f64()
    }
}

struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    due: Instant,
}

/// Sends `rate` requests of one event a second over this many connections.
pub fn open_loop(address: SocketAddr, connections: usize, rate: f64, time: Duration, first: u64) -> Outcome {
    let begun = Instant::now();
    let mut run = Run {
        poll: epoll::create(epoll::CreateFlags::CLOEXEC).expect("a descriptor"),
        address,
        request: (HTTP_SINGLE.request)(1),
        number: first,
        open: Vec::new(),
        free: Vec::new(),
        outcome: Outcome { accepted: Vec::new(), refused: Vec::new(), unsent: 0, elapsed: time },
    };
    for index in 0..connections {
        let stream = run.connect(index);
        run.open.push(Connection { stream, received: Vec::new(), due: begun });
        run.free.push(index);
    }
    let (begun, mut due) = (Instant::now(), 0u64);
    loop {
        let elapsed = begun.elapsed();
        if elapsed >= time {
            run.outcome.elapsed = elapsed;
            return run.outcome;
        }
        let due_by_now = (elapsed.as_secs_f64() * rate) as u64;
        for number in due..due_by_now {
            run.send(begun + Duration::from_secs_f64(number as f64 / rate));
        }
        due = due_by_now;
        run.receive();
    }
}

struct Run {
    poll: OwnedFd,
    address: SocketAddr,
    request: Request,
    number: u64,
    open: Vec<Connection>,
    free: Vec<usize>,
    outcome: Outcome,
}

impl Run {
    fn connect(&self, index: usize) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the server listens");
        stream.set_nodelay(true).expect("a TCP socket");
        stream.set_nonblocking(true).expect("a socket");
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&self.poll, &stream, data, epoll::EventFlags::IN).expect("watched");
        stream
    }

    fn send(&mut self, due: Instant) {
        let Some(index) = self.free.pop() else {
            self.outcome.unsent += 1;
            return;
        };
        let connection = &mut self.open[index];
        connection.due = due;
        let bytes = self.request.numbered(self.number);
        self.number += 1;
        // A connection that the server has closed is noticed when it is read from.
        let _ = connection.stream.write_all(bytes);
    }

    /// Takes the answers that are here.
    fn receive(&mut self) {
        let mut events = [const { MaybeUninit::uninit() }; 256];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let (ready, _) = epoll::wait(&self.poll, &mut events, Some(&at_once)).expect("a descriptor of ours");
        let now = Instant::now();
        let mut buffer = [0; 4096];
        for event in ready {
            let index = event.data.u64() as usize;
            let connection = &mut self.open[index];
            match connection.stream.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Ok(count) if count > 0 => connection.received.extend_from_slice(&buffer[..count]),
                Ok(_) | Err(_) => {
                    // Closed behind a refusal; a request that was lost with it was never answered.
                    let stream = self.connect(index);
                    let connection = &mut self.open[index];
                    connection.stream = stream;
                    connection.received.clear();
                    if !self.free.contains(&index) {
                        self.free.push(index);
                    }
                    continue;
                }
            }
            let Some(answer) = (HTTP_SINGLE.answer)(&connection.received) else { continue };
            connection.received.drain(..answer.bytes);
            let took = now.saturating_duration_since(connection.due).as_nanos() as u32;
            let times = if answer.accepts { &mut self.outcome.accepted } else { &mut self.outcome.refused };
            times.push(took);
            self.free.push(index);
        }
    }
}
