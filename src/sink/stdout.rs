//! Events on standard output, one archive line each; for pipes and for looking.
//!
//! Runs on its worker's thread and blocks there while the reader of the pipe is slow. When nobody
//! reads any more (`EPIPE`), the sink is unavailable and its events stay in the log. At least once:
//! a batch whose writing broke off is written again from its start.

use std::io::{self, Write};

use crate::event::write_archive_line;

use super::{Batch, DeliverFuture, Delivery, Sink, Unavailable};

/// Writes each event as one line.
pub struct Stdout {
    out: Box<dyn Write + Send>,
    buffer: Vec<u8>,
}

impl Stdout {
    /// A sink on the process's standard output.
    pub fn new() -> Self {
        Self::to(Box::new(io::stdout()))
    }

    /// A sink on any writer.
    pub fn to(out: Box<dyn Write + Send>) -> Self {
        Self { out, buffer: Vec::new() }
    }
}

impl Default for Stdout {
    fn default() -> Self {
        Self::new()
    }
}

impl Sink for Stdout {
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliverFuture<'a> {
        self.buffer.clear();
        for event in batch.events.iter() {
            write_archive_line(&mut self.buffer, event);
        }
        let written = self.out.write_all(&self.buffer).and_then(|()| self.out.flush());
        let outcome = match written {
            Ok(()) => Ok(Delivery::default()),
            Err(error) => Err(Unavailable {
                reason: format!("writing to standard output failed: {error}"),
                retry_after: None,
            }),
        };
        Box::pin(std::future::ready(outcome))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use bytes::Bytes;

    use super::*;
    use crate::event::{Micros, StoredBatch};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic while held").write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn batch() -> Batch {
        let mut events = StoredBatch::over(Bytes::from_static(br#"{"id":"a"}{"id":"b"}"#));
        events.push(4, Micros(0), 0..10);
        events.push(5, Micros(0), 10..20);
        Batch { events, voids: Vec::new() }
    }

    fn deliver(sink: &mut Stdout) -> Result<Delivery, Unavailable> {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime needs no resources here")
            .block_on(sink.deliver(&batch()))
    }

    #[test]
    fn each_event_is_one_line_with_its_offset() {
        let out = Shared::default();
        deliver(&mut Stdout::to(Box::new(out.clone()))).unwrap();
        let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        let offsets: Vec<String> = text
            .lines()
            .map(|line| {
                let value: serde_json::Value = serde_json::from_str(line).unwrap();
                value["eventflowoffset"].as_str().unwrap().to_owned()
            })
            .collect();
        assert_eq!(offsets, ["4", "5"]);
    }

    #[test]
    fn a_closed_pipe_makes_the_sink_unavailable_and_blames_no_event() {
        let refused = deliver(&mut Stdout::to(Box::new(Closed))).unwrap_err();
        assert!(refused.reason.contains("standard output"), "{}", refused.reason);
    }
}
