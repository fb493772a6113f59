//! Reads ahead: a thread decompresses the next pieces of a file while the lines of this one are handed out.
//!
//! The thread ends with its file, or when nobody wants more of it. A few pieces are on their way at most,
//! so memory does not grow with the file. What fails there fails here, in its place.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, sync_channel};

/// Bytes of a piece.
const PIECE_BYTES: usize = 512 << 10;
/// Pieces that wait.
const PIECES: usize = 4;

/// The bytes of a reader that is read on a thread of its own.
pub(super) struct Ahead {
    pieces: Receiver<io::Result<Vec<u8>>>,
    piece: Vec<u8>,
    taken: usize,
}

impl Ahead {
    /// Begins to read; without a thread to be had, that is the error.
    pub fn start(mut reader: Box<dyn Read + Send>) -> io::Result<Self> {
        let (send, pieces) = sync_channel(PIECES);
        std::thread::Builder::new().name("read-ahead".to_owned()).spawn(move || {
            loop {
                let piece = next_piece(&mut *reader);
                let is_last = !matches!(&piece, Ok(piece) if !piece.is_empty());
                // Nobody wants more: whoever read these lines has gone on to another file.
                if send.send(piece).is_err() || is_last {
                    return;
                }
            }
        })?;
        Ok(Self { pieces, piece: Vec::new(), taken: 0 })
    }
}

/// A whole piece, but for the last one; an empty one is the end. What was read before an error comes
/// before it.
fn next_piece(reader: &mut (dyn Read + Send)) -> io::Result<Vec<u8>> {
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    match reader.take(PIECE_BYTES as u64).read_to_end(&mut piece) {
        Err(error) if piece.is_empty() => Err(error),
        _ => Ok(piece), // an error that lasts comes again
    }
}

impl Read for Ahead {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.piece.len() {
            // A thread that is gone has said its last word.
            self.piece = self.pieces.recv().unwrap_or_else(|_| Ok(Vec::new()))?;
            self.taken = 0;
        }
        let rest = &self.piece[self.taken..];
        let count = rest.len().min(into.len());
        into[..count].copy_from_slice(&rest[..count]);
        self.taken += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in odd portions, then fails or ends.
    struct Odd {
        left: usize,
        fails: bool,
    }

    impl Read for Odd {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            if self.left == 0 && self.fails {
                return Err(io::Error::other("broken"));
            }
            let count = self.left.min(into.len()).min(7777);
            into[..count].fill(b'x');
            self.left -= count;
            Ok(count)
        }
    }

    #[test]
    fn everything_comes_in_order_and_a_failure_behind_what_was_read_before_it() {
        for length in [0, 1, PIECE_BYTES, 3 * PIECE_BYTES + 5] {
            for fails in [false, true] {
                let mut ahead = Ahead::start(Box::new(Odd { left: length, fails })).unwrap();
                let mut all = Vec::new();
                let read = ahead.read_to_end(&mut all);
                assert_eq!((all.len(), read.is_err()), (length, fails));
            }
        }
    }

    #[test]
    fn whoever_wants_no_more_stops_it() {
        let mut ahead = Ahead::start(Box::new(Odd { left: usize::MAX, fails: false })).unwrap();
        assert_eq!(ahead.read(&mut [0; 10]).unwrap(), 10);
        drop(ahead); // the thread ends by itself; a leak would show as one in `cargo test`'s process
    }
}
