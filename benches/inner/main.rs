//! `cargo bench --bench inner`: the loops every event goes through, one by one, and how many allocations
//! an event costs from the socket to the answer.
//!
//! Times here are of hot caches and say nothing about the whole (`cargo bench --bench goals` does); they
//! show what a change to one loop did. Allocations are exact and the same on every machine.

#[path = "../goals/load.rs"]
#[allow(dead_code)]
mod load;

use std::alloc::System;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use bytes::Bytes;
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use eventflow::config::Config;
use eventflow::daemon::Builder;
use eventflow::event::cloudevent::{self, read_item};
use eventflow::event::{Micros, StoredEvent, dedupe_tag, write_archive_line};
use eventflow::http::decode::{EventLimits, Form, Head, decode};
use eventflow::log::frame::{self, Header, Kind, Record};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

use load::{EVENT_BYTES, HTTP_NDJSON, HTTP_SINGLE, NDJSON_EVENTS, Protocol};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() {
    // `cargo bench -- NAME` is divan's filter; whoever filters does not ask for allocations.
    if std::env::args().skip(1).all(|argument| argument == "--bench") {
        allocations();
    }
    divan::main();
}

/// An event of 256 bytes.
fn event() -> String {
    let mut text = Vec::new();
    load::event(&mut text);
    String::from_utf8(text).expect("it is ASCII")
}

const LIMITS: EventLimits = EventLimits { max_event: 1 << 20, max_batch: 64 << 20 };

#[divan::bench]
fn json_check(bencher: Bencher<'_, '_>) {
    let (text, mut members) = (event(), Vec::new());
    bencher
        .counter(BytesCount::of_str(&text))
        .bench_local(|| read_item(black_box(&text), true, &mut members).map(drop).expect("an event"));
}

#[divan::bench]
fn json_check_of_any_value(bencher: Bencher<'_, '_>) {
    let text = event();
    bencher
        .counter(BytesCount::of_str(&text))
        .bench_local(|| cloudevent::read_value(black_box(&text)).map(str::len).expect("JSON"));
}

#[divan::bench]
fn tag() -> u128 {
    dedupe_tag(black_box("/bench"), black_box("00000000000000012345"))
}

#[divan::bench]
fn decode_single(bencher: Bencher<'_, '_>) {
    let body = Bytes::from(event());
    let head = Head::plain(Form::Structured);
    bencher
        .counter(BytesCount::new(body.len()))
        .bench_local(|| decode(&head, black_box(body.clone()), Micros(0), LIMITS).expect("an event"));
}

/// Splitting, checking, tagging and summing up a thousand lines.
#[divan::bench]
fn decode_ndjson(bencher: Bencher<'_, '_>) {
    let body = Bytes::from((event() + "\n").repeat(NDJSON_EVENTS as usize));
    let head = Head::plain(Form::Lines);
    bencher
        .counter(ItemsCount::new(NDJSON_EVENTS))
        .counter(BytesCount::new(body.len()))
        .bench_local(|| decode(&head, black_box(body.clone()), Micros(0), LIMITS).expect("events"));
}

/// Only the splitting: what it would cost if lines were not looked into.
#[divan::bench]
fn ndjson_split(bencher: Bencher<'_, '_>) {
    let body = (event() + "\n").repeat(NDJSON_EVENTS as usize);
    bencher
        .counter(ItemsCount::new(NDJSON_EVENTS))
        .counter(BytesCount::of_str(&body))
        .bench_local(|| memchr::memchr_iter(b'\n', black_box(body.as_bytes())).count());
}

#[divan::bench(args = [1, 1000])]
fn frame_encode(bencher: Bencher<'_, '_>, records: u32) {
    let text = event();
    let record = Record { tag: 7, crc: crc32fast::hash(text.as_bytes()), bytes: text.as_bytes() };
    let header = Header {
        kind: Kind::Records,
        salt: 1,
        base: 0,
        durable: 0,
        accepted_at_micros: 0,
        records,
        payload_bytes: records * EVENT_BYTES as u32,
    };
    let mut out = Vec::new();
    bencher.counter(ItemsCount::new(records)).bench_local(|| {
        out.clear();
        frame::encode(&mut out, &header, std::iter::repeat_n(record, records as usize));
        out.len()
    });
}

#[divan::bench]
fn record_check(bencher: Bencher<'_, '_>) {
    let text = event();
    let record = Record { tag: 7, crc: crc32fast::hash(text.as_bytes()), bytes: text.as_bytes() };
    let payload_bytes = EVENT_BYTES as u32;
    let (kind, salt, base, durable, accepted_at_micros) = (Kind::Records, 1, 0, 0, 0);
    let header = Header { kind, salt, base, durable, accepted_at_micros, records: 1, payload_bytes };
    let mut bytes = Vec::new();
    frame::encode(&mut bytes, &header, std::iter::once(record));
    let entry = frame::entries(&header, &bytes).next().expect("there is one");
    bencher
        .counter(BytesCount::of_str(&text))
        .bench_local(|| assert!(frame::check_record(&header, 0, &entry, black_box(text.as_bytes()))));
}

#[divan::bench]
fn archive_line(bencher: Bencher<'_, '_>) {
    let text = event();
    let mut out = Vec::new();
    bencher.counter(BytesCount::of_str(&text)).bench_local(|| {
        out.clear();
        let (offset, accepted_at) = (1_234_567, Micros(1_700_000_000_000_000));
        write_archive_line(&mut out, StoredEvent { offset, accepted_at, json: black_box(text.as_bytes()) });
        out.len()
    });
}

/// Counts what the whole process allocates for each event, with the daemon in it and the load allocating
/// nothing.
fn allocations() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a writable folder");
    let text = "[http]\nlisten = \"127.0.0.1:0\"\n[wal]\nbudget = \"256MiB\"\n[[sink]]\nname = \"archive\"\n\
                type = \"json_file\"\npath = \"archive\"\npaused = true\n";
    let mut config = Config::parse("bench", text, [], &[]).expect("a valid configuration");
    config.data_dir = folder.path().join("data");
    let daemon = Builder::new(config).start().expect("it starts");
    let address: SocketAddr = daemon.url().strip_prefix("http://").expect("TCP").parse().expect("an address");
    println!("allocations from the socket to the answer, one connection:");
    let kinds = [("a single POST", &HTTP_SINGLE, 5000), ("an NDJSON line", &HTTP_NDJSON, 100)];
    for ((what, protocol, requests), first) in kinds.into_iter().zip([0, 1 << 32]) {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.set_nodelay(true).expect("a TCP socket");
        let mut request = (protocol.request)(1);
        let events = request.events();
        let mut number = first;
        let mut send = |count: u64| {
            for _ in 0..count {
                one(&mut stream, request.numbered(number), protocol);
                number += events;
            }
        };
        send(20);
        let region = Region::new(ALLOCATOR);
        send(requests);
        let change = region.change();
        let each = |count: usize| count as f64 / (requests * events) as f64;
        println!(
            "  {what:16} {:.3} allocations, {:.3} reallocations, {:.0} bytes",
            each(change.allocations),
            each(change.reallocations),
            each(change.bytes_allocated)
        );
    }
}

fn one(stream: &mut TcpStream, request: &[u8], protocol: &Protocol) {
    stream.write_all(request).expect("the server reads");
    let (mut buffer, mut count) = ([0; 4096], 0);
    while (protocol.answer)(&buffer[..count]).is_none() {
        count += stream.read(&mut buffer[count..]).expect("the server answers");
    }
    assert!(buffer.starts_with(b"HTTP/1.1 202"), "{}", String::from_utf8_lossy(&buffer[..count]));
}
