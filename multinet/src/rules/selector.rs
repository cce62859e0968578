//! Label selectors and names: what Kubernetes itself would refuse.

use super::Problem;
use crate::types::meta::LabelSelector;

/// Problems of a selector at `field`.
pub fn check_selector(field: &str, selector: &LabelSelector, problems: &mut Vec<Problem>) {
    for (i, r) in selector.match_expressions.iter().enumerate() {
        let at = format!("{field}.matchExpressions[{i}]");
        if r.key.is_empty() {
            problems.push(Problem::error(format!("{at}.key"), "", "is empty; name a label"));
        }
        match r.operator.as_str() {
            "In" | "NotIn" if r.values.is_empty() => problems.push(Problem::error(
                format!("{at}.values"),
                "",
                format!("is empty; {} needs at least one value", r.operator),
            )),
            "Exists" | "DoesNotExist" if !r.values.is_empty() => problems.push(Problem::error(
                format!("{at}.values"),
                r.values.join(", "),
                format!("must be empty with {}; remove the values or use In", r.operator),
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => problems.push(Problem::error(
                format!("{at}.operator"),
                other,
                "is not In, NotIn, Exists or DoesNotExist",
            )),
        }
    }
}

/// Whether `name` is one label of RFC 1123: 1 to 63 of a-z, 0-9 and -, not beginning or ending with -.
#[must_use]
pub fn is_dns_label(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// Whether `name` is a name of RFC 1123: labels with dots between, at most 253 bytes.
#[must_use]
pub fn is_dns_name(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_dns_label)
}
