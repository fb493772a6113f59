//! `POST /v1/hooks/{name}`: webhooks of others, known by their signature and turned into CloudEvents.
//!
//! ```text
//! head ── Known::of ──► signature, time ──► body ── Claimed::verify ──► mapping ──► decode ──► queue
//!         404, 401, 415   (no body needed)          401                  400
//! ```
//!
//! Pure code; `ingest` brings the request, its body and the time. Nothing of a body is parsed before its
//! signature is known to be right, and a refused request leaves nothing behind.
//!
//! * this file: the hooks in force, and what a head must bring;
//! * `signature`: the HMAC itself; `mapping`: what the event is called.

mod mapping;
mod signature;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use ring::hmac;

use crate::config::{self, HookKind};
use crate::event::Micros;

use super::decode::Head;
use super::problem::{Problem, Slug};

use signature::Claim;

/// Where hooks are.
pub const PREFIX: &str = "/v1/hooks/";

/// The hooks in force; they can be exchanged while requests are under way.
#[derive(Debug, Default)]
pub struct Hooks(RwLock<BTreeMap<String, Arc<Known>>>);

/// One hook with its keys.
#[derive(Debug)]
pub struct Known {
    config: config::Hook,
    keys: Vec<hmac::Key>,
}

impl Hooks {
    /// From now on these are in force. The error is about a file with a key in it; then nothing changes.
    pub fn set(&self, hooks: &[config::Hook]) -> Result<(), String> {
        let known = hooks.iter().map(|hook| Ok((hook.name.clone(), Arc::new(Known::of(hook)?))));
        let known = known.collect::<Result<_, String>>()?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = known;
        Ok(())
    }

    /// The hook that a path names.
    pub fn at(&self, path: &str) -> Result<Arc<Known>, Problem> {
        let name = path.strip_prefix(PREFIX).unwrap_or_default();
        let hooks = self.0.read().unwrap_or_else(PoisonError::into_inner);
        hooks
            .get(name)
            .cloned()
            .ok_or_else(|| Problem::new(Slug::NotFound, "no `[[hook]]` of the configuration has this name"))
    }
}

/// A request that claims to come from a hook's sender.
#[derive(Debug)]
pub struct Claimed {
    hook: Arc<Known>,
    claim: Claim,
    headers: HeaderMap,
}

impl Known {
    fn of(hook: &config::Hook) -> Result<Self, String> {
        let keys = hook.keys().map_err(|wrong| format!("hook `{}`: {wrong}", hook.name))?;
        let keys = keys.0.iter().map(|key| hmac::Key::new(hmac::HMAC_SHA256, key)).collect();
        Ok(Self { config: hook.clone(), keys })
    }

    /// Reads the head: without a signature, or with one of another time, the body is not even awaited.
    pub fn claim(self: Arc<Self>, headers: HeaderMap, now: Micros) -> Result<Claimed, Problem> {
        if headers.contains_key(hyper::header::CONTENT_ENCODING) {
            return Err(Problem::new(Slug::UnsupportedMediaType, "a webhook comes without Content-Encoding"));
        }
        let claim = Claim::of(&self.config, &headers, now)?;
        Ok(Claimed { hook: self, claim, headers })
    }
}

impl Claimed {
    /// Checks the body's signature. What comes back is read like a request for `POST /v1/events`.
    pub fn verify(self, body: Bytes) -> Result<(Head, Bytes), Problem> {
        let Claimed { hook, claim, headers } = self;
        if !claim.is_true(&hook.keys, &body) {
            return Err(refused("the signature does not fit the body and any of the keys"));
        }
        let content_type = headers.get(CONTENT_TYPE).map(|value| value.as_bytes());
        match hook.config.kind {
            HookKind::GitHub => mapping::github(&hook.config, &headers, content_type, body),
            HookKind::Standard => mapping::standard(&hook.config, &claim, content_type, body),
            HookKind::Hmac(ref hmac) => {
                mapping::other(&hook.config, hmac, &claim, &headers, content_type, body)
            }
        }
    }
}

/// Whoever this is did not prove it. One sentence for each reason, and no more: not which key, not what
/// would have been right.
fn refused(detail: impl Into<std::borrow::Cow<'static, str>>) -> Problem {
    Problem::new(Slug::Unauthenticated, detail).challenge("Signature")
}
