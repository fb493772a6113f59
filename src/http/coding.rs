//! Content codings: gzip and zstd bodies, undone under a limit.
//!
//! Pure code on whole bodies; large ones are undone on the blocking pool by the caller. Output is
//! counted while it grows, so a bomb costs its limit and no more.

use std::io::{BufRead, Read};

use flate2::bufread::MultiGzDecoder;
use hyper::HeaderMap;
use hyper::header::CONTENT_ENCODING;

use super::body::Held;
use super::problem::{Problem, Slug};

/// How a body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// Not at all.
    Identity,
    /// gzip (RFC 1952), one member or several.
    Gzip,
    /// Zstandard (RFC 8878), one frame or several.
    Zstd,
}

/// The largest zstd window as a power of two: 8 MiB, what RFC 9659 asks every decoder to allow and
/// every encoder to keep to.
const ZSTD_WINDOW_LOG: u32 = 23;

impl Coding {
    /// The coding of a request's body. Unknown and stacked codings are refused.
    pub fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut all = headers.get_all(CONTENT_ENCODING).iter();
        let Some(value) = all.next() else { return Ok(Self::Identity) };
        let name = value.as_bytes().trim_ascii();
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        let coding = if is("") || is("identity") {
            Self::Identity
        } else if is("gzip") || is("x-gzip") {
            Self::Gzip
        } else if is("zstd") {
            Self::Zstd
        } else {
            return Err(unsupported());
        };
        if all.next().is_some() {
            return Err(unsupported());
        }
        Ok(coding)
    }

    /// Undoes the coding. `Ok(None)` when the result would be longer than `limit`.
    pub fn undo(self, body: &[u8], limit: usize, held: &mut Held) -> Result<Option<Vec<u8>>, Problem> {
        match self {
            Self::Identity => Ok((body.len() <= limit).then(|| body.to_vec())),
            Self::Gzip => read_bounded(MultiGzDecoder::new(body), limit, held),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(body).map_err(broken)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(broken)?;
                read_bounded(decoder, limit, held)
            }
        }
    }
}

fn unsupported() -> Problem {
    Problem::new(Slug::UnsupportedMediaType, "Content-Encoding must be one of gzip, zstd, identity")
}

fn broken(error: std::io::Error) -> Problem {
    Problem::new(Slug::Malformed, format!("the body does not decode as its Content-Encoding says: {error}"))
}

fn read_bounded(source: impl Read, limit: usize, held: &mut Held) -> Result<Option<Vec<u8>>, Problem> {
    let mut source = std::io::BufReader::with_capacity(32 * 1024, source);
    let mut out = Vec::new();
    loop {
        let piece = source.fill_buf().map_err(broken)?;
        let len = piece.len();
        if len == 0 {
            return Ok(Some(out));
        }
        if out.len() + len > limit {
            return Ok(None);
        }
        held.grow(len as u64)?;
        out.extend_from_slice(piece);
        source.consume(len);
    }
}

#[cfg(test)]
mod tests {
    use super::super::body::Budget;
    use super::*;
    use std::io::Write;
    use std::sync::Arc;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn undo(coding: Coding, body: &[u8], limit: usize) -> Result<Option<Vec<u8>>, Problem> {
        coding.undo(body, limit, &mut Budget::new(1 << 30).hold())
    }

    #[test]
    fn both_codings_are_undone_also_in_several_parts() {
        let text = b"hello, hello, hello".repeat(1000);
        let zstd = |text: &[u8]| zstd::encode_all(text, 3).unwrap();
        for (coding, one) in [(Coding::Gzip, gzip(&text)), (Coding::Zstd, zstd(&text))] {
            assert_eq!(undo(coding, &one, text.len()), Ok(Some(text.clone())));
            assert_eq!(undo(coding, &one, text.len() - 1), Ok(None));
            let two = [&one[..], &one[..]].concat();
            assert_eq!(undo(coding, &two, 1 << 20), Ok(Some(text.repeat(2))));
            for cut in [1, 5, one.len() / 2, one.len() - 1] {
                assert!(undo(coding, &one[..cut], 1 << 20).is_err(), "{coding:?} cut at {cut}");
            }
            let rubbish = [&one[..], b"rubbish behind it"].concat();
            assert!(undo(coding, &rubbish, 1 << 20).is_err(), "{coding:?}");
            assert!(undo(coding, b"not at all", 1 << 20).is_err());
        }
    }

    #[test]
    fn a_bomb_costs_its_limit_and_is_counted() {
        let zeros = vec![0u8; 64 << 20];
        for (coding, bomb) in
            [(Coding::Gzip, gzip(&zeros)), (Coding::Zstd, zstd::encode_all(&zeros[..], 1).unwrap())]
        {
            assert_eq!(undo(coding, &bomb, 1 << 20), Ok(None));
            let budget: Arc<Budget> = Budget::new(100_000);
            let refused = coding.undo(&bomb, 1 << 20, &mut budget.hold());
            assert_eq!(refused.unwrap_err().slug(), Slug::Overloaded);
            assert_eq!(budget.held(), 0);
        }
    }

    #[test]
    fn unknown_and_stacked_codings_are_refused() {
        let of = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(CONTENT_ENCODING, value.parse().unwrap());
            }
            Coding::of(&headers).map_err(|p| p.slug())
        };
        assert_eq!(of(&[]), Ok(Coding::Identity));
        assert_eq!(of(&["identity"]), Ok(Coding::Identity));
        assert_eq!(of(&["GZIP"]), Ok(Coding::Gzip));
        assert_eq!(of(&["x-gzip"]), Ok(Coding::Gzip));
        assert_eq!(of(&["zstd"]), Ok(Coding::Zstd));
        for values in [&["br"][..], &["gzip, gzip"], &["gzip", "gzip"], &["deflate"], &["identity", "gzip"]] {
            assert_eq!(of(values), Err(Slug::UnsupportedMediaType), "{values:?}");
        }
    }
}
