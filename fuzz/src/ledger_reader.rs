//! Whatever bytes the records of the ledger, the failure table and its index hold, reading them ends with what
//! was written or with an error; `eventflow::queue::embedded::fuzzing` says so in full.
//!
//! ```text
//! input    0  1  0: a ledger, records with two bytes of length before each; else: one record, this byte its
//!                version
//! ```

use eventflow::queue::embedded::fuzzing;

/// See the module.
pub fn check(data: &[u8]) {
    match data.split_first() {
        Some((0, records)) => fuzzing::ledger(records),
        _ => fuzzing::record(data),
    }
}
