//! Feeds `eventflow_fuzz::ledger_reader`, which says what holds.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| eventflow_fuzz::ledger_reader::check(data));
