//! Measures what issue "Positioning" asks for, each line with its goal and its confidence.
//! `cargo run --release` runs all; arguments select parts by name.

mod integrity;
mod lateration;
mod more;
mod robust;
mod world;

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let parts: &[(&str, fn())] = &[
        ("bound", lateration::bound),
        ("speed", lateration::speed),
        ("ceilings", lateration::ceilings),
        ("fuzz", lateration::fuzz),
        ("reflections", robust::reflections),
        ("integrity", integrity::integrity),
        ("tracker", more::tracker),
        ("camera", more::camera),
        ("diagnosis", more::diagnosis),
    ];
    for (name, part) in parts {
        if wanted.is_empty() || wanted.iter().any(|w| w == name) {
            part();
        }
    }
}
