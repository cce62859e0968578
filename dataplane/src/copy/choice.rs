//! `--copy-engine`: what the person who starts the data plane may choose.

use std::str::FromStr;

use super::Channel;

/// One `--copy-engine`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Choice {
    /// `cpu`.
    #[default]
    Cpu,
    /// `dma:ARGUMENTS`: a DMA device for one worker.
    Dma(String),
}

/// What was written is no choice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "--copy-engine {0:?}: expected cpu, or dma: and a DPDK DMA device with its arguments, \
     such as dma:wq0.0 (a DSA work queue) or dma:dma_skeleton,lcore=1 (software, for tests)"
)]
pub struct ChoiceError(pub String);

/// An engine that was chosen can not be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A device would be shared, or idle.
    #[error(
        "--copy-engine names {devices} DMA devices for {workers} workers: each worker uses one of \
         its own, so name at most {workers}, or raise --workers"
    )]
    TooMany {
        /// Named.
        devices: usize,
        /// There are.
        workers: usize,
    },
    /// DPDK's answer.
    #[cfg(feature = "dpdk")]
    #[error("--copy-engine dma:{device}: {source}")]
    Dpdk {
        /// With its arguments.
        device: String,
        /// Why not.
        source: dpdk::Error,
    },
    /// The program can not do that.
    #[error("--copy-engine dma:{0}: this bowline-dataplane was built without DPDK; use cpu")]
    NotBuilt(String),
}

/// Opens the chosen devices, for the first workers in order.
///
/// # Errors
/// See [`OpenError`].
pub fn open_all(
    choices: &[Choice],
    workers: usize,
    no_huge: bool,
) -> Result<Vec<Box<dyn Channel>>, OpenError> {
    let devices: Vec<&str> = choices
        .iter()
        .filter_map(|choice| match choice {
            Choice::Cpu => None,
            Choice::Dma(device) => Some(device.as_str()),
        })
        .collect();
    if devices.len() > workers {
        return Err(OpenError::TooMany { devices: devices.len(), workers });
    }
    devices.into_iter().map(|device| open_one(device, no_huge)).collect()
}

/// Memory of DPDK itself when nothing else uses it.
#[cfg(feature = "dpdk")]
const MEMORY_MIB: u32 = 64;

#[cfg(feature = "dpdk")]
fn open_one(device: &str, no_huge: bool) -> Result<Box<dyn Channel>, OpenError> {
    let failed = |source| OpenError::Dpdk { device: device.to_owned(), source };
    let eal = match dpdk::Eal::get() {
        Some(eal) => eal,
        None => dpdk::Eal::init(&dpdk::EalOptions {
            memory_mib: MEMORY_MIB,
            ordinary_pages: no_huge,
            ..dpdk::EalOptions::default()
        })
        .map_err(failed)?,
    };
    super::open(eal, device).map_err(failed)
}

#[cfg(not(feature = "dpdk"))]
fn open_one(device: &str, _no_huge: bool) -> Result<Box<dyn Channel>, OpenError> {
    Err(OpenError::NotBuilt(device.to_owned()))
}

impl FromStr for Choice {
    type Err = ChoiceError;

    fn from_str(text: &str) -> Result<Self, ChoiceError> {
        match text.split_once(':') {
            None if text == "cpu" => Ok(Choice::Cpu),
            Some(("dma", device)) if !device.trim().is_empty() => {
                Ok(Choice::Dma(device.trim().to_owned()))
            }
            _ => Err(ChoiceError(text.to_owned())),
        }
    }
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Choice::Cpu => write!(f, "cpu"),
            Choice::Dma(device) => write!(f, "dma:{device}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_as_they_are_shown() {
        for text in ["cpu", "dma:wq0.0", "dma:dma_skeleton,lcore=1"] {
            assert_eq!(text.parse::<Choice>().map(|c| c.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "gpu", "dma", "dma:", "dma: ", "cpu:1"] {
            assert_eq!(text.parse::<Choice>(), Err(ChoiceError(text.to_owned())));
        }
    }
}
