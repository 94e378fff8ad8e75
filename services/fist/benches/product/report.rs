//! What was measured: a table for people, JSON for programs, and the same table for `docs/performance.md`.

use std::{fmt::Write as _, fs, path::Path};

use serde_json::{Value, json};

use crate::machine::Machine;

/// Where the table begins and ends in a page that holds it.
const BEGINS: &str = "<!-- make bench: begin -->";
const ENDS: &str = "<!-- make bench: end -->";

/// What is wanted of a figure.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// At least so much.
    AtLeast(f64),
    /// At most so much.
    AtMost(f64),
    /// At least this part of the bare protocol.
    RatioAtLeast(f64),
}

/// One figure.
#[derive(Clone, Debug)]
pub struct Row {
    pub group: &'static str,
    pub what: String,
    pub value: f64,
    pub unit: &'static str,
    /// The bare protocol's, measured by turns with it.
    pub bare: Option<f64>,
    pub target: Option<Target>,
    pub note: String,
}

impl Row {
    pub fn new(group: &'static str, what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            group,
            what: what.into(),
            value,
            unit,
            bare: None,
            target: None,
            note: String::new(),
        }
    }

    pub fn beside(mut self, bare: f64) -> Self {
        self.bare = Some(bare);
        self
    }

    pub fn wanted(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    pub fn noting(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    fn ratio(&self) -> Option<f64> {
        self.bare.filter(|bare| *bare > 0.0).map(|bare| self.value / bare)
    }

    fn is_reached(&self) -> Option<bool> {
        Some(match self.target? {
            Target::AtLeast(least) => self.value >= least,
            Target::AtMost(most) => self.value <= most,
            Target::RatioAtLeast(least) => self.ratio()? >= least,
        })
    }

    fn target_text(&self) -> String {
        let reached = match self.is_reached() {
            Some(true) => "reached",
            Some(false) => "not reached",
            None => return String::new(),
        };
        match self.target {
            Some(Target::AtLeast(least)) => format!("≥ {} {}: {reached}", shown(least), self.unit),
            Some(Target::AtMost(most)) => format!("≤ {} {}: {reached}", shown(most), self.unit),
            Some(Target::RatioAtLeast(least)) => format!("≥ {least:.2} of bare: {reached}"),
            None => String::new(),
        }
    }

    fn cells(&self) -> [String; 5] {
        [
            self.what.clone(),
            format!("{} {}", shown(self.value), self.unit),
            self.bare.map_or_else(String::new, shown),
            self.ratio()
                .map_or_else(String::new, |ratio| format!("{ratio:.2}")),
            [self.target_text(), self.note.clone()]
                .into_iter()
                .filter(|text| !text.is_empty())
                .collect::<Vec<_>>()
                .join("; "),
        ]
    }

    fn json(&self) -> Value {
        json!({
            "group": self.group, "what": self.what, "value": self.value, "unit": self.unit, "bare": self.bare,
            "ratio": self.ratio(), "target": self.target_text(), "reached": self.is_reached(), "note": self.note,
        })
    }
}

const HEAD: [&str; 5] = ["what", "measured", "bare", "ratio", "target; note"];

/// A figure with about four digits that say something.
fn shown(value: f64) -> String {
    if value >= 1000.0 {
        let whole = format!("{value:.0}");
        let mut grouped = String::new();
        for (index, digit) in whole.chars().enumerate() {
            if index > 0 && (whole.len() - index) % 3 == 0 {
                grouped.push(',');
            }
            grouped.push(digit);
        }
        grouped
    } else if value >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

/// All figures of a run.
pub struct Report {
    machine: Machine,
    form: &'static str,
    rows: Vec<Row>,
}

impl Report {
    pub fn new(machine: Machine, form: &'static str) -> Self {
        Self {
            machine,
            form,
            rows: Vec::new(),
        }
    }

    /// Takes a figure in, and says it at once: a run takes minutes.
    pub fn add(&mut self, row: Row) {
        let [what, measured, bare, ratio, target] = row.cells();
        eprintln!("  {what:<64} {measured:>20}  {bare:>9}  {ratio:>5}  {target}");
        self.rows.push(row);
    }

    fn groups(&self) -> Vec<&'static str> {
        let mut groups = Vec::new();
        for row in &self.rows {
            if !groups.contains(&row.group) {
                groups.push(row.group);
            }
        }
        groups
    }

    /// The table as plain text.
    pub fn text(&self) -> String {
        let cells: Vec<[String; 5]> = self.rows.iter().map(Row::cells).collect();
        let width = |column: usize| {
            let widths = cells.iter().map(|row| row[column].chars().count());
            widths.chain([HEAD[column].len()]).max().unwrap_or(0)
        };
        let widths = [0, 1, 2, 3].map(width);
        let line = |row: &[String; 5]| {
            let [what, measured, bare, ratio, target] = row;
            let line = format!(
                "{what:<w0$}  {measured:>w1$}  {bare:>w2$}  {ratio:>w3$}  {target}",
                w0 = widths[0],
                w1 = widths[1],
                w2 = widths[2],
                w3 = widths[3],
            );
            line.trim_end().to_owned()
        };
        let mut text = format!("{}\n{}\n", self.machine, self.form);
        let _ = writeln!(text, "{}", line(&HEAD.map(str::to_owned)));
        for group in self.groups() {
            let _ = writeln!(text, "\n{group}");
            for (row, cells) in self.rows.iter().zip(&cells) {
                if row.group == group {
                    let _ = writeln!(text, "{}", line(cells));
                }
            }
        }
        text
    }

    /// Everything, for programs.
    pub fn json(&self) -> Value {
        json!({
            "machine": self.machine.json(),
            "form": self.form,
            "rows": self.rows.iter().map(Row::json).collect::<Vec<_>>(),
        })
    }

    fn markdown(&self) -> String {
        let mut text = format!("{BEGINS}\n\n{}. {}\n", self.machine, self.form);
        for group in self.groups() {
            let _ = writeln!(
                text,
                "\n**{group}**\n\n| {} |\n|---|---:|---:|---:|---|",
                HEAD.join(" | ")
            );
            for row in self.rows.iter().filter(|row| row.group == group) {
                let _ = writeln!(text, "| {} |", row.cells().join(" | "));
            }
        }
        let _ = writeln!(text, "\n{ENDS}");
        text
    }

    /// Puts the table in the place of the one that `page` holds between the two marks.
    pub fn write_into(&self, page: &Path) -> Result<(), String> {
        let text = fs::read_to_string(page).map_err(|error| format!("{}: {error}", page.display()))?;
        let missing = || {
            format!(
                "{}: it holds no table to replace, between `{BEGINS}` and `{ENDS}`",
                page.display()
            )
        };
        let (before, rest) = text.split_once(BEGINS).ok_or_else(missing)?;
        let (_, after) = rest.split_once(&format!("{ENDS}\n")).ok_or_else(missing)?;
        let text = format!("{before}{}{after}", self.markdown());
        fs::write(page, text).map_err(|error| format!("{}: {error}", page.display()))
    }
}
