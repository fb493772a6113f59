//! One event as one line of NDJSON, as the archive and the standard output sink write it.

use memchr::memchr2_iter;

use super::StoredEvent;
use super::time::RFC3339_LEN;

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
}
