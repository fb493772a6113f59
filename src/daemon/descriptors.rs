//! File descriptors: as many as the system grants, and some of them never for clients.
//!
//! Without a share of their own, the log, the archive and the sinks could not open a file while enough
//! clients are connected, however idle, and everything would be refused. Called while starting, on the
//! caller's thread; a limit that cannot be read or raised is taken as it is.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors kept from clients: segments, archive files, connections of sinks, the runtimes' own.
const KEPT: u64 = 256;

/// Raises what the process may open to what it may raise it to; the usual 1024 is there for the sake
/// of programs older than this one.
pub(super) fn raise() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit on open files cannot be raised");
    }
}

/// How many connections to take at a time, where `configured` is how many there may be at most.
pub(super) fn connections(configured: u32) -> u32 {
    let Some(limit) = getrlimit(Resource::Nofile).current else { return configured };
    let taken = configured.min(beside_ours(limit));
    if taken < configured {
        tracing::warn!(
            limit,
            connections = taken,
            configured,
            "the limit on open files allows fewer connections than http.max_connections; raise it \
             (LimitNOFILE, ulimit -n)"
        );
    }
    taken
}

/// What a limit leaves for clients; where it is small, half of it.
fn beside_ours(limit: u64) -> u32 {
    let left = limit - KEPT.min(limit / 2);
    u32::try_from(left).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_never_get_every_descriptor() {
        for (limit, left) in [(0, 1), (2, 1), (64, 32), (512, 256), (1024, 768), (u64::MAX, u32::MAX)] {
            assert_eq!(beside_ours(limit), left, "{limit}");
        }
    }
}
