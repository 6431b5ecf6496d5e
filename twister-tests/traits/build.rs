//! Tells Rust what Kconfig says.

fn main() {
    // `cfg(CONFIG_...)` for every Kconfig option that is on, anew when one has changed.
    zephyr_build::export_kconfig_bool_options();
    if let Ok(dotconfig) = std::env::var("DOTCONFIG") {
        println!("cargo:rerun-if-changed={dotconfig}");
    }
}
