//! How soon every pair of pods talks again after a data plane was killed, and that it goes on
//! talking.
//!
//! Every pod asks all others of its Network, in both families, at a fixed rhythm. A pair has
//! recovered with the first request after which none stayed unanswered; so a pair that falls silent
//! again later is late, and one that is asked in a bad moment is not excused.

mod ask;

use crate::catalog::Network;
use crate::pod::Pod;
use crate::report::Report;
use ask::{Echoes, Raw};
use bowline_pktgen::now_ns;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Between two requests of a pair.
const EVERY: Duration = Duration::from_millis(50);
/// How long a pair is watched at least, so that one which falls silent again is seen.
const WATCH: Duration = Duration::from_secs(2);
/// Unanswered requests younger than this may still be under way.
const UNDER_WAY: Duration = Duration::from_millis(300);
/// When it is given up on a pair.
const PATIENCE: Duration = Duration::from_secs(6);
/// Traffic must be back in this time.
const DEADLINE: Duration = Duration::from_secs(1);

/// An ordered pair of pods in one family.
#[derive(Debug)]
struct Pair<'a> {
    from: &'a Pod,
    to: &'a Pod,
    dst: IpAddr,
    /// When each request was sent, since the kill, and whether it was answered.
    requests: Vec<(Duration, bool)>,
}

impl Pair<'_> {
    fn recovered(&self, now: Duration) -> Option<Duration> {
        last_silence_end(&self.requests, now)
    }

    fn name(&self) -> String {
        let family = if self.dst.is_ipv4() { "IPv4" } else { "IPv6" };
        format!("{} → {} {family}", self.from.plan.name, self.to.plan.name)
    }
}

/// When the first request was sent that was answered like all after it; `None`: the last ones are
/// silent.
fn last_silence_end(requests: &[(Duration, bool)], now: Duration) -> Option<Duration> {
    let judged = requests.iter().filter(|(at, answered)| *answered || *at + UNDER_WAY < now);
    let good = judged.rev().take_while(|(_, answered)| *answered);
    good.last().map(|(at, _)| *at)
}

/// Watches all pairs after the kill at `killed`, which must have taken effect: one check for each
/// Network.
///
/// # Errors
/// A pod cannot be entered.
pub fn check(pods: &[Pod], killed: Instant, when: &str, report: &mut Report) -> anyhow::Result<()> {
    let mut pairs = all_pairs(pods)?;
    watch(&mut pairs, killed)?;
    let now = killed.elapsed();
    for network in Network::ALL {
        let members = pairs.iter().filter(|pair| pair.from.plan.network == network);
        let times: Vec<_> = members.map(|pair| (pair, pair.recovered(now))).collect();
        let late = |at: &Option<Duration>| at.is_none_or(|at| at >= DEADLINE);
        let lates = times.iter().filter(|(_, at)| late(at)).count();
        let slowest = times.iter().filter_map(|(_, at)| *at).max().unwrap_or_default();
        let name = format!("recovery: {} pods, all pairs{when}", network.name());
        let expected = format!("< {} ms each", DEADLINE.as_millis());
        let found = format!("{lates} of {} late, slowest {} ms", times.len(), slowest.as_millis());
        report.check(&name, &expected, &found, lates == 0 && !times.is_empty());
        for (pair, at) in times.iter().filter(|(_, at)| late(at)) {
            let at = at.map_or("silent".into(), |at| format!("{} ms", at.as_millis()));
            println!("    {}: {at}", pair.name());
        }
    }
    Ok(())
}

fn all_pairs(pods: &[Pod]) -> anyhow::Result<Vec<Pair<'_>>> {
    let mut pairs = vec![];
    for from in pods {
        let others = pods
            .iter()
            .filter(|to| to.plan.network == from.plan.network && to.plan.name != from.plan.name);
        for to in others {
            for ipv4 in [true, false] {
                pairs.push(Pair { from, to, dst: to.address(ipv4)?, requests: vec![] });
            }
        }
    }
    Ok(pairs)
}

/// All pods ask at once, each on a thread of its own.
fn watch(pairs: &mut [Pair<'_>], killed: Instant) -> anyhow::Result<()> {
    let by_source = pairs.chunk_by_mut(|a, b| a.from.plan.name == b.from.plan.name);
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            by_source.map(|own| scope.spawn(move || watch_from(own, killed))).collect();
        let mut all = Ok(());
        for thread in threads {
            let result = thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p));
            all = all.and(result);
        }
        all
    })
}

fn watch_from(own: &mut [Pair<'_>], killed: Instant) -> anyhow::Result<()> {
    match &own[0].from.station {
        Some(station) => rounds(own, killed, &mut *station.borrow()),
        None => {
            own[0].from.netns.enter()?;
            rounds(own, killed, &mut Raw::open()?)
        }
    }
}

/// Asks round after round until all have recovered and were watched for long enough.
fn rounds(own: &mut [Pair<'_>], killed: Instant, echoes: &mut dyn Echoes) -> anyhow::Result<()> {
    // Answers to an earlier check's questions are none of ours.
    let id = (now_ns() >> 10) as u16 | 1;
    let begun = killed.elapsed();
    for round in 0_u16.. {
        let now = killed.elapsed();
        let watched = now >= begun.max(DEADLINE) + WATCH - DEADLINE;
        let recovered = own.iter().all(|pair| pair.recovered(now).is_some());
        if (watched && recovered) || now > PATIENCE {
            break;
        }
        for pair in own.iter_mut() {
            echoes.ask(pair.dst, id, round)?;
            pair.requests.push((killed.elapsed(), false));
        }
        let next = Instant::now() + EVERY;
        while Instant::now() < next {
            take_answers(own, id, echoes)?;
        }
    }
    let end = Instant::now() + UNDER_WAY;
    while Instant::now() < end {
        take_answers(own, id, echoes)?;
    }
    Ok(())
}

fn take_answers(own: &mut [Pair<'_>], id: u16, echoes: &mut dyn Echoes) -> anyhow::Result<()> {
    for pong in echoes.answers()?.into_iter().filter(|pong| pong.id == id) {
        let pair = own.iter_mut().find(|pair| pair.dst == pong.from);
        let request = pair.and_then(|pair| pair.requests.get_mut(usize::from(pong.seq)));
        if let Some((_, answered)) = request {
            *answered = true;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// `requests` at 0, 100, 200 … ms.
    fn recovered(requests: &[bool], now_ms: u64) -> Option<Duration> {
        let requests =
            requests.iter().zip(0..).map(|(&ok, n)| (at(n * 100), ok)).collect::<Vec<_>>();
        last_silence_end(&requests, at(now_ms))
    }

    #[test]
    fn silence_later_on_counts() {
        assert_eq!(recovered(&[false, true, true, true], 4000), Some(at(100)));
        assert_eq!(recovered(&[true, true, false, true], 4000), Some(at(300)));
        assert_eq!(recovered(&[true, true, true, false], 4000), None);
        assert_eq!(recovered(&[true, true, true, false], 500), Some(at(0)), "still under way");
        assert_eq!(recovered(&[], 4000), None);
    }
}
