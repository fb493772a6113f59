//! CloudEvents in binary mode (HTTP protocol binding 1.0.2): attributes in `ce-` headers, data in
//! the body, its type in `Content-Type`.
//!
//! Pure code. The head is checked before the body arrives.

use std::borrow::Cow;

use hyper::HeaderMap;
use hyper::header::HeaderValue;
use percent_encoding::percent_decode;

use crate::event::cloudevent::{self, Data, Invalid, RESERVED};
use crate::event::{NewBatch, TRACE_PARENT, TRACE_STATE, Trace, dedupe_tag};

use super::problem::{Problem, Slug};

/// A checked head: every attribute decoded, the required ones there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BinaryHead {
    /// Without `specversion`, which can only be 1.0.
    attributes: Vec<(String, String)>,
    data: DataKind,
    id: String,
    tag: u128,
}

/// How the body becomes data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DataKind {
    Json,
    Text,
    Opaque,
}

/// Whether a header of this (lower-case) name makes a request one in binary mode.
pub fn marks_binary(name: &str) -> bool {
    matches!(name, "ce-id" | "ce-source" | "ce-type" | "ce-specversion")
}

impl BinaryHead {
    /// Reads the attributes out of the header.
    ///
    /// An event that brings no trace of its own belongs to the request's.
    pub fn of(headers: &HeaderMap, content_type: Option<&HeaderValue>) -> Result<Self, Problem> {
        let mut attributes: Vec<(String, String)> = Vec::with_capacity(8);
        let mut version = false;
        for (header, value) in headers {
            let Some(name) = header.as_str().strip_prefix("ce-") else { continue };
            cloudevent::check_name(name)?;
            if matches!(name, "data" | "datacontenttype") {
                return Err(invalid(format!(
                    "{header} is not used: data is the body, its type is Content-Type"
                )));
            }
            let value = decode_value(value.as_bytes())
                .ok_or_else(|| invalid(format!("the header {header} is not UTF-8")))?;
            cloudevent::check_value(name, &value)?;
            let twice = if name == "specversion" {
                std::mem::replace(&mut version, true)
            } else {
                attributes.iter().any(|(other, _)| other == name)
            };
            if twice {
                return Err(invalid(format!("the header {header} is there twice")));
            }
            if name != "specversion" {
                attributes.push((name.to_owned(), value));
            }
        }
        let find = |name: &str| attributes.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
        let missing = |name: &str| invalid(format!("the required header ce-{name} is missing"));
        let id = find("id").ok_or_else(|| missing("id"))?;
        let source = find("source").ok_or_else(|| missing("source"))?;
        find("type").ok_or_else(|| missing("type"))?;
        if !version {
            return Err(missing("specversion"));
        }
        attributes.retain(|(name, _)| !RESERVED.contains(&name.as_str()));
        if !attributes.iter().any(|(name, _)| name == TRACE_PARENT || name == TRACE_STATE) {
            let trace = trace_of(headers);
            let fields = trace.iter().flat_map(Trace::fields);
            attributes.extend(fields.map(|(name, value)| (name.to_owned(), value.to_owned())));
        }
        let tag = dedupe_tag(&source, &id);
        let mut head = Self { attributes, data: DataKind::Opaque, id, tag };
        head.set_type(content_type.map(HeaderValue::as_bytes))?;
        Ok(head)
    }

    /// A head of these attributes, the required ones among them, for data of this media type.
    pub fn made(attributes: Vec<(&str, String)>, content_type: Option<&[u8]>) -> Result<Self, Problem> {
        let mut head = Self { attributes: Vec::new(), data: DataKind::Opaque, id: String::new(), tag: 0 };
        let mut source = "";
        for (name, value) in &attributes {
            cloudevent::check_value(name, value)?;
            match *name {
                "id" => head.id.clone_from(value),
                "source" => source = value,
                _ => {}
            }
        }
        head.tag = dedupe_tag(source, &head.id);
        head.attributes = attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        head.set_type(content_type)?;
        Ok(head)
    }

    /// Notes the data's media type, if there is one.
    fn set_type(&mut self, content_type: Option<&[u8]>) -> Result<(), Problem> {
        let Some(value) = content_type else { return Ok(()) };
        let text = std::str::from_utf8(value).map_err(|_| invalid("Content-Type is not UTF-8".to_owned()))?;
        if !text.is_empty() {
            cloudevent::check_value("datacontenttype", text)?;
            self.attributes.push(("datacontenttype".to_owned(), text.to_owned()));
            self.data = DataKind::of(essence(text.as_bytes()));
        }
        Ok(())
    }

    /// The event with this body, and its id.
    pub fn decode(&self, body: &[u8]) -> Result<(NewBatch, String), Problem> {
        let data = match self.data {
            _ if body.is_empty() => Data::None,
            DataKind::Json => Data::Json(read_json(body)?),
            DataKind::Text => std::str::from_utf8(body).map_or(Data::Bytes(body), Data::Text),
            DataKind::Opaque => Data::Bytes(body),
        };
        let attributes = self.attributes.iter().map(|(name, value)| (&**name, &**value));
        let mut batch = NewBatch::default();
        batch.push_rendered(self.tag, |out| {
            out.reserve(body.len() + 256);
            cloudevent::render(out, attributes, data);
        });
        Ok((batch, self.id.clone()))
    }
}

/// The trace that a request belongs to. Several fields `tracestate` are one, as lists are in HTTP.
pub fn trace_of(headers: &HeaderMap) -> Option<Trace> {
    let mut parents = headers.get_all(TRACE_PARENT).iter();
    let (Some(parent), None) = (parents.next(), parents.next()) else { return None };
    let states: Vec<&[u8]> = headers.get_all(TRACE_STATE).iter().map(HeaderValue::as_bytes).collect();
    Trace::read(parent.as_bytes(), Some(&states.join(&b","[..])))
}

fn invalid(detail: String) -> Problem {
    Invalid(Cow::Owned(detail)).into()
}

/// Checks a JSON body by the rules for items, and returns it without white space around it.
fn read_json(body: &[u8]) -> Result<&str, Problem> {
    let text = std::str::from_utf8(body)
        .map_err(|_| Problem::new(Slug::Malformed, "the body is not UTF-8, and so not JSON"))?;
    Ok(cloudevent::read_value(text)?)
}

impl DataKind {
    fn of(essence: &[u8]) -> Self {
        let subtype = essence.iter().position(|&b| b == b'/').map_or(&b""[..], |at| &essence[at + 1..]);
        let is = |known: &str| subtype.eq_ignore_ascii_case(known.as_bytes());
        if is("json") || ends_with(subtype, "+json") {
            Self::Json
        } else if starts_with(essence, "text/") || is("xml") || ends_with(subtype, "+xml") {
            Self::Text
        } else {
            Self::Opaque
        }
    }
}

/// A media type without its parameters.
pub fn essence(content_type: &[u8]) -> &[u8] {
    let end = memchr::memchr(b';', content_type).unwrap_or(content_type.len());
    content_type[..end].trim_ascii()
}

/// Whether `text` begins with `prefix`, whatever the case.
pub fn starts_with(text: &[u8], prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}

/// Whether `text` ends with `suffix`, whatever the case.
pub fn ends_with(text: &[u8], suffix: &str) -> bool {
    text.len() >= suffix.len() && text[text.len() - suffix.len()..].eq_ignore_ascii_case(suffix.as_bytes())
}

/// A header's value as an attribute: unquoted, then percent-decoded exactly once. A `%` that begins
/// no escape stays. `None` if the result is not UTF-8.
fn decode_value(value: &[u8]) -> Option<String> {
    let unquoted = unquote(value.trim_ascii());
    percent_decode(&unquoted).decode_utf8().ok().map(Cow::into_owned)
}

/// Takes a quoted-string (RFC 9110) out of its quotes; anything else stays as it is.
pub fn unquote(value: &[u8]) -> Cow<'_, [u8]> {
    let Some(inner) = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")) else {
        return Cow::Borrowed(value);
    };
    let mut text = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'\\' => match bytes.next() {
                Some(&escaped) => text.push(escaped),
                // The last quote was an escaped one: not a quoted-string after all.
                None => return Cow::Borrowed(value),
            },
            b'"' => return Cow::Borrowed(value),
            _ => text.push(byte),
        }
    }
    Cow::Owned(text)
}
