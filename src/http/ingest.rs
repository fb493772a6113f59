//! `POST /v1/events`, the hot route, and `POST /v1/hooks/{name}`: read, decode, append, wait for the disk, answer.
//!
//! Runs on the connection's task, ahead of the router. Nothing here touches the disk: the receipt
//! resolves once the queue's committer has synced. Whatever is refused was not stored.

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_TYPE, EXPECT, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use hyper::http::request::Parts;
use hyper::{Request, Response};
use tokio::task::spawn_blocking;

use crate::config::Scope;
use crate::event::Micros;
use crate::event::cloudevent::push_json_string;
use crate::queue::Appended;

use super::Edge;
use super::body::{self, Held, NoBody};
use super::coding::Coding;
use super::connection::Clock;
use super::decode::{Decoded, Form, Head, decode};
use super::hooks::{self, Claimed};
use super::openapi::CloudEvent;
use super::problem::{Answer, Problem, Slug};

/// Bodies up to this size are decoded on the ingest thread. A larger one takes longer than the way to
/// another thread, which decodes it while this one commits; and one of nothing but items of one digit
/// takes a microsecond an item to render, while every other client would wait.
const INLINE_BYTES: usize = 64 * 1024;

/// Encoded bodies up to this size are tried on the ingest thread, and given up there when they
/// grow beyond [`INLINE_BYTES`].
const INLINE_ENCODED_BYTES: usize = 16 * 1024;

/// What it may answer beside 202.
pub(super) const PROBLEMS: [Slug; 13] = [
    Slug::Malformed,
    Slug::Unauthenticated,
    Slug::Forbidden,
    Slug::RequestTimeout,
    Slug::TooLarge,
    Slug::UnsupportedMediaType,
    Slug::WalFull,
    Slug::Overloaded,
    Slug::Recovering,
    Slug::ShuttingDown,
    Slug::StorageFailed,
    Slug::StorageFull,
    Slug::Internal,
];

/// The same of a webhook.
pub(super) const HOOK_PROBLEMS: [Slug; 11] = [
    Slug::Malformed,
    Slug::Unauthenticated,
    Slug::NotFound,
    Slug::RequestTimeout,
    Slug::TooLarge,
    Slug::WalFull,
    Slug::Recovering,
    Slug::ShuttingDown,
    Slug::StorageFailed,
    Slug::StorageFull,
    Slug::UnsupportedMediaType,
];

/// What became of a request's events.
#[derive(utoipa::ToSchema)]
#[schema(as = Accepted)]
#[expect(dead_code, reason = "the schema of what `accepted_text` writes by hand")]
struct AcceptedAnswer {
    /// Newly appended events.
    accepted: u64,
    /// Events that had been accepted before.
    duplicates: u64,
    /// Offset of the first newly appended event; null when there is none.
    #[schema(required)]
    first_offset: Option<u64>,
    /// Offset of the last one.
    #[schema(required)]
    last_offset: Option<u64>,
    /// The event's id, when the request held exactly one.
    #[schema(required = false)]
    id: String,
}

/// Takes events.
///
/// Accepted whole or not at all; 202 once all of them are on the disk. A JSON object with a member
/// `specversion` is a CloudEvent, any other JSON value becomes the data of one. A request with
/// `ce-id`, `ce-source`, `ce-type` and `ce-specversion` in its header is one event in binary mode,
/// whatever its media type. `Content-Encoding: gzip` and `zstd` are understood.
#[utoipa::path(
    post,
    path = "/v1/events",
    tag = "events",
    params(
        ("source" = Option<String>, Query, description = "`source` of plain data.", pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$"),
        ("type" = Option<String>, Query, description = "`type` of plain data.", pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$"),
        (
            "Idempotency-Key" = Option<String>,
            Header,
            description = "`id` of plain data, where the request holds one item; bare or in quotes.",
            pattern = r#"^("[!#-\[\]-~]+"|[!#-\[\]-~]+)$"#
        ),
    ),
    request_body(
        content(
            (Vec<CloudEvent> = "application/cloudevents-batch+json"),
            (CloudEvent = "application/cloudevents+json"),
            (String = "application/x-ndjson"),
            (serde_json::Value = "application/json"),
        )
    ),
    responses((status = 202, description = "On the disk.", body = AcceptedAnswer))
)]
#[expect(dead_code, reason = "the description of `answer`")]
async fn post_events() {}

/// Takes a signed webhook.
///
/// Of GitHub, of Standard Webhooks or of any other HMAC-SHA256, as the section `[hook.<name>]` of the
/// configuration says. The signature over the raw body is the only key to this door.
#[utoipa::path(
    post,
    path = "/v1/hooks/{name}",
    tag = "events",
    params(("name" = String, Path, description = "Which hook.")),
    request_body(content((serde_json::Value = "application/json"))),
    responses((status = 202, description = "On the disk.", body = AcceptedAnswer))
)]
#[expect(dead_code, reason = "the description of `answer`")]
async fn post_hook() {}

/// Answers one request. An error means that the client broke off and nobody is left to answer.
pub async fn answer(request: Request<Incoming>, clock: &Clock, edge: &Edge) -> Result<Answer, hyper::Error> {
    let _under_way = edge.app.request_begins();
    let (parts, mut body) = request.into_parts();
    let expects = parts.headers.contains_key(EXPECT);
    let mut held = edge.budget.hold();
    match accept(parts, &mut body, clock, edge, &mut held).await {
        Ok(answer) => Ok(answer),
        Err(NoBody::Gone(error)) => Err(error),
        Err(NoBody::Problem(problem)) => {
            edge.app.traffic.refused(problem.slug());
            // A small body that is already here is read away, so that a refused client keeps its
            // connection. One that asked first has not sent it, and asking for it would be absurd.
            let late = problem.slug() == Slug::RequestTimeout;
            let done = body.is_end_stream() || (!late && !expects && body::read_away(&mut body).await);
            if done && !edge.app.is_ending() {
                return Ok(problem.into_answer());
            }
            if !done {
                clock.will_linger();
            }
            Ok(problem.closing().into_answer())
        }
    }
}

impl From<Problem> for NoBody {
    fn from(problem: Problem) -> Self {
        NoBody::Problem(problem)
    }
}

async fn accept(
    parts: Parts,
    body: &mut Incoming,
    clock: &Clock,
    edge: &Edge,
    held: &mut Held,
) -> Result<Answer, NoBody> {
    let asked = Asked::of(parts, edge)?;
    let queue = edge.app.open_queue()?;
    let max_body = edge.limits.http.max_body_bytes;
    let announced = body.size_hint().lower();
    if announced > max_body {
        return Err(body::too_large(max_body).into());
    }
    queue.admit(announced).map_err(Problem::from)?;

    let format = match &asked {
        Asked::Events { head, .. } => head.form().number(),
        Asked::Hook(_) => Form::HOOK,
    };
    let bytes = body::read_whole(body, clock, max_body, held).await?;
    let now = Micros::now();
    let (head, coding, bytes) = match asked {
        Asked::Events { head, coding } => (head, coding, bytes),
        Asked::Hook(claimed) => {
            let (head, bytes) = verify(claimed, bytes).await?;
            (head, Coding::Identity, bytes)
        }
    };
    let Decoded { batch, id } = read_events(head, coding, bytes, now, edge, held).await?;
    if batch.is_empty() {
        edge.app.traffic.accepted(format, Appended::default());
        return Ok(accepted(Appended::default(), None));
    }
    let receipt = queue.append(batch, now).map_err(Problem::from)?;
    held.release(); // from here on the queue counts these bytes as waiting
    let appended = receipt.await.map_err(Problem::from)?;
    edge.app.traffic.accepted(format, appended);
    Ok(accepted(appended, id.as_deref()))
}

/// What the head of a request asks for; whoever may not, or nobody could serve, is refused by it alone.
enum Asked {
    /// To take these events.
    Events { head: Head, coding: Coding },
    /// To take the event of a webhook.
    Hook(Claimed),
}

impl Asked {
    fn of(parts: Parts, edge: &Edge) -> Result<Self, Problem> {
        let app = &edge.app;
        if parts.uri.path().starts_with(hooks::PREFIX) {
            let hook = app.hooks.at(parts.uri.path())?;
            check_transfer_coding(&parts.headers)?;
            return Ok(Self::Hook(hook.claim(parts.headers, Micros::now())?));
        }
        app.gate.admit(Scope::Ingest, &parts.headers)?;
        check_transfer_coding(&parts.headers)?;
        Ok(Self::Events { coding: Coding::of(&parts.headers)?, head: Head::of(&parts)? })
    }
}

/// Checks a webhook's signature; one of a large body beside the ingest thread.
async fn verify(claimed: Claimed, body: Bytes) -> Result<(Head, Bytes), Problem> {
    if body.len() <= INLINE_BYTES {
        return claimed.verify(body);
    }
    spawn_blocking(move || claimed.verify(body)).await.unwrap_or_else(|failed| {
        tracing::error!(error = %failed, "checking a webhook failed");
        Err(Problem::new(Slug::Internal, "checking the webhook failed"))
    })
}

/// Only chunks are undone by the server: a body with another coding around or below them would be
/// stored as it is, and nobody could tell.
fn check_transfer_coding(headers: &HeaderMap) -> Result<(), Problem> {
    let mut all = headers.get_all(TRANSFER_ENCODING).iter();
    let is_chunked = |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    match (all.next(), all.next()) {
        (None, _) => Ok(()),
        (Some(value), None) if is_chunked(value) => Ok(()),
        _ => Err(Problem::new(
            Slug::Malformed,
            "the only Transfer-Encoding is chunked; a body is compressed with Content-Encoding",
        )),
    }
}

async fn read_events(
    head: Head,
    coding: Coding,
    bytes: Bytes,
    now: Micros,
    edge: &Edge,
    held: &mut Held,
) -> Result<Decoded, Problem> {
    let limits = edge.event_limits;
    let max_body = edge.limits.http.max_body_bytes;
    if coding == Coding::Identity && bytes.len() <= INLINE_BYTES {
        return decode(&head, bytes, now, limits);
    }
    if coding != Coding::Identity && bytes.len() <= INLINE_ENCODED_BYTES {
        let limit = INLINE_BYTES.min(max_body as usize);
        if let Some(plain) = coding.undo(&bytes, limit, &mut edge.budget.hold())? {
            return decode(&head, plain.into(), now, limits);
        }
    }
    let mut taken = held.take();
    let work = spawn_blocking(move || {
        let bytes = match coding {
            Coding::Identity => bytes,
            Coding::Gzip | Coding::Zstd => coding
                .undo(&bytes, max_body as usize, &mut taken)?
                .ok_or_else(|| body::too_large(max_body))?
                .into(),
        };
        decode(&head, bytes, now, limits).map(|decoded| (decoded, taken))
    });
    let (decoded, taken) = work.await.unwrap_or_else(|failed| {
        tracing::error!(error = %failed, "decoding a request failed");
        Err(Problem::new(Slug::Internal, "decoding the request failed"))
    })?;
    *held = taken;
    Ok(decoded)
}

/// The 202.
fn accepted(appended: Appended, id: Option<&str>) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(accepted_text(appended, id))));
    *answer.status_mut() = hyper::StatusCode::ACCEPTED;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// The body of the 202.
pub fn accepted_text(appended: Appended, id: Option<&str>) -> Vec<u8> {
    use std::io::Write;
    let mut text = Vec::with_capacity(128 + id.map_or(0, str::len));
    let Appended { accepted, duplicates, first_offset } = appended;
    // Writing to a Vec cannot fail.
    let written = if accepted == 0 {
        write!(text, r#"{{"accepted":0,"duplicates":{duplicates},"first_offset":null,"last_offset":null"#)
    } else {
        let last = first_offset + (accepted - 1);
        write!(
            text,
            r#"{{"accepted":{accepted},"duplicates":{duplicates},"first_offset":{first_offset},"last_offset":{last}"#
        )
    };
    debug_assert!(written.is_ok());
    if let Some(id) = id {
        text.extend_from_slice(b",\"id\":");
        push_json_string(&mut text, id);
    }
    text.push(b'}');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    async fn text(answer: Answer) -> String {
        String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn the_202_counts_what_was_appended() {
        let appended = Appended { accepted: 3, duplicates: 1, first_offset: 7 };
        assert_eq!(
            text(accepted(appended, None)).await,
            r#"{"accepted":3,"duplicates":1,"first_offset":7,"last_offset":9}"#
        );
        let appended = Appended { accepted: 0, duplicates: 1, first_offset: 0 };
        assert_eq!(
            text(accepted(appended, Some("a\"b"))).await,
            r#"{"accepted":0,"duplicates":1,"first_offset":null,"last_offset":null,"id":"a\"b"}"#
        );
    }
}
