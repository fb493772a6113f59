//! What the process takes of the machine, as the kernel tells it in /proc. What cannot be read is not told.

use rustix::process::{Resource, getrlimit};

use crate::telemetry::metrics::{self, Page};

/// Puts the metrics that every exporter calls the same.
pub(super) fn put(page: &mut Page) {
    if let Some(stat) = std::fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(Stat::read) {
        page.put(&metrics::PROCESS_CPU, stat.cpu_seconds);
        page.put(&metrics::PROCESS_RESIDENT, stat.resident_bytes);
        page.put(&metrics::PROCESS_VIRTUAL, stat.virtual_bytes);
        page.put(&metrics::PROCESS_THREADS, stat.threads);
        if let Some(boot) = boot_time() {
            page.put(&metrics::PROCESS_START, boot as f64 + stat.started_seconds);
        }
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        page.put(&metrics::PROCESS_FDS, open.count().saturating_sub(1)); // the one that reads
    }
    if let Some(limit) = getrlimit(Resource::Nofile).current {
        page.put(&metrics::PROCESS_MAX_FDS, limit);
    }
}

/// A part of /proc/self/stat (proc_pid_stat(5)).
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_seconds: f64,
    /// After the machine's.
    started_seconds: f64,
    threads: u64,
    virtual_bytes: u64,
    resident_bytes: u64,
}

impl Stat {
    fn read(text: &str) -> Option<Self> {
        // The name before it may hold anything, so fields are counted from its end; the first is number 3.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) as f64 / ticks,
            started_seconds: field(22)? as f64 / ticks,
            threads: field(20)?,
            virtual_bytes: field(23)?,
            resident_bytes: field(24)? * rustix::param::page_size() as u64,
        })
    }
}

/// When the machine started, seconds since the Unix epoch.
fn boot_time() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_moves_no_field() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 150 50 13 14 15 16 7 18 300 4096 2 0";
        let stat = Stat::read(&format!("42 (a) b (c) {rest}")).unwrap();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let page = rustix::param::page_size() as u64;
        let expected = Stat {
            cpu_seconds: 200.0 / ticks,
            started_seconds: 300.0 / ticks,
            threads: 7,
            virtual_bytes: 4096,
            resident_bytes: 2 * page,
        };
        assert_eq!(stat, expected);
        assert_eq!(Stat::read("nonsense"), None);
    }
}
