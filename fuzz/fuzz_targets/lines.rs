//! Feeds `eventflow_fuzz::lines`, which says what holds.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| eventflow_fuzz::lines::check(data));
