//! Multi-block mask: a few large blocks of space and time are hidden, in every clip elsewhere.
//!
//! | port      | dims        | what                                                |
//! |-----------|-------------|-----------------------------------------------------|
//! | `video`   | `B 3 T H W` | any clip; only its shape is used                    |
//! | `visible` | `B V`       | indices of visible patches, time-major, ascending   |
//! | `hidden`  | `B M`       | indices of patches to predict, time-major, ascending |
//!
//! One block size is drawn for each call and a place for each block of each sample. Visible is what no
//! block covers, cut to the shortest sample of the call and to `max_keep`: the first ones stay. Hidden is
//! what blocks cover, cut to the shortest sample (`hidden: blocks`, V-JEPA 2), or all that is not visible
//! (`hidden: rest`, InternVideo-Next). V and M differ from call to call; the plan reckons with
//! `max_keep`, or with what blocks leave on average. A sample without visible patch is drawn again.
//! Published: 8 blocks of 0.15 and 2 of 0.7, two masks side by side; InternVideo-Next keeps at most
//! 1600 patches of 32 frames of 16 x 16.
//! Source: Bardes et al. 2024, "V-JEPA" (arXiv 2404.08471); V-JEPA 2 (arXiv 2506.09985); recipes
//! §5.7, §6.

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
use crate::rng::{Key, Rng};

/// What `hidden` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Hidden {
    /// What blocks cover; every sample equally much.
    #[default]
    Blocks,
    /// All that is not visible.
    Rest,
}

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Blocks of a sample; they may overlap.
    pub blocks: usize,
    /// Smallest and largest share of a frame that a block covers.
    pub area: [f64; 2],
    /// Smallest and largest share of the clip that it lasts.
    pub time: [f64; 2],
    /// Smallest and largest ratio of its height to its width.
    pub aspect: [f64; 2],
    /// Share of the frames that may be visible: the first ones.
    pub context: f64,
    /// Most visible patches of a sample; as many as there are when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_keep: Option<usize>,
    /// What `hidden` names.
    pub hidden: Hidden,
    /// Whether the two outputs change places: blocks are seen, the rest is predicted.
    pub inverse: bool,
    /// Pixels per side of a patch.
    pub patch: usize,
    /// Frames per patch.
    pub tubelet: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            blocks: 8,
            area: [0.15; 2],
            time: [1.0; 2],
            aspect: [0.75, 1.5],
            context: 1.0,
            max_keep: None,
            hidden: Hidden::Blocks,
            inverse: false,
            patch: Size::TINY.patch,
            tubelet: 1,
        }
    }
}

/// Draws of a sample before its blocks count as too large for the lattice.
const TRIES: usize = 1000;

impl Config {
    fn size(&self) -> Size {
        Size { patch: self.patch, tubelet: self.tubelet, ..Size::TINY }
    }

    /// Frames, rows and columns of a block, from uniform draws for time, area and aspect.
    pub fn extents(&self, [frames, rows, columns]: Lattice, draws: [f64; 3]) -> Lattice {
        let within = |[low, high]: [f64; 2], draw: f64| low + draw * (high - low);
        let time = (frames as f64 * within(self.time, draws[0])) as usize;
        let places = ((rows * columns) as f64 * within(self.area, draws[1])).floor();
        let aspect = within(self.aspect, draws[2]);
        // A block covers a patch at least, also on lattices that are too small for its area.
        let side = |of: f64, most: usize| (of.sqrt().round_ties_even() as usize).clamp(1, most);
        [time.clamp(1, frames), side(places * aspect, rows), side(places / aspect, columns)]
    }

    /// Patches that no block covers, of blocks of one size at these corners: top, left, first frame.
    pub fn context(&self, lattice: Lattice, block: Lattice, corners: &[[usize; 3]]) -> Vec<i64> {
        let [frames, rows, columns] = lattice;
        let seen = ((frames as f64 * self.context) as usize).max(1);
        let covers = |[top, left, start]: &[usize; 3], [t, h, w]: Lattice| {
            (*start..start + block[0]).contains(&t)
                && (*top..top + block[1]).contains(&h)
                && (*left..left + block[2]).contains(&w)
        };
        let free = |index: &usize| {
            let at = [index / (rows * columns), index / columns % rows, index % columns];
            at[0] < seen && !corners.iter().any(|corner| covers(corner, at))
        };
        (0..frames * rows * columns).filter(free).map(|index| index as i64).collect()
    }

    /// Visible and hidden patches of a call, from what no block of each sample covers.
    pub fn collate(&self, contexts: Vec<Vec<i64>>, all: usize) -> [Vec<Vec<i64>>; 2] {
        let shortest = contexts.iter().map(Vec::len).min().unwrap_or(0);
        let longest = contexts.iter().map(Vec::len).max().unwrap_or(0);
        let keep = shortest.min(self.max_keep.unwrap_or(shortest));
        let cut = |mut list: Vec<i64>, length: usize| {
            list.truncate(length);
            list
        };
        let covered = |context: &Vec<i64>| cut(visible::others(context, all), all - longest);
        let hidden: Vec<_> = contexts.iter().map(covered).collect();
        let seen: Vec<_> = contexts.into_iter().map(|list| cut(list, keep)).collect();
        let hidden = match self.hidden {
            Hidden::Blocks => hidden,
            Hidden::Rest => seen.iter().map(|seen| visible::others(seen, all)).collect(),
        };
        if self.inverse { [hidden, seen] } else { [seen, hidden] }
    }

    /// What no block covers, for one sample; none when blocks leave nothing.
    fn draw(&self, lattice: Lattice, block: Lattice, rng: &mut Rng) -> Option<Vec<i64>> {
        let [frames, rows, columns] = lattice;
        let mut one = || {
            let mut corner = || {
                let below = [rows - block[1] + 1, columns - block[2] + 1, frames - block[0] + 1];
                below.map(|places| rng.below(places))
            };
            let corners: Vec<_> = (0..self.blocks).map(|_| corner()).collect();
            self.context(lattice, block, &corners)
        };
        (0..TRIES).map(|_| one()).find(|context| !context.is_empty())
    }

    /// Share of the patches that blocks leave when each covers its mean share on its own.
    fn left(&self) -> f64 {
        let mean = |[low, high]: [f64; 2]| (low + high) / 2.0;
        let free = (1.0 - mean(self.area) * mean(self.time)).powi(self.blocks.min(1024) as i32);
        free * self.context
    }

    fn check_range(name: &str, [low, high]: [f64; 2], most: f64) -> Option<OptionProblem> {
        let right = low > 0.0 && low <= high && high <= most;
        let message = format!("`{name}` is {low} to {high}, but must be above 0, up to {most}");
        let hint = "give the smaller number first; twice the same number is one size";
        (!right).then(|| OptionProblem::new(name, message, hint))
    }
}

impl Host for Config {
    type State = Lattice;

    fn ports(&self, _: &[String]) -> Ports {
        let size = self.size();
        let left = match self.max_keep {
            Some(most) => most.to_string(),
            // Two digits: a dim is written for people, too.
            None => {
                let hidden = (100.0 * (1.0 - self.left())).round().clamp(0.0, 99.0) / 100.0;
                format!("keep({},{hidden})", size.tokens())
            }
        };
        let left = if self.inverse { format!("{}-{left}", size.tokens()) } else { left };
        visible::ports_of_clip(&size, &format!("({left})"))
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let mut problems = self.size().check_cut();
        problems.extend(Self::check_range("area", self.area, 1.0));
        problems.extend(Self::check_range("time", self.time, 1.0));
        problems.extend(Self::check_range("aspect", self.aspect, 100.0));
        problems.extend(Self::check_range("context", [self.context; 2], 1.0));
        if !(1..=1024).contains(&self.blocks) {
            let message = format!("`blocks` is {}, but must be from 1 to 1024", self.blocks);
            problems.push(OptionProblem::new("blocks", message, "8 and 2 are published"));
        }
        let all: usize =
            if problems.is_empty() { self.size().cut(dims).iter().product() } else { 0 };
        let Some(most) = self.max_keep else { return problems };
        if most == 0 || (all > 0 && most >= all) {
            let message =
                format!("`max_keep` is {most}, but must be from 1 to below {all} patches");
            problems.push(OptionProblem::new("max_keep", message, "or leave it out"));
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
        let batch = inputs.get("video").map_or(0, |video| video.shape()[0]);
        let mut rng = call.key.with("size").rng();
        let block = self.extents(*lattice, [(); 3].map(|()| rng.uniform()));
        let one = |sample: usize| {
            let mut rng = call.key.with_number(sample as u64).rng();
            self.draw(*lattice, block, &mut rng).ok_or_else(|| NodeError::Data {
                what: "the multi-block mask".to_owned(),
                reason: format!(
                    "{} blocks of {block:?} frames, rows and columns leave nothing of {lattice:?}; \
                     make `area` smaller",
                    self.blocks
                ),
            })
        };
        let contexts = (0..batch).map(one).collect::<Result<_, _>>()?;
        let [seen, hidden] = self.collate(contexts, lattice.iter().product());
        Ok(visible::give_both(seen, hidden))
    }
}

/// Kind `masks/multiblock`.
pub const ENTRY: Entry = kind::host::<Config>(include_str!("multiblock.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::frame::Frame;
    use schemas::node::At;

    fn given(config: &Config, step: u64) -> Result<Frames, NodeError> {
        let key = Key::new(1, "mask").with_number(step);
        let dims = [("T", 4), ("H", 8), ("W", 8)].map(|(k, v)| (k.to_owned(), v));
        let mut state = config.open(&Dims::from(dims), &key)?;
        let video = Frame::f32([3, 3, 4, 8, 8], vec![0.0; 3 * 3 * 256]);
        let inputs = Frames::from([("video".to_owned(), video)]);
        Ok(config.forward(&mut state, inputs, &Call::new(key, At::default()))?.frames)
    }

    fn config(hidden: Hidden) -> Config {
        Config { hidden, patch: 1, blocks: 2, area: [0.3; 2], ..Config::default() }
    }

    #[test]
    fn what_is_visible_is_not_hidden_and_all_samples_are_equally_long() {
        for (step, hidden) in [(0, Hidden::Blocks), (1, Hidden::Rest)] {
            let frames = given(&config(hidden), step).unwrap();
            let [seen, blocks] = ["visible", "hidden"].map(|port| frames[port].clone());
            let (n, m) = (seen.shape()[1], blocks.shape()[1]);
            assert!(n > 0 && m > 0 && n + m <= 256);
            assert_eq!(n + m == 256, hidden == Hidden::Rest || n + m == 256);
            for (seen, blocks) in seen.to_i64().chunks(n).zip(blocks.to_i64().chunks(m)) {
                assert!(seen.is_sorted() && blocks.is_sorted());
                assert!(seen.iter().all(|index| blocks.binary_search(index).is_err()));
            }
        }
    }

    #[test]
    fn a_cap_keeps_the_first_patches() {
        let config = Config { max_keep: Some(20), ..config(Hidden::Rest) };
        let frames = given(&config, 0).unwrap();
        assert_eq!(frames["visible"].shape(), [3, 20]);
        assert_eq!(frames["hidden"].shape(), [3, 236]);
        assert!(frames["visible"].to_i64().iter().all(|index| *index < 64), "of the first frame");
    }

    #[test]
    fn blocks_as_large_as_the_clip_are_an_error_and_not_a_loop() {
        let config = Config { area: [1.0; 2], aspect: [1.0; 2], ..config(Hidden::Blocks) };
        assert!(given(&config, 0).unwrap_err().to_string().contains("area"));
    }

    #[test]
    fn ranges_that_cannot_be_are_refused() {
        let config = Config { area: [0.5, 0.2], time: [0.0, 1.0], ..Config::default() };
        let options: Vec<_> = config.check(&Dims::new()).into_iter().map(|p| p.option).collect();
        assert_eq!(options, ["area", "time"]);
    }
}
