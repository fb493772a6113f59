//! Bytes of a request into events: which way to read them, and reading them that way.
//!
//! Pure code, so that it runs wherever the caller likes (large bodies on the blocking pool). The
//! head is read before the body arrives, so that a request nobody could accept is refused without
//! it. A structured event that needs no change is kept where it lies in the body.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use percent_encoding::percent_decode;
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::event::cloudevent::{self, Data, Invalid, Item, Member};
use crate::event::{Micros, NewBatch, Trace, dedupe_tag};

use super::binary::{self, BinaryHead};
use super::problem::{ItemError, MAX_ITEM_ERRORS, Problem, Slug};

/// How the body is read; the first rule that fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// A JSON array of structured events.
    Batch,
    /// One structured event.
    Structured,
    /// The event's attributes are in the header.
    Binary(Box<BinaryHead>),
    /// One item a line.
    Lines,
    /// An array of items, or one item.
    Json,
}

impl Form {
    /// What each is called where requests are counted.
    pub const NAMES: [&'static str; 6] = ["batch", "structured", "binary", "lines", "json", "hook"];

    /// Webhooks are counted apart, whatever they become.
    pub const HOOK: usize = 5;

    /// Its place in [`Form::NAMES`].
    pub fn number(&self) -> usize {
        match self {
            Self::Batch => 0,
            Self::Structured => 1,
            Self::Binary(_) => 2,
            Self::Lines => 3,
            Self::Json => 4,
        }
    }

    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let content_type = content_type(headers)?;
        let essence = binary::essence(content_type.map_or(&b""[..], HeaderValue::as_bytes));
        let named = Self::named(essence);
        if let Some(form @ (Self::Batch | Self::Structured)) = named {
            return Ok(form);
        }
        if binary::starts_with(essence, "application/cloudevents") {
            return Err(unsupported("of CloudEvents only the JSON formats are understood"));
        }
        if headers.keys().any(|name| binary::marks_binary(name.as_str())) {
            return Ok(Self::Binary(Box::new(BinaryHead::of(headers, content_type)?)));
        }
        named.ok_or_else(not_understood)
    }

    /// What a media type alone says, in a request without attributes in its header.
    pub fn named(essence: &[u8]) -> Option<Self> {
        let is = |known: &str| essence.eq_ignore_ascii_case(known.as_bytes());
        if is("application/cloudevents-batch+json") {
            return Some(Self::Batch);
        }
        if is("application/cloudevents+json") {
            return Some(Self::Structured);
        }
        if binary::starts_with(essence, "application/cloudevents") {
            return None;
        }
        if is("application/x-ndjson") || is("application/ndjson") || is("application/jsonl") {
            return Some(Self::Lines);
        }
        let json = binary::starts_with(essence, "application/") && binary::ends_with(essence, "+json");
        (json || is("application/json")).then_some(Self::Json)
    }
}

fn not_understood() -> Problem {
    unsupported(
        "send application/json, application/x-ndjson, application/cloudevents+json, \
         application/cloudevents-batch+json, or a CloudEvent in ce- headers",
    )
}

fn unsupported(detail: &'static str) -> Problem {
    Problem::new(Slug::UnsupportedMediaType, detail)
}

fn content_type(headers: &HeaderMap) -> Result<Option<&HeaderValue>, Problem> {
    let mut all = headers.get_all(CONTENT_TYPE).iter();
    let first = all.next();
    if all.next().is_some() {
        return Err(Problem::new(Slug::Malformed, "Content-Type is there twice"));
    }
    Ok(first)
}

/// What the head of a request says about its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    form: Form,
    query: Option<String>,
    idempotency_keys: Vec<HeaderValue>,
    /// What plain data that is the request's only item belongs to.
    trace: Option<Trace>,
}

impl Head {
    /// A head that says nothing but how the body is read.
    pub fn plain(form: Form) -> Self {
        Self { form, query: None, idempotency_keys: Vec::new(), trace: None }
    }

    /// The same, in a request that belongs to a trace.
    pub fn traced(self, trace: Option<Trace>) -> Self {
        Self { trace, ..self }
    }

    /// How the body is read.
    pub fn form(&self) -> &Form {
        &self.form
    }

    /// Reads the head. Nothing of the body is needed to refuse it.
    pub fn of(parts: &Parts) -> Result<Self, Problem> {
        Ok(Self {
            form: Form::of(&parts.headers)?,
            query: parts.uri.query().map(str::to_owned),
            idempotency_keys: parts.headers.get_all("idempotency-key").iter().cloned().collect(),
            trace: binary::trace_of(&parts.headers),
        })
    }
}

/// Limits of one request's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventLimits {
    /// Most bytes of one event's text.
    pub max_event: usize,
    /// Most bytes of all texts together; more could never be appended.
    pub max_batch: usize,
}

/// The events of a request.
#[derive(Debug)]
pub struct Decoded {
    /// The events.
    pub batch: NewBatch,
    /// The id, when there is exactly one.
    pub id: Option<String>,
}

/// Reads the body as its head says. `now` is the time of acceptance.
pub fn decode(head: &Head, body: Bytes, now: Micros, limits: EventLimits) -> Result<Decoded, Problem> {
    if let Form::Binary(binary) = &head.form {
        return decode_binary(binary, &body, limits);
    }
    let text = match std::str::from_utf8(&body) {
        Ok(text) => text,
        Err(error) => return Err(not_utf8(&head.form, &body, error.valid_up_to())),
    };
    let mut items = Items {
        head,
        now,
        limits,
        body: &body,
        batch: NewBatch::over(body.clone()),
        rendered: 0,
        id: None,
        members: Vec::with_capacity(16), // what most events have, so that it is allocated once
        plain: None,
        errors: Vec::new(),
        index: 0,
        stop: None,
    };
    match head.form {
        Form::Lines => items.lines(text),
        Form::Batch => items.array(text, true)?,
        Form::Json if cloudevent::trim(text).starts_with('[') => items.array(text, false)?,
        Form::Structured | Form::Json | Form::Binary(_) => {
            items.one(text, matches!(head.form, Form::Structured), true)?;
        }
    }
    items.finish()
}

fn decode_binary(head: &BinaryHead, body: &[u8], limits: EventLimits) -> Result<Decoded, Problem> {
    let (batch, id) = head.decode(body)?;
    if batch.text_bytes() > limits.max_event {
        return Err(event_too_large(limits.max_event));
    }
    Ok(Decoded { batch, id: Some(id) })
}

fn event_too_large(limit: usize) -> Problem {
    Problem::new(Slug::TooLarge, format!("an event is larger than {limit} bytes (http.max_event)"))
}

/// A body that is not UTF-8; among lines, the one that is not can be named.
fn not_utf8(form: &Form, body: &[u8], at: usize) -> Problem {
    let detail = format!("not UTF-8 at byte {at} of the body");
    if !matches!(form, Form::Lines) {
        return Problem::new(Slug::Malformed, detail);
    }
    let before = body[..at].split(|&b| b == b'\n');
    let line_starts = body[..at].iter().filter(|&&b| b == b'\n').count();
    let is_item = |line: &&[u8]| line.iter().any(|b| !matches!(b, b' ' | b'\t' | b'\r'));
    let index = before.take(line_starts).filter(is_item).count();
    Problem::malformed_items(vec![ItemError { index, detail }])
}

/// The items of one body on their way into a batch.
struct Items<'a> {
    head: &'a Head,
    now: Micros,
    limits: EventLimits,
    body: &'a [u8],
    batch: NewBatch,
    /// Bytes of text in the batch that are not the body's own.
    rendered: usize,
    id: Option<String>,
    members: Vec<Member<'a>>,
    plain: Option<Plain>,
    errors: Vec<ItemError>,
    index: usize,
    /// What ended the reading early, if it was not an item's own mistake.
    stop: Option<Problem>,
}

impl<'a> Items<'a> {
    /// Reads one item. `sole` when the request holds no other.
    fn one(&mut self, text: &'a str, structured: bool, sole: bool) -> Result<(), Problem> {
        let text = cloudevent::trim(text);
        if text.len() > self.limits.max_event {
            return Err(event_too_large(self.limits.max_event));
        }
        let mut members = std::mem::take(&mut self.members);
        let read = cloudevent::read_item(text, structured, &mut members);
        let pushed = match read {
            Ok(Item::Event(event)) => {
                let tag = dedupe_tag(&event.source, &event.id);
                if sole {
                    self.id = Some(event.id.into_owned());
                }
                if event.verbatim {
                    self.batch.push_verbatim(range_in(self.body, event.text), tag);
                    Ok(())
                } else {
                    self.push_rendered(tag, |out| cloudevent::render_without_unset(out, &members))
                }
            }
            Ok(Item::Value(data)) => self.push_plain(data, sole),
            Err(invalid) => Err(invalid.into()),
        };
        self.members = members;
        pushed
    }

    /// Reads one item of several: an item's own mistake is noted, anything else ends the reading.
    /// False when there is no use in going on.
    fn next(&mut self, text: &'a str, structured: bool, sole: bool, line: Option<usize>) -> bool {
        match self.one(text, structured, sole) {
            Ok(()) => {}
            Err(problem) if problem.slug() == Slug::Malformed => {
                let detail = match line {
                    Some(line) => format!("line {line}: {}", problem.detail()),
                    None => problem.detail().to_owned(),
                };
                self.errors.push(ItemError { index: self.index, detail });
            }
            Err(problem) => self.stop = Some(problem),
        }
        self.index += 1;
        self.stop.is_none() && self.errors.len() < MAX_ITEM_ERRORS
    }

    fn lines(&mut self, text: &'a str) {
        let mut lines = Lines { rest: text, number: 0 };
        let Some(mut line) = lines.next() else { return };
        let mut following = lines.next();
        let sole = following.is_none();
        loop {
            let (number, text) = line;
            if !self.next(text, false, sole, Some(number)) {
                return;
            }
            let Some(next) = following else { return };
            line = next;
            following = lines.next();
        }
    }

    fn array(&mut self, text: &'a str, structured: bool) -> Result<(), Problem> {
        if !cloudevent::trim(text).starts_with('[') {
            return Err(Problem::new(Slug::Malformed, "a batch is a JSON array"));
        }
        let mut reader = serde_json::Deserializer::from_str(text);
        let read = Elements { items: self, structured }.deserialize(&mut reader).and_then(|()| reader.end());
        let Err(error) = read else { return Ok(()) };
        if self.stop.is_some() || self.errors.len() >= MAX_ITEM_ERRORS {
            return Ok(()); // the error is our own, to leave the array early
        }
        self.errors.push(ItemError { index: self.index, detail: format!("not valid JSON: {error}") });
        Ok(())
    }

    fn push_rendered(&mut self, tag: u128, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), Problem> {
        let len = self.batch.push_rendered(tag, write);
        self.rendered += len;
        if len > self.limits.max_event {
            return Err(event_too_large(self.limits.max_event));
        }
        if self.rendered > self.limits.max_batch {
            let limit = self.limits.max_batch;
            let detail = format!("the request's events take more than the {limit} bytes of a segment");
            return Err(Problem::new(Slug::TooLarge, detail));
        }
        Ok(())
    }

    /// Plain data becomes the data of an event of our own making.
    fn push_plain(&mut self, data: &str, sole: bool) -> Result<(), Problem> {
        let key = if sole { idempotency_key(&self.head.idempotency_keys)? } else { None };
        let mut plain = match self.plain.take() {
            Some(plain) => plain,
            None => Plain::of(self.head.query.as_deref(), self.now)?,
        };
        let id = key.unwrap_or_else(|| plain.next_id());
        let tag = dedupe_tag(&plain.source, &id);
        let attributes = [
            ("id", &*id),
            ("source", &*plain.source),
            ("type", &*plain.event_type),
            ("time", &*plain.time),
            ("datacontenttype", "application/json"),
        ];
        // A request of several items is a trace of whoever gathered them, and of none of them.
        let head = self.head;
        let trace = head.trace.as_ref().filter(|_| sole);
        let attributes = attributes.into_iter().chain(trace.into_iter().flat_map(Trace::fields));
        let pushed = self.push_rendered(tag, |out| {
            out.reserve(data.len() + 256);
            cloudevent::render(out, attributes, Data::Json(data));
        });
        if sole {
            self.id = Some(id);
        }
        self.plain = Some(plain);
        pushed
    }

    fn finish(self) -> Result<Decoded, Problem> {
        if let Some(problem) = self.stop {
            return Err(problem);
        }
        if !self.errors.is_empty() {
            return Err(Problem::malformed_items(self.errors));
        }
        Ok(Decoded { batch: self.batch, id: self.id })
    }
}

/// Where `inner`, a part of `outer`, lies in it.
fn range_in(outer: &[u8], inner: &str) -> Range<usize> {
    let start = inner.as_ptr() as usize - outer.as_ptr() as usize;
    start..start + inner.len()
}

/// Lines that are not blank, each with its number from 1.
struct Lines<'a> {
    rest: &'a str,
    number: usize,
}

impl<'a> Iterator for Lines<'a> {
    type Item = (usize, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            self.number += 1;
            let end = memchr::memchr(b'\n', self.rest.as_bytes());
            let line = cloudevent::trim(&self.rest[..end.unwrap_or(self.rest.len())]);
            self.rest = end.map_or("", |end| &self.rest[end + 1..]);
            if !line.is_empty() {
                return Some((self.number, line));
            }
        }
        None
    }
}

/// Hands each element of an array on as it is found, so that a body of a million small ones takes
/// no list of them. One element is held back, to know whether it is the only one.
struct Elements<'i, 'a> {
    items: &'i mut Items<'a>,
    structured: bool,
}

impl<'a> DeserializeSeed<'a> for Elements<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'a> Visitor<'a> for Elements<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON array")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut elements: A) -> Result<(), A::Error> {
        let Some(mut element) = elements.next_element::<&'a RawValue>()? else { return Ok(()) };
        let mut sole = true;
        loop {
            let following = elements.next_element::<&'a RawValue>();
            sole &= matches!(following, Ok(None));
            if !self.items.next(element.get(), self.structured, sole, None) {
                return Err(serde::de::Error::custom("stopped"));
            }
            match following? {
                Some(next) => element = next,
                None => return Ok(()),
            }
            sole = false;
        }
    }
}

/// The attributes that plain data gets.
struct Plain {
    source: String,
    event_type: String,
    time: String,
    ids: u128,
}

/// The low 62 bits of a UUIDv7 are random; counting them up keeps ids of a batch in order.
const UUID_RANDOM: u128 = (1 << 62) - 1;

impl Plain {
    fn of(query: Option<&str>, now: Micros) -> Result<Self, Problem> {
        let mut source = None;
        let mut event_type = None;
        for pair in query.unwrap_or_default().split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (slot, name) = match &*form_decode(name)? {
                "source" => (&mut source, "source"),
                "type" => (&mut event_type, "type"),
                _ => continue,
            };
            let value = form_decode(value)?.into_owned();
            cloudevent::check_value(name, &value)?;
            if slot.replace(value).is_some() {
                let detail = format!("the query parameter `{name}` is there twice");
                return Err(Invalid(detail.into()).into());
            }
        }
        Ok(Self {
            source: source.unwrap_or_else(|| "/eventflow".to_owned()),
            event_type: event_type.unwrap_or_else(|| "eventflow.event".to_owned()),
            time: now.to_rfc3339(),
            ids: uuid::Uuid::now_v7().as_u128(),
        })
    }

    fn next_id(&mut self) -> String {
        let id = uuid::Uuid::from_u128(self.ids);
        self.ids = (self.ids & !UUID_RANDOM) | (self.ids.wrapping_add(1) & UUID_RANDOM);
        id.to_string()
    }
}

/// Decodes a part of a query as forms write it: `+` is a space, `%XX` a byte.
pub fn form_decode(text: &str) -> Result<Cow<'_, str>, Problem> {
    let invalid = |_| Problem::new(Slug::Malformed, "the query is not UTF-8");
    if !text.contains('+') {
        return percent_decode(text.as_bytes()).decode_utf8().map_err(invalid);
    }
    let spaced = text.replace('+', " ");
    Ok(Cow::Owned(percent_decode(spaced.as_bytes()).decode_utf8().map_err(invalid)?.into_owned()))
}

/// The Idempotency-Key: a string of RFC 9651 in quotes, or bare.
fn idempotency_key(values: &[HeaderValue]) -> Result<Option<String>, Problem> {
    let malformed = |detail: &'static str| Err(Problem::new(Slug::Malformed, detail));
    let value = match values {
        [] => return Ok(None),
        [one] => one.as_bytes().trim_ascii(),
        _ => return malformed("Idempotency-Key is there twice"),
    };
    let Ok(key) = String::from_utf8(binary::unquote(value).into_owned()) else {
        return malformed("Idempotency-Key is not UTF-8");
    };
    if key.is_empty() {
        return malformed("Idempotency-Key is empty");
    }
    cloudevent::check_value("id", &key)?;
    Ok(Some(key))
}

#[cfg(test)]
mod tests;
