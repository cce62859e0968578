//! What is measured, and how it is written down.

use crate::candidate::Load;
use anyhow::Context;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Runs of one candidate.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Series {
    /// The middle one.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest: noise only ever makes a run slower.
    pub max: f64,
    /// Share of frames lost, the median.
    pub loss_ratio: f64,
    /// All, in the order in which they ran.
    pub runs: Vec<f64>,
}

/// One candidate's result in one run.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Frames or bits per second.
    pub rate: f64,
    /// Share of frames lost.
    pub loss_ratio: f64,
    /// Median latency.
    pub p50_ns: u64,
    /// Latency that 99 of 100 frames keep.
    pub p99_ns: u64,
    /// Cycles per packet that the device spent, by part of its work, if it tells.
    pub cycles: BTreeMap<String, f64>,
}

/// Which figure of a sample a case is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Frames per second.
    Pps,
    /// Bits per second.
    Bps,
    /// Median latency: less is better.
    P50,
    /// 99 % latency: less is better.
    P99,
    /// Cycles per packet of the device, waiting left out: less is better.
    Cycles,
}

impl Metric {
    /// The unit in the report.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::Pps => "pps",
            Self::Bps => "bps",
            Self::P50 | Self::P99 => "ns",
            Self::Cycles => "cycles",
        }
    }

    fn of(self, sample: &Sample) -> f64 {
        match self {
            Self::Pps | Self::Bps => sample.rate,
            Self::P50 => sample.p50_ns as f64,
            Self::P99 => sample.p99_ns as f64,
            Self::Cycles => sample.cycles.values().sum(),
        }
    }
}

impl Series {
    /// Of these runs.
    #[must_use]
    pub fn of(samples: &[Sample], metric: Metric) -> Self {
        let runs: Vec<f64> = samples.iter().map(|s| metric.of(s)).collect();
        Self {
            median: median(runs.clone()),
            min: runs.iter().copied().fold(f64::INFINITY, f64::min),
            max: runs.iter().copied().fold(0.0, f64::max),
            loss_ratio: median(samples.iter().map(|s| s.loss_ratio).collect()),
            runs,
        }
    }
}

/// The runs of which the device told what they cost.
fn told(runs: &[Sample]) -> Vec<Sample> {
    runs.iter().filter(|run| !run.cycles.is_empty()).cloned().collect()
}

/// The median of each part.
fn stages(runs: &[Sample]) -> BTreeMap<String, f64> {
    let parts = runs.first().map(|run| run.cycles.keys()).into_iter().flatten();
    let of = |part: &String| runs.iter().filter_map(|run| run.cycles.get(part).copied()).collect();
    parts.map(|part| (part.clone(), median(of(part)))).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match (values.len(), values.len() / 2) {
        (0, _) => 0.0,
        (n, mid) if n % 2 == 1 => values[mid],
        (_, mid) => f64::midpoint(values[mid - 1], values[mid]),
    }
}

/// One case: Bowline and its peers, side by side.
#[derive(Debug, Clone, Serialize)]
pub struct Case {
    /// Its name.
    pub case: String,
    /// Bytes of a frame; 0 where TCP decides.
    pub size_bytes: usize,
    /// Flows.
    pub flows: u16,
    /// `pps`, `bps`, or `ns`, of which less is better.
    pub unit: &'static str,
    /// Bowline.
    pub ours: Series,
    /// The others, by name.
    pub peers: BTreeMap<String, Series>,
    /// Our median by theirs.
    pub ratio: BTreeMap<String, f64>,
    /// Cycles per packet of each candidate that tells, waiting left out: it does not matter to them
    /// how fast the generator is.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cycles: BTreeMap<String, Series>,
    /// Ours, by part of the worker's turn.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub stages: BTreeMap<String, f64>,
}

impl Case {
    /// From the samples of all candidates; ours is called `bowline`.
    #[must_use]
    pub fn of(
        case: &str,
        load: Load,
        metric: Metric,
        samples: &BTreeMap<String, Vec<Sample>>,
    ) -> Self {
        let series =
            |(name, runs): (&String, &Vec<Sample>)| (name.clone(), Series::of(runs, metric));
        let mut peers: BTreeMap<String, Series> = samples.iter().map(series).collect();
        let ours = peers.remove(crate::OURS).unwrap_or_default();
        let by = |peer: &Series| if peer.median > 0.0 { ours.median / peer.median } else { 0.0 };
        let ratio = peers.iter().map(|(name, series)| (name.clone(), by(series))).collect();
        let (size_bytes, flows, unit) = (load.size, load.flows, metric.unit());
        let telling = samples.iter().map(|(name, runs)| (name, told(runs)));
        let telling = telling.filter(|(_, runs)| !runs.is_empty());
        let cycles = telling.map(|(name, runs)| (name.clone(), Series::of(&runs, Metric::Cycles)));
        let (case, cycles) = (case.into(), cycles.collect());
        let stages = samples.get(crate::OURS).map(|runs| stages(&told(runs))).unwrap_or_default();
        Self { case, size_bytes, flows, unit, ours, peers, ratio, cycles, stages }
    }

    /// So many times our cycles a peer needs for a packet.
    #[must_use]
    pub fn cycles_ratio(&self, peer: &str) -> Option<f64> {
        let ours = self.cycles.get(crate::OURS)?.median;
        Some(self.cycles.get(peer)?.median / ours)
    }
}

/// The machine, as far as figures depend on it.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Model of the CPU.
    pub cpu: String,
    /// Cores.
    pub cores: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Kernel.
    pub kernel: String,
    /// Free hugepages before the first run.
    pub hugepages_free: u64,
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn this() -> Self {
        let field = |path: &str, key: &str| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find(|l| l.starts_with(key)).unwrap_or_default();
            line.split_once(':').map(|(_, v)| v.trim().to_owned()).unwrap_or_default()
        };
        let number = |text: String| {
            text.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
        };
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            cpu: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: number(field("/proc/meminfo", "MemTotal")) / 1024,
            kernel: kernel.trim().to_owned(),
            hugepages_free: number(field("/proc/meminfo", "HugePages_Free")),
        }
    }
}

/// `report.json`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// Of what.
    pub commit: String,
    /// What.
    pub cases: Vec<Case>,
}

impl Report {
    /// Writes `report.json` and the plot beside it.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let json = folder.join("report.json");
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(&json, text).with_context(|| format!("writing {}", json.display()))?;
        let svg = folder.join("report.svg");
        std::fs::write(&svg, crate::plot::svg(self))
            .with_context(|| format!("writing {}", svg.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios() {
        let sample = |rate| Sample { rate, p99_ns: 7, ..Sample::default() };
        let mut samples = BTreeMap::new();
        samples.insert(crate::OURS.to_owned(), vec![sample(3.0), sample(9.0), sample(6.0)]);
        samples.insert("peer".to_owned(), vec![sample(2.0), sample(4.0)]);
        let case = Case::of("x", Load::of(64), Metric::Pps, &samples);
        assert_eq!((case.ours.median, case.ours.min, case.ours.max), (6.0, 3.0, 9.0));
        assert_eq!(case.peers["peer"].median, 3.0);
        assert_eq!(case.ratio["peer"], 2.0);
        assert_eq!(Series::of(&[], Metric::Pps).median, 0.0);
        assert!(case.cycles.is_empty() && case.stages.is_empty());
        let slowness = Case::of("x", Load::of(64), Metric::P99, &samples);
        assert_eq!((slowness.ours.median, slowness.ratio["peer"], slowness.unit), (7.0, 1.0, "ns"));
    }

    #[test]
    fn cycles_are_those_of_the_runs_that_tell() {
        let sample = |cycles: &[(&str, f64)]| Sample {
            cycles: cycles.iter().map(|(part, n)| ((*part).to_owned(), *n)).collect(),
            ..Sample::default()
        };
        let ours =
            [sample(&[]), sample(&[("a", 30.0), ("b", 20.0)]), sample(&[("a", 50.0), ("b", 20.0)])];
        let samples = BTreeMap::from([
            (crate::OURS.to_owned(), ours.into()),
            ("peer".to_owned(), vec![sample(&[("busy", 120.0)])]),
            ("silent".to_owned(), vec![sample(&[])]),
        ]);
        let case = Case::of("x", Load::of(64), Metric::Pps, &samples);
        assert_eq!(case.stages, BTreeMap::from([("a".into(), 40.0), ("b".into(), 20.0)]));
        assert_eq!((case.cycles_ratio("peer"), case.cycles_ratio("silent")), (Some(2.0), None));
    }
}
