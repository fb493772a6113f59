//! What a valid CloudEvent 1.0.2 is: reading one from JSON, checking its attributes, rendering one.
//!
//! An event is read in one pass that builds no tree: the members of the outer object as slices of
//! the text, everything inside `data` only checked. Checks follow the specification's type system
//! (string, boolean, 32-bit integer; no control characters or noncharacters in strings), because an
//! event that is let in wrong is wrong at every sink.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;

use super::Micros;
use super::spelling::members_in_common_spelling;

/// Deepest nesting of arrays and objects an event may have, itself included.
pub const MAX_DEPTH: usize = 128;
/// The same of plain data: the event that is made of it is one deeper, and must be one that is accepted.
const MAX_DATA_DEPTH: usize = MAX_DEPTH - 1;

/// Attributes that EventFlow adds to what it hands out. A sender that brings them (a line of an
/// archive, sent again) loses them on acceptance.
pub const RESERVED: [&str; 2] = ["eventflowoffset", "eventflowtime"];

/// Why something is not a valid event; the sentence goes to the sender.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub Cow<'static, str>);

impl Invalid {
    fn new(detail: impl Into<Cow<'static, str>>) -> Self {
        Self(detail.into())
    }
}

/// One member of a JSON object: its decoded name and its value's text.
pub type Member<'a> = (Cow<'a, str>, &'a str);

/// The tag under which duplicates of (`source`, `id`) are found. Never 0.
///
/// SipHash-1-3 with 128 bits and fixed keys: it is stored with every record, so it must be the same
/// in every process for ever. Both fields carry their length, so that no two pairs read alike.
pub fn dedupe_tag(source: &str, id: &str) -> u128 {
    let mut hasher = SipHasher13::new_with_keys(0x4576_656e_7446_6c6f, 0x7720_6465_6475_7065);
    for field in [source, id] {
        hasher.write(&(field.len() as u64).to_le_bytes());
        hasher.write(field.as_bytes());
    }
    u128::from(hasher.finish128()).max(1)
}

/// One item of a request, read.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A structured CloudEvent.
    Event(Structured<'a>),
    /// Any other JSON value: plain data, as text without white space around it.
    Value(&'a str),
}

/// A valid structured CloudEvent.
#[derive(Debug, PartialEq, Eq)]
pub struct Structured<'a> {
    /// Its text from brace to brace.
    pub text: &'a str,
    /// Its id.
    pub id: Cow<'a, str>,
    /// Its source.
    pub source: Cow<'a, str>,
    /// Whether the text can be kept as it is. If not, [`render_without_unset`] writes it anew.
    pub verbatim: bool,
}

/// Reads one item. `members` is scratch space, so that a batch costs no allocation an item; after a
/// structured event it holds that event's members.
///
/// With `structured` the item must be a CloudEvent; otherwise it is one if it is an object with a
/// member `specversion`.
pub fn read_item<'a>(
    text: &'a str,
    structured: bool,
    members: &mut Vec<Member<'a>>,
) -> Result<Item<'a>, Invalid> {
    let text = trim(text);
    members.clear();
    if !text.starts_with('{') {
        let value = read_value(text)?;
        if structured {
            return Err(Invalid::new("a structured CloudEvent is a JSON object"));
        }
        return Ok(Item::Value(value));
    }
    if members_in_common_spelling(text, members).is_none() {
        members.clear();
        check_depth(text)?;
        let mut reader = serde_json::Deserializer::from_str(text);
        MembersOf(members).deserialize(&mut reader).and_then(|()| reader.end()).map_err(not_json)?;
        check_surrogates(text)?;
    }
    if !structured && !members.iter().any(|(name, _)| name == "specversion") {
        check_depth_within(text, MAX_DATA_DEPTH)?;
        return Ok(Item::Value(text));
    }
    check_structured(text, members).map(Item::Event)
}

/// Checks any JSON value by the rules for data; returns it without white space around it.
pub fn read_value(text: &str) -> Result<&str, Invalid> {
    check_depth_within(text, MAX_DATA_DEPTH)?;
    let raw: &RawValue = serde_json::from_str(text).map_err(not_json)?;
    check_surrogates(raw.get())?;
    Ok(raw.get())
}

fn not_json(error: serde_json::Error) -> Invalid {
    Invalid::new(format!("not valid JSON: {error}"))
}

/// The members of a stored event's outer object, in order, as slices of its text.
pub fn members(text: &str) -> Result<Vec<Member<'_>>, Invalid> {
    let mut members = Vec::new();
    let mut reader = serde_json::Deserializer::from_str(text);
    MembersOf(&mut members).deserialize(&mut reader).and_then(|()| reader.end()).map_err(not_json)?;
    Ok(members)
}

/// Whether a media type says JSON: `*/json` or `*/*+json`, whatever its case and parameters.
pub fn is_json_media_type(text: &str) -> bool {
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.split_once('/').is_some_and(|(_, subtype)| subtype == "json" || subtype.ends_with("+json"))
}

/// Removes JSON's white space at both ends.
pub fn trim(text: &str) -> &str {
    let is_token = |b: u8| !matches!(b, b' ' | b'\t' | b'\n' | b'\r');
    let Some(start) = text.bytes().position(is_token) else { return "" };
    let end = text.bytes().rposition(is_token).map_or(start, |last| last + 1);
    &text[start..end]
}

/// Collects the members of one object as slices of the text.
struct MembersOf<'m, 'a>(&'m mut Vec<Member<'a>>);

impl<'a> DeserializeSeed<'a> for MembersOf<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for MembersOf<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Name(name)) = map.next_key()? {
            let value: &'a RawValue = map.next_value()?;
            self.0.push((name, value.get()));
        }
        Ok(())
    }
}

/// A member's name, borrowed where it holds no escapes (serde's own `Cow` always copies).
struct Name<'a>(Cow<'a, str>);

impl<'a> Deserialize<'a> for Name<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl<'a> Visitor<'a> for NameVisitor {
            type Value = Name<'a>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a member name")
            }
            fn visit_borrowed_str<E>(self, name: &'a str) -> Result<Name<'a>, E> {
                Ok(Name(Cow::Borrowed(name)))
            }
            fn visit_str<E>(self, name: &str) -> Result<Name<'a>, E> {
                Ok(Name(Cow::Owned(name.to_owned())))
            }
        }
        deserializer.deserialize_str(NameVisitor)
    }
}

/// Checks the members of an event in JSON form.
fn check_structured<'a>(text: &'a str, members: &[Member<'a>]) -> Result<Structured<'a>, Invalid> {
    check_each_once(members)?;
    let (mut id, mut source, mut event_type, mut version) = (None, None, None, None);
    let (mut data, mut data_base64, mut verbatim) = (false, false, true);
    for (name, raw) in members {
        if name == "data" {
            data = true;
            continue;
        }
        if !is_kept(name, raw) {
            verbatim = false;
        }
        if *raw == "null" {
            if name != "data_base64" {
                check_name(name)?;
            }
            continue;
        }
        if name == "data_base64" {
            check_base64(raw)?;
            data_base64 = true;
            continue;
        }
        check_name(name)?;
        let Some(value) = check_typed(name, raw)? else { continue };
        match name.as_ref() {
            "id" => id = Some(value),
            "source" => source = Some(value),
            "type" => event_type = Some(value),
            "specversion" => version = Some(value),
            _ => {}
        }
    }
    if data && data_base64 {
        return Err(Invalid::new("an event has `data` or `data_base64`, not both"));
    }
    version.ok_or_else(|| missing("specversion"))?;
    let id = id.ok_or_else(|| missing("id"))?;
    let source = source.ok_or_else(|| missing("source"))?;
    event_type.ok_or_else(|| missing("type"))?;
    Ok(Structured { text, id, source, verbatim })
}

fn missing(name: &str) -> Invalid {
    Invalid::new(format!("the required attribute `{name}` is missing"))
}

/// Whether a member stays: `null` means unset (but not for `data`), reserved names go.
fn is_kept(name: &str, raw: &str) -> bool {
    (name == "data" || raw != "null") && !RESERVED.contains(&name)
}

/// Writes a valid structured event without its unset and its reserved attributes; every other
/// member's value keeps its bytes and its place.
pub fn render_without_unset(out: &mut Vec<u8>, members: &[Member<'_>]) {
    out.push(b'{');
    let mut first = true;
    for (name, raw) in members.iter().filter(|(name, raw)| is_kept(name, raw)) {
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        // A checked name has no character that JSON would escape.
        out.push(b'"');
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":");
        out.extend_from_slice(raw.as_bytes());
    }
    out.push(b'}');
}

/// Every name of an object at most once. Few members are compared pairwise, many are sorted, so
/// that a hostile object costs no quadratic time.
fn check_each_once(members: &[Member<'_>]) -> Result<(), Invalid> {
    let twice = |name: &str| Invalid::new(format!("the member `{}` is there twice", shorten(name)));
    if members.len() <= 16 {
        for (i, (name, _)) in members.iter().enumerate() {
            if members[..i].iter().any(|(other, _)| other == name) {
                return Err(twice(name));
            }
        }
        return Ok(());
    }
    let mut names: Vec<&str> = members.iter().map(|(name, _)| name.as_ref()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(twice(pair[0])),
        None => Ok(()),
    }
}

/// Attribute names are `[a-z0-9]+`.
pub fn check_name(name: &str) -> Result<(), Invalid> {
    if !name.is_empty() && all(name, |b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
        return Ok(());
    }
    Err(Invalid::new(format!("`{}` is not an attribute name: lower-case letters and digits", shorten(name))))
}

/// Whether all bytes are such; looks at every one, which the compiler does many at a time.
fn all(text: &str, is_such: impl Fn(u8) -> bool) -> bool {
    text.bytes().fold(true, |all, b| all & is_such(b))
}

/// Names and values in an answer are cut, so that it stays small.
fn shorten(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(64) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
    }
}

/// Checks an attribute's JSON value: a string, a boolean or an integer of 32 bits. Returns the text of a string.
fn check_typed<'a>(name: &str, raw: &'a str) -> Result<Option<Cow<'a, str>>, Invalid> {
    match raw.as_bytes().first() {
        Some(b'"') => {
            let value = string_value(raw)?;
            check_value(name, &value)?;
            Ok(Some(value))
        }
        _ if is_string_attribute(name) => Err(Invalid::new(format!("`{name}` must be a string"))),
        Some(b't' | b'f') => Ok(None),
        Some(b'-' | b'0'..=b'9') if raw.parse::<i32>().is_ok() => Ok(None),
        _ => Err(Invalid::new(format!(
            "the attribute `{}` must be a string, a boolean or an integer of 32 bits",
            shorten(name)
        ))),
    }
}

fn is_string_attribute(name: &str) -> bool {
    matches!(
        name,
        "specversion" | "id" | "source" | "type" | "subject" | "time" | "datacontenttype" | "dataschema"
    )
}

/// Checks an attribute's value as text, by what the specification says of that attribute.
pub fn check_value(name: &str, value: &str) -> Result<(), Invalid> {
    if !all(value, |b| (0x20..0x7f).contains(&b)) && value.chars().any(is_disallowed) {
        return Err(Invalid::new(format!(
            "the attribute `{}` holds a control character or a noncharacter",
            shorten(name)
        )));
    }
    match name {
        "specversion" if value != "1.0" => {
            Err(Invalid::new(format!("specversion must be `1.0`, not `{}`", shorten(value))))
        }
        "time" if Micros::parse_rfc3339(value).is_none() => {
            Err(Invalid::new(format!("time must be an RFC 3339 time, not `{}`", shorten(value))))
        }
        _ if value.is_empty() && is_string_attribute(name) => {
            Err(Invalid::new(format!("`{name}` must not be empty")))
        }
        _ => Ok(()),
    }
}

/// Characters a CloudEvents string may not hold (surrogates cannot occur in a `str`).
fn is_disallowed(c: char) -> bool {
    let code = u32::from(c);
    c.is_control() || (0xFDD0..=0xFDEF).contains(&code) || code & 0xFFFE == 0xFFFE
}

/// The text of a JSON string, copied only when it holds escapes.
fn string_value(raw: &str) -> Result<Cow<'_, str>, Invalid> {
    let inner = &raw[1..raw.len() - 1];
    if memchr::memchr(b'\\', inner.as_bytes()).is_none() {
        return Ok(Cow::Borrowed(inner));
    }
    serde_json::from_str(raw).map(Cow::Owned).map_err(not_json)
}

fn check_base64(raw: &str) -> Result<(), Invalid> {
    let invalid = || Invalid::new("data_base64 must be a string of base64 (RFC 4648, section 4)");
    if !raw.starts_with('"') {
        return Err(invalid());
    }
    let value = string_value(raw)?;
    let text = value.as_bytes();
    // In pieces, so that nothing is allocated; padding may stand in the last one only.
    if memchr::memchr(b'=', text).is_some_and(|at| at + 2 < text.len()) {
        return Err(invalid());
    }
    let mut sink = [0u8; 3072];
    for piece in text.chunks(4096) {
        STANDARD.decode_slice(piece, &mut sink).map_err(|_| invalid())?;
    }
    Ok(())
}

/// Refuses what is nested deeper than [`MAX_DEPTH`].
pub fn check_depth(text: &str) -> Result<(), Invalid> {
    check_depth_within(text, MAX_DEPTH)
}

/// Cheap first: fewer brackets cannot nest deeper.
fn check_depth_within(text: &str, most: usize) -> Result<(), Invalid> {
    let bytes = text.as_bytes();
    if bytes.len() <= most || memchr::memchr2_iter(b'[', b'{', bytes).nth(most).is_none() {
        return Ok(());
    }
    let (mut depth, mut at) = (0usize, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'[' | b'{' => {
                depth += 1;
                if depth > most {
                    return Err(Invalid::new(format!("nested deeper than {most}")));
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => at = end_of_string(bytes, at),
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// The position of the quote that ends the string beginning at `at`; the text's end if none does.
fn end_of_string(bytes: &[u8], mut at: usize) -> usize {
    loop {
        let Some(next) = bytes.get(at + 1..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) else {
            return bytes.len();
        };
        at += 1 + next;
        if bytes[at] == b'"' {
            return at;
        }
        at += 1; // the escaped character
    }
}

/// Refuses `\u` escapes that spell half of a surrogate pair: no text stands behind them, and readers
/// differ in what they make of it. `text` must be valid JSON, where backslashes stand in strings only.
fn check_surrogates(text: &str) -> Result<(), Invalid> {
    let bytes = text.as_bytes();
    let unit = |at: usize| {
        let digits = text.get(at + 2..at + 6)?;
        (bytes.get(at..at + 2)? == b"\\u").then(|| u16::from_str_radix(digits, 16).ok())?
    };
    let mut at = 0;
    while let Some(next) = memchr::memchr(b'\\', &bytes[at..]) {
        at += next;
        match unit(at) {
            None => at += 2,
            Some(0xD800..=0xDBFF) if matches!(unit(at + 6), Some(0xDC00..=0xDFFF)) => at += 12,
            Some(0xD800..=0xDFFF) => {
                return Err(Invalid::new("a \\u escape spells half of a surrogate pair"));
            }
            Some(_) => at += 6,
        }
        at = at.min(bytes.len());
    }
    Ok(())
}

/// An event's data, on its way into the JSON form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data<'a> {
    /// There is none.
    None,
    /// JSON text, kept as it is.
    Json(&'a str),
    /// Text, as a JSON string.
    Text(&'a str),
    /// Anything, as `data_base64`.
    Bytes(&'a [u8]),
}

/// Appends an event in JSON form. Names and values must have passed [`check_name`] and
/// [`check_value`].
pub fn render<'v>(
    out: &mut Vec<u8>,
    attributes: impl IntoIterator<Item = (&'v str, &'v str)>,
    data: Data<'_>,
) {
    out.extend_from_slice(br#"{"specversion":"1.0""#);
    for (name, value) in attributes {
        out.extend_from_slice(b",\"");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":");
        push_json_string(out, value);
    }
    match data {
        Data::None => {}
        Data::Json(text) => {
            out.extend_from_slice(b",\"data\":");
            out.extend_from_slice(text.as_bytes());
        }
        Data::Text(text) => {
            out.extend_from_slice(b",\"data\":");
            push_json_string(out, text);
        }
        Data::Bytes(bytes) => {
            out.extend_from_slice(b",\"data_base64\":\"");
            // Three bytes become four characters, so pieces of 3072 join without padding between.
            let mut text = [0u8; 4096];
            for piece in bytes.chunks(3072) {
                let len = STANDARD.encode_slice(piece, &mut text).unwrap_or_default();
                out.extend_from_slice(&text[..len]);
            }
            out.push(b'"');
        }
    }
    out.push(b'}');
}

/// Appends `text` as a JSON string.
pub fn push_json_string(out: &mut Vec<u8>, text: &str) {
    // Writing to a Vec cannot fail, and a str always serialises.
    let written = serde_json::to_writer(&mut *out, text);
    debug_assert!(written.is_ok());
}

/// The context attributes of a stored event that filters and lookups ask for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attributes<'a> {
    /// `id`.
    pub id: Cow<'a, str>,
    /// `source`.
    pub source: Cow<'a, str>,
    /// `type`.
    pub event_type: Cow<'a, str>,
    /// `subject`.
    pub subject: Option<Cow<'a, str>>,
    /// `time`, as its sender wrote it.
    pub time: Option<Cow<'a, str>>,
    /// `datacontenttype`.
    pub datacontenttype: Option<Cow<'a, str>>,
    /// `partitionkey`, of the CloudEvents extension "Partitioning".
    pub partitionkey: Option<Cow<'a, str>>,
}

impl<'a> Attributes<'a> {
    /// Reads them from an event's JSON text; `None` if it is not an event's.
    pub fn of(json: &'a [u8]) -> Option<Self> {
        let mut members = Vec::new();
        let mut reader = serde_json::Deserializer::from_str(std::str::from_utf8(json).ok()?);
        MembersOf(&mut members).deserialize(&mut reader).ok()?;
        let mut found = Self::default();
        for (name, raw) in members.into_iter().filter(|(_, raw)| raw.starts_with('"')) {
            let value = || string_value(raw).ok();
            match name.as_ref() {
                "id" => found.id = value()?,
                "source" => found.source = value()?,
                "type" => found.event_type = value()?,
                "subject" => found.subject = value(),
                "time" => found.time = value(),
                "datacontenttype" => found.datacontenttype = value(),
                "partitionkey" => found.partitionkey = value(),
                _ => {}
            }
        }
        (!found.id.is_empty() && !found.source.is_empty()).then_some(found)
    }
}

#[cfg(test)]
mod tests;
