//! The signature of a webhook: found in the head, checked over the body as it came.
//!
//! Pure code; the time comes in as an argument. Signatures are compared in constant time, every one with
//! every key, so that the time taken says nothing about how near a wrong one was.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hyper::header::HeaderMap;
use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use ring::hmac;
use subtle::{Choice, ConstantTimeEq};

use crate::config::{Encoding, Hook, HookKind, Piece, digest_from_hex};
use crate::event::Micros;

use super::super::problem::Problem;
use super::refused;

/// Most signatures of a request that are looked at; a sender that changes keys sends two.
const MAX_SIGNATURES: usize = 8;

/// What a request says of itself, before anybody knows whether it is true.
#[derive(Debug)]
pub(super) struct Claim {
    signatures: Vec<[u8; SHA256_OUTPUT_LEN]>,
    /// What is signed: this, the body, that.
    before: Vec<u8>,
    after: Vec<u8>,
    /// The id, where the sender sent one.
    pub(super) id: Option<String>,
    /// When it was sent, where the sender said so.
    pub(super) sent_at: Option<Micros>,
}

impl Claim {
    /// Reads the head of a request to this hook.
    pub(super) fn of(hook: &Hook, headers: &HeaderMap, now: Micros) -> Result<Self, Problem> {
        match &hook.kind {
            HookKind::GitHub => {
                let value = required(headers, "x-hub-signature-256")?;
                let hex = value.strip_prefix("sha256=").and_then(|hex| digest_from_hex(hex.as_bytes()));
                let signature = hex.ok_or_else(|| unreadable("x-hub-signature-256"))?;
                Ok(Self {
                    signatures: vec![signature],
                    before: vec![],
                    after: vec![],
                    id: None,
                    sent_at: None,
                })
            }
            HookKind::Standard => {
                let id = required(headers, "webhook-id")?;
                let timestamp = required(headers, "webhook-timestamp")?;
                let sent_at = in_time(hook, "webhook-timestamp", timestamp, now)?;
                let all = required(headers, "webhook-signature")?.split_ascii_whitespace();
                let known = all.filter_map(|one| digest_from_base64(one.strip_prefix("v1,")?));
                let signatures: Vec<_> = known.take(MAX_SIGNATURES).collect();
                if signatures.is_empty() {
                    return Err(unreadable("webhook-signature"));
                }
                let before = format!("{id}.{timestamp}.").into_bytes();
                Ok(Self {
                    signatures,
                    before,
                    after: vec![],
                    id: Some(id.to_owned()),
                    sent_at: Some(sent_at),
                })
            }
            HookKind::Hmac(hmac) => {
                let value = required(headers, &hmac.header)?;
                let digits = value.strip_prefix(hmac.prefix.as_str());
                let signature = digits.and_then(|digits| match hmac.encoding {
                    Encoding::Hex => digest_from_hex(digits.as_bytes()),
                    Encoding::Base64 => digest_from_base64(digits),
                });
                let signature = signature.ok_or_else(|| unreadable(&hmac.header))?;
                let wanted = |header: &Option<String>| {
                    header.as_deref().map(|name| required(headers, name)).transpose()
                };
                let (timestamp, id) = (wanted(&hmac.timestamp_header)?, wanted(&hmac.id_header)?);
                let sent_at = match (&hmac.timestamp_header, timestamp) {
                    (Some(name), Some(timestamp)) => Some(in_time(hook, name, timestamp, now)?),
                    _ => None,
                };
                let (mut before, mut after, mut at_body) = (Vec::new(), Vec::new(), false);
                for piece in &hmac.signed {
                    let text = match piece {
                        Piece::Text(text) => text,
                        Piece::Timestamp => timestamp.unwrap_or_default(),
                        Piece::Id => id.unwrap_or_default(),
                        Piece::Body => {
                            at_body = true;
                            continue;
                        }
                    };
                    if at_body { &mut after } else { &mut before }.extend_from_slice(text.as_bytes());
                }
                Ok(Self { signatures: vec![signature], before, after, id: id.map(str::to_owned), sent_at })
            }
        }
    }

    /// Whether one of the keys made one of the signatures.
    pub(super) fn is_true(&self, keys: &[hmac::Key], body: &[u8]) -> bool {
        let mut found = Choice::from(0);
        for key in keys {
            let mut context = hmac::Context::with_key(key);
            for part in [&self.before, body, &self.after] {
                context.update(part);
            }
            let made = context.sign();
            for signature in &self.signatures {
                found |= made.as_ref().ct_eq(signature);
            }
        }
        found.into()
    }

    /// The SHA-256 of what is signed: the same for the same request, another for any other.
    pub(super) fn digest(&self, body: &[u8]) -> String {
        let mut context = Context::new(&SHA256);
        for part in [&self.before, body, &self.after] {
            context.update(part);
        }
        context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The value of a header that must be there once.
pub(super) fn required<'h>(headers: &'h HeaderMap, name: &str) -> Result<&'h str, Problem> {
    let mut all = headers.get_all(name).iter();
    match (all.next(), all.next()) {
        (Some(value), None) => value.to_str().map(str::trim).map_err(|_| unreadable(name)),
        (None, _) => Err(refused(format!("the header {name} is missing"))),
        (Some(_), Some(_)) => Err(refused(format!("the header {name} is there twice"))),
    }
}

fn unreadable(name: &str) -> Problem {
    refused(format!("the header {name} is not as this sender writes it"))
}

/// The time of sending, if it is near enough to now: beyond that, whoever has recorded a request could
/// send it again.
fn in_time(hook: &Hook, name: &str, text: &str, now: Micros) -> Result<Micros, Problem> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let second = digits.then(|| text.parse::<i64>().ok()).flatten();
    let sent_at = second.and_then(|second| second.checked_mul(1_000_000)).map(Micros);
    let sent_at = sent_at.ok_or_else(|| unreadable(name))?;
    let tolerance = i64::try_from(hook.tolerance.as_micros()).unwrap_or(i64::MAX);
    if now.0.abs_diff(sent_at.0) > tolerance.unsigned_abs() {
        return Err(refused(format!(
            "the time in {name} is more than {} s from now; are both clocks right?",
            hook.tolerance.as_secs()
        )));
    }
    Ok(sent_at)
}

fn digest_from_base64(text: &str) -> Option<[u8; SHA256_OUTPUT_LEN]> {
    let padding = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let bytes = GeneralPurpose::new(&alphabet::STANDARD, padding).decode(text).ok()?;
    bytes.try_into().ok()
}
