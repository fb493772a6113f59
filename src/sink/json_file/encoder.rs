//! Writing a text in one of the forms that an archive's files have: as it is, or compressed.
//!
//! The one place that says how things are compressed, for finished archive files and for exports. On the caller's
//! thread; an error is the writer's own, and leaves half a file.

use std::io::{self, Write};

use flate2::write::GzEncoder;

use super::layout::Form;

/// A writer whose bytes get to the one below it in a form.
pub enum Encoder<W: Write> {
    /// As they are.
    Plain(W),
    /// Zstandard, with a checksum.
    Zstd(zstd::Encoder<'static, W>),
    /// Gzip.
    Gzip(GzEncoder<W>),
}

impl<W: Write> Encoder<W> {
    /// Begins to write to `below`.
    pub fn new(form: Form, below: W) -> io::Result<Self> {
        Ok(match form {
            Form::Plain => Self::Plain(below),
            Form::Zstd => {
                let mut encoder = zstd::Encoder::new(below, zstd::DEFAULT_COMPRESSION_LEVEL)?;
                encoder.include_checksum(true)?;
                Self::Zstd(encoder)
            }
            Form::Gzip => Self::Gzip(GzEncoder::new(below, flate2::Compression::default())),
        })
    }

    /// Ends the compression and hands back the writer below.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::Plain(below) => Ok(below),
            Self::Zstd(encoder) => encoder.finish(),
            Self::Gzip(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(below) => below.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(below) => below.flush(),
            Self::Zstd(encoder) => encoder.flush(),
            Self::Gzip(encoder) => encoder.flush(),
        }
    }
}
