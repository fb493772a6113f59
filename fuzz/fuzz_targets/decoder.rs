//! Feeds `eventflow_fuzz::decoder`, which says what holds.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| eventflow_fuzz::decoder::check(data));
