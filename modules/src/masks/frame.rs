//! Frame mask: whole frames are hidden.
//!
//! | port      | dims        | what                                                |
//! |-----------|-------------|-----------------------------------------------------|
//! | `video`   | `B 3 T H W` | any clip; only its shape is used                    |
//! | `visible` | `B V`       | indices of visible patches, time-major, ascending   |
//! | `hidden`  | `B N-V`     | indices of the others, time-major, ascending        |
//!
//! N is the number of patches, V is `A (T/t - floor(T/t ratio))` with A places in a frame. Frames are
//! drawn without replacement. Source: Tong et al. 2022, "VideoMAE" (arXiv 2203.12602), section 3.3.

use schemars::JsonSchema;
use schemas::dims::{Dims, keep};
use schemas::entry::{Entry, OptionProblem};
use schemas::frame::Frames;
use schemas::node::{Forwarded, NodeError};
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use crate::kind::{self, Call, Host};
use crate::layers::size::{Size, check_share};
use crate::layers::visible;
use crate::rng::Key;

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Share of the frames that is hidden.
    pub ratio: f64,
    /// Pixels per side of a patch.
    pub patch: usize,
    /// Frames per patch.
    pub tubelet: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { ratio: 0.875, patch: Size::TINY.patch, tubelet: 1 }
    }
}

impl Config {
    fn size(&self) -> Size {
        Size { patch: self.patch, tubelet: self.tubelet, ..Size::TINY }
    }
}

impl Host for Config {
    type State = [usize; 3];

    fn ports(&self, _: &[String]) -> Ports {
        let size = self.size();
        let seen = format!("keep({},{})*({})", size.times(), self.ratio, size.places());
        visible::ports_of_clip(&size, &seen)
    }

    fn check(&self, _: &Dims) -> Vec<OptionProblem> {
        let mut problems: Vec<_> = check_share("ratio", self.ratio).into_iter().collect();
        problems.extend(self.size().check_cut());
        problems
    }

    fn open(&self, dims: &Dims, _: &Key) -> Result<[usize; 3], NodeError> {
        Ok(self.size().cut(dims))
    }

    fn forward(
        &self,
        lattice: &mut [usize; 3],
        inputs: Frames,
        call: &Call,
    ) -> Result<Forwarded, NodeError> {
        let [frames, rows, columns] = *lattice;
        let places = rows * columns;
        Ok(visible::give_drawn(&inputs, call, frames * places, |rng| {
            let mut seen = rng.permutation(frames)[..keep(frames, self.ratio)].to_vec();
            seen.sort_unstable();
            let all = |frame: usize| (frame * places..(frame + 1) * places).map(|i| i as i64);
            seen.into_iter().flat_map(all).collect()
        }))
    }
}

/// Kind `masks/frame`.
pub const ENTRY: Entry = kind::host::<Config>(include_str!("frame.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::frame::Frame;
    use schemas::node::At;

    #[test]
    fn a_frame_is_seen_whole_or_not_at_all() {
        let config = Config { ratio: 0.5, patch: 1, tubelet: 1 };
        let key = Key::new(1, "mask");
        let dims = [("T", 5), ("H", 2), ("W", 3)].map(|(k, v)| (k.to_owned(), v));
        let mut state = config.open(&Dims::from(dims), &key).unwrap();
        let call = Call::new(key, At::default());
        let video = Frame::f32([2, 3, 5, 2, 3], vec![0.0; 180]);
        let inputs = Frames::from([("video".to_owned(), video)]);
        let given = config.forward(&mut state, inputs, &call).unwrap();
        let visible = given.frames["visible"].to_i64();
        assert_eq!(given.frames["visible"].shape(), [2, 18]);
        for frame in visible.chunks(6) {
            assert!(frame[0] % 6 == 0 && frame.windows(2).all(|pair| pair[1] == pair[0] + 1));
        }
        assert_ne!(visible[..18], visible[18..], "samples differ");
    }
}
