fn main() {
    // `cfg(CONFIG_...)` for every Kconfig option that is on.
    zephyr_build::export_kconfig_bool_options();
}
