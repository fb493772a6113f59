//! One client's connection: HTTP/1.1 by the express lane and by hyper, its deadlines, its end.
//!
//! One task a connection, on the ingest runtime. Deadlines cost no timer per request: each
//! connection has a [`Clock`] that says since when it is doing what, and the accept loop sweeps all
//! clocks a few times a second. A connection begins with nothing but its socket: requests that are
//! here in full and plain are answered at once (see `express`), with the first other one hyper takes
//! over. When it then waits for its next request it is *parked*: hyper's buffers are given up and
//! only the socket is kept, so that ten thousand idle clients cost little. What hyper calls an error (a client that broke off, bytes that are
//! no HTTP) ends this connection and nothing else.

use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Edge, express};

/// What a connection is doing, as far as deadlines care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
enum Phase {
    /// A header is arriving.
    Header = 0,
    /// Between requests; the last answer may still be on its way out.
    Idle = 1,
    /// A body is arriving.
    Body = 2,
    /// A request is being worked on. Bounded by what it waits for, not by the client.
    Busy = 3,
    /// The answer is out and what the client still sends is thrown away.
    Linger = 4,
}

impl Phase {
    fn of(word: u64) -> Self {
        match word & 7 {
            0 => Phase::Header,
            1 => Phase::Idle,
            2 => Phase::Body,
            3 => Phase::Busy,
            _ => Phase::Linger,
        }
    }
}

/// How long each phase may take.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// A header, from its first byte.
    pub header: Duration,
    /// Between requests.
    pub idle: Duration,
    /// A body, from its header; and taking an answer, from when it no longer fits into the socket.
    pub body: Duration,
    /// Between requests until the connection is parked.
    pub park: Duration,
    /// Throwing away what a refused client still sends.
    pub linger: Duration,
}

impl Deadlines {
    /// How often clocks are swept. A deadline is kept early by up to one such step, never late.
    pub fn step(&self) -> Duration {
        let shortest = self.header.min(self.idle).min(self.body);
        (shortest / 4).clamp(Duration::from_millis(5), Duration::from_millis(250))
    }
}

const OVERDUE_BODY: u8 = 1;
const CLOSE: u8 = 2;
const FINISH: u8 = 4;
const LINGER: u8 = 8;
const PARK: u8 = 16;

/// Most bytes of a header; a larger one gets 431. Far beyond what events need, and small enough that
/// ten thousand clients sending endless headers fit into memory.
const MAX_HEADER_BYTES: usize = 32 * 1024;

/// Since when a connection is doing what; written by the connection, read by the sweep.
///
/// Every field is a value of its own that orders no other memory, so relaxed atomics do.
#[derive(Debug)]
pub struct Clock {
    began: Instant,
    /// Microseconds since `began`, and the phase in the low three bits.
    word: AtomicU64,
    /// What the sweep asks of the connection.
    asked: AtomicU8,
    /// Whether something was written after the last complete flush.
    unflushed: AtomicBool,
    /// Microseconds since `began` when the client first did not take what is written; 0 while it does.
    /// Beside the phase, because a client that sends requests and reads no answer may be in any.
    stalled: AtomicU64,
    /// The connection's task. A task's waker is the same all its life, so it is stored once.
    waker: OnceLock<Waker>,
}

impl Clock {
    /// The clock of a connection that begins now and owes us a header.
    pub fn begin() -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            word: AtomicU64::new(0),
            asked: AtomicU8::new(0),
            unflushed: AtomicBool::new(false),
            stalled: AtomicU64::new(0),
            waker: OnceLock::new(),
        })
    }

    fn enter(&self, phase: Phase) {
        let micros = self.began.elapsed().as_micros() as u64;
        self.word.store(micros << 3 | phase as u64, Ordering::Relaxed);
    }

    /// Enters the one phase that has no deadline, and so needs no time.
    fn enter_busy(&self) {
        let word = self.word.load(Ordering::Relaxed);
        self.word.store(word & !7 | Phase::Busy as u64, Ordering::Relaxed);
    }

    fn phase(&self) -> Phase {
        Phase::of(self.word.load(Ordering::Relaxed))
    }

    fn is_asked(&self, what: u8) -> bool {
        self.asked.load(Ordering::Relaxed) & what != 0
    }

    fn ask(&self, what: u8) {
        if self.asked.fetch_or(what, Ordering::Relaxed) & what == 0
            && let Some(waker) = self.waker.get()
        {
            waker.wake_by_ref();
        }
    }

    /// The client owes us a header from now on.
    pub fn header_begins(&self) {
        self.enter(Phase::Header);
    }

    /// Does some work of this connection, unless the connection is told to close before it is done. Must
    /// be called on the connection's task.
    pub async fn unless_closed<T>(&self, mut work: impl Future<Output = T> + Unpin) -> Option<T> {
        poll_fn(|cx| {
            self.waker.get_or_init(|| cx.waker().clone());
            if self.is_asked(CLOSE) {
                return Poll::Ready(None);
            }
            Pin::new(&mut work).poll(cx).map(Some)
        })
        .await
    }

    /// The body of a request is awaited from now on.
    pub fn body_begins(&self) {
        self.enter(Phase::Body);
    }

    /// The body is here, or nobody waits for it any more.
    pub fn body_ends(&self) {
        self.asked.fetch_and(!OVERDUE_BODY, Ordering::Relaxed);
        self.enter_busy();
    }

    /// Whether the body's time is over.
    pub fn body_is_overdue(&self) -> bool {
        self.is_asked(OVERDUE_BODY)
    }

    /// The connection will end with bytes of the client unread. Closing at once would reset it, and
    /// the client might never see the answer.
    pub fn will_linger(&self) {
        self.asked.fetch_or(LINGER, Ordering::Relaxed);
    }

    fn note_write<T>(&self, written: &Poll<T>) {
        self.unflushed.store(true, Ordering::Relaxed);
        if written.is_pending() && self.stalled.load(Ordering::Relaxed) == 0 {
            let micros = self.began.elapsed().as_micros() as u64;
            self.stalled.store(micros.max(1), Ordering::Relaxed);
        }
    }

    fn note_flushed(&self) {
        self.unflushed.store(false, Ordering::Relaxed);
        self.stalled.store(0, Ordering::Relaxed);
    }

    /// Whether the connection has not brought its first request yet.
    pub fn is_fresh(&self) -> bool {
        self.word.load(Ordering::Relaxed) == Phase::Header as u64
    }

    /// Asks for an orderly end: the request under way is answered, an idle connection closes.
    pub fn finish(&self) {
        self.ask(FINISH);
    }

    /// Compares with the deadlines and asks for what is due. `ahead` is the time to the next sweep.
    pub fn sweep(&self, deadlines: &Deadlines, ahead: Duration) {
        // Asked to end, a connection owes nothing to a client that has sent half a header, and only
        // little time to one that does not take its last answer.
        let finishing = self.is_asked(FINISH);
        let word = self.word.load(Ordering::Relaxed);
        let idle = if finishing { deadlines.linger } else { deadlines.idle };
        let since = Duration::from_micros(word >> 3);
        let is_over = |since, limit| self.began.elapsed() + ahead >= since + limit;
        let is_due = |limit| is_over(since, limit);
        let stalled = self.stalled.load(Ordering::Relaxed);
        if stalled > 0 && is_over(Duration::from_micros(stalled), deadlines.body) {
            return self.ask(CLOSE);
        }
        match Phase::of(word) {
            Phase::Header if finishing || is_due(deadlines.header) => self.ask(CLOSE),
            Phase::Idle if is_due(idle) => self.ask(CLOSE),
            Phase::Idle if is_due(deadlines.park) => self.ask(PARK),
            Phase::Body if is_due(deadlines.body) => self.ask(OVERDUE_BODY),
            Phase::Linger if is_due(deadlines.linger) => self.ask(CLOSE),
            Phase::Header | Phase::Idle | Phase::Body | Phase::Busy | Phase::Linger => {}
        }
    }
}

/// What a connection needs of its socket.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

/// Serves one connection to its end.
pub async fn serve<S: Stream>(stream: S, clock: Arc<Clock>, edge: Arc<Edge>) {
    let mut parked = Watched { stream, clock: clock.clone(), ahead: Bytes::new() };
    loop {
        let wanted = poll_fn(|cx| {
            clock.waker.get_or_init(|| cx.waker().clone());
            if clock.is_asked(CLOSE) {
                return Poll::Ready(false);
            }
            // Asked to finish, it still answers a request that is here already.
            match parked.poll_first_bytes(cx) {
                Poll::Pending if clock.is_asked(FINISH) => Poll::Ready(false),
                first_bytes => first_bytes,
            }
        });
        if !wanted.await {
            return;
        }
        clock.asked.fetch_and(!PARK, Ordering::Relaxed);
        if let Some(taken) = express::take(&mut parked.ahead, &edge) {
            clock.enter_busy();
            let (answer, closing) = taken.answer(&edge).await;
            clock.enter(Phase::Idle);
            if !parked.send(&answer).await || closing {
                return;
            }
            continue;
        }
        if clock.phase() == Phase::Idle {
            clock.enter(Phase::Header);
        }
        // Boxed, so that a parked connection does not carry the room for an active one.
        match Box::pin(drive(parked, &clock, &edge)).await {
            Some(idle) => parked = idle,
            None => return,
        }
    }
}

/// Lets hyper serve the connection until it ends (`None`) or is to be parked.
async fn drive<S: Stream>(stream: Watched<S>, clock: &Arc<Clock>, edge: &Arc<Edge>) -> Option<Watched<S>> {
    let service = service_fn(move |request| {
        let (edge, clock) = (edge.clone(), clock.clone());
        async move {
            clock.enter_busy();
            let answer = edge.answer(request, &clock).await;
            clock.enter(Phase::Idle);
            answer
        }
    });
    let mut connection = http1::Builder::new()
        // The clock does this for less than a timer a request.
        .header_read_timeout(None)
        .max_header_size(MAX_HEADER_BYTES)
        // A client may end its side after its request and still wants the answer.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut finishing = false;
    let parks = poll_fn(|cx| {
        if clock.is_asked(CLOSE) {
            return Poll::Ready(false);
        }
        let mut polled = Pin::new(&mut connection).poll(cx);
        // Asked for behind a poll, so that a request that is here already has been read and is
        // answered.
        if polled.is_pending() && !finishing && clock.is_asked(FINISH) {
            finishing = true;
            Pin::new(&mut connection).graceful_shutdown();
            polled = Pin::new(&mut connection).poll(cx);
        }
        if let Poll::Ready(ended) = polled {
            if let Err(error) = ended {
                tracing::debug!(%error, "connection ended early");
            }
            return Poll::Ready(false);
        }
        if !clock.is_asked(PARK) {
            return Poll::Pending;
        }
        // Each poll ends with a flush, so nothing of the last answer is left unless the client does
        // not take it.
        if clock.phase() == Phase::Idle && !finishing && !clock.unflushed.load(Ordering::Relaxed) {
            return Poll::Ready(true);
        }
        clock.asked.fetch_and(!PARK, Ordering::Relaxed); // not idle after all
        Poll::Pending
    })
    .await;
    if !parks {
        return None;
    }
    let parts = connection.into_parts();
    let mut stream = parts.io.into_inner();
    stream.ahead = parts.read_buf;
    Some(stream)
}

/// A stream that tells its clock about first bytes, and that lingers when it is shut down.
struct Watched<S> {
    stream: S,
    clock: Arc<Clock>,
    /// Bytes already read, given out first.
    ahead: Bytes,
}

impl<S: AsyncWrite + Unpin> Watched<S> {
    /// Writes an answer; false when the connection is at its end before all of it is out.
    async fn send(&mut self, answer: &[u8]) -> bool {
        let mut sent = 0;
        poll_fn(|cx| {
            while sent < answer.len() {
                if self.clock.is_asked(CLOSE) {
                    return Poll::Ready(false);
                }
                let written = Pin::new(&mut self.stream).poll_write(cx, &answer[sent..]);
                if written.is_pending() {
                    self.clock.note_write(&written);
                }
                match ready!(written) {
                    Ok(0) | Err(_) => return Poll::Ready(false),
                    Ok(count) => sent += count,
                }
            }
            // TLS may still hold some of it back; a bare socket never does.
            let flushed = Pin::new(&mut self.stream).poll_flush(cx);
            if flushed.is_pending() {
                self.clock.note_write(&flushed);
            }
            if ready!(flushed).is_err() || self.clock.is_asked(CLOSE) {
                return Poll::Ready(false);
            }
            self.clock.note_flushed();
            Poll::Ready(true)
        })
        .await
    }
}

impl<S: AsyncRead + Unpin> Watched<S> {
    /// Waits for bytes with nothing but the stack to read them into; false when none will come.
    fn poll_first_bytes(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if !self.ahead.is_empty() {
            return Poll::Ready(true);
        }
        let mut first = [const { MaybeUninit::uninit() }; express::MAX_BYTES];
        let mut buf = ReadBuf::uninit(&mut first);
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf));
        self.ahead = Bytes::copy_from_slice(buf.filled());
        Poll::Ready(read.is_ok() && !self.ahead.is_empty())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let len = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead.split_to(len));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before && self.clock.phase() == Phase::Idle {
            self.clock.enter(Phase::Header);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.clock.note_write(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.clock.note_write(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.clock.note_flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.clock.phase() != Phase::Linger {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            if !self.clock.is_asked(LINGER) {
                return Poll::Ready(Ok(()));
            }
            self.clock.enter(Phase::Linger);
        }
        poll_throw_away(&mut self.stream, cx)
    }
}

/// Reads and forgets until the other side ends. In pieces, so that a fast sender does not hold the
/// thread.
fn poll_throw_away(stream: &mut (impl AsyncRead + Unpin), cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let mut scratch = [0u8; 16 * 1024];
    for _ in 0..16 {
        let mut buf = ReadBuf::new(&mut scratch);
        ready!(Pin::new(&mut *stream).poll_read(cx, &mut buf))?;
        if buf.filled().is_empty() {
            return Poll::Ready(Ok(()));
        }
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// Answers a connection there is no room for, and lets its client read that.
pub async fn turn_away<S>(mut stream: S, answer: Arc<[u8]>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    use tokio::io::AsyncWriteExt;
    if stream.write_all(&answer).await.is_ok() && stream.shutdown().await.is_ok() {
        // An error here only means that the client is gone already.
        let _ = poll_fn(|cx| poll_throw_away(&mut stream, cx)).await;
    }
}
