//! One event as one line of NDJSON, as the archive and the standard output sink write it; and such a line
//! read again.

use memchr::memchr2_iter;

use super::cloudevent::members;
use super::time::RFC3339_LEN;
use super::{Micros, StoredEvent};

/// Appends the event as one line: its text, then its offset and the time of its acceptance as the
/// attributes `eventflowoffset` and `eventflowtime`, then a newline.
///
/// Valid JSON has line breaks only between tokens (inside strings they are escaped), so turning them
/// into spaces changes no value. An accepted event has at least its required attributes and never the
/// two added here, so the comma and the names are always right.
pub fn write_archive_line(out: &mut Vec<u8>, event: StoredEvent<'_>) {
    debug_assert!(event.json.first() == Some(&b'{') && event.json.last() == Some(&b'}'));
    let body = event.json.strip_suffix(b"}").unwrap_or(event.json);
    out.reserve(body.len() + RFC3339_LEN + 64);
    let start = out.len();
    out.extend_from_slice(body);
    for at in memchr2_iter(b'\n', b'\r', body) {
        out[start + at] = b' ';
    }
    out.extend_from_slice(b",\"eventflowoffset\":\"");
    push_decimal(out, event.offset);
    out.extend_from_slice(b"\",\"eventflowtime\":\"");
    event.accepted_at.write_rfc3339(out);
    out.extend_from_slice(b"\"}\n");
}

/// Appends `n` in decimal.
fn push_decimal(out: &mut Vec<u8>, mut n: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// What the archive added to an event's line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp<'a> {
    /// The event's offset.
    pub offset: u64,
    /// Its time of acceptance, RFC 3339.
    pub time: &'a str,
    /// Bytes of the line before the stamp: the event's text without its closing brace.
    pub text_bytes: usize,
}

impl Stamp<'_> {
    /// The time of acceptance as an instant.
    pub fn accepted_at(&self) -> Option<Micros> {
        Micros::parse_rfc3339(self.time)
    }
}

/// Reads the stamp off the end of a line, without reading the line: an archive line ends in
/// `"eventflowoffset":"<digits>","eventflowtime":"<time>"}`. `None` when this one does not.
pub fn stamp(line: &[u8]) -> Option<Stamp<'_>> {
    const OFFSET: &[u8] = b",\"eventflowoffset\":\"";
    const TIME: &[u8] = b"\",\"eventflowtime\":\"";
    const MOST_DIGITS: usize = 20;
    let line = line.strip_suffix(b"\"}")?;
    let (before, time) = line.split_at(memchr::memrchr(b'"', line)? + 1);
    let before = before.strip_suffix(TIME)?;
    let digits = before.iter().rev().take(MOST_DIGITS).take_while(|byte| byte.is_ascii_digit()).count();
    let (text, offset) = before.split_at(before.len() - digits);
    let offset = std::str::from_utf8(offset).ok()?.parse().ok()?;
    let time = std::str::from_utf8(time).ok()?;
    Some(Stamp { offset, time, text_bytes: text.strip_suffix(OFFSET)?.len() })
}

/// The attribute that a replayed event has in addition.
pub const REPLAY: &str = "eventflowreplay";

/// Appends an archived event as a replay hands it to a sink: its text as it was accepted, marked with
/// `"eventflowreplay":"true"` unless it came with that mark. `None`, and nothing appended, when the line
/// is no whole event.
pub fn write_replayed(out: &mut Vec<u8>, line: &[u8], stamp: &Stamp<'_>) -> Option<()> {
    let start = out.len();
    out.extend_from_slice(line.get(..stamp.text_bytes)?);
    out.push(b'}');
    let members = std::str::from_utf8(&out[start..]).ok().and_then(|text| members(text).ok());
    let Some(is_marked) = members.map(|members| members.iter().any(|(name, _)| name == REPLAY)) else {
        out.truncate(start);
        return None;
    };
    if !is_marked {
        out.pop();
        out.extend_from_slice(b",\"");
        out.extend_from_slice(REPLAY.as_bytes());
        out.extend_from_slice(b"\":\"true\"}");
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Micros;

    fn line(json: &str, offset: u64) -> String {
        let mut out = b"before\n".to_vec();
        write_archive_line(&mut out, StoredEvent { offset, accepted_at: Micros(0), json: json.as_bytes() });
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_is_the_event_with_its_offset_and_time() {
        assert_eq!(
            line(r#"{"id":"1","data":{"b":1,"a":1e999}}"#, 18_446_744_073_709_551_615),
            "before\n{\"id\":\"1\",\"data\":{\"b\":1,\"a\":1e999},\"eventflowoffset\":\"18446744073709551615\",\
             \"eventflowtime\":\"1970-01-01T00:00:00.000000Z\"}\n"
        );
        assert!(line("{\"id\":\"1\"}", 0).contains("\"eventflowoffset\":\"0\""));
    }

    #[test]
    fn line_breaks_between_tokens_become_spaces() {
        assert_eq!(
            line("{\r\n \"id\": \"a\\nb\"\n}", 7),
            "before\n{   \"id\": \"a\\nb\" ,\"eventflowoffset\":\"7\",\
             \"eventflowtime\":\"1970-01-01T00:00:00.000000Z\"}\n"
        );
    }

    #[test]
    fn a_replayed_line_is_the_accepted_text_with_a_mark_and_never_two() {
        let replayed = |json: &str| {
            let line = line(json, 42).split_off(7);
            let line = line.trim_end().as_bytes();
            let stamp = stamp(line).unwrap();
            assert_eq!((stamp.offset, stamp.accepted_at()), (42, Some(Micros(0))));
            let mut out = b"before".to_vec();
            write_replayed(&mut out, line, &stamp).map(|()| String::from_utf8(out.split_off(6)).unwrap())
        };
        let text = r#"{"id":"1","data":{"eventflowreplay":1,"eventflowoffset":"7"}}"#;
        assert_eq!(
            replayed(text).unwrap(),
            r#"{"id":"1","data":{"eventflowreplay":1,"eventflowoffset":"7"},"eventflowreplay":"true"}"#
        );
        let marked = r#"{"id":"1","eventflowreplay":"true"}"#;
        assert_eq!(replayed(marked).unwrap(), marked);
        assert_eq!(replayed(r#"{"id":"1","data":[}"#), None, "a damaged line is no event");
    }
}
