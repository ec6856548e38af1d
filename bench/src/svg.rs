//! Owns the picture of how the cost grows: plain SVG, readable on light and dark pages alike.

use std::fmt::Write;

use crate::figures::growth::{BUSY, IDLE, busy_name, idle_name, memory_name};
use crate::fleet::{PGBOUNCER, PGVALET};
use crate::report::{Report, number};

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 300.0;
/// Of one panel's plot.
const PLOT: (f64, f64) = (220.0, 180.0);
const TOP: f64 = 60.0;
const TARGETS: [(&str, &str); 2] = [(PGVALET, "ours"), (PGBOUNCER, "theirs")];

const STYLE: &str = "\
text { font: 12px system-ui, sans-serif; fill: #1f2328 }\n\
.title { font-weight: 600 }\n.axis { stroke: #8c959f; stroke-width: 1 }\n.grid { stroke: #8c959f; stroke-width: 0.5; opacity: 0.35 }\n\
.ours { stroke: #0969da; fill: none; stroke-width: 2.5 }\n.theirs { stroke: #bc4c00; fill: none; stroke-width: 2.5; stroke-dasharray: 6 4 }\n\
circle.ours { fill: #0969da }\ncircle.theirs { fill: #bc4c00; stroke-dasharray: none }\n\
@media (prefers-color-scheme: dark) {\n text { fill: #e6edf3 }\n .ours { stroke: #58a6ff }\n .theirs { stroke: #f0883e }\n\
 circle.ours { fill: #58a6ff }\n circle.theirs { fill: #f0883e }\n}";

struct Panel<'a> {
    title: &'a str,
    below: &'a str,
    /// The numbers of clients, and the figure of each.
    points: Vec<(usize, String)>,
}

/// The picture; none where growth wasn't measured.
pub fn picture(report: &Report) -> Option<String> {
    let panel = |title, below, counts: &[usize], name: fn(usize) -> String| Panel {
        title,
        below,
        points: counts.iter().map(|&count| (count, name(count))).collect(),
    };
    let panels = [
        panel("CPU a transaction, µs", "busy clients", &BUSY, busy_name),
        panel(
            "CPU a transaction, µs",
            "idle clients beside 8 busy ones",
            &IDLE,
            idle_name,
        ),
        panel("Resident memory, MB", "idle clients", &IDLE, memory_name),
    ];
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"How the cost of pgvalet and PgBouncer grows with the number of clients\">\n<style>\n{STYLE}\n</style>\n"
    );
    for (place, panel) in [60.0, 355.0, 650.0].into_iter().zip(&panels) {
        draw(&mut out, report, panel, place)?;
    }
    for (x, (name, class)) in [60.0, 180.0].into_iter().zip(TARGETS) {
        let _ = writeln!(
            out,
            "<line class=\"{class}\" x1=\"{x}\" y1=\"16\" x2=\"{}\" y2=\"16\"/><text x=\"{}\" y=\"20\">{name}</text>",
            x + 28.0,
            x + 36.0
        );
    }
    out.push_str("</svg>\n");
    Some(out)
}

/// Where a panel's values lie: clients on a logarithmic axis, from 0 upwards on the other.
struct Plot {
    left: f64,
    first: f64,
    last: f64,
    /// The value at the upper end.
    top: f64,
}

impl Plot {
    #[expect(clippy::cast_precision_loss, reason = "a count of clients")]
    fn x(&self, count: usize) -> f64 {
        self.left + PLOT.0 * (count as f64 / self.first).ln() / (self.last / self.first).ln()
    }

    fn y(&self, value: f64) -> f64 {
        TOP + PLOT.1 * (1.0 - value / self.top)
    }

    fn axes(&self, out: &mut String, panel: &Panel<'_>) {
        let (left, right, bottom) = (self.left, self.left + PLOT.0, TOP + PLOT.1);
        text(out, "title", (left, TOP - 14.0), "start", panel.title);
        for step in 0..=4 {
            let value = self.top * f64::from(step) / 4.0;
            let class = if step == 0 { "axis" } else { "grid" };
            let y = self.y(value);
            let _ = writeln!(
                out,
                "<line class=\"{class}\" x1=\"{left}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/>"
            );
            let label = number(value).replace(".00", "");
            text(out, "label", (left - 6.0, y + 4.0), "end", &label);
        }
        for (count, _) in &panel.points {
            let place = (self.x(*count), bottom + 18.0);
            text(out, "label", place, "middle", &count.to_string());
        }
        let place = (left + PLOT.0 / 2.0, bottom + 38.0);
        text(out, "label", place, "middle", panel.below);
    }
}

fn text(out: &mut String, class: &str, (x, y): (f64, f64), anchor: &str, text: &str) {
    let _ = writeln!(
        out,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
    );
}

/// One panel, its plot from `left` on.
#[expect(clippy::cast_precision_loss, reason = "a count of clients")]
fn draw(out: &mut String, report: &Report, panel: &Panel<'_>, left: f64) -> Option<()> {
    let value = |name: &str, target: &str| {
        let mut figures = report.figures.iter();
        let figure = figures.find(|figure| figure.name == name)?;
        Some(figure.spread(target)?.median)
    };
    let mut most = 0.0_f64;
    for (_, name) in &panel.points {
        most = most.max(value(name, PGVALET)?).max(value(name, PGBOUNCER)?);
    }
    let plot = Plot {
        left,
        first: panel.points.first()?.0 as f64,
        last: panel.points.last()?.0 as f64,
        top: round_up(most),
    };
    plot.axes(out, panel);
    for (target, class) in TARGETS {
        let mut line = String::new();
        for (count, name) in &panel.points {
            let (x, y) = (plot.x(*count), plot.y(value(name, target)?));
            let _ = write!(line, "{x:.1},{y:.1} ");
            let _ = writeln!(
                out,
                "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>"
            );
        }
        let line = line.trim_end();
        let _ = writeln!(out, "<polyline class=\"{class}\" points=\"{line}\"/>");
    }
    Some(())
}

/// The next number with one or two digits that reads well.
fn round_up(value: f64) -> f64 {
    let size = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 1.2, 1.6, 2.0, 2.4, 3.2, 4.0, 6.0, 8.0, 10.0];
    let fits = steps.into_iter().find(|step| step * size >= value);
    fits.unwrap_or(10.0) * size
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Figure;

    #[test]
    fn a_picture_has_a_line_for_each_target_in_each_panel() {
        let mut report = Report::default();
        let names = BUSY.map(busy_name).into_iter();
        let names = names
            .chain(IDLE.map(idle_name))
            .chain(IDLE.map(memory_name));
        for name in names {
            let mut figure = Figure::new("growth", &name, "", None);
            figure.note(PGVALET, 0, 9.5);
            figure.note(PGBOUNCER, 0, 12.0);
            report.figures.push(figure);
        }
        let picture = picture(&report).unwrap();
        assert_eq!(picture.matches("<polyline").count(), 6);
        assert!(!picture.contains("NaN"), "{picture}");
        report.figures.pop();
        assert!(super::picture(&report).is_none());
    }

    #[test]
    fn an_axis_ends_above_what_it_shows() {
        for (value, top) in [
            (9.5, 10.0),
            (12.0, 12.0),
            (13.0, 16.0),
            (0.7, 0.8),
            (101.0, 120.0),
        ] {
            assert!(
                (round_up(value) - top).abs() < 1e-9,
                "{value}: {}",
                round_up(value)
            );
        }
    }
}
