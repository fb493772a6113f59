//! Events as HTTP messages: the CloudEvents HTTP binding 1.0.2 in its three modes.
//!
//! Pure code. What a sender wrote as `data` goes out byte for byte.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::config::Mode;
use crate::event::cloudevent::{is_json_media_type, members};
use crate::event::{StoredEvent, Trace};

/// What a request carries, without what every request of the sink has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// What a header's value may not hold as it is: all but U+0021 to U+007E, and `"` and `%`.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// These events as one message. An error means that the stored text is no event, which acceptance
/// rules out.
pub(super) fn message(mode: Mode, events: &[StoredEvent<'_>]) -> Result<Message, String> {
    match (mode, events) {
        (Mode::Structured, [event]) => {
            Ok(traced(event, of_type("application/cloudevents+json", Bytes::copy_from_slice(event.json))))
        }
        (Mode::Binary, [event]) => binary(event.json).map(|message| traced(event, message)),
        _ => Ok(of_type("application/cloudevents-batch+json", array(events))),
    }
}

/// The message with the event's trace in its header as well, where every receiver looks for one.
fn traced(event: &StoredEvent<'_>, mut message: Message) -> Message {
    let trace = Trace::of_event(event.json);
    for (name, value) in trace.iter().flat_map(Trace::fields) {
        // A trace is printable ASCII; no other gets this far.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
            message.headers.insert(name, value);
        }
    }
    message
}

fn of_type(media_type: &'static str, body: Bytes) -> Message {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(media_type))]);
    Message { headers, body }
}

fn array(events: &[StoredEvent<'_>]) -> Bytes {
    let mut body = Vec::with_capacity(events.iter().map(|event| event.json.len() + 1).sum::<usize>() + 1);
    for event in events {
        body.push(if body.is_empty() { b'[' } else { b',' });
        body.extend_from_slice(event.json);
    }
    body.push(b']');
    body.into()
}

/// An event's data, as it stands in its JSON form.
enum Data<'a> {
    None,
    Json(&'a str),
    Base64(&'a str),
}

fn binary(json: &[u8]) -> Result<Message, String> {
    let text = std::str::from_utf8(json).map_err(|error| error.to_string())?;
    let (mut headers, mut data, mut media_type) = (HeaderMap::new(), Data::None, None);
    for (name, raw) in members(text).map_err(|error| error.to_string())? {
        match name.as_ref() {
            "data" => data = Data::Json(raw),
            _ if raw == "null" => {}
            "data_base64" => data = Data::Base64(raw),
            "datacontenttype" => media_type = Some(value_of(raw)?),
            name => {
                let encoded = utf8_percent_encode(&value_of(raw)?, ENCODED).to_string();
                let name = HeaderName::try_from(format!("ce-{name}")).map_err(|error| error.to_string())?;
                headers.insert(name, HeaderValue::try_from(encoded).map_err(|error| error.to_string())?);
            }
        }
    }
    let is_json = media_type.as_deref().is_none_or(is_json_media_type);
    let body = match data {
        Data::None => Bytes::new(),
        Data::Base64(raw) => STANDARD.decode(value_of(raw)?).map_err(|error| error.to_string())?.into(),
        // Text of any other type stands in JSON as a string.
        Data::Json(raw) if raw.starts_with('"') && !is_json => value_of(raw)?.into(),
        Data::Json(raw) => {
            // What has no type in the JSON form is JSON there; without that form it must be said.
            media_type.get_or_insert_with(|| "application/json".to_owned());
            Bytes::copy_from_slice(raw.as_bytes())
        }
    };
    if let Some(media_type) = media_type {
        let value = HeaderValue::try_from(media_type).map_err(|error| error.to_string())?;
        headers.insert(CONTENT_TYPE, value);
    }
    Ok(Message { headers, body })
}

/// An attribute as text: what a string holds; numbers and switches as they are spelled.
fn value_of(raw: &str) -> Result<String, String> {
    if raw.starts_with('"') {
        serde_json::from_str(raw).map_err(|error| error.to_string())
    } else {
        Ok(raw.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Micros;

    fn made(mode: Mode, texts: &[&str]) -> (Vec<(String, String)>, String) {
        let events: Vec<StoredEvent<'_>> = (0..)
            .zip(texts)
            .map(|(offset, text)| StoredEvent { offset, accepted_at: Micros(0), json: text.as_bytes() })
            .collect();
        let message = message(mode, &events).unwrap();
        let mut headers: Vec<(String, String)> = message
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8(value.as_bytes().to_vec()).unwrap()))
            .collect();
        headers.sort();
        (headers, String::from_utf8_lossy(&message.body).into_owned())
    }

    fn header(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    const ODD: &str = "{ \"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"t\",\r\n\"data\": {\"b\":1e999, \"a\":[ ]} }";

    #[test]
    fn structured_and_batched_events_go_out_as_they_came() {
        let (headers, body) = made(Mode::Structured, &[ODD]);
        assert_eq!(
            (headers, body.as_str()),
            (vec![header("content-type", "application/cloudevents+json")], ODD)
        );
        let (headers, body) = made(Mode::Batch, &[ODD, "{\"id\":\"2\"}"]);
        assert_eq!(headers, [header("content-type", "application/cloudevents-batch+json")]);
        assert_eq!(body, format!("[{ODD},{{\"id\":\"2\"}}]"));
        // One event alone is a batch as well: the receiver's format does not change under it.
        assert_eq!(made(Mode::Batch, &["{\"id\":\"2\"}"]).1, "[{\"id\":\"2\"}]");
    }

    #[test]
    fn binary_mode_is_the_bindings_own() {
        let (headers, body) = made(
            Mode::Binary,
            &[
                r#"{"specversion":"1.0","id":"a\"b","source":"/é€","type":"t 1","subject":"100%","n":-7,"yes":true,"gone":null,"data":{"x": 1.0, "y":"\u00e9"}}"#,
            ],
        );
        let expected = [
            header("ce-id", "a%22b"),
            header("ce-n", "-7"),
            header("ce-source", "/%C3%A9%E2%82%AC"),
            header("ce-specversion", "1.0"),
            header("ce-subject", "100%25"),
            header("ce-type", "t%201"),
            header("ce-yes", "true"),
            header("content-type", "application/json"),
        ];
        assert_eq!(headers, expected);
        assert_eq!(body, r#"{"x": 1.0, "y":"\u00e9"}"#);
    }

    #[test]
    fn a_trace_goes_out_in_the_header_as_well_and_the_body_stays_as_it_was() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let text = format!(
            r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t","traceparent":"{parent}","tracestate":"a=1","data":{{"x": 1.0}}}}"#
        );
        let traced = [header("traceparent", parent), header("tracestate", "a=1")];
        let (headers, body) = made(Mode::Structured, &[&text]);
        assert!(traced.iter().all(|field| headers.contains(field)), "{headers:?}");
        assert_eq!(body, text);
        let (headers, body) = made(Mode::Binary, &[&text]);
        assert!(traced.iter().all(|field| headers.contains(field)), "{headers:?}");
        assert!(headers.contains(&header("ce-traceparent", parent)));
        assert_eq!(body, r#"{"x": 1.0}"#);
        // A batch belongs to no trace, and its events keep theirs.
        assert_eq!(made(Mode::Batch, &[&text]).0.len(), 1);
        assert_eq!(made(Mode::Structured, &[&text.replace("00-", "xx-")]).0.len(), 1, "no valid trace");
    }

    #[test]
    fn data_in_binary_mode_is_what_the_sender_meant() {
        for (rest, media_type, body) in [
            ("", None, ""),
            (r#","data":null"#, Some("application/json"), "null"),
            (r#","data":"text""#, Some("application/json"), "\"text\""),
            (r#","datacontenttype":"text/plain","data":"a\nb""#, Some("text/plain"), "a\nb"),
            (
                r#","datacontenttype":"application/vnd.x+json; v=1","data":"x""#,
                Some("application/vnd.x+json; v=1"),
                "\"x\"",
            ),
            (r#","datacontenttype":"text/plain","data":{"a":1}"#, Some("text/plain"), "{\"a\":1}"),
            (r#","datacontenttype":"image/png","data_base64":"AP8=""#, Some("image/png"), "\0\u{fffd}"),
            (r#","data_base64":"aGk=""#, None, "hi"),
            (r#","datacontenttype":"application/json""#, Some("application/json"), ""),
        ] {
            let text = format!(r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t"{rest}}}"#);
            let (headers, sent) = made(Mode::Binary, &[&text]);
            let found =
                headers.iter().find(|(name, _)| name == "content-type").map(|(_, value)| value.as_str());
            assert_eq!((found, sent.as_str()), (media_type, body), "{rest}");
        }
    }
}
