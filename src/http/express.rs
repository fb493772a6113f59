//! The hot route's express lane: requests that need no HTTP machinery beyond reading them.
//!
//! Nearly every event comes the same way: one small `POST /v1/events` whose head and body the first
//! read brings in full, with nothing in its header that changes what it means. Such a request is
//! read, decoded and answered here, on the connection's task, in half of the processor time outside
//! the kernel that a general server takes (docs/PERFORMANCE.md).
//!
//! The lane decides nothing: [`take`] refuses nobody. Whatever is not of the plainest kind (another
//! route, a body still on its way, a coding, an `Expect`, a broken header) and whatever would be
//! refused (no or a wrong token, limits, overload, an invalid event, a daemon that drains) goes, untouched and with
//! nothing stored, to hyper and the routes behind it, which know every case. So there is one place
//! that knows limits, deadlines and problem documents, and it is not this one.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use crate::config::Scope;
use crate::event::{Micros, TRACE_PARENT, TRACE_STATE, Trace};
use crate::queue::Receipt;

use super::binary::essence;
use super::decode::{Decoded, Form, Head, decode};
use super::ingest::accepted_text;
use super::problem::Problem;
use super::{Edge, UnderWay};

/// Most bytes of a request, head and body together, that is taken here: what one read brings.
pub const MAX_BYTES: usize = 16 * 1024;

/// More header fields than this are not the plainest kind.
const MAX_FIELDS: usize = 24;

/// A request whose events wait for the disk.
pub struct Taken<'a> {
    receipt: Receipt,
    id: Option<String>,
    format: usize,
    accepted_at: Micros,
    /// Until the answer is out.
    _under_way: UnderWay<'a>,
}

/// The text of a `Date` field (RFC 9110), made once a second.
#[derive(Debug, Default)]
pub struct Date(Mutex<(Option<i64>, [u8; DATE_BYTES])>);

const DATE_BYTES: usize = "Sun, 06 Nov 1994 08:49:37 GMT".len();

impl Date {
    fn at(&self, now: Micros) -> [u8; DATE_BYTES] {
        let second = now.0.div_euclid(1_000_000);
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if made.0 != Some(second) {
            *made = (Some(second), date_text(second));
        }
        made.1
    }
}

/// Seconds since the Unix epoch as `Sun, 06 Nov 1994 08:49:37 GMT`; its beginning for times the
/// calendar does not know.
fn date_text(second: i64) -> [u8; DATE_BYTES] {
    let time = jiff::Timestamp::from_second(second).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let text = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&time);
    text.ok().and_then(|text| text.as_bytes().try_into().ok()).unwrap_or(*b"Thu, 01 Jan 1970 00:00:00 GMT")
}

/// Takes the request at the front of `ahead` off it; `None`, and `ahead` as it was, when it is to go
/// the general way.
pub fn take<'a>(ahead: &mut Bytes, edge: &'a Edge) -> Option<Taken<'a>> {
    let plain = Plain::at_front_of(ahead)?;
    let guard = edge.app.gate.guard();
    let holder = match &guard {
        None => None,
        Some(guard) => {
            let shown = plain.authorization.clone().map(|at| &ahead[at]);
            Some((guard.admit(shown, Scope::Ingest, Micros::now()).ok()?, guard.elapsed()))
        }
    };
    let under_way = edge.app.request_begins();
    let queue = edge.app.open_queue().ok()?;
    let body = ahead.slice(plain.body.clone());
    if body.len() as u64 > edge.limits.http.max_body_bytes || queue.admit(body.len() as u64).is_err() {
        return None;
    }
    let accepted_at = Micros::now();
    let mut held = edge.budget.hold(); // until the queue counts these bytes as waiting
    held.grow(body.len() as u64).ok()?;
    let format = plain.form.number();
    let Decoded { batch, id } =
        decode(&Head::plain(plain.form).traced(plain.trace), body, accepted_at, edge.event_limits).ok()?;
    if batch.is_empty() {
        return None;
    }
    // Last, so that what goes the general way after all is hardly ever counted twice.
    if let Some((holder, now)) = holder {
        holder.spend(now).ok()?;
    }
    let receipt = queue.append(batch, accepted_at).ok()?;
    let _ = ahead.split_to(plain.body.end);
    Some(Taken { receipt, id, format, accepted_at, _under_way: under_way })
}

impl Taken<'_> {
    /// Waits for the disk; the answer's bytes, and whether the connection ends with it.
    pub async fn answer(self, edge: &Edge) -> (Vec<u8>, bool) {
        let receipt = self.receipt.await;
        let date = edge.date.at(self.accepted_at);
        let appended = match receipt {
            Ok(appended) => appended,
            Err(refusal) => {
                let closing = edge.app.is_ending();
                let problem = Problem::from(refusal);
                edge.app.traffic.refused(problem.slug());
                return (problem.to_wire(closing, Some(date)), closing);
            }
        };
        edge.app.traffic.accepted(self.format, appended);
        // So that no client sends another request into a connection that is about to close.
        let closing = edge.app.is_ending();
        let text = accepted_text(appended, self.id.as_deref());
        let mut wire = Vec::with_capacity(160 + text.len());
        wire.extend_from_slice(b"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\n");
        if closing {
            wire.extend_from_slice(b"connection: close\r\n");
        }
        wire.extend_from_slice(b"content-length: ");
        wire.extend_from_slice(text.len().to_string().as_bytes());
        wire.extend_from_slice(b"\r\ndate: ");
        wire.extend_from_slice(&date);
        wire.extend_from_slice(b"\r\n\r\n");
        wire.extend_from_slice(&text);
        (wire, closing)
    }
}

/// Where a request of the plainest kind lies.
#[derive(Debug, PartialEq, Eq)]
struct Plain {
    form: Form,
    body: Range<usize>,
    authorization: Option<Range<usize>>,
    trace: Option<Trace>,
}

impl Plain {
    fn at_front_of(bytes: &[u8]) -> Option<Self> {
        // Cheaper than parsing what is another route's.
        if !bytes.starts_with(b"POST /v1/events HTTP/1.1\r\n") {
            return None;
        }
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut fields);
        let Ok(httparse::Status::Complete(head)) = request.parse(bytes) else { return None };
        let (mut length, mut content_type, mut authorization) = (None, None, None);
        let (mut parent, mut state) = (None, None);
        for field in request.headers.iter() {
            let name = field.name;
            let is = |known: &str| name.eq_ignore_ascii_case(known);
            if is("content-length") {
                put_once(&mut length, field.value)?;
            } else if is("content-type") {
                put_once(&mut content_type, field.value)?;
            } else if is("authorization") {
                put_once(&mut authorization, field.value)?;
            } else if is(TRACE_PARENT) {
                put_once(&mut parent, field.value)?;
            } else if is(TRACE_STATE) {
                put_once(&mut state, field.value)?;
            } else if changes_meaning(name) && !(is("connection") && keeps(field.value)) {
                return None;
            }
        }
        let length = plain_number(length?)?;
        let body = head..head.checked_add(length)?;
        let form = Form::named(essence(content_type?))?;
        let authorization = authorization.map(|value| {
            let start = value.as_ptr() as usize - bytes.as_ptr() as usize;
            start..start + value.len()
        });
        let trace = parent.and_then(|parent| Trace::read(parent, state));
        (body.end <= bytes.len()).then_some(Self { form, body, authorization, trace })
    }
}

/// Notes a field that may be there once.
fn put_once<'a>(slot: &mut Option<&'a [u8]>, value: &'a [u8]) -> Option<()> {
    slot.replace(value).is_none().then_some(())
}

/// Whether a field says anything about the message, the connection or the event.
fn changes_meaning(name: &str) -> bool {
    const FIELDS: [&str; 8] = [
        "connection",
        "content-encoding",
        "expect",
        "http2-settings",
        "idempotency-key",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    name.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("ce-"))
        || FIELDS.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// What some clients write although HTTP/1.1 means it anyway.
fn keeps(connection: &[u8]) -> bool {
    connection.eq_ignore_ascii_case(b"keep-alive")
}

/// Digits and nothing else, few enough to be a small body's length.
fn plain_number(text: &[u8]) -> Option<usize> {
    if text.is_empty() || text.len() > 6 {
        return None;
    }
    text.iter().try_fold(0, |number, b| b.is_ascii_digit().then(|| number * 10 + usize::from(b - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(head: &str, body: &str) -> Option<(Form, String)> {
        let text = format!("POST /v1/events HTTP/1.1\r\n{head}\r\n{body}");
        Plain::at_front_of(text.as_bytes()).map(|plain| (plain.form, text[plain.body].to_owned()))
    }

    #[test]
    fn a_plain_request_is_found_and_what_follows_it_left() {
        let found = plain(
            "Host: x\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: 2\r\n",
            "{}POST",
        );
        assert_eq!(found, Some((Form::Json, "{}".to_owned())));
        let kept = "connection: Keep-Alive\r\ntraceparent: 00-x\r\ncontent-type: application/x-ndjson\r\ncontent-length: 0\r\n";
        assert_eq!(plain(kept, ""), Some((Form::Lines, String::new())));
    }

    #[test]
    fn a_trace_is_taken_along() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let found = |fields: &str| {
            let head = "POST /v1/events HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 0\r\n";
            Plain::at_front_of(format!("{head}{fields}\r\n").as_bytes()).map(|plain| plain.trace)
        };
        let trace = |state| Trace::read(parent.as_bytes(), state);
        assert_eq!(found(&format!("TraceParent: {parent}\r\n")), Some(trace(None)));
        assert_eq!(
            found(&format!("traceparent: {parent}\r\ntracestate: a=1\r\n")),
            Some(trace(Some(b"a=1")))
        );
        assert_eq!(found("tracestate: a=1\r\n"), Some(None));
        // A list in two fields is put together elsewhere.
        assert_eq!(found(&format!("traceparent: {parent}\r\ntracestate: a=1\r\ntracestate: b=2\r\n")), None);
    }

    #[test]
    fn a_token_is_found_where_it_lies() {
        let head = "POST /v1/events HTTP/1.1\r\ncontent-type: application/json\r\nAuthorization:  Bearer eft_x \r\ncontent-length: 0\r\n\r\n";
        let plain = Plain::at_front_of(head.as_bytes()).unwrap();
        assert_eq!(head[plain.authorization.unwrap()].trim(), "Bearer eft_x");
    }

    #[test]
    fn whatever_is_not_plain_and_whole_goes_the_general_way() {
        let json = "content-type: application/json\r\n";
        for (head, body) in [
            (json.to_owned(), "{}"),
            (format!("{json}content-length: 3\r\n"), "{}"),
            (format!("{json}content-length: +2\r\n"), "{}"),
            (format!("{json}content-length:\r\n"), "{}"),
            (format!("{json}content-length: 2,2\r\n"), "{}"),
            (format!("{json}content-length: 2\r\ncontent-length: 2\r\n"), "{}"),
            (format!("{json}content-length: 18446744073709551618\r\n"), "{}"),
            (format!("{json}{json}content-length: 2\r\n"), "{}"),
            ("content-length: 2\r\n".to_owned(), "{}"),
            ("content-type: text/plain\r\ncontent-length: 2\r\n".to_owned(), "{}"),
            ("content-type: application/cloudevents+avro\r\ncontent-length: 2\r\n".to_owned(), "{}"),
            (
                format!("{json}content-length: 2\r\nauthorization: Bearer a\r\nauthorization: Bearer a\r\n"),
                "{}",
            ),
            (format!("{json}content-length: 2\r\nbroken field\r\n"), "{}"),
        ] {
            assert_eq!(plain(&head, body), None, "{head}");
        }
        for field in [
            "ce-id: 1",
            "CE-Subject: 1",
            "connection: close",
            "connection: keep-alive, upgrade",
            "content-encoding: identity",
            "expect: 100-continue",
            "idempotency-key: k",
            "transfer-encoding: chunked",
            "upgrade: h2c",
        ] {
            assert_eq!(plain(&format!("{json}content-length: 2\r\n{field}\r\n"), "{}"), None, "{field}");
        }
        let elsewhere = "POST /v1/events?source=x HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(Plain::at_front_of(elsewhere.as_bytes()), None);
        assert_eq!(
            Plain::at_front_of(elsewhere.replace("?source=x", "").replace("1.1", "1.0").as_bytes()),
            None
        );
    }

    #[test]
    fn a_date_is_written_as_http_wants_it_and_anew_each_second() {
        let date = Date::default();
        let at =
            |second: i64| String::from_utf8(date.at(Micros(second * 1_000_000 + 999_999)).to_vec()).unwrap();
        assert_eq!(at(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(at(784_111_778), "Sun, 06 Nov 1994 08:49:38 GMT");
        assert_eq!(at(-1), "Wed, 31 Dec 1969 23:59:59 GMT");
        assert_eq!(date.at(Micros(i64::MAX)), *b"Thu, 01 Jan 1970 00:00:00 GMT");
    }
}
