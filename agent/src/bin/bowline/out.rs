//! Prints rows: as a table for people, as JSON for programs.

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// What a row looks like in a table.
pub(crate) trait Row: Serialize {
    /// Headings of the columns.
    const HEAD: &'static [&'static str];
    /// One cell for each.
    fn cells(&self) -> Vec<String>;
}

/// Prints all rows.
pub(crate) fn rows<R: Row>(rows: &[R], json: bool) -> anyhow::Result<()> {
    if json {
        return object(&rows);
    }
    println!("{}", table(rows));
    Ok(())
}

/// The rows as a table.
pub(crate) fn table<R: Row>(rows: &[R]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(R::HEAD.iter().map(|head| head.to_uppercase()));
    for row in rows {
        table.add_row(row.cells());
    }
    let text = table.to_string();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// Prints one thing as JSON.
pub(crate) fn object(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Prints one thing as one line of JSON: for streams.
pub(crate) fn line(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}
