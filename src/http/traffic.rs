//! What came in and what was refused, as a scrape counts it.
//!
//! The ingest thread and the accept loop add; nothing here fails.

use std::sync::OnceLock;

use crate::meter::Counter;
use crate::queue::Appended;

use super::decode::Form;
use super::ingest::PROBLEMS;
use super::problem::Slug;

/// Counts of everything the edge has met since the start.
#[derive(Debug, Default)]
pub struct Traffic {
    accepted: [OfFormat; Form::NAMES.len()],
    refused: [Counter; Slug::ALL.len()],
    connections: Connections,
    connections_limit: OnceLock<u32>,
}

#[derive(Debug, Default)]
struct OfFormat {
    requests: Counter,
    events: Counter,
    duplicates: Counter,
}

/// What was accepted in one format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// Its name.
    pub format: &'static str,
    /// Requests answered 202.
    pub requests: u64,
    /// Events newly appended.
    pub events: u64,
    /// Events that had been accepted before.
    pub duplicates: u64,
}

#[derive(Debug, Default)]
pub(super) struct Connections {
    pub admitted: Counter,
    pub ended: Counter,
    pub turned_away: Counter,
}

impl Traffic {
    pub(super) fn accepted(&self, format: usize, appended: Appended) {
        let of_format = &self.accepted[format];
        of_format.requests.add(1);
        if appended.accepted > 0 {
            of_format.events.add(appended.accepted);
        }
        if appended.duplicates > 0 {
            of_format.duplicates.add(appended.duplicates);
        }
    }

    pub(super) fn refused(&self, slug: Slug) {
        self.refused[slug as usize].add(1);
    }

    pub(super) fn connections(&self) -> &Connections {
        &self.connections
    }

    /// What was accepted, by format.
    pub fn by_format(&self) -> impl Iterator<Item = Accepted> {
        Form::NAMES.into_iter().zip(&self.accepted).map(|(format, of_format)| Accepted {
            format,
            requests: of_format.requests.get(),
            events: of_format.events.get(),
            duplicates: of_format.duplicates.get(),
        })
    }

    /// Requests for events that were refused, by slug.
    pub fn by_refusal(&self) -> impl Iterator<Item = (&'static str, u64)> {
        PROBLEMS.iter().map(|slug| (slug.name(), self.refused[*slug as usize].get()))
    }

    /// Connections served at the moment.
    pub fn open_connections(&self) -> u64 {
        // In this order: one that begins and ends between the two looks is not counted below nothing.
        let ended = self.connections.ended.get();
        self.connections.admitted.get().saturating_sub(ended)
    }

    /// Connections served since the start.
    pub fn admitted_connections(&self) -> u64 {
        self.connections.admitted.get()
    }

    /// Connections served at most, once the listener stands.
    pub fn connections_limit(&self) -> u32 {
        self.connections_limit.get().copied().unwrap_or(0)
    }

    pub(super) fn limit_connections(&self, limit: u32) {
        let _ = self.connections_limit.set(limit);
    }

    /// Connections refused because there were too many.
    pub fn turned_away_connections(&self) -> u64 {
        self.connections.turned_away.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slug_has_a_counter_of_its_own() {
        let traffic = Traffic::default();
        for (times, slug) in PROBLEMS.iter().enumerate() {
            (0..times).for_each(|_| traffic.refused(*slug));
        }
        let counted: Vec<_> = traffic.by_refusal().collect();
        let expected: Vec<_> = PROBLEMS.iter().map(|slug| slug.name()).zip(0..).collect();
        assert_eq!(counted, expected);
    }
}
