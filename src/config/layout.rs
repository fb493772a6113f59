//! How the directories of an archive are named by dates. Pure code.
//!
//! The digits of a directory's path are its date, and a layout has no others: year, month and day once each, in this
//! order. So a path tells by itself which day it is of and which layout made it. No directory can be read as another
//! day by another layout, and whoever finds one that the configured layout did not make knows what was configured.

use std::fmt;
use std::sync::Arc;

/// The longest layout, in bytes. A name may have 255, and a date is two bytes longer than what stands for it.
const LONGEST: usize = 200;

/// A valid layout: up to three directories with a date in their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout(Arc<str>);

impl Layout {
    /// Directories below each other that a layout makes at most: each has a part of the date.
    pub const MAX_DEPTH: usize = 3;

    /// What a mistake says.
    pub(super) const WANTED: &str = "it must be up to three directories such as \"%Y/%m/%d\" or \
        \"year=%Y/month=%m/day=%d\", 200 bytes at most: %Y, %m and %d once each, in this order, at least one of them in \
        each directory; besides them letters, `-`, `_`, `=` and `.`, and a directory begins with a letter or the date";

    /// Reads a layout; `None` when it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let (before, rest) = text.split_once("%Y")?;
        let (between, rest) = rest.split_once("%m")?;
        let (behind, end) = rest.split_once("%d")?;
        let is_literal = |b: u8| b.is_ascii_alphabetic() || matches!(b, b'-' | b'_' | b'=' | b'.' | b'/');
        let is_name = |dir: &str| {
            dir.contains('%') && dir.starts_with(|first: char| first == '%' || first.is_ascii_alphabetic())
        };
        let fits = text.len() <= LONGEST
            && [before, between, behind, end].iter().all(|literal| literal.bytes().all(is_literal))
            && text.split('/').all(is_name);
        fits.then(|| Self(text.into()))
    }

    /// What a directory says by its path: the layout that makes it, with year, month and day, whether there is
    /// such a day or not. `None` when no layout makes it.
    pub fn read(dir: &str) -> Option<(Self, [&str; 3])> {
        let (mut rest, mut layout, mut date) = (dir, String::new(), [""; 3]);
        for ((part, digits), value) in [("%Y", 4), ("%m", 2), ("%d", 2)].into_iter().zip(&mut date) {
            let (literal, from) = rest.split_at(rest.find(|c: char| c.is_ascii_digit())?);
            (*value, rest) = from.split_at_checked(digits)?;
            if !value.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            layout.extend([literal, part]);
        }
        layout.push_str(rest);
        Some((Self::parse(&layout)?, date))
    }

    /// The directory of a date, its years of four digits.
    pub fn dir(&self, year: u16, month: u8, day: u8) -> String {
        let text = self.0.replace("%Y", &format!("{year:04}")).replace("%m", &format!("{month:02}"));
        text.replace("%d", &format!("{day:02}"))
    }
}

impl Default for Layout {
    fn default() -> Self {
        Self("%Y/%m/%d".into())
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_has_the_date_once_in_order_and_nothing_that_could_be_taken_for_one_or_lead_elsewhere() {
        for good in
            ["%Y/%m/%d", "%Y-%m-%d", "%Y%m%d", "%Y/%m-%d", "year=%Y/month=%m/day=%d", "v_%Y.%m.%d-utc"]
        {
            assert_eq!(Layout::parse(good).map(|layout| layout.to_string()).as_deref(), Some(good));
        }
        let long = |filling: usize| format!("{}%Y%m%d", "x".repeat(filling));
        assert!(Layout::parse(&long(LONGEST - 6)).is_some());
        for bad in [
            "",
            "%Y",
            "%Y/%m",
            "%m/%d",
            "%Y/%m/%d/%d",
            "%Y/%Y/%m/%d",
            "%d-%m-%Y",
            "%Y/%d/%m",
            "%Y/%m/%d/%H",
            "%y/%m/%d",
            "%Y/%m/%d%",
            "%%Y/%m/%d",
            "/%Y/%m/%d",
            "%Y/%m/%d/",
            "%Y//%m/%d",
            "../%Y/%m/%d",
            "%Y/../%m/%d",
            "%Y/./%m-%d",
            ".%Y/%m/%d",
            "%Y/.%m/%d",
            "-%Y/%m/%d",
            "_%Y/%m/%d",
            "=%Y/%m/%d",
            "a/%Y/%m/%d",
            "%Y/%m/%d/events",
            "manifest.ndjson/%Y/%m/%d",
            "v1-%Y/%m/%d",
            "%Y/%m/%d 1",
            "%Y/%m/%d\0",
            "%Y\\%m\\%d",
            "%Y/%m/tag-ä%d",
            "C:%Y/%m/%d",
            &long(LONGEST - 5),
        ] {
            assert_eq!(Layout::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_directory_that_no_layout_makes_is_read_as_none() {
        let read = |dir| Layout::read(dir).map(|(layout, date)| (layout.to_string(), date.join("-")));
        assert_eq!(read("y=2025/02/30"), Some(("y=%Y/%m/%d".to_owned(), "2025-02-30".to_owned())));
        for none in [
            "",
            "2025",
            "2025/01",
            "2025/1/2",
            "20/25/01/02",
            "2025/01/02/3",
            "a/2025/01/02",
            "%Y/%m/%d",
            "２０25/01/02",
        ] {
            assert_eq!(read(none), None, "{none}");
        }
    }
}
