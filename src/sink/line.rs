//! Stand-in for `event::write_archive_line` until it is there.
use crate::event::StoredEvent;

pub(crate) fn write_archive_line(out: &mut Vec<u8>, event: StoredEvent<'_>) {
    let body = &event.json[..event.json.len().saturating_sub(1)];
    out.extend(body.iter().copied().filter(|b| !matches!(b, b'\n' | b'\r')));
    let time = jiff::Timestamp::from_microsecond(event.accepted_at.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    out.extend_from_slice(
        format!(",\"eventflowoffset\":\"{}\",\"eventflowtime\":\"{time:.6}\"}}\n", event.offset).as_bytes(),
    );
}
