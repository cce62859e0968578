//! Pages of 2 MiB for a test.

use std::fs;

const NR_HUGEPAGES: &str = "/proc/sys/vm/nr_hugepages";

/// So many more of them than before, until this is dropped.
pub struct HugePages(u32);

impl HugePages {
    /// Asks the kernel for them.
    pub fn reserve(more: u32) -> Self {
        let before = count();
        fs::write(NR_HUGEPAGES, (before + more).to_string()).expect("root may");
        let now = count();
        assert!(now >= before + more, "the kernel has only {now} of {} huge pages", before + more);
        Self(more)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        // Others may have reserved some meanwhile.
        let _ = fs::write(NR_HUGEPAGES, count().saturating_sub(self.0).to_string());
    }
}

/// How many nobody uses.
pub fn free() -> u32 {
    number_in("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
}

fn count() -> u32 {
    number_in(NR_HUGEPAGES)
}

fn number_in(path: &str) -> u32 {
    let text = fs::read_to_string(path).expect("a kernel with huge pages");
    text.trim().parse().expect("a number")
}
