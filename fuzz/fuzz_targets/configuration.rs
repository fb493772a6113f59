//! Feeds `eventflow_fuzz::configuration`, which says what holds.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| eventflow_fuzz::configuration::check(data));
