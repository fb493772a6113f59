//! Reading an object in the spelling nearly every sender uses: one pass over its bytes, in half the time
//! of the general reader.
//!
//! Pure code. Strict: what is taken here is valid JSON, nested no deeper than an item may be, and holds
//! no `\u` escape, so nothing of it needs another look. What is not taken is not refused: the general
//! reader (`cloudevent`) says what is wrong with it, if anything is.

use std::borrow::Cow;

use super::cloudevent::{MAX_DEPTH, Member};

/// Collects the members of an object whose names, and whose values where they are strings, hold no
/// escapes. `None`, and anything in `members`, for every other text.
pub(super) fn members_in_common_spelling<'a>(text: &'a str, members: &mut Vec<Member<'a>>) -> Option<()> {
    let bytes = text.as_bytes();
    let mut at = 0;
    let mut before = b'{';
    loop {
        at = after(bytes, at, before)?;
        let name_end = end_of_plain_string(bytes, at)?;
        let name = &text[at + 1..name_end];
        let start = after(bytes, name_end + 1, b':')?;
        let end = match bytes.get(start)? {
            b'"' => end_of_plain_string(bytes, start)? + 1,
            _ => end_of_value(bytes, start)?,
        };
        members.push((Cow::Borrowed(name), &text[start..end]));
        if let Some(last) = after(bytes, end, b'}') {
            return (last == bytes.len()).then_some(());
        }
        (at, before) = (end, b',');
    }
}

/// The brackets that are open within a member's value; a bit each, set for an object.
#[derive(Default)]
struct Open {
    kinds: u128,
    depth: usize,
}

impl Open {
    /// `None` when that is deeper than an item may be; the item's own bracket counts.
    fn push(&mut self, is_object: bool) -> Option<()> {
        self.kinds = self.kinds << 1 | u128::from(is_object);
        self.depth += 1;
        (self.depth < MAX_DEPTH).then_some(())
    }

    fn pop(&mut self) {
        self.kinds >>= 1;
        self.depth -= 1;
    }

    /// Whether the innermost is an object; `None` when none is open.
    fn innermost(&self) -> Option<bool> {
        (self.depth > 0).then_some(self.kinds & 1 == 1)
    }
}

/// Where the value that begins at `at` ends.
fn end_of_value(bytes: &[u8], mut at: usize) -> Option<usize> {
    let mut open = Open::default();
    loop {
        at = match bytes.get(at)? {
            b'"' => end_of_string(bytes, at)? + 1,
            bracket @ (b'{' | b'[') => {
                let is_object = *bracket == b'{';
                open.push(is_object)?;
                let inside = skip(bytes, at + 1);
                if *bytes.get(inside)? != if is_object { b'}' } else { b']' } {
                    at = if is_object { value_of_member(bytes, inside)? } else { inside };
                    continue;
                }
                open.pop();
                inside + 1
            }
            b'-' | b'0'..=b'9' => end_of_number(bytes, at)?,
            _ => end_of_word(bytes, at)?,
        };
        // A value is complete, and perhaps what it stands in.
        loop {
            let Some(is_object) = open.innermost() else { return Some(at) };
            at = skip(bytes, at);
            match (bytes.get(at)?, is_object) {
                (b',', true) => at = value_of_member(bytes, skip(bytes, at + 1))?,
                (b',', false) => at = skip(bytes, at + 1),
                (b'}', true) | (b']', false) => {
                    open.pop();
                    at += 1;
                    continue;
                }
                _ => return None,
            }
            break;
        }
    }
}

/// Where the value of the member whose name begins at `at` begins.
fn value_of_member(bytes: &[u8], at: usize) -> Option<usize> {
    after(bytes, end_of_string(bytes, at)? + 1, b':')
}

fn end_of_word(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    let word = [&b"true"[..], b"false", b"null"].into_iter().find(|word| rest.starts_with(word))?;
    Some(at + word.len())
}

/// Where a number ends: an integer without leading zeros, then perhaps a fraction and an exponent.
fn end_of_number(bytes: &[u8], at: usize) -> Option<usize> {
    let digits = |at: usize| {
        let count = bytes.get(at..)?.iter().take_while(|b| b.is_ascii_digit()).count();
        (count > 0).then_some(at + count)
    };
    let start = at + usize::from(bytes[at] == b'-');
    let mut end = digits(start)?;
    if bytes[start] == b'0' && end > start + 1 {
        return None;
    }
    if bytes.get(end) == Some(&b'.') {
        end = digits(end + 1)?;
    }
    if let Some(b'e' | b'E') = bytes.get(end) {
        let signed = matches!(bytes.get(end + 1), Some(b'+' | b'-'));
        end = digits(end + 1 + usize::from(signed))?;
    }
    Some(end)
}

/// The first position from `at` on that is no white space.
fn skip(bytes: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = bytes.get(at) {
        at += 1;
    }
    at
}

/// The first position behind `mark` that is no white space, if `mark` is what comes at `at`.
fn after(bytes: &[u8], at: usize, mark: u8) -> Option<usize> {
    let at = skip(bytes, at);
    (bytes.get(at) == Some(&mark)).then(|| skip(bytes, at + 1))
}

/// The position of the quote that ends the string beginning at `start`; `None` when there is none, or
/// an escape or a control character before it.
fn end_of_plain_string(bytes: &[u8], start: usize) -> Option<usize> {
    if bytes.get(start) != Some(&b'"') {
        return None;
    }
    let stop = stop_of_string(bytes, start + 1)?;
    (bytes[stop] == b'"').then_some(stop)
}

/// The same, over escapes of one character.
fn end_of_string(bytes: &[u8], start: usize) -> Option<usize> {
    if bytes.get(start) != Some(&b'"') {
        return None;
    }
    let mut stop = stop_of_string(bytes, start + 1)?;
    while bytes[stop] != b'"' {
        match (bytes[stop], bytes.get(stop + 1)?) {
            (b'\\', b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {}
            _ => return None,
        }
        stop = stop_of_string(bytes, stop + 2)?;
    }
    Some(stop)
}

/// The first quote, backslash or control character from `at` on.
fn stop_of_string(bytes: &[u8], mut at: usize) -> Option<usize> {
    const ONES: u64 = u64::MAX / 255;
    const HIGHS: u64 = ONES << 7;
    // Eight at a time: the lowest byte whose high bit is set in `stops` is one that stops.
    while let Some(eight) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        let word = u64::from_le_bytes(*eight);
        let is = |byte: u8| {
            let zero = word ^ (ONES * u64::from(byte));
            zero.wrapping_sub(ONES) & !zero
        };
        let control = word.wrapping_sub(ONES * 0x20) & !word;
        let stops = (is(b'"') | is(b'\\') | control) & HIGHS;
        if stops != 0 {
            return Some(at + stops.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    let stop = bytes.get(at..)?.iter().position(|b| matches!(b, b'"' | b'\\' | ..0x20))?;
    Some(at + stop)
}
