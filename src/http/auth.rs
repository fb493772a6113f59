//! Who may do what: the scope each route wants, and the token each request shows.
//!
//! Runs on the connection's task, ahead of every route. Which scope a request needs is decided by its
//! method and path alone, and whatever is not named here needs `admin`: a route that somebody adds and
//! forgets is closed, not open. Without tokens nothing is asked for. Nothing here fails; who may not gets
//! a problem document, and no log line, because anybody may send any number of wrong tokens.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hyper::Method;
use hyper::header::{AUTHORIZATION, HeaderMap};

use crate::config::{Rate, Scope, Token, Tokens};
use crate::event::Micros;

use super::problem::{Problem, Slug};

/// What a request must bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing: health, and the handshake that comes before anything else.
    Nothing,
    /// A signature of its own.
    Signature,
    /// A token of this scope.
    Token(Scope),
}

impl Need {
    /// What a request with this method and path needs.
    pub fn of(method: &Method, path: &str) -> Self {
        let looks = method == Method::GET || method == Method::HEAD;
        match path {
            "/livez" | "/healthz" | "/readyz" if looks => Need::Nothing,
            "/v1/events" if method == Method::POST => Need::Token(Scope::Ingest),
            "/v1/events" if method == Method::OPTIONS => Need::Nothing,
            "/metrics" | "/openapi.json" if looks => Need::Token(Scope::Read),
            _ if looks && path.starts_with("/v1/") => Need::Token(Scope::Read),
            _ if method == Method::POST && path.starts_with("/v1/hooks/") => Need::Signature,
            _ => Need::Token(Scope::Admin),
        }
    }
}

/// The tokens in force; they can be exchanged while requests are under way.
#[derive(Debug, Default)]
pub struct Gate {
    /// Whether there are any. Beside the lock, so that where there are none a request costs one look.
    closed: AtomicBool,
    guard: RwLock<Option<Arc<Guard>>>,
}

impl Gate {
    /// From now on these are in force; `None` lets everybody do everything.
    pub fn set(&self, tokens: Option<Tokens>) {
        let closed = tokens.is_some();
        *self.guard.write().unwrap_or_else(PoisonError::into_inner) =
            tokens.map(|tokens| Arc::new(Guard::new(tokens)));
        self.closed.store(closed, Ordering::Release);
    }

    /// Who asks for tokens, if anyone does.
    pub fn guard(&self) -> Option<Arc<Guard>> {
        if !self.closed.load(Ordering::Acquire) {
            return None;
        }
        self.guard.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets a request with this head through, or says why not.
    pub fn admit(&self, scope: Scope, headers: &HeaderMap) -> Result<(), Problem> {
        let Some(guard) = self.guard() else { return Ok(()) };
        let mut all = headers.get_all(AUTHORIZATION).iter();
        let shown = match (all.next(), all.next()) {
            (first, None) => first.map(|value| value.as_bytes()),
            (_, Some(_)) => return Err(unauthenticated("Authorization is there twice", false)),
        };
        let holder = guard.admit(shown, scope, Micros::now())?;
        holder.spend(guard.clock.elapsed())
    }
}

/// All tokens, and how much of its rate each has left.
#[derive(Debug)]
pub struct Guard {
    tokens: Tokens,
    holders: Vec<Holder>,
    /// What buckets count from.
    clock: Instant,
}

/// What one token has left.
#[derive(Debug)]
pub struct Holder {
    bucket: Option<Bucket>,
}

impl Guard {
    fn new(tokens: Tokens) -> Self {
        let holders = tokens.iter().map(|token| Holder { bucket: token.rate.map(Bucket::new) }).collect();
        Self { tokens, holders, clock: Instant::now() }
    }

    /// The holder of the token in this `Authorization`, if it is good for `scope` now.
    pub fn admit(&self, authorization: Option<&[u8]>, scope: Scope, now: Micros) -> Result<&Holder, Problem> {
        let shown = authorization.ok_or_else(|| {
            unauthenticated("this needs a token: `Authorization: Bearer …` (http.tokens_file)", false)
        })?;
        let shown = bearer(shown)
            .ok_or_else(|| unauthenticated("Authorization must be `Bearer` and one token", false))?;
        let known = self.tokens.position(shown).and_then(|at| {
            let token: &Token = self.tokens.iter().nth(at)?;
            Some((token, self.holders.get(at)?))
        });
        let Some((token, holder)) = known else {
            return Err(unauthenticated("this token is not known here", true));
        };
        if token.expires_at.is_some_and(|second| now.0.div_euclid(1_000_000) >= second) {
            return Err(unauthenticated("this token has expired", true));
        }
        if !token.scopes.contain(scope) {
            let detail = format!("token `{}` has not the scope `{}`", token.name, scope.name());
            return Err(Problem::new(Slug::Forbidden, detail).challenge(match scope {
                Scope::Ingest => r#"Bearer error="insufficient_scope", scope="ingest""#,
                Scope::Read => r#"Bearer error="insufficient_scope", scope="read""#,
                Scope::Admin => r#"Bearer error="insufficient_scope", scope="admin""#,
            }));
        }
        Ok(holder)
    }

    /// Time by the clock that [`Holder::spend`] wants.
    pub fn elapsed(&self) -> Duration {
        self.clock.elapsed()
    }
}

impl Holder {
    /// Takes one request of the token's rate, or says when to come again. `now` is [`Guard::elapsed`].
    pub fn spend(&self, now: Duration) -> Result<(), Problem> {
        let Some(wait) = self.bucket.as_ref().and_then(|bucket| bucket.take(now).err()) else {
            return Ok(());
        };
        let detail = "this token is used more often than its `requests_per_second`";
        Err(Problem::new(Slug::Overloaded, detail).come_again_in(wait))
    }
}

fn unauthenticated(detail: &'static str, shown: bool) -> Problem {
    let challenge = if shown { r#"Bearer error="invalid_token""# } else { "Bearer" };
    Problem::new(Slug::Unauthenticated, detail).challenge(challenge)
}

/// The token in `Bearer <token>` (RFC 6750); the scheme's case does not matter.
fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked("Bearer".len())?;
    let token = token.strip_prefix(b" ")?.trim_ascii();
    let one_word = !token.is_empty() && token.iter().all(u8::is_ascii_graphic);
    (scheme.eq_ignore_ascii_case(b"Bearer") && one_word).then_some(token)
}

/// A token bucket, as the time at which it will be full again (the generic cell rate algorithm): one
/// number, so that it needs no lock.
#[derive(Debug)]
struct Bucket {
    /// Nanoseconds one request takes to come back.
    each: u64,
    /// Nanoseconds a full bucket holds, less the request that empties it.
    depth: u64,
    /// Nanoseconds since the clock began; whatever is past is full.
    full_at: AtomicU64,
}

impl Bucket {
    fn new(rate: Rate) -> Self {
        let each = 1_000_000_000 / u64::from(rate.requests_per_second.max(1));
        let depth = each * u64::from(rate.burst.max(1) - 1);
        Self { each, depth, full_at: AtomicU64::new(0) }
    }

    /// Takes one request, or says how long until there is one.
    fn take(&self, now: Duration) -> Result<(), Duration> {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX / 2);
        // The number orders no other memory, so relaxed is enough.
        let taken = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            let from = full_at.max(now);
            (from - now <= self.depth).then_some(from + self.each)
        });
        taken.map(|_| ()).map_err(|full_at| Duration::from_nanos(full_at - now - self.depth))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &[u8] = b"Bearer eft_good";

    fn guard(more: &str) -> Guard {
        let hash = crate::config::TokenHash::of(b"eft_good");
        let text = format!("[[token]]\nname = \"n\"\nhash = \"{hash}\"\nscopes = [\"ingest\"]\n{more}");
        Guard::new(Tokens::parse(&text).unwrap())
    }

    fn slug(answered: Result<&Holder, Problem>) -> Option<Slug> {
        answered.err().map(|problem| problem.slug())
    }

    #[test]
    fn only_what_is_named_needs_less_than_admin() {
        let (get, post) = (Method::GET, Method::POST);
        for (method, path, need) in [
            (&get, "/livez", Need::Nothing),
            (&Method::HEAD, "/readyz", Need::Nothing),
            (&get, "/healthz", Need::Nothing),
            (&Method::OPTIONS, "/v1/events", Need::Nothing),
            (&post, "/v1/hooks/github", Need::Signature),
            (&post, "/v1/events", Need::Token(Scope::Ingest)),
            (&get, "/v1/status", Need::Token(Scope::Read)),
            (&get, "/v1/hooks/github", Need::Token(Scope::Read)),
            (&Method::HEAD, "/v1/events/7", Need::Token(Scope::Read)),
            (&get, "/metrics", Need::Token(Scope::Read)),
            (&get, "/openapi.json", Need::Token(Scope::Read)),
            (&post, "/v1/failures/retry", Need::Token(Scope::Admin)),
            (&post, "/v1/events/", Need::Token(Scope::Admin)),
            (&post, "/livez", Need::Token(Scope::Admin)),
            (&get, "/", Need::Token(Scope::Admin)),
            (&get, "/v2/status", Need::Token(Scope::Admin)),
            (&Method::PUT, "/v1/events", Need::Token(Scope::Admin)),
            (&Method::DELETE, "/v1/status", Need::Token(Scope::Admin)),
            (&Method::OPTIONS, "/v1/status", Need::Token(Scope::Admin)),
        ] {
            assert_eq!(Need::of(method, path), need, "{method} {path}");
        }
    }

    #[test]
    fn a_token_is_good_for_its_scopes_until_it_expires() {
        let guard = guard("expires = 1970-01-01T00:00:02Z");
        let (early, late) = (Micros(1_999_999), Micros(2_000_000));
        assert_eq!(slug(guard.admit(Some(GOOD), Scope::Ingest, early)), None);
        assert_eq!(slug(guard.admit(Some(GOOD), Scope::Ingest, late)), Some(Slug::Unauthenticated));
        assert_eq!(slug(guard.admit(Some(GOOD), Scope::Read, early)), Some(Slug::Forbidden));
        assert_eq!(slug(guard.admit(None, Scope::Ingest, early)), Some(Slug::Unauthenticated));
        assert_eq!(
            slug(guard.admit(Some(b"Bearer eft_bad"), Scope::Ingest, early)),
            Some(Slug::Unauthenticated)
        );
    }

    #[test]
    fn a_gate_without_tokens_asks_for_nothing_and_one_with_tokens_can_be_opened_again() {
        let gate = Gate::default();
        let nothing = HeaderMap::new();
        assert!(gate.admit(Scope::Admin, &nothing).is_ok());
        gate.set(Some(guard("").tokens));
        assert!(gate.admit(Scope::Admin, &nothing).is_err());
        let mut twice = HeaderMap::new();
        twice.append(AUTHORIZATION, "Bearer eft_good".parse().unwrap());
        assert!(gate.admit(Scope::Ingest, &twice).is_ok());
        twice.append(AUTHORIZATION, "Bearer eft_good".parse().unwrap());
        assert!(gate.admit(Scope::Ingest, &twice).is_err());
        gate.set(None);
        assert!(gate.admit(Scope::Admin, &nothing).is_ok());
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let bucket = Bucket::new(Rate { requests_per_second: 10, burst: 3 });
        let at = Duration::from_millis;
        assert!((0..3).all(|_| bucket.take(at(50)).is_ok()));
        assert_eq!(bucket.take(at(50)), Err(at(100)));
        assert_eq!(bucket.take(at(120)), Err(at(30)));
        assert_eq!(bucket.take(at(150)), Ok(()));
        assert_eq!(bucket.take(at(150)), Err(at(100)));
        // After a long pause there is one burst and not more.
        assert!((0..3).all(|_| bucket.take(at(60_000)).is_ok()));
        assert!(bucket.take(at(60_000)).is_err());
    }

    proptest! {
        #[test]
        fn any_authorization_is_one_token_or_none(value in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(token) = bearer(&value) {
                prop_assert!(value[..6].eq_ignore_ascii_case(b"bearer") && value[6] == b' ');
                prop_assert!(!token.is_empty() && token.iter().all(u8::is_ascii_graphic));
            }
            prop_assert!(guard("").admit(Some(&value), Scope::Ingest, Micros(0)).is_err());
        }

        #[test]
        fn a_token_is_read_whatever_the_case_and_the_spaces(
            scheme in "[bB][eE][aA][rR][eE][rR]", spaces in " {1,4}", token in "[!-~]{1,60}", after in "[ \t]{0,3}"
        ) {
            let value = format!("{scheme}{spaces}{token}{after}");
            prop_assert_eq!(bearer(value.as_bytes()), Some(token.as_bytes()));
        }

        #[test]
        fn never_more_than_burst_and_rate_pass(
            rate in 1u32..1000, burst in 1u32..50, gaps in proptest::collection::vec(0u64..20_000_000, 1..300)
        ) {
            let bucket = Bucket::new(Rate { requests_per_second: rate, burst });
            let (mut now, mut passed) = (0, 0u64);
            for gap in gaps {
                now += gap;
                passed += u64::from(bucket.take(Duration::from_nanos(now)).is_ok());
                let each = 1_000_000_000 / u64::from(rate);
                prop_assert!(passed <= u64::from(burst) + now / each, "{} by {}", passed, now);
            }
        }
    }
}
