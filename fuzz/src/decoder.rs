//! Whatever a request's body is, in whichever form: what is accepted is a valid event, and stays the same
//! event on its way through the archive and back.
//!
//! * The text is one JSON object that the structured form accepts as it stands, with the same tag.
//! * Its archive line is one line; the stamp comes off its end again; without it the text is the accepted
//!   one but for line breaks. The line sent again is the same event: same tag, same members, same bytes of
//!   each value. Replayed, it has one member more.
//! * In binary mode the data is the body.
//! * A refusal is a problem of the client's, names a hundred items at most, and is short.
//!
//! ```text
//! input    lines `name: value`, the header; a line that begins with `?` is the query
//!          an empty line
//!          the body
//! ```

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use eventflow::event::cloudevent::{self, Item, Member};
use eventflow::event::{Micros, REPLAY, StoredEvent, dedupe_tag, stamp, write_archive_line, write_replayed};
use eventflow::http::decode::{Decoded, EventLimits, Form, Head, decode};
use hyper::Request;
use hyper::header::{HeaderName, HeaderValue};
use hyper::http::request::Parts;
use serde_json::Value;
use serde_json::value::RawValue;

/// When everything is accepted.
pub const NOW: Micros = Micros(1_749_943_200_123_456);
/// Small, so that they are met.
pub const LIMITS: EventLimits = EventLimits { max_event: 2048, max_batch: 8192 };
/// What is added on the way must not count.
const LOOSE: EventLimits = EventLimits { max_event: 1 << 20, max_batch: 1 << 20 };
/// Bytes of a sentence in an answer, whatever was sent.
const MOST_DETAIL: usize = 1024;

/// See the module.
pub fn check(data: &[u8]) {
    let Some((parts, body)) = request(data) else { return };
    let head = match Head::of(&parts) {
        Ok(head) => head,
        Err(problem) => return drop(Refusal::read(&problem.to_wire(false, None))),
    };
    match decode(&head, Bytes::copy_from_slice(body), NOW, LIMITS) {
        Ok(decoded) => {
            check_events(&decoded);
            if matches!(head.form(), Form::Binary(_)) {
                check_data(&decoded, body);
            }
        }
        Err(problem) => drop(Refusal::read(&problem.to_wire(false, None))),
    }
}

fn request(data: &[u8]) -> Option<(Parts, &[u8])> {
    let mut request = Request::post("/v1/events").body(()).ok()?.into_parts().0;
    let mut rest = data;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let line = &rest[..end];
        rest = &rest[end + 1..];
        match line {
            [] => break,
            [b'?', ..] => request.uri = [b"/v1/events", line].concat().try_into().ok()?,
            _ => {
                let colon = line.iter().position(|byte| *byte == b':')?;
                let name = HeaderName::from_bytes(&line[..colon]).ok()?;
                request.headers.append(name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?);
            }
        }
    }
    Some((request, rest))
}

/// An answer that refuses a request.
#[derive(Debug)]
pub struct Refusal {
    /// Whether something was too large, and the items do not matter.
    pub is_too_large: bool,
    /// The items at fault: their positions, and what is wrong with them.
    pub items: Vec<(usize, String)>,
}

impl Refusal {
    /// Reads it off the wire, as a client would.
    pub fn read(wire: &[u8]) -> Self {
        let wire = std::str::from_utf8(wire).expect("an answer is text");
        let (_, body) = wire.split_once("\r\n\r\n").expect("an answer has a header");
        let document: Value = serde_json::from_str(body).expect("a problem document is JSON");
        let name = document["type"].as_str().and_then(|name| name.strip_prefix("/problems/"));
        let name = name.expect("a problem has a type");
        assert!(
            ["malformed", "too-large", "unsupported-media-type"].contains(&name),
            "not a client's: {body}"
        );
        let errors = document["errors"].as_array().map_or(&[][..], Vec::as_slice);
        assert!(errors.len() <= 100, "{} items are named", errors.len());
        let item = |error: &Value| {
            let index = error["index"].as_u64().expect("an item has a position") as usize;
            (index, error["detail"].as_str().expect("an item has a sentence").to_owned())
        };
        let items: Vec<(usize, String)> = errors.iter().map(item).collect();
        let detail = document["detail"].as_str().expect("a problem has a sentence");
        for sentence in items.iter().map(|(_, sentence)| &**sentence).chain([detail]) {
            assert!(
                !sentence.is_empty() && sentence.len() <= MOST_DETAIL,
                "{} bytes: {sentence}",
                sentence.len()
            );
        }
        Self { is_too_large: name == "too-large", items }
    }
}

/// Every event of a request that was accepted.
pub fn check_events(decoded: &Decoded) {
    for index in 0..decoded.batch.len() {
        let record = decoded.batch.get(index);
        let text = std::str::from_utf8(record.text).expect("an accepted event is text");
        assert!(text.len() <= LIMITS.max_event, "{} bytes were accepted", text.len());
        assert_eq!(record.crc, crc32fast::hash(record.text), "the checksum is of other bytes: {text}");
        serde_json::from_str::<&RawValue>(text).expect("an accepted event is JSON");
        let members = check_text(text, record.tag);
        if let (1, Some(id)) = (decoded.batch.len(), &decoded.id) {
            assert_eq!(Some(id), string(&members, "id").as_ref(), "the answer tells another id");
        }
        check_archived(text, record.tag, &members);
    }
}

/// The structured form takes an accepted text as it stands. Its members, as the general reader sees them.
fn check_text(text: &str, tag: u128) -> Vec<Member<'_>> {
    let mut scratch = Vec::new();
    let Ok(Item::Event(event)) = cloudevent::read_item(text, true, &mut scratch) else {
        panic!("accepted, and not accepted once more: {text}")
    };
    assert!(event.verbatim && event.text == text, "accepted, and changed once more: {text}");
    assert_eq!(dedupe_tag(&event.source, &event.id), tag, "the tag is another event's: {text}");
    let members = cloudevent::members(text).expect("an accepted event has members");
    assert_eq!(scratch, members, "two readers read two events: {text}");
    members
}

fn check_archived(text: &str, tag: u128, members: &[Member<'_>]) {
    const OFFSET: u64 = u64::MAX - 1;
    let mut line = Vec::new();
    write_archive_line(&mut line, StoredEvent { offset: OFFSET, accepted_at: NOW, json: text.as_bytes() });
    let line = line.strip_suffix(b"\n").expect("a line ends in a line break");
    assert!(!line.iter().any(|byte| matches!(byte, b'\n' | b'\r')), "an archived line is two: {text:?}");
    let stamp = stamp(line).expect("the stamp comes off again");
    assert_eq!((stamp.offset, stamp.accepted_at()), (OFFSET, Some(NOW)), "another stamp: {text}");
    let kept = std::str::from_utf8(&line[..stamp.text_bytes]).expect("an archived line is text");
    assert_eq!(format!("{kept}}}"), on_one_line(text), "the archive keeps another text");

    let sent_again = decode(&Head::plain(Form::Structured), Bytes::copy_from_slice(line), NOW, LOOSE);
    let sent_again = sent_again.expect("an archived line can be sent again").batch;
    let (again_tag, again) = sent_again.iter().next().expect("a line is an event");
    assert_eq!((sent_again.len(), again_tag), (1, tag), "sent again it is another event: {text}");
    let expected: Vec<(String, String)> =
        members.iter().map(|(name, raw)| (name.clone().into_owned(), on_one_line(raw))).collect();
    assert_eq!(owned(again), expected, "sent again it says something else: {text}");

    let mut replayed = Vec::new();
    write_replayed(&mut replayed, line, &stamp).expect("a whole line is replayed");
    let mut marked = owned(&replayed);
    if marked.len() > members.len() {
        assert_eq!(marked.pop(), Some((REPLAY.to_owned(), "\"true\"".to_owned())), "another mark: {text}");
    }
    assert_eq!(marked, expected, "replayed it says something else: {text}");
}

fn on_one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

fn owned(text: &[u8]) -> Vec<(String, String)> {
    let text = std::str::from_utf8(text).expect("an event is text");
    let members = cloudevent::members(text).expect("an event has members");
    members.into_iter().map(|(name, raw)| (name.into_owned(), raw.to_owned())).collect()
}

/// The string that a member of an event is.
pub fn string(members: &[Member<'_>], wanted: &str) -> Option<String> {
    let (_, raw): &(Cow<'_, str>, &str) = members.iter().find(|(name, _)| name == wanted)?;
    serde_json::from_str(raw).ok()
}

/// The data of an event in binary mode is the body, whatever became of it.
fn check_data(decoded: &Decoded, body: &[u8]) {
    let text = std::str::from_utf8(decoded.batch.get(0).text).expect("an accepted event is text");
    let members = cloudevent::members(text).expect("an accepted event has members");
    let raw = |wanted: &str| members.iter().find(|(name, _)| name == wanted).map(|(_, raw)| *raw);
    match (raw("data"), string(&members, "data_base64")) {
        (None, None) => assert!(body.is_empty(), "the data is gone: {text}"),
        (None, Some(base64)) => {
            assert_eq!(STANDARD.decode(base64).expect("base64"), body, "the data is another: {text}");
        }
        (Some(json), None) => {
            let said = std::str::from_utf8(body).expect("data in text is text");
            let is_json = cloudevent::trim(said) == json;
            let is_text = serde_json::from_str::<String>(json).is_ok_and(|data| data == said);
            assert!(is_json || is_text, "the data is another: {text}");
        }
        (Some(_), Some(_)) => panic!("data twice: {text}"),
    }
}
