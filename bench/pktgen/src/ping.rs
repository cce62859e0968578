//! Echo requests from a memif pod.

use crate::endpoint::Endpoint;
use serde::Serialize;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// What to ask.
#[derive(Debug, Clone, Copy)]
pub struct PingPlan {
    /// Whom.
    pub dst: IpAddr,
    /// How often.
    pub count: u16,
    /// Between two requests.
    pub interval: Duration,
    /// Bytes behind the ICMP header.
    pub payload_bytes: usize,
    /// How long to wait for the neighbour, and for the last reply.
    pub patience: Duration,
}

/// What came back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct PingReport {
    /// Requests sent.
    pub sent: u16,
    /// Replies received, each counted once.
    pub received: u16,
    /// Mean round trip, in µs.
    pub mean_us: f64,
    /// Greatest round trip, in µs.
    pub max_us: f64,
}

/// Pings and polls the endpoint meanwhile.
///
/// # Errors
/// The next hop does not answer, or the peer broke memif's rules.
pub fn ping(endpoint: &mut Endpoint, plan: &PingPlan) -> anyhow::Result<PingReport> {
    endpoint.resolve(plan.dst, plan.patience)?;
    let id = (crate::now_ns() >> 8) as u16;
    let mut sent_at: Vec<Option<Instant>> = Vec::with_capacity(plan.count.into());
    let mut report = PingReport::default();
    let mut total_us = 0.0;
    let mut next = Instant::now();
    let mut deadline = next + plan.patience;
    endpoint.host.take_pongs();
    while report.received < plan.count {
        let now = Instant::now();
        if now >= next && sent_at.len() < usize::from(plan.count) {
            let seq = sent_at.len() as u16;
            if endpoint.send_echo(plan.dst, id, seq, plan.payload_bytes)? {
                report.sent += 1;
            }
            sent_at.push(Some(now));
            next = now + plan.interval;
            deadline = now + plan.patience;
        }
        endpoint.poll_or_nap()?;
        for pong in endpoint.host.take_pongs() {
            let known = pong.id == id && pong.from == plan.dst;
            let place = sent_at.get_mut(usize::from(pong.seq)).filter(|_| known);
            if let Some(at) = place.and_then(Option::take) {
                let us = at.elapsed().as_secs_f64() * 1e6;
                report.received += 1;
                total_us += us;
                report.max_us = report.max_us.max(us);
            }
        }
        // Judged after the poll: a thread that was not scheduled meanwhile has replies waiting.
        if now >= deadline {
            break;
        }
    }
    report.mean_us = total_us / f64::from(report.received.max(1));
    Ok(report)
}
