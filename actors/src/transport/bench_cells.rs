//! The cells of the transport benchmark, and the lines that their figures make.

use std::fmt;

const MIB: usize = 1 << 20;

/// One line of the result.
#[derive(Debug, Clone)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// Bytes of a body.
    pub size: usize,
    /// `GB/s`, or `us`.
    pub unit: &'static str,
    /// The best round, or p50.
    pub best: f64,
    /// The median round, or p99.
    pub median: f64,
    /// What it is compared with, and the ratios of best and of median.
    pub against: Vec<(&'static str, f64, f64)>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, size, unit, best, median, .. } = self;
        let (first, second) = if *unit == "us" { ("p50", "p99") } else { ("best", "median") };
        write!(
            f,
            "{what:<28} {size:>9} B  {first} {best:>8.2} {unit}  {second} {median:>8.2} {unit}"
        )?;
        for (number, (against, best, median)) in self.against.iter().enumerate() {
            let sign = if number == 0 { "  =" } else { "," };
            write!(f, "{sign} {:.0} % / {:.0} % of {against}", best * 100.0, median * 100.0)?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Cell {
    Memcpy(usize),
    Raw(usize),
    Shared(usize),
    Plain(usize),
    Curve(usize),
    InPlace(usize),
    Copied(usize),
    /// pyzmq over ipc.
    PyIpc(usize),
    /// pyzmq over TCP.
    PyTcp(usize),
    /// pyzmq over ipc, one message at a time.
    PyHandOver(usize),
}

pub(super) const CELLS: [Cell; 25] = [
    Cell::Memcpy(MIB),
    Cell::Shared(MIB),
    Cell::Memcpy(16 * MIB),
    Cell::Shared(16 * MIB),
    Cell::Memcpy(64_000_000),
    Cell::Shared(64_000_000),
    Cell::InPlace(64 << 10),
    Cell::InPlace(MIB),
    Cell::InPlace(16 * MIB),
    Cell::Copied(64 << 10),
    Cell::Copied(MIB),
    Cell::Raw(MIB),
    Cell::Plain(MIB),
    Cell::Curve(MIB),
    Cell::Raw(64_000_000),
    Cell::Plain(64_000_000),
    Cell::Curve(64_000_000),
    Cell::PyIpc(MIB),
    Cell::PyIpc(16 * MIB),
    Cell::PyIpc(64_000_000),
    Cell::PyTcp(MIB),
    Cell::PyTcp(64_000_000),
    Cell::PyHandOver(64 << 10),
    Cell::PyHandOver(MIB),
    Cell::PyHandOver(16 * MIB),
];

impl Cell {
    pub(super) fn name(self) -> (&'static str, usize) {
        match self {
            Self::Memcpy(size) => ("memcpy", size),
            Self::Raw(size) => ("raw tcp", size),
            Self::Shared(size) => ("shared memory", size),
            Self::Plain(size) => ("tcp, unencrypted", size),
            Self::Curve(size) => ("tcp, CURVE", size),
            Self::InPlace(size) => ("hand-over, in place", size),
            Self::Copied(size) => ("hand-over, copied", size),
            Self::PyIpc(size) => ("pyzmq, ipc", size),
            Self::PyTcp(size) => ("pyzmq, tcp", size),
            Self::PyHandOver(size) => ("pyzmq, ipc, hand-over", size),
        }
    }

    /// What it is compared with.
    fn against(self) -> Vec<(&'static str, Self)> {
        match self {
            Self::Shared(size) => {
                vec![("memcpy", Self::Memcpy(size)), ("pyzmq ipc", Self::PyIpc(size))]
            }
            Self::Plain(size) => {
                vec![("raw tcp", Self::Raw(size)), ("pyzmq tcp", Self::PyTcp(size))]
            }
            Self::Curve(size) => vec![("raw tcp", Self::Raw(size))],
            Self::InPlace(size) | Self::Copied(size) => vec![("pyzmq ipc", Self::PyHandOver(size))],
            _ => Vec::new(),
        }
    }

    fn latency(self) -> bool {
        matches!(self, Self::InPlace(_) | Self::Copied(_) | Self::PyHandOver(_))
    }
}

fn at(sorted: &[f64], part: f64) -> f64 {
    let index = (sorted.len().saturating_sub(1)) as f64 * part;
    sorted.get(index.round() as usize).copied().unwrap_or(f64::NAN)
}

/// The lines of the result from the figures of all cells.
pub(super) fn rows(mut figures: Vec<Vec<f64>>) -> Vec<Row> {
    figures.iter_mut().for_each(|figures| figures.sort_by(f64::total_cmp));
    let figure = |cell: Cell| {
        let sorted =
            CELLS.iter().position(|other| *other == cell).map_or(&[][..], |index| &figures[index]);
        if cell.latency() {
            (at(sorted, 0.5), at(sorted, 0.99))
        } else {
            (at(sorted, 1.0), at(sorted, 0.5))
        }
    };
    let row = |cell: &Cell| {
        let ((what, size), (best, median)) = (cell.name(), figure(*cell));
        let ratio = |(name, other)| {
            let other = figure(other);
            (name, best / other.0, median / other.1)
        };
        let ratios = cell.against().into_iter().map(ratio);
        let against = ratios.filter(|(_, best, _)| !best.is_nan()).collect();
        Row {
            what: what.to_owned(),
            size,
            unit: if cell.latency() { "us" } else { "GB/s" },
            best,
            median,
            against,
        }
    };
    CELLS.iter().map(row).filter(|row| !row.best.is_nan()).collect()
}
