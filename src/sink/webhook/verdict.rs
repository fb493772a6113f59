//! What an answer, or none, says about the events of a request.
//!
//! Pure code: the time comes in as an argument.

use std::time::{Duration, SystemTime};

use crate::config::{Meaning, Webhook};
use crate::sink::{Outcome, Unavailable};

use super::client::{Answer, NoAnswer};

/// What became of one request.
#[derive(Debug, Clone)]
pub(super) enum Verdict {
    /// Its events arrived.
    Delivered,
    /// Its events are refused for good.
    Rejected(String),
    /// It failed, by fault of an event or of the endpoint: the requests around it tell.
    Failed(Failure),
    /// The endpoint cannot be used at the moment, whatever it is sent.
    Unavailable(Unavailable),
}

/// Why a request failed, and how long its events are to wait at least.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) reason: String,
    pub(super) retry_after: Option<Duration>,
}

impl From<Failure> for Outcome {
    fn from(Failure { reason, retry_after }: Failure) -> Self {
        Outcome::Retry { reason, retry_after }
    }
}

/// Judges an answer by the table of statuses.
pub(super) fn of_answer(config: &Webhook, answer: &Answer, now: SystemTime) -> Verdict {
    let reason = describe(answer);
    let retry_after = answer.retry_after.as_deref().and_then(|text| retry_after(text, now));
    match config.meaning(answer.status) {
        Meaning::Delivered => Verdict::Delivered,
        Meaning::Reject => Verdict::Rejected(reason),
        Meaning::Retry => Verdict::Failed(Failure { reason, retry_after }),
        Meaning::Unavailable => Verdict::Unavailable(Unavailable { reason, retry_after }),
    }
}

/// Judges an exchange that brought no answer.
pub(super) fn of_no_answer(no_answer: NoAnswer, within: Duration) -> Verdict {
    let reason = match no_answer {
        NoAnswer::NotReached(reason) => {
            return Verdict::Unavailable(Unavailable { reason, retry_after: None });
        }
        NoAnswer::Broken(reason) => format!("the connection broke before an answer: {reason}"),
        NoAnswer::Silent => format!("no answer within {}", humantime::format_duration(within)),
    };
    Verdict::Failed(Failure { reason, retry_after: None })
}

/// `Retry-After`: seconds, or a date.
fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit mean: very long.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::from(u32::MAX))));
    }
    httpdate::parse_http_date(text).ok().map(|date| date.duration_since(now).unwrap_or_default())
}

/// `400 Bad Request: the beginning of the body`, on one line.
fn describe(answer: &Answer) -> String {
    let status = answer.status;
    let name = hyper::StatusCode::from_u16(status).ok().and_then(|code| code.canonical_reason());
    let mut text = format!("the endpoint answered {status}");
    if let Some(name) = name {
        text = format!("{text} {name}");
    }
    if (300..400).contains(&status) {
        text.push_str("; redirects are not followed: `url` must name the final address");
    }
    let said = String::from_utf8_lossy(&answer.excerpt);
    let said: Vec<&str> =
        said.split(|c: char| c.is_whitespace() || c.is_control()).filter(|s| !s.is_empty()).collect();
    if said.is_empty() { text } else { format!("{text}: {}", said.join(" ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 30);
        let read = |text| retry_after(text, now);
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read(" 0 "), Some(Duration::ZERO));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(read("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(read("99999999999999999999999"), Some(Duration::from_secs(u64::from(u32::MAX))));
        for wrong in ["", "-1", "soon", "1.5"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_reason_is_one_line_with_what_the_endpoint_said() {
        let answer = |status, excerpt: &[u8]| Answer { status, retry_after: None, excerpt: excerpt.to_vec() };
        assert_eq!(
            describe(&answer(400, b"{\"no\":\r\n\t1}\x07\xff")),
            "the endpoint answered 400 Bad Request: {\"no\": 1} \u{fffd}"
        );
        assert_eq!(describe(&answer(599, b"")), "the endpoint answered 599");
        assert!(describe(&answer(302, b"")).contains("redirects are not followed"));
    }
}
