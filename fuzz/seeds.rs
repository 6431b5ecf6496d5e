//! Writes an entry's seeds into a corpus: `seeds TARGET FOLDER`.
fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(target), Some(folder)) = (args.next(), args.next()) else {
        eprintln!("seeds TARGET FOLDER");
        std::process::exit(2);
    };
    for (n, seed) in helio_fuzz_entries::seeds(&target).iter().enumerate() {
        std::fs::write(std::path::Path::new(&folder).join(format!("seed-{n}")), seed)?;
    }
    Ok(())
}
