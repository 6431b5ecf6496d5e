//! The built program, run as its users run it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The program, with nobody's settings.
pub fn helio() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_helio"));
    command.env_remove("HELIO_LOG");
    command
}

/// A path from the root of the repository.
#[allow(dead_code, reason = "not every file of tests needs what is shipped")]
pub fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}

/// What a stream said.
pub fn text(stream: &[u8]) -> &str {
    std::str::from_utf8(stream).expect("UTF-8")
}

/// The report of a run that went well.
#[allow(dead_code, reason = "not every file of tests asks for a report")]
pub fn report(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}
