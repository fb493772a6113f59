//! What the event of a webhook is called: its id, source and type out of a request that is known to be
//! genuine. The data stays as it came, byte for byte.
//!
//! Pure code. A body that says nothing usable about an attribute gets the general one; only a body that
//! is not what its media type says is refused.

use std::borrow::Cow;

use bytes::Bytes;
use hyper::header::HeaderMap;

use crate::config::{self, Hmac};
use crate::event::cloudevent;

use super::super::binary::{self, BinaryHead};
use super::super::decode::{Form, Head, form_decode};
use super::super::problem::{Problem, Slug};
use super::signature::Claim;

type Mapped = Result<(Head, Bytes), Problem>;

const JSON: &[u8] = b"application/json";

/// Where an event of GitHub's comes from when its payload does not say.
const GITHUB: &str = "https://github.com";

/// `com.github.<event>.<action>` from the repository's URL, with the delivery's id, so that a redelivery
/// is a duplicate.
pub(super) fn github(
    hook: &config::Hook,
    headers: &HeaderMap,
    content_type: Option<&[u8]>,
    body: Bytes,
) -> Mapped {
    let header = |name: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
        let value = value.filter(|value| !value.is_empty());
        value.ok_or_else(|| Problem::new(Slug::Malformed, format!("the header {name} is missing")))
    };
    let (event, id) = (header("x-github-event")?, header("x-github-delivery")?);
    let body = match content_type.map(binary::essence) {
        Some(essence) if essence.eq_ignore_ascii_case(b"application/x-www-form-urlencoded") => {
            payload(&body)?
        }
        _ => body,
    };
    let text = read(&body)?;
    let name = string_at(text, &["action"])
        .map_or_else(|| format!("com.github.{event}"), |action| format!("com.github.{event}.{action}"));
    let found = [["repository", "url"], ["organization", "url"], ["sender", "url"]];
    let source = hook.source.clone();
    let source = source.or_else(|| found.iter().find_map(|path| string_at(text, path)));
    let mut attributes =
        vec![("id", id.to_owned()), ("source", source.unwrap_or_else(|| GITHUB.to_owned())), ("type", name)];
    attributes.extend(string_at(text, &["repository", "full_name"]).map(|name| ("partitionkey", name)));
    Ok((head(attributes, Some(JSON))?, body))
}

/// The JSON in a form that GitHub sends where nobody chose `application/json`.
fn payload(body: &[u8]) -> Result<Bytes, Problem> {
    let text = std::str::from_utf8(body).unwrap_or_default();
    let found = text.split('&').find_map(|pair| pair.strip_prefix("payload="));
    let found = found.ok_or_else(|| Problem::new(Slug::Malformed, "the form has no `payload`"))?;
    Ok(Bytes::from(form_decode(found)?.into_owned()))
}

/// `webhook-id` and `webhook-timestamp`, and the `type` that Standard Webhooks recommends for payloads.
pub(super) fn standard(
    hook: &config::Hook,
    claim: &Claim,
    content_type: Option<&[u8]>,
    body: Bytes,
) -> Mapped {
    let content_type = content_type.unwrap_or(JSON);
    if let Some(head) = cloud_events(content_type) {
        return Ok((head, body));
    }
    let said = std::str::from_utf8(&body).ok().and_then(|text| string_at(text, &["type"]));
    let name = said.unwrap_or_else(|| hook.event_type.clone());
    let id = claim.id.clone().unwrap_or_default();
    let head = event(hook, claim, id, name, Some(content_type))?;
    Ok((head, body))
}

/// Whatever the configuration says. Without an id of the sender's it is made of what is signed, so that a
/// request that somebody recorded and sends again is a duplicate.
pub(super) fn other(
    hook: &config::Hook,
    hmac: &Hmac,
    claim: &Claim,
    headers: &HeaderMap,
    content_type: Option<&[u8]>,
    body: Bytes,
) -> Mapped {
    if let Some(head) = content_type.and_then(cloud_events) {
        return Ok((head, body));
    }
    let said = hmac.type_header.as_deref().and_then(|name| headers.get(name)?.to_str().ok());
    let said = said.map(str::trim).filter(|name| !name.is_empty());
    let name = said.unwrap_or(&hook.event_type).to_owned();
    let id = claim.id.clone().unwrap_or_else(|| claim.digest(&body));
    Ok((event(hook, claim, id, name, content_type)?, body))
}

/// Whole CloudEvents, as another EventFlow sends them, are taken as what they are.
fn cloud_events(content_type: &[u8]) -> Option<Head> {
    match Form::named(binary::essence(content_type)) {
        Some(form @ (Form::Structured | Form::Batch)) => Some(Head::plain(form)),
        _ => None,
    }
}

fn event(
    hook: &config::Hook,
    claim: &Claim,
    id: String,
    name: String,
    content_type: Option<&[u8]>,
) -> Result<Head, Problem> {
    let source = hook.source.clone().unwrap_or_else(|| format!("/hooks/{}", hook.name));
    let mut attributes = vec![("id", id), ("source", source), ("type", name)];
    attributes.extend(claim.sent_at.map(|sent_at| ("time", sent_at.to_rfc3339())));
    head(attributes, content_type)
}

fn head(attributes: Vec<(&str, String)>, content_type: Option<&[u8]>) -> Result<Head, Problem> {
    let head = BinaryHead::made(attributes, content_type)?;
    Ok(Head::plain(Form::Binary(Box::new(head))))
}

/// The body as JSON.
fn read(body: &[u8]) -> Result<&str, Problem> {
    let text = std::str::from_utf8(body)
        .map_err(|_| Problem::new(Slug::Malformed, "the body is not UTF-8, and so not JSON"))?;
    Ok(cloudevent::read_value(text)?)
}

/// The string at a path of member names, if there is one that is not empty.
fn string_at(text: &str, path: &[&str]) -> Option<String> {
    let (name, rest) = path.split_first()?;
    cloudevent::check_depth(text).ok()?;
    let members = cloudevent::members(text).ok()?;
    let (_, value): &(Cow<'_, str>, &str) = members.iter().find(|(found, _)| found == name)?;
    if rest.is_empty() {
        serde_json::from_str::<String>(value).ok().filter(|value| !value.is_empty())
    } else {
        string_at(value, rest)
    }
}
