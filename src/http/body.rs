//! Reading a request's body: whole, in time, and within what all requests together may hold.
//!
//! Runs on the connection's task. The deadline is not a timer of its own: the connection's clock
//! is swept from outside (see `connection`), so a body that is there at once costs no timer.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, Incoming};

use super::connection::Clock;
use super::problem::{Problem, Slug};

/// Bytes that all requests together may hold in memory while they arrive and are decoded.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    held: AtomicU64,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, held: AtomicU64::new(0) })
    }

    /// Nothing yet, for one request.
    pub fn hold(self: &Arc<Self>) -> Held {
        Held { budget: self.clone(), bytes: 0 }
    }

    /// Bytes held now.
    #[cfg(test)]
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }
}

/// One request's part of the budget; given back when dropped.
#[derive(Debug)]
pub struct Held {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Held {
    /// Takes `bytes` more, or refuses when the budget has no room for them.
    pub fn grow(&mut self, bytes: u64) -> Result<(), Problem> {
        // A counter that is only compared and never orders other memory: relaxed is enough.
        let before = self.budget.held.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > self.budget.limit {
            self.budget.held.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Problem::new(Slug::Overloaded, "too many bytes of requests are in memory at once"));
        }
        self.bytes += bytes;
        Ok(())
    }

    /// Gives everything back at once.
    pub fn release(&mut self) {
        self.budget.held.fetch_sub(std::mem::take(&mut self.bytes), Ordering::Relaxed);
    }

    /// Moves what is held into a value of its own.
    pub fn take(&mut self) -> Held {
        Held { budget: self.budget.clone(), bytes: std::mem::take(&mut self.bytes) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release();
    }
}

/// Why there is no body.
#[derive(Debug)]
pub enum NoBody {
    /// The client is told.
    Problem(Problem),
    /// The client is gone or broke the protocol; nobody is left to tell.
    Gone(hyper::Error),
}

/// Reads the body to its end.
pub async fn read_whole(
    body: &mut Incoming,
    clock: &Clock,
    limit: u64,
    held: &mut Held,
) -> Result<Bytes, NoBody> {
    clock.body_begins();
    let whole = collect(body, clock, limit, held).await;
    clock.body_ends();
    whole
}

async fn collect(body: &mut Incoming, clock: &Clock, limit: u64, held: &mut Held) -> Result<Bytes, NoBody> {
    let expected = body.size_hint().exact();
    let mut first = Bytes::new();
    let mut joined = BytesMut::new();
    let mut total = 0u64;
    while !body.is_end_stream() {
        let Some(frame) = next_frame(body, clock).await? else { break };
        let Ok(piece) = frame.into_data() else { continue }; // trailers carry nothing for us
        if piece.is_empty() {
            continue;
        }
        total += piece.len() as u64;
        if total > limit {
            return Err(NoBody::Problem(too_large(limit)));
        }
        held.grow(piece.len() as u64).map_err(NoBody::Problem)?;
        if first.is_empty() {
            // Most bodies come in one piece and are used where they lie.
            first = piece;
            continue;
        }
        if joined.is_empty() {
            // The length a client claims is believed only up to a point: memory follows arrival.
            let claimed = expected.unwrap_or(0).min(limit).min(256 * 1024) as usize;
            joined.reserve(claimed.max(first.len() + piece.len()));
            joined.extend_from_slice(&first);
        }
        joined.extend_from_slice(&piece);
    }
    Ok(if joined.is_empty() { first } else { joined.freeze() })
}

/// A body over its limit.
pub fn too_large(limit: u64) -> Problem {
    Problem::new(Slug::TooLarge, format!("the body is larger than {limit} bytes (http.max_body)"))
}

async fn next_frame(body: &mut Incoming, clock: &Clock) -> Result<Option<Frame<Bytes>>, NoBody> {
    poll_fn(|cx| match Pin::new(&mut *body).poll_frame(cx) {
        Poll::Ready(None) => Poll::Ready(Ok(None)),
        Poll::Ready(Some(Ok(frame))) => Poll::Ready(Ok(Some(frame))),
        Poll::Ready(Some(Err(error))) => Poll::Ready(Err(NoBody::Gone(error))),
        Poll::Pending if clock.body_is_overdue() => Poll::Ready(Err(NoBody::Problem(Problem::new(
            Slug::RequestTimeout,
            "the body did not arrive in time (http.body_timeout)",
        )))),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// The most bytes of a refused body that are read just to keep the connection.
const WORTH_READING: u64 = 64 * 1024;

/// Reads away what is already here of a refused body. True if that was all of it, so that the
/// connection can go on; false if it must be closed.
pub async fn read_away(body: &mut Incoming) -> bool {
    if body.is_end_stream() {
        return true;
    }
    if body.size_hint().lower() > WORTH_READING {
        return false;
    }
    let (mut took, mut total) = (false, 0u64);
    poll_fn(|cx| {
        while !body.is_end_stream() {
            match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(None) => break,
                Poll::Ready(Some(Err(_))) => return Poll::Ready(false),
                Poll::Ready(Some(Ok(frame))) => {
                    total += frame.data_ref().map_or(0, |piece| piece.len() as u64);
                    if total > WORTH_READING {
                        return Poll::Ready(false);
                    }
                    took = true;
                }
                // The connection reads a piece ahead, so what is here is ready at once; taking it
                // wakes the connection for the next one. Otherwise the bytes are not here.
                Poll::Pending if std::mem::take(&mut took) => return Poll::Pending,
                Poll::Pending => return Poll::Ready(false),
            }
        }
        Poll::Ready(true)
    })
    .await
}
