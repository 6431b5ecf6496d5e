#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| helio_fuzz_entries::ranges_csv(data));
