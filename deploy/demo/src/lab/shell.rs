//! Commands of the system, run to their end.

use anyhow::{Context, bail};
use std::process::Command;

/// Runs `program args…`, the words split at blanks; the answer is what it printed.
///
/// # Errors
/// It cannot be started or fails; the message holds the command and what it complained about.
pub fn run(line: &str) -> anyhow::Result<String> {
    let mut words = line.split_whitespace();
    let program = words.next().context("empty command")?;
    let output = Command::new(program).args(words).output();
    let output = output.with_context(|| format!("starting `{line}`"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` failed ({}): {}", output.status, complaint.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs several commands, one a line.
///
/// # Errors
/// As for [`run`], with the first that fails.
pub fn run_all(lines: &str) -> anyhow::Result<()> {
    for line in lines.lines().map(str::trim).filter(|l| !l.is_empty()) {
        run(line)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_name_the_command() {
        assert_eq!(run("echo a  b").unwrap(), "a b\n");
        let error = run("ls /nonexistent-bowline").unwrap_err().to_string();
        assert!(error.contains("ls /nonexistent-bowline"), "{error}");
        assert!(run("/nonexistent-bowline").is_err());
    }
}
