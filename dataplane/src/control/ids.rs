//! Numbers that are given, taken back, and not given again at once.
//!
//! A packet may be on its way from one worker to another when its interface goes: for a while it
//! still carries the number. So a number rests before it is given again, far longer than any packet
//! is under way.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long a number rests.
const REST: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub struct Ids {
    what: &'static str,
    next: u32,
    last: u32,
    resting: VecDeque<(Instant, u32)>,
}

/// All numbers are in use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("all {count} {what} of this node are in use")]
pub struct Exhausted {
    what: &'static str,
    count: u32,
}

impl Ids {
    /// Gives numbers `first..=last` to `what` (a plural noun).
    pub fn new(what: &'static str, first: u32, last: u32) -> Self {
        Self { what, next: first, last, resting: VecDeque::new() }
    }

    /// A number that nobody has.
    pub fn take(&mut self) -> Result<u32, Exhausted> {
        if let Some(&(since, id)) = self.resting.front()
            && since.elapsed() >= REST
        {
            self.resting.pop_front();
            return Ok(id);
        }
        if self.next > self.last {
            return Err(Exhausted { what: self.what, count: self.last });
        }
        self.next += 1;
        Ok(self.next - 1)
    }

    /// It may be given again after its rest.
    pub fn give_back(&mut self, id: u32) {
        self.resting.push_back((Instant::now(), id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rest_and_run_out() {
        let mut ids = Ids::new("interfaces", 1, 2);
        assert_eq!((ids.take(), ids.take()), (Ok(1), Ok(2)));
        ids.give_back(1);
        let error = ids.take().expect_err("1 rests");
        assert_eq!(error.to_string(), "all 2 interfaces of this node are in use");
        ids.resting[0].0 -= REST;
        assert_eq!(ids.take(), Ok(1));
    }
}
