//! Writes pcap files: the classic format with nanoseconds, link type Ethernet.
//! Source: draft-ietf-opsawg-pcap §4, §5.

use std::io::{self, Write};

/// Magic number of files whose timestamps have nanoseconds.
const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const VERSION: (u16, u16) = (2, 4);
const SNAP_BYTES: u32 = 262_144;
const LINKTYPE_ETHERNET: u32 = 1;

/// See the module.
#[derive(Debug)]
pub(crate) struct Writer<W>(W);

impl<W: Write> Writer<W> {
    /// Writes the file header.
    pub(crate) fn new(mut file: W) -> io::Result<Self> {
        file.write_all(&MAGIC_NANOSECONDS.to_le_bytes())?;
        file.write_all(&VERSION.0.to_le_bytes())?;
        file.write_all(&VERSION.1.to_le_bytes())?;
        // Two reserved words.
        file.write_all(&[0; 8])?;
        file.write_all(&SNAP_BYTES.to_le_bytes())?;
        file.write_all(&LINKTYPE_ETHERNET.to_le_bytes())?;
        Ok(Self(file))
    }

    /// Writes one frame, of which `data` was kept.
    pub(crate) fn frame(&mut self, time_ns: u64, length_bytes: u32, data: &[u8]) -> io::Result<()> {
        let seconds = (time_ns / 1_000_000_000) as u32;
        let nanoseconds = (time_ns % 1_000_000_000) as u32;
        for word in [seconds, nanoseconds, data.len() as u32, length_bytes] {
            self.0.write_all(&word.to_le_bytes())?;
        }
        self.0.write_all(data)?;
        // Whoever follows the file with `tail -f` sees whole frames.
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcpdump_reads_it() {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes).expect("memory takes everything");
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 1, 0x08, 0x06]);
        // ARP: who has 10.0.0.2, tell 10.0.0.1.
        frame.extend([0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1]);
        frame.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
        writer.frame(1_000_000_007_000_000_009, 60, &frame).expect("memory takes everything");
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), &bytes).expect("a file");
        let output = std::process::Command::new("tcpdump")
            .args(["-nn", "-tt", "-r"])
            .arg(file.path())
            .output()
            .expect("tcpdump is installed");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("1000000007.000000"), "{text}");
        assert!(text.contains("Request who-has 10.0.0.2 tell 10.0.0.1"), "{text}");
    }
}
