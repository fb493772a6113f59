//! Sizes as `64MiB`, durations as `30s`: read, and written so that they read back the same.
//!
//! Pure code.

use std::time::Duration;

pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;
pub(super) const TIB: u64 = 1 << 40;

const SIZES: &[(&str, u64)] = &[("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB), ("B", 1)];
const TIMES: &[(&str, u64)] = &[
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Bytes from `64MiB`, `1.5 GB` or a bare number of bytes.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    text.trim().parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64())
}

/// A duration from `30s`, `1d` or `1m 30s`.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    humantime::parse_duration(text.trim()).ok()
}

/// `bytes` in the largest unit that holds it exactly.
pub(super) fn show_size(bytes: u64) -> String {
    in_largest(bytes, SIZES, "B")
}

/// `duration` in the largest unit that holds it exactly.
pub(super) fn show_duration(duration: Duration) -> String {
    in_largest(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX), TIMES, "s")
}

fn in_largest(value: u64, units: &[(&str, u64)], zero: &str) -> String {
    match units.iter().find(|(_, unit)| value != 0 && value.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("{}{name}", value / unit),
        None => format!("{value}{zero}"),
    }
}
