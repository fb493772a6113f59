//! Feeds `eventflow_fuzz::frame_reader`, which says what holds.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| eventflow_fuzz::frame_reader::check(data));
