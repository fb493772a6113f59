//! A webhook's keys: each with its name, default and range.
//!
//! Pure code, but that the files it names are read once, so that `check` says what is wrong with them.

use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue};

use super::{Endpoint, Hidden, Meaning, Mode, SigningKey, StatusPattern, Webhook, is_own_header};
use crate::config::settings::Section;
use crate::config::units::{KIB, MIB};

/// The keys that only a webhook has; `headers` and `status` hold others.
pub(in crate::config) const KEYS: [&str; 10] = [
    "url",
    "mode",
    "secrets",
    "secret_files",
    "headers",
    "status",
    "allow_private",
    "ca_file",
    "connect_timeout",
    "max_answer",
];

const MS: Duration = Duration::from_millis(1);

/// Reads them. `batches` is whether `batch` was set to more than one event; `None` when there is no
/// usable URL, which is noted as a mistake.
pub(in crate::config) fn read(s: &mut Section, name: &str, batches: bool) -> Option<Webhook> {
    let endpoint = s.hidden("url", Endpoint::parse);
    if endpoint.is_none() {
        s.mistake(format!("sink `{name}` needs a `url`, such as \"https://example.org/hook\""));
    }
    let default_mode = if batches { Mode::Batch } else { Mode::Structured };
    let mode = s.choice("mode", &Mode::ALL).unwrap_or(default_mode);
    let secrets =
        s.list("secrets", |text| SigningKey::parse(text).map_err(str::to_owned)).unwrap_or_default();
    let secret_files = s.files("secret_files");
    if secrets.len() + secret_files.len() > 8 {
        s.mistake(format!(
            "sink `{name}` has more than 8 keys: two are enough to change from one to the next"
        ));
    }
    let headers = s.entries("headers", header).unwrap_or_default();
    let status = s.entries("status", status).unwrap_or_default();
    let allow_private = s.switch("allow_private").unwrap_or(false);
    let ca_file = s.file("ca_file");
    let connect_timeout = s.duration("connect_timeout", MS..=Duration::from_secs(600));
    let max_answer = s.size("max_answer", 0..=64 * MIB);
    let endpoint = endpoint?;
    if endpoint.is_plainly_private() && !allow_private {
        s.mistake(format!(
            "sink `{name}`: `url` is at {}, which is this machine or a private network: set `allow_private = true` in this \
             sink's `[[sink]]` table if that is meant",
            endpoint.authority
        ));
    }
    if ca_file.is_some() && !endpoint.tls {
        s.mistake(format!("sink `{name}`: `ca_file` is of no use, because `url` is not \"https://\""));
    }
    let webhook = Webhook {
        endpoint,
        mode,
        secrets,
        secret_files,
        headers,
        status,
        allow_private,
        ca_file,
        connect_timeout: connect_timeout.unwrap_or(Duration::from_secs(5)),
        max_answer_bytes: max_answer.unwrap_or(64 * KIB),
    };
    for read in [webhook.signing_keys().map(drop), webhook.authority().map(drop)] {
        if let Err(wrong) = read {
            s.mistake(format!("sink `{name}`: {wrong}"));
        }
    }
    Some(webhook)
}

/// The value is never repeated in a mistake: it may be a password.
fn header(name: &str, value: &str) -> Result<(String, Hidden), String> {
    if HeaderName::try_from(name).is_err() || HeaderValue::try_from(value).is_err() {
        return Err("it is not an HTTP header".to_owned());
    }
    if is_own_header(name) {
        return Err("every request has that header of its own".to_owned());
    }
    Ok((name.to_owned(), Hidden(value.to_owned())))
}

fn status(pattern: &str, meaning: &str) -> Result<(StatusPattern, Meaning), String> {
    let found = Meaning::ALL.iter().find(|(name, _)| *name == meaning);
    match (StatusPattern::parse(pattern), found) {
        (Some(pattern), Some((_, meaning))) => Ok((pattern, *meaning)),
        (None, _) => Err("it must name a status from 200 to 599, or a class such as \"5xx\"".to_owned()),
        (_, None) => Err("it must be \"delivered\" or \"retry\" or \"reject\" or \"unavailable\"".to_owned()),
    }
}
