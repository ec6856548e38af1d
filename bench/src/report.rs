//! Owns the results: values by target and round, their ratios to PgBouncer's in the same round, and what is said of them.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::fleet::{PGBOUNCER, PGVALET};

/// What a figure should come to.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "of")]
pub enum Goal {
    /// The ratio to PgBouncer is at most this.
    RatioAtMost { must: f64, aim: f64 },
    /// The ratio to PgBouncer is at least this.
    RatioAtLeast { must: f64, aim: f64 },
    /// pgvalet's own value is at most this.
    AtMost { must: f64, aim: f64 },
}

/// How the names of those figures begin that say most.
const HEADLINES: [&str; 16] = [
    "CPU a transaction: simple, 8 clients, session",
    "CPU a transaction: prepared, 8 clients, session",
    "CPU a transaction: prepared, 64 clients, session",
    "CPU a transaction: simple, 64 clients, transaction",
    "CPU a transaction: unix sockets, prepared, 8 clients",
    "CPU a transaction: TLS from the client, prepared, 8 clients",
    "transactions a second: prepared, 64 clients, session",
    "latency added over direct, p50: simple, 8 clients",
    "latency added over direct, p99: simple, 8 clients",
    "memory an idle client that has run a query",
    "memory an idle TLS client that has run a query",
    "CPU a new connection: trust",
    "CPU a new connection: SCRAM",
    "CPU a GB: SELECT",
    "throughput: SELECT",
    "CPU a GB: COPY",
];

/// One row of the report.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    pub group: String,
    pub name: String,
    pub unit: &'static str,
    pub goal: Option<Goal>,
    /// One value a round, by target; none where a round has none.
    pub values: BTreeMap<String, Vec<Option<f64>>>,
}

/// A median with what it lies between.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.retain(|value| value.is_finite());
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self {
            median,
            least,
            most,
        })
    }
}

impl Figure {
    pub fn new(group: &str, name: &str, unit: &'static str, goal: Option<Goal>) -> Self {
        Self {
            group: group.to_owned(),
            name: name.to_owned(),
            unit,
            goal,
            values: BTreeMap::new(),
        }
    }

    /// Its name, with its unit.
    fn title(&self) -> String {
        match self.unit {
            "" => self.name.clone(),
            unit => format!("{}, {unit}", self.name),
        }
    }

    /// Notes a target's value of `round`.
    pub fn note(&mut self, target: &str, round: usize, value: f64) {
        let values = self.values.entry(target.to_owned()).or_default();
        values.resize(values.len().max(round + 1), None);
        values[round] = Some(value);
    }

    pub fn spread(&self, target: &str) -> Option<Spread> {
        Spread::of(self.values.get(target)?.iter().copied().flatten().collect())
    }

    /// A target's ratio to PgBouncer, of rounds that have both.
    pub fn ratio(&self, target: &str) -> Option<Spread> {
        let base = self.values.get(PGBOUNCER)?;
        let pairs = self.values.get(target)?.iter().zip(base);
        Spread::of(
            pairs
                .filter_map(|(value, base)| (*value).zip(*base))
                // What is added over direct may drown in noise: nothing can be said then.
                .filter(|(value, base)| *value > 0.0 && *base > 0.0)
                .map(|(value, base)| value / base)
                .collect(),
        )
    }

    /// Where pgvalet's median stands: "aim", "must", or "missed".
    pub fn verdict(&self) -> Option<&'static str> {
        let (value, must, aim) = match self.goal? {
            Goal::RatioAtMost { must, aim } => (self.ratio(PGVALET)?.median, must, aim),
            Goal::AtMost { must, aim } => (self.spread(PGVALET)?.median, must, aim),
            Goal::RatioAtLeast { must, aim } => (-self.ratio(PGVALET)?.median, -must, -aim),
        };
        Some(match value {
            value if value <= aim => "aim",
            value if value <= must => "must",
            _ => "missed",
        })
    }
}

/// All results of a run.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// What it was measured on and with, in words.
    pub conditions: Vec<String>,
    pub figures: Vec<Figure>,
}

impl Report {
    /// Adds a figure, and says what it came to.
    pub fn add(&mut self, figure: Figure) {
        let values: Vec<String> = figure
            .values
            .keys()
            .map(|name| format!("{name} {}", cell(figure.spread(name))))
            .collect();
        let against = figure.ratio(PGVALET).map_or_else(String::new, |found| {
            format!(", ratio {}", ratio(Some(found)))
        });
        eprintln!(
            "  {}: {} {}{against}",
            figure.name,
            values.join(", "),
            figure.unit
        );
        self.figures.push(figure);
    }

    pub fn markdown(&self) -> String {
        let mut out = String::new();
        for line in &self.conditions {
            let _ = writeln!(out, "- {line}");
        }
        let others = self.others();
        let names: String = others.iter().map(|name| format!(" {name} |")).collect();
        let rule = "---|".repeat(others.len());
        let _ = write!(
            out,
            "\n| figure | pgvalet | PgBouncer |{names} pgvalet to PgBouncer | must | aim | |\n|---|---|---|{rule}---|---|---|---|\n"
        );
        for figure in &self.figures {
            let value = |name: &str| cell(figure.spread(name));
            let others: String = others
                .iter()
                .map(|name| format!(" {} |", value(name)))
                .collect();
            let (must, aim) = goal(figure.goal);
            let _ = writeln!(
                out,
                "| {} | {} | {} |{others} {} | {must} | {aim} | {} |",
                figure.title(),
                value(PGVALET),
                value(PGBOUNCER),
                ratio(figure.ratio(PGVALET)),
                figure.verdict().unwrap_or_default(),
            );
        }
        out
    }

    /// The conditions, and the figures that say most.
    pub fn headlines(&self) -> String {
        let mut out = String::new();
        for line in &self.conditions {
            let _ = writeln!(out, "- {line}");
        }
        out.push_str("\n| figure | pgvalet | PgBouncer | ratio |\n|---|---|---|---|\n");
        let found = HEADLINES.iter().flat_map(|headline| {
            let figures = self.figures.iter();
            figures.filter(move |figure| figure.name.starts_with(headline))
        });
        for figure in found {
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} |",
                figure.title(),
                cell(figure.spread(PGVALET)),
                cell(figure.spread(PGBOUNCER)),
                ratio(figure.ratio(PGVALET)),
            );
        }
        out
    }

    /// Targets besides the two, in the order in which they came.
    fn others(&self) -> Vec<&str> {
        let mut others = Vec::new();
        for name in self.figures.iter().flat_map(|figure| figure.values.keys()) {
            if name != PGVALET && name != PGBOUNCER && !others.contains(&name.as_str()) {
                others.push(name.as_str());
            }
        }
        others
    }
}

fn goal(goal: Option<Goal>) -> (String, String) {
    match goal {
        None => Default::default(),
        Some(Goal::RatioAtMost { must, aim } | Goal::AtMost { must, aim }) => {
            (format!("≤ {must}"), format!("≤ {aim}"))
        }
        Some(Goal::RatioAtLeast { must, aim }) => (format!("≥ {must}"), format!("≥ {aim}")),
    }
}

fn cell(spread: Option<Spread>) -> String {
    spread.map_or_else(|| "–".to_owned(), |spread| number(spread.median))
}

fn ratio(spread: Option<Spread>) -> String {
    let Some(Spread {
        median,
        least,
        most,
    }) = spread
    else {
        return "–".to_owned();
    };
    format!("**{median:.2}** ({least:.2}–{most:.2})")
}

/// Three digits or more.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_taken_within_a_round() {
        let goal = Some(Goal::RatioAtMost {
            must: 1.0,
            aim: 0.6,
        });
        let mut figure = Figure::new("cpu", "CPU", "µs", goal);
        for (round, (ours, theirs)) in [(5.0, 10.0), (20.0, 20.0), (12.0, 20.0)]
            .into_iter()
            .enumerate()
        {
            figure.note(PGVALET, round, ours);
            figure.note(PGBOUNCER, round, theirs);
        }
        // Whatever the third round lacks is left out.
        figure.note(PGVALET, 3, 100.0);
        let ratio = figure.ratio(PGVALET).unwrap();
        assert_eq!((ratio.least, ratio.median, ratio.most), (0.5, 0.6, 1.0));
        assert_eq!(figure.verdict(), Some("aim"));
    }
}
