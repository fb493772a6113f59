//! Log lines for systemd's journal, with priority and fields, when it is where standard error leads.
//!
//! On the thread that logs; one datagram a line in the journal's native protocol. The text has the fields as
//! everywhere, for people; each is a field of its own besides (`journalctl EVENTFLOW_SINK=orders`). When the
//! journal cannot be reached the line goes to standard error; when it does not take it within a second the
//! line is lost, because no log line is worth standing still. Facts: systemd.journal-fields(7),
//! <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>.

use std::fmt::{Debug, Write as _};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

const SOCKET: &str = "/run/systemd/journal/socket";
/// What a datagram surely takes; longer values are cut.
const MOST_BYTES: usize = 64 << 10;
/// How long a line may wait for the journal.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether standard error is the journal's stream: systemd says which one it made.
pub(super) fn is_where_stderr_leads() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from);
    let Ok(found) = stderr.and_then(|stderr| stderr.metadata()) else { return false };
    stream.to_str() == Some(format!("{}:{}", found.dev(), found.ino()).as_str())
}

/// Writes to the journal.
pub(super) struct Journal {
    socket: UnixDatagram,
}

impl Journal {
    pub(super) fn open() -> io::Result<Journal> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Journal { socket })
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line::default();
        event.record(&mut line);
        let datagram = line.datagram(event.metadata());
        // By name each time: the journal may have been restarted.
        match self.socket.send_to(&datagram, SOCKET) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(_) => {
                let priority = priority(event.metadata().level());
                let _ = writeln!(io::stderr(), "<{priority}>{}{}", line.message, line.text);
            }
        }
    }
}

/// As syslog counts.
fn priority(level: &Level) -> u8 {
    match *level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// A line while its fields come in.
#[derive(Default)]
struct Line {
    message: String,
    /// The fields as people read them.
    text: String,
    /// The fields as the journal takes them.
    fields: Vec<u8>,
}

impl Line {
    fn datagram(&self, metadata: &Metadata<'_>) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + self.text.len() + self.fields.len());
        field(&mut out, "MESSAGE", &format!("{}{}", self.message, self.text));
        field(&mut out, "PRIORITY", &priority(metadata.level()).to_string());
        field(&mut out, "SYSLOG_IDENTIFIER", "eventflow");
        field(&mut out, "EVENTFLOW_TARGET", metadata.target());
        if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
            field(&mut out, "CODE_FILE", file);
            field(&mut out, "CODE_LINE", &line.to_string());
        }
        out.extend_from_slice(&self.fields);
        out
    }

    fn add(&mut self, name: &Field, value: &str) {
        if name.name() == "message" {
            return self.message.push_str(cut(value, MOST_BYTES / 4));
        }
        if self.fields.len() >= MOST_BYTES {
            return;
        }
        let value = cut(value, MOST_BYTES / 4);
        let plain = !value.is_empty() && value.bytes().all(|b| b.is_ascii_graphic() && b != b'"');
        let _ = match plain {
            true => write!(self.text, " {name}={value}"),
            false => write!(self.text, " {name}={value:?}"),
        };
        let known = name.name().bytes().map(|b| if b.is_ascii_alphanumeric() { b } else { b'_' });
        let known: String = known.map(|b| char::from(b.to_ascii_uppercase())).collect();
        field(&mut self.fields, &format!("EVENTFLOW_{known}"), value);
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field, &format!("{value:?}"));
    }
}

/// One field; a value of several lines is preceded by its length.
fn field(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value.as_bytes());
    out.push(b'\n');
}

/// The beginning of a text, whole characters of it.
fn cut(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Keeps what would be sent.
    #[derive(Clone, Default)]
    struct Sent(Arc<Mutex<Vec<u8>>>);

    impl<S: Subscriber> Layer<S> for Sent {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let mut line = Line::default();
            event.record(&mut line);
            *self.0.lock().unwrap() = line.datagram(event.metadata());
        }
    }

    fn sent(log: impl FnOnce()) -> String {
        let layer = Sent::default();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer.clone()), log);
        String::from_utf8_lossy(&layer.0.lock().unwrap()).into_owned()
    }

    #[test]
    fn a_line_has_its_text_its_priority_and_each_field() {
        let text =
            sent(|| tracing::warn!(sink = "orders", events = 7, reason = "no such host", "sink unavailable"));
        for line in [
            "MESSAGE=sink unavailable sink=orders events=7 reason=\"no such host\"",
            "PRIORITY=4",
            "EVENTFLOW_SINK=orders",
            "EVENTFLOW_EVENTS=7",
            "EVENTFLOW_REASON=no such host",
            "SYSLOG_IDENTIFIER=eventflow",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn no_value_can_pass_for_a_field_and_none_is_too_long() {
        let text = sent(|| tracing::error!(reason = "one\nPRIORITY=0", "failed"));
        assert!(text.contains("MESSAGE=failed reason=\"one\\nPRIORITY=0\"\n"), "{text}");
        assert!(text.contains("EVENTFLOW_REASON\n\u{e}\0\0\0\0\0\0\0one\nPRIORITY=0\n"), "{text:?}");
        let long = "ä".repeat(MOST_BYTES);
        assert!(sent(|| tracing::info!(a = long, b = long, c = long, "{long}")).len() < 3 * MOST_BYTES);
    }
}
