//! Attributes in `ce-` headers are what the CloudEvents HTTP binding says, and nothing else.
//!
//! * A head is accepted exactly when every name is an attribute's, none is there twice, and every value,
//!   taken out of its quotes and percent-decoded once, is text that the attribute may have. Then these are
//!   the event's attributes, by a decoding that is written here once more.
//! * Any text that an attribute may have arrives as it was when a sender encodes it as the binding says, bare
//!   or as a quoted string.
//!
//! The input is lines `name: value`, without the `ce-`; what is required and not among them is added. The
//! whole input, where it is text, is also the value that makes the round trip.

use std::collections::BTreeMap;

use bytes::Bytes;
use eventflow::event::cloudevent::{self, RESERVED};
use eventflow::http::decode::{Head, decode};
use hyper::header::{HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Request};

use super::decoder::{LIMITS, NOW, Refusal, check_events, string};

/// What an event needs.
const REQUIRED: [(&str, &str); 4] = [("id", "1"), ("source", "/s"), ("type", "t"), ("specversion", "1.0")];

/// No event of so much is ever too large, however it is escaped.
const MOST_BYTES: usize = LIMITS.max_event / 8;

/// See the module.
pub fn check(data: &[u8]) {
    if data.len() > MOST_BYTES {
        return;
    }
    check_headers(data);
    if let Ok(text) = std::str::from_utf8(data)
        && cloudevent::check_value("subject", text).is_ok()
    {
        check_round_trip(text);
    }
}

fn check_headers(data: &[u8]) {
    let mut given: Vec<(String, Vec<u8>)> = Vec::new();
    for line in data.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let Ok(name) = HeaderName::from_bytes(&[b"ce-", &line[..colon]].concat()) else { continue };
        let value = line[colon + 1..].trim_ascii();
        if HeaderValue::from_bytes(value).is_ok() {
            given.push((name.as_str()[3..].to_owned(), value.to_owned()));
        }
    }
    for (name, value) in REQUIRED {
        if !given.iter().any(|(other, _)| other == name) {
            given.push((name.to_owned(), value.as_bytes().to_owned()));
        }
    }
    let expected = attributes(&given);
    match (read(&given), expected) {
        (Some(found), Some(expected)) => assert_eq!(found, expected, "other attributes: {given:?}"),
        (None, None) => {}
        (Some(_), None) => panic!("accepted: {given:?}"),
        (None, Some(_)) => panic!("refused: {given:?}"),
    }
}

/// The attributes of the event that these headers make, as EventFlow reads them; `None` if it refuses.
fn read(given: &[(String, Vec<u8>)]) -> Option<BTreeMap<String, String>> {
    let (mut parts, ()): (Parts, ()) = Request::post("/v1/events").body(()).ok()?.into_parts();
    parts.headers = HeaderMap::new();
    for (name, value) in given {
        let name = HeaderName::from_bytes(format!("ce-{name}").as_bytes()).expect("looked at before");
        parts.headers.append(name, HeaderValue::from_bytes(value).expect("looked at before"));
    }
    let decoded = match Head::of(&parts).map(|head| decode(&head, Bytes::new(), NOW, LIMITS)) {
        Ok(Ok(decoded)) => decoded,
        Ok(Err(problem)) | Err(problem) => {
            Refusal::read(&problem.to_wire(false, None));
            return None;
        }
    };
    check_events(&decoded);
    let text = std::str::from_utf8(decoded.batch.get(0).text).expect("an accepted event is text");
    let members = cloudevent::members(text).expect("an accepted event has members");
    let names = members.iter().map(|(name, _)| name.clone().into_owned());
    Some(names.map(|name| (string(&members, &name).expect("a string"), name)).map(|(v, n)| (n, v)).collect())
}

/// The same by the letter of the binding, slowly.
fn attributes(given: &[(String, Vec<u8>)]) -> Option<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for (name, value) in given {
        let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !is_name || name == "data" || name == "datacontenttype" {
            return None;
        }
        let value = String::from_utf8(without_escapes(&without_quotes(value))).ok()?;
        cloudevent::check_value(name, &value).ok()?;
        if all.insert(name.clone(), value).is_some() {
            return None;
        }
    }
    all.retain(|name, _| !RESERVED.contains(&&**name));
    Some(all)
}

/// A quoted-string of RFC 9110 is what is between its quotes; anything else is itself.
fn without_quotes(value: &[u8]) -> Vec<u8> {
    let [b'"', inner @ .., b'"'] = value else { return value.to_owned() };
    let mut text = Vec::new();
    let mut at = 0;
    while at < inner.len() {
        match inner[at] {
            b'"' => return value.to_owned(),
            b'\\' if at + 1 == inner.len() => return value.to_owned(),
            b'\\' => at += 1,
            _ => {}
        }
        text.push(inner[at]);
        at += 1;
    }
    text
}

/// Each `%` with two hexadecimal digits behind it is a byte, once.
fn without_escapes(value: &[u8]) -> Vec<u8> {
    let digit = |at: usize| value.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut text = Vec::new();
    let mut at = 0;
    while at < value.len() {
        match (value[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                text.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, _, _) => {
                text.push(byte);
                at += 1;
            }
        }
    }
    text
}

fn check_round_trip(text: &str) {
    let mut bare = String::new();
    for byte in text.bytes() {
        match byte {
            b'"' | b'%' => bare.push_str(&format!("%{byte:02X}")),
            b'!'..=b'~' => bare.push(char::from(byte)),
            _ => bare.push_str(&format!("%{byte:02x}")),
        }
    }
    let quoted = format!("\"{}\"", bare.replace('\\', "\\\\"));
    for sent in [bare, quoted] {
        let given: Vec<(String, Vec<u8>)> = REQUIRED
            .into_iter()
            .chain([("subject", &*sent)])
            .map(|(name, value)| (name.to_owned(), value.as_bytes().to_owned()))
            .collect();
        let arrived = read(&given).and_then(|mut attributes| attributes.remove("subject"));
        assert_eq!(arrived.as_deref(), Some(text), "sent as {sent}");
    }
}
