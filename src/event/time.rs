//! Time as the log keeps it (microseconds since the epoch) and as people and CloudEvents write it
//! (RFC 3339).
//!
//! Done by hand because it stands on the hot path (a rendered event and every archive line carry a
//! time) and because the grammar is RFC 3339's own, which general parsers widen.

use std::time::{SystemTime, UNIX_EPOCH};

/// Microseconds since the Unix epoch, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Micros(pub i64);

const MICROS_A_DAY: i64 = 86_400_000_000;
/// 0000-01-01T00:00:00Z and the last microsecond of the year 9999: what RFC 3339 can say.
const FIRST: i64 = -719_528 * MICROS_A_DAY;
const LAST: i64 = 2_932_897 * MICROS_A_DAY - 1;

/// Bytes of [`Micros::write_rfc3339`]'s text.
pub(crate) const RFC3339_LEN: usize = "2024-01-01T00:00:00.000000Z".len();

impl Micros {
    /// The wall clock. It may jump; nothing but times shown to people depends on it.
    pub fn now() -> Self {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => Self(i64::try_from(since.as_micros()).unwrap_or(i64::MAX)),
            Err(before) => Self(i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |m| -m)),
        }
    }

    /// Appends `2024-01-01T00:00:00.000000Z`. Times beyond RFC 3339's years 0 to 9999 are written as
    /// the nearest it has.
    pub fn write_rfc3339(self, out: &mut Vec<u8>) {
        let micros = self.0.clamp(FIRST, LAST);
        let days = micros.div_euclid(MICROS_A_DAY);
        let rest = micros.rem_euclid(MICROS_A_DAY) as u64;
        let (year, month, day) = civil_from_days(days);
        let (seconds, fraction) = (rest / 1_000_000, rest % 1_000_000);
        let mut text = *b"0000-00-00T00:00:00.000000Z";
        put(&mut text[0..4], year as u64);
        put(&mut text[5..7], month);
        put(&mut text[8..10], day);
        put(&mut text[11..13], seconds / 3600);
        put(&mut text[14..16], seconds / 60 % 60);
        put(&mut text[17..19], seconds % 60);
        put(&mut text[20..26], fraction);
        out.extend_from_slice(&text);
    }

    /// The same as a string.
    pub fn to_rfc3339(self) -> String {
        let mut text = Vec::with_capacity(RFC3339_LEN);
        self.write_rfc3339(&mut text);
        text.iter().map(|&b| char::from(b)).collect()
    }

    /// The UTC date (year, month, day) this moment falls on.
    pub fn date(self) -> (i64, u8, u8) {
        let (year, month, day) = civil_from_days(self.0.div_euclid(MICROS_A_DAY));
        (year, month as u8, day as u8)
    }

    /// Reads an RFC 3339 `date-time`, and nothing looser. Digits beyond the microsecond are cut off;
    /// a leap second counts as the second before it.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let b = text.as_bytes();
        if b.len() < 20 || b[4] != b'-' || b[7] != b'-' || !matches!(b[10], b'T' | b't') {
            return None;
        }
        if b[13] != b':' || b[16] != b':' {
            return None;
        }
        let (year, month, day) = (digits(&b[0..4])?, digits(&b[5..7])?, digits(&b[8..10])?);
        let (hour, minute, second) = (digits(&b[11..13])?, digits(&b[14..16])?, digits(&b[17..19])?);
        if !(1..=12).contains(&month) || day < 1 || day > days_in_month(year, month) {
            return None;
        }
        if hour > 23 || minute > 59 || second > 60 {
            return None;
        }
        let (fraction, zone) = split_fraction(&b[19..])?;
        let minutes = hour * 60 + minute - zone_minutes(zone)?;
        if second == 60 && minutes.rem_euclid(24 * 60) != 23 * 60 + 59 {
            return None;
        }
        let days = days_from_civil(year, month, day);
        let seconds = days * 86_400 + minutes * 60 + second.min(59);
        Some(Self(seconds * 1_000_000 + fraction))
    }
}

/// Splits `.123Z` into its microseconds and the zone behind them.
fn split_fraction(rest: &[u8]) -> Option<(i64, &[u8])> {
    let Some((b'.', after)) = rest.split_first() else { return Some((0, rest)) };
    let len = after.iter().take_while(|b| b.is_ascii_digit()).count();
    if len == 0 {
        return None;
    }
    let digits = after[..len].iter().map(|digit| i64::from(digit - b'0'));
    let micros = digits.chain(std::iter::repeat(0)).take(6).fold(0, |n, digit| n * 10 + digit);
    Some((micros, &after[len..]))
}

/// Minutes east of UTC that `Z` or `+hh:mm` stands for.
fn zone_minutes(zone: &[u8]) -> Option<i64> {
    match zone {
        [b'Z' | b'z'] => Some(0),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (digits(&[*h1, *h2])?, digits(&[*m1, *m2])?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let east = hours * 60 + minutes;
            Some(if *sign == b'+' { east } else { -east })
        }
        _ => None,
    }
}

fn digits(text: &[u8]) -> Option<i64> {
    text.iter().try_fold(0i64, |n, b| b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0')))
}

/// Writes `n` right-aligned over zeros.
fn put(text: &mut [u8], mut n: u64) {
    for place in text.iter_mut().rev() {
        *place = b'0' + (n % 10) as u8;
        n /= 10;
    }
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a date of the proleptic Gregorian calendar; years begin in March here,
/// so that the leap day is the last of its year.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The inverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, u64, u64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097) as u64;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era as i64 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_moments_are_written_and_read() {
        for (micros, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (-1, "1969-12-31T23:59:59.999999Z"),
            (951_782_400_123_456, "2000-02-29T00:00:00.123456Z"),
            (1_709_164_799_000_000, "2024-02-28T23:59:59.000000Z"),
            (FIRST, "0000-01-01T00:00:00.000000Z"),
            (LAST, "9999-12-31T23:59:59.999999Z"),
        ] {
            assert_eq!(Micros(micros).to_rfc3339(), text);
            assert_eq!(Micros::parse_rfc3339(text), Some(Micros(micros)));
        }
        assert_eq!(Micros(i64::MAX).to_rfc3339(), "9999-12-31T23:59:59.999999Z");
        assert_eq!(Micros(i64::MIN).to_rfc3339(), "0000-01-01T00:00:00.000000Z");
    }

    #[test]
    fn zones_fractions_and_leap_seconds_are_read() {
        let same = Micros::parse_rfc3339("2024-01-01T00:00:00Z");
        assert!(same.is_some());
        for text in [
            "2024-01-01t00:00:00z",
            "2024-01-01T02:00:00+02:00",
            "2023-12-31T19:30:00-04:30",
            "2024-01-01T00:00:00.0000004Z",
            "2024-01-01T00:00:00-00:00",
        ] {
            assert_eq!(Micros::parse_rfc3339(text), same, "{text}");
        }
        assert!(Micros::parse_rfc3339("2016-12-31T23:59:60Z").is_some());
        assert!(Micros::parse_rfc3339("2017-01-01T00:59:60+01:00").is_some());
    }

    #[test]
    fn what_rfc_3339_does_not_allow_is_refused() {
        for text in [
            "",
            "2024-01-01",
            "2024-01-01T00:00Z",
            "2024-01-01 00:00:00Z",
            "2024-01-01T00:00:00",
            "2024-01-01T00:00:00.Z",
            "2024-01-01T00:00:00+0100",
            "2024-01-01T00:00:00+24:00",
            "2024-13-01T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "2024-00-01T00:00:00Z",
            "2024-01-00T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T12:00:60Z",
            "2024-01-01T00:00:61Z",
            "2024-01-01T00:00:00ZZ",
            "+024-01-01T00:00:00Z",
            "２024-01-01T00:00:00Z",
        ] {
            assert_eq!(Micros::parse_rfc3339(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn every_moment_survives_the_round(micros in FIRST..=LAST) {
            prop_assert_eq!(Micros::parse_rfc3339(&Micros(micros).to_rfc3339()), Some(Micros(micros)));
        }

        #[test]
        fn parsing_agrees_with_jiff(micros in FIRST + MICROS_A_DAY..LAST - MICROS_A_DAY) {
            let text = Micros(micros).to_rfc3339();
            let other: jiff::Timestamp = text.parse().unwrap();
            prop_assert_eq!(other.as_microsecond(), micros);
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}") {
            let _ = Micros::parse_rfc3339(&text);
        }
    }
}
