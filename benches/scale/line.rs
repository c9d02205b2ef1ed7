//! The printed table: one line for each thing that was measured.

use crate::world::Cost;

pub(crate) const HEAD: &str = "| what | figure | beside | ratio | rows read | markets read of \
    | everything read | note |\n|---|---|---|---|---|---|---|---|";

/// A line of the table, as Markdown.
pub(crate) struct Line {
    what: String,
    figure: String,
    value: f64,
    beside: String,
    cost: [String; 3],
    note: String,
}

/// Seconds, with a unit that fits.
pub(crate) fn time(seconds: f64) -> String {
    match seconds {
        ..1e-6 => format!("{:.1} ns", seconds * 1e9),
        ..1e-3 => format!("{:.1} us", seconds * 1e6),
        ..1.0 => format!("{:.1} ms", seconds * 1e3),
        _ => format!("{seconds:.2} s"),
    }
}

impl Line {
    pub(crate) fn new(what: impl Into<String>, value: f64, figure: String) -> Line {
        Line {
            what: what.into(),
            figure,
            value,
            beside: "| ".to_owned(),
            cost: Default::default(),
            note: String::new(),
        }
    }

    pub(crate) fn seconds(what: impl Into<String>, seconds: f64) -> Line {
        Line::new(what, seconds, time(seconds))
    }

    /// With what it cost until the change was visible.
    pub(crate) fn of(what: impl Into<String>, cost: &Cost) -> Line {
        Line {
            cost: cost.columns(),
            ..Line::seconds(what, cost.seconds)
        }
    }

    pub(crate) fn cost(mut self, cost: &Cost) -> Line {
        self.cost = cost.columns();
        self
    }

    /// Compares the figure with a floor in the same unit.
    pub(crate) fn beside(mut self, floor: f64, text: &str) -> Line {
        self.beside = format!("{text} | x{:.2}", self.value / floor);
        self
    }

    pub(crate) fn beside_seconds(self, floor: f64, text: &str) -> Line {
        self.beside(floor, &format!("{}: {text}", time(floor)))
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Line {
        self.note = note.into();
        self
    }

    pub(crate) fn print(self) {
        let [rows, snapshots, whole] = self.cost;
        let (what, figure, beside, note) = (self.what, self.figure, self.beside, self.note);
        println!("| {what} | {figure} | {beside} | {rows} | {snapshots} | {whole} | {note} |");
    }
}
