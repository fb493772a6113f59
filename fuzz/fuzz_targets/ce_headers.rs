//! Feeds `eventflow_fuzz::ce_headers`, which says what holds.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| eventflow_fuzz::ce_headers::check(data));
