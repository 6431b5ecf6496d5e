//! Tells Rust what Kconfig and the devicetree say.

use std::{env, fs};

fn main() {
    // `cfg(CONFIG_...)` for every Kconfig option that is on, anew when one has changed.
    zephyr_build::export_kconfig_bool_options();
    if let Ok(dotconfig) = std::env::var("DOTCONFIG") {
        println!("cargo:rerun-if-changed={dotconfig}");
    }
    println!("cargo:rerun-if-env-changed=BINARY_DIR_INCLUDE_GENERATED");
    let include = env::var("BINARY_DIR_INCLUDE_GENERATED").unwrap_or_default();
    let header = format!("{include}/devicetree_generated.h");
    println!("cargo:rerun-if-changed={header}");
    // What is wrong with the node is said by the C half, in a sentence.
    let buses = fs::read_to_string(header).ok().and_then(|h| buses(&h));
    println!("cargo:rustc-env=HELIO_BUSES={}", buses.unwrap_or(1));
}

/// How many the `bus` of the `heliograph,node` names.
fn buses(header: &str) -> Option<usize> {
    let value = |macro_name: &str| {
        header.lines().find_map(|line| {
            let (name, value) = line.strip_prefix("#define ")?.split_once(' ')?;
            (name == macro_name).then_some(value.trim())
        })
    };
    let node = value("DT_N_INST_0_heliograph_node")?;
    value(&format!("{node}_P_bus_LEN"))?.parse().ok()
}
