//! Error answers: problem documents of RFC 9457, the only shape an error has on the wire.
//!
//! Pure: what went wrong becomes a status, a slug and a sentence. The slugs are part of the contract.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use crate::event::cloudevent::Invalid;
use crate::queue::{self, QueueError, Refusal};

/// An answer whose body is known in full.
pub type Answer = Response<Full<Bytes>>;

/// What went wrong, by the name clients match on: `type` is `/problems/<slug>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slug {
    /// Not JSON, not UTF-8, not a valid CloudEvent, bad header encoding, bad parameter.
    Malformed,
    /// No token or signature, or a wrong one.
    Unauthenticated,
    /// The origin may not deliver here, or the token lacks the scope.
    Forbidden,
    /// Nothing has this address.
    NotFound,
    /// The event was delivered everywhere and the log let it go.
    Released,
    /// This address does not know the method.
    MethodNotAllowed,
    /// What is there already stands in the way.
    Conflict,
    /// The body did not arrive in time.
    RequestTimeout,
    /// The body or one event is over its limit.
    TooLarge,
    /// A media type or content coding that is not understood.
    UnsupportedMediaType,
    /// The log's budget is used up.
    WalFull,
    /// Too many requests, connections or bytes at once.
    Overloaded,
    /// Something here is broken; the log says what.
    Internal,
    /// Recovery is not done yet.
    Recovering,
    /// The daemon is draining.
    ShuttingDown,
    /// A write or sync failed.
    StorageFailed,
    /// The disk is full.
    StorageFull,
}

impl Slug {
    /// Every one.
    pub const ALL: [Self; 17] = [
        Self::Malformed,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::Released,
        Self::MethodNotAllowed,
        Self::Conflict,
        Self::RequestTimeout,
        Self::TooLarge,
        Self::UnsupportedMediaType,
        Self::WalFull,
        Self::Overloaded,
        Self::Internal,
        Self::Recovering,
        Self::ShuttingDown,
        Self::StorageFailed,
        Self::StorageFull,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        self.parts().0
    }

    /// The status of its answers, unless the route says otherwise.
    pub fn status(self) -> StatusCode {
        self.parts().1
    }

    /// What it says to people.
    pub fn title(self) -> &'static str {
        self.parts().2
    }

    /// The `type` of its documents.
    pub fn as_type(self) -> String {
        format!("/problems/{}", self.name())
    }

    fn parts(self) -> (&'static str, StatusCode, &'static str) {
        match self {
            Slug::Malformed => ("malformed", StatusCode::BAD_REQUEST, "Malformed request"),
            Slug::Unauthenticated => ("unauthenticated", StatusCode::UNAUTHORIZED, "Unauthenticated"),
            Slug::Forbidden => ("forbidden", StatusCode::FORBIDDEN, "Forbidden"),
            Slug::NotFound => ("not-found", StatusCode::NOT_FOUND, "Not found"),
            Slug::Released => ("released", StatusCode::NOT_FOUND, "Event released"),
            Slug::MethodNotAllowed => {
                ("method-not-allowed", StatusCode::METHOD_NOT_ALLOWED, "Method not allowed")
            }
            Slug::Conflict => ("conflict", StatusCode::CONFLICT, "Conflict"),
            Slug::RequestTimeout => ("request-timeout", StatusCode::REQUEST_TIMEOUT, "Request timeout"),
            Slug::TooLarge => ("too-large", StatusCode::PAYLOAD_TOO_LARGE, "Too large"),
            Slug::UnsupportedMediaType => {
                ("unsupported-media-type", StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported media type")
            }
            Slug::WalFull => ("wal-full", StatusCode::TOO_MANY_REQUESTS, "Log full"),
            Slug::Overloaded => ("overloaded", StatusCode::TOO_MANY_REQUESTS, "Overloaded"),
            Slug::Internal => ("internal", StatusCode::INTERNAL_SERVER_ERROR, "Internal error"),
            Slug::Recovering => ("recovering", StatusCode::SERVICE_UNAVAILABLE, "Recovering"),
            Slug::ShuttingDown => ("shutting-down", StatusCode::SERVICE_UNAVAILABLE, "Shutting down"),
            Slug::StorageFailed => ("storage-failed", StatusCode::SERVICE_UNAVAILABLE, "Storage failed"),
            Slug::StorageFull => ("storage-full", StatusCode::SERVICE_UNAVAILABLE, "Storage full"),
        }
    }
}

/// What is wrong with one item of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ItemError {
    /// Which item, from 0.
    pub index: usize,
    /// What is wrong with it.
    pub detail: String,
}

/// At most this many item errors are told; the rest of a broken batch is not even looked at.
pub const MAX_ITEM_ERRORS: usize = 100;

/// A problem document (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct Document<'a> {
    /// `/problems/` and the slug; what clients go by.
    r#type: String,
    /// The same for people.
    title: &'a str,
    /// The status once more.
    status: u16,
    /// What was wrong with this request, or why it could not be answered.
    detail: &'a str,
    /// Of a batch, what is wrong with which item; the first hundred.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(required = false)]
    errors: &'a [ItemError],
}

/// An error answer in the making.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    slug: Slug,
    detail: Cow<'static, str>,
    errors: Vec<ItemError>,
    retry_after: Option<u64>,
    unavailable: bool,
    allow: Option<&'static str>,
    challenge: Option<&'static str>,
    close: bool,
}

impl Problem {
    /// A problem with a sentence for the client.
    pub fn new(slug: Slug, detail: impl Into<Cow<'static, str>>) -> Self {
        let status = slug.status();
        let wait = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        Self {
            slug,
            detail: detail.into(),
            errors: Vec::new(),
            retry_after: wait.then_some(1),
            unavailable: false,
            allow: None,
            challenge: None,
            close: false,
        }
    }

    /// A batch of which some items are not valid.
    pub fn malformed_items(errors: Vec<ItemError>) -> Self {
        let first = errors.first().map_or(String::new(), |e| format!("item {}: {}", e.index, e.detail));
        let mut problem = Self::new(Slug::Malformed, format!("nothing was accepted; {first}"));
        problem.errors = errors;
        problem
    }

    /// An address that does not know the method, and those it knows.
    pub fn method_not_allowed(allow: &'static str) -> Self {
        let mut problem = Self::new(Slug::MethodNotAllowed, format!("this address knows {allow}"));
        problem.allow = Some(allow);
        problem
    }

    /// Answers 503 whatever the slug's own status is: for readiness, where the reason is a detail.
    pub fn unavailable(mut self) -> Self {
        self.unavailable = true;
        self.retry_after = self.retry_after.or(Some(1));
        self
    }

    /// Says how one would prove who one is.
    pub fn challenge(mut self, challenge: &'static str) -> Self {
        self.challenge = Some(challenge);
        self
    }

    /// Says when to come again: in whole seconds, rounded up, so that a client never comes early.
    pub fn come_again_in(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait.as_millis().div_ceil(1000).max(1) as u64);
        self
    }

    /// Says that the connection ends with this answer.
    pub fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// Its slug.
    pub fn slug(&self) -> Slug {
        self.slug
    }

    /// Its sentence for the client.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// What is wrong with each item.
    #[cfg(test)]
    pub fn errors(&self) -> &[ItemError] {
        &self.errors
    }

    fn status(&self) -> StatusCode {
        if self.unavailable { StatusCode::SERVICE_UNAVAILABLE } else { self.slug.status() }
    }

    fn document(&self) -> Vec<u8> {
        let document = Document {
            r#type: self.slug.as_type(),
            title: self.slug.title(),
            status: self.status().as_u16(),
            detail: &self.detail,
            errors: &self.errors,
        };
        serde_json::to_vec(&document).expect("strings and numbers always serialise")
    }

    /// The answer.
    pub fn into_answer(self) -> Answer {
        let mut answer = Response::new(Full::new(Bytes::from(self.document())));
        *answer.status_mut() = self.status();
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if let Some(challenge) = self.challenge {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }

    /// The whole answer as bytes, for where no server stands between.
    pub fn to_wire(&self, closing: bool, date: Option<[u8; 29]>) -> Vec<u8> {
        let document = self.document();
        let mut wire = format!(
            "HTTP/1.1 {}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n",
            self.status(),
            document.len(),
        )
        .into_bytes();
        if let Some(seconds) = self.retry_after {
            wire.extend_from_slice(format!("retry-after: {seconds}\r\n").as_bytes());
        }
        if closing {
            wire.extend_from_slice(b"connection: close\r\n");
        }
        if let Some(date) = date {
            wire.extend_from_slice(&[b"date: ", &date[..], b"\r\n"].concat());
        }
        wire.extend_from_slice(b"\r\n");
        wire.extend_from_slice(&document);
        wire
    }
}

impl From<Invalid> for Problem {
    fn from(invalid: Invalid) -> Self {
        Problem::new(Slug::Malformed, invalid.0)
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let slug = match refusal {
            Refusal::WalFull => Slug::WalFull,
            Refusal::Overloaded => Slug::Overloaded,
            Refusal::StorageFull => Slug::StorageFull,
            Refusal::StorageFailed => Slug::StorageFailed,
            Refusal::ShuttingDown => Slug::ShuttingDown,
            Refusal::TooLarge { .. } => Slug::TooLarge,
        };
        let mut problem = Problem::new(slug, refusal.to_string());
        problem.retry_after = None;
        match queue::retry_after(&refusal) {
            Some(wait) => problem.come_again_in(wait),
            None => problem,
        }
    }
}

impl From<QueueError> for Problem {
    fn from(error: QueueError) -> Self {
        let slug = match error {
            QueueError::StorageFailed(_) => Slug::StorageFailed,
            QueueError::Read { .. } => Slug::Internal,
        };
        Problem::new(slug, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_its_type_title_status_and_detail() {
        let problem = Problem::new(Slug::TooLarge, "a \"big\" one");
        assert_eq!(
            String::from_utf8(problem.document()).unwrap(),
            r#"{"type":"/problems/too-large","title":"Too large","status":413,"detail":"a \"big\" one"}"#
        );
        let errors = vec![ItemError { index: 3, detail: "no".into() }];
        let text = String::from_utf8(Problem::malformed_items(errors).document()).unwrap();
        assert!(text.ends_with(r#""errors":[{"index":3,"detail":"no"}]}"#), "{text}");
    }

    #[test]
    fn every_refusal_that_may_pass_says_when_to_come_again() {
        let all = [
            (Refusal::WalFull, 429, "wal-full"),
            (Refusal::Overloaded, 429, "overloaded"),
            (Refusal::StorageFull, 503, "storage-full"),
            (Refusal::StorageFailed, 503, "storage-failed"),
            (Refusal::ShuttingDown, 503, "shutting-down"),
            (Refusal::TooLarge { bytes: 2, limit_bytes: 1 }, 413, "too-large"),
        ];
        for (refusal, status, slug) in all {
            let problem = Problem::from(refusal);
            assert_eq!(problem.slug().name(), slug);
            let answer = problem.into_answer();
            assert_eq!(answer.status(), status);
            let wait = answer.headers().get(RETRY_AFTER).map(|v| v.to_str().unwrap().parse::<u64>().unwrap());
            assert_eq!(wait.is_some_and(|s| s >= 1), status != 413, "{slug}");
        }
    }

    #[test]
    fn a_connection_turned_away_gets_a_whole_answer() {
        let wire = String::from_utf8(Problem::new(Slug::Overloaded, "full").to_wire(true, None)).unwrap();
        let (head, body) = wire.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 429 Too Many Requests\r\n"), "{head}");
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())));
        assert!(head.contains("retry-after: 1"));
    }
}
