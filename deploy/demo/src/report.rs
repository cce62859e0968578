//! What is printed and what is written: one table, and `report.json`.

use anyhow::Context;
use serde::Serialize;
use std::path::Path;

/// One thing that was proven, or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// What must be.
    pub expected: String,
    /// What is.
    pub found: String,
    /// Whether they agree.
    pub ok: bool,
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Throughput {
    /// From where to where.
    pub name: String,
    /// Bytes of a frame; 0 where TCP decides.
    pub size_bytes: usize,
    /// Queues on each side.
    pub queues: usize,
    /// Frames received per second; 0 for TCP.
    pub pps: f64,
    /// Bits received per second.
    pub bps: f64,
    /// Frames lost, of those sent.
    pub loss_ratio: f64,
}

/// All of a run.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// From the first namespace to the last check.
    pub seconds: f64,
    /// Which uplink.
    pub uplink: String,
    /// What was proven.
    pub checks: Vec<Check>,
    /// What was measured.
    pub throughput: Vec<Throughput>,
}

impl Report {
    /// Adds a check and prints it at once.
    pub fn check(&mut self, name: &str, expected: &str, found: &str, ok: bool) {
        if self.checks.is_empty() {
            println!("{}", row("check", "expected", "found", ""));
            println!("{}", "-".repeat(118));
        }
        println!("{}", row(name, expected, found, if ok { "ok" } else { "FAILED" }));
        let (name, expected, found) = (name.into(), expected.into(), found.into());
        self.checks.push(Check { name, expected, found, ok });
    }

    /// Adds a measurement.
    pub fn measured(&mut self, throughput: Throughput) {
        self.throughput.push(throughput);
    }

    /// Whether every check holds, and there are any.
    #[must_use]
    pub fn ok(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|c| c.ok)
    }

    /// Prints what was measured.
    pub fn print_throughput(&self) {
        println!(
            "\n{:<46} {:>6} {:>7} {:>10} {:>10} {:>9}",
            "throughput", "bytes", "queues", "Mpps", "Gb/s", "lost"
        );
        println!("{}", "-".repeat(93));
        for t in &self.throughput {
            let size = if t.size_bytes == 0 { "stream".into() } else { t.size_bytes.to_string() };
            let mpps = if t.pps == 0.0 { String::new() } else { format!("{:.3}", t.pps / 1e6) };
            let lost =
                if t.pps == 0.0 { String::new() } else { format!("{:.2} %", t.loss_ratio * 100.0) };
            let gbps = t.bps / 1e9;
            println!("{:<46} {size:>6} {:>7} {mpps:>10} {gbps:>10.2} {lost:>9}", t.name, t.queues);
        }
    }

    /// Writes it as JSON, in a form that is either old or new, never half.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let draft = path.with_extension("json.new");
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(&draft, text).with_context(|| format!("writing {}", draft.display()))?;
        std::fs::rename(&draft, path).with_context(|| format!("writing {}", path.display()))
    }
}

fn row(name: &str, expected: &str, found: &str, verdict: &str) -> String {
    format!("{name:<50} {expected:<28} {found:<30} {verdict}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_check_fails_the_report() {
        let mut report = Report::default();
        assert!(!report.ok(), "nothing was proven");
        report.check("a", "1", "1", true);
        assert!(report.ok());
        report.check("b", "1", "2", false);
        assert!(!report.ok());
        let folder = std::env::temp_dir().join(format!("bwdtest-report-{}", std::process::id()));
        let path = folder.join("report.json");
        report.write(&path).unwrap();
        let read: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(read["checks"][1]["found"], "2");
        assert_eq!(read["checks"][1]["ok"], false);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
