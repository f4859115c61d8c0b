//! Running cell mask: every 2 x 2 cell hides the same places, which move on from frame to frame.
//!
//! | port      | dims        | what                                                |
//! |-----------|-------------|-----------------------------------------------------|
//! | `video`   | `B 3 T H W` | any clip; only its shape is used                    |
//! | `visible` | `B V`       | indices of visible patches, time-major, ascending   |
//! | `hidden`  | `B N-V`     | indices of the others, time-major, ascending        |
//!
//! With k = floor(4 ratio) of a cell's four places hidden, V is `N (4 - k) / 4` of N patches. Place
//! i of a cell, row by row, is hidden in frame f when `(i + f + 1 + phase) mod 4 < k`; a phase from
//! 0 to 3 is drawn for each clip. VideoMAE V2 decodes what this mask leaves visible.
//! Source: Wang et al. 2023, "VideoMAE V2" (arXiv 2303.16727), section 3.2; Qing et al. 2023,
//! "MAR" (arXiv 2207.11660).

use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::frame::Frames;
use schemas::node::{Forwarded, NodeError};
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use crate::kind::{self, Call, Host};
use crate::layers::positions::Lattice;
use crate::layers::size::Size;
use crate::layers::visible;
use crate::rng::Key;

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Share of a cell's four places that is hidden, rounded down: 0.25, 0.5 or 0.75.
    pub ratio: f64,
    /// Pixels per side of a patch.
    pub patch: usize,
    /// Frames per patch.
    pub tubelet: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { ratio: 0.5, patch: Size::TINY.patch, tubelet: 1 }
    }
}

impl Config {
    fn size(&self) -> Size {
        Size { patch: self.patch, tubelet: self.tubelet, ..Size::TINY }
    }

    /// Hidden places of a cell.
    fn hidden(&self) -> usize {
        (4.0 * self.ratio) as usize
    }

    /// Visible indices of a clip, for a phase from 0 to 3.
    pub fn choose(&self, lattice: Lattice, phase: usize) -> Vec<i64> {
        let [frames, rows, columns] = lattice;
        let seen = |index: &usize| {
            let (row, column) = (index / columns % rows, index % columns);
            let (place, frame) = (row % 2 * 2 + column % 2, index / columns / rows);
            (place + frame + 1 + phase) % 4 >= self.hidden()
        };
        (0..frames * rows * columns).filter(seen).map(|index| index as i64).collect()
    }
}

impl Host for Config {
    type State = Lattice;

    fn ports(&self, _: &[String]) -> Ports {
        let size = self.size();
        let seen = format!("{}/4*{}", size.tokens(), 4 - self.hidden().min(4));
        visible::ports_of_clip(&size, &seen)
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let mut problems = self.size().check_cut();
        if !(1..4).contains(&self.hidden()) {
            let message = format!("`ratio` is {}, but must be from 0.25 to below 1", self.ratio);
            problems.push(OptionProblem::new("ratio", message, "write 0.25, 0.5 or 0.75"));
        }
        let [_, rows, columns] = if problems.is_empty() { self.size().cut(dims) } else { [0; 3] };
        if !rows.is_multiple_of(2) || !columns.is_multiple_of(2) {
            let message = format!("{rows} x {columns} patches cannot be cut into cells of 2 x 2");
            problems.push(OptionProblem::new("patch", message, "make both numbers even"));
        }
        problems
    }

    fn open(&self, dims: &Dims, _: &Key) -> Result<Lattice, NodeError> {
        Ok(self.size().cut(dims))
    }

    fn forward(
        &self,
        lattice: &mut Lattice,
        inputs: Frames,
        call: &Call,
    ) -> Result<Forwarded, NodeError> {
        Ok(visible::give_drawn(&inputs, call, lattice.iter().product(), |rng| {
            self.choose(*lattice, rng.permutation(4)[0])
        }))
    }
}

/// Kind `masks/running_cell`.
pub const ENTRY: Entry = kind::host::<Config>(include_str!("running_cell.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::frame::Frame;
    use schemas::node::At;

    #[test]
    fn every_place_is_visible_in_half_of_four_frames() {
        let config = Config { ratio: 0.5, patch: 1, tubelet: 1 };
        for phase in 0..4 {
            let seen = config.choose([4, 2, 4], phase);
            let mut times = [0; 8];
            seen.iter().for_each(|index| times[*index as usize % 8] += 1);
            assert_eq!(times, [2; 8], "{phase}: {seen:?}");
        }
    }

    #[test]
    fn clips_differ_in_phase_alone() {
        let config = Config { ratio: 0.75, patch: 2, tubelet: 2 };
        let key = Key::new(1, "cell");
        let dims = [("T", 4), ("H", 4), ("W", 8)].map(|(k, v)| (k.to_owned(), v));
        let mut lattice = config.open(&Dims::from(dims), &key).unwrap();
        let call = Call::new(key, At::default());
        let video = Frame::f32([16, 3, 4, 4, 8], vec![0.0; 16 * 384]);
        let inputs = Frames::from([("video".to_owned(), video)]);
        let given = config.forward(&mut lattice, inputs, &call).unwrap().frames;
        assert_eq!(given["visible"].shape(), [16, 4]);
        let all: Vec<_> = (0..4).map(|phase| config.choose(lattice, phase)).collect();
        let drawn = given["visible"].to_i64();
        let drawn: Vec<_> = drawn.chunks(4).map(<[i64]>::to_vec).collect();
        assert!(drawn.iter().all(|clip| all.contains(clip)));
        assert!(all.iter().all(|clip| drawn.contains(clip)), "16 draws show all four");
    }

    #[test]
    fn odd_grids_are_refused() {
        let dims = [("T", 2), ("H", 48), ("W", 32)].map(|(k, v)| (k.to_owned(), v));
        let problems = Config::default().check(&Dims::from(dims));
        assert_eq!(problems[0].option, "patch");
        assert_eq!(Config { ratio: 0.1, ..Config::default() }.check(&Dims::new()).len(), 1);
    }
}
