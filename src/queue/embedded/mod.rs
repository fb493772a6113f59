//! The embedded queue: an event log and a ledger, on one machine's disk.
