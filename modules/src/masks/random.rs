//! Random mask: every patch is equally likely to stay visible.
//!
//! | port      | dims        | what                                                |
//! |-----------|-------------|-----------------------------------------------------|
//! | `video`   | `B 3 T H W` | any clip; only its shape is used                    |
//! | `visible` | `B V`       | indices of visible patches, time-major, ascending   |
//! | `hidden`  | `B N-V`     | indices of the others, time-major, ascending        |
//!
//! Per clip V is `N - floor(N ratio)` of N patches; per frame the same is hidden of every frame.
//! Source: Tong et al. 2022, "VideoMAE" (arXiv 2203.12602), figure 3.

use schemars::JsonSchema;
use schemas::dims::{Dims, keep};
use schemas::entry::{Entry, OptionProblem};
use schemas::frame::Frames;
use schemas::node::{Forwarded, NodeError};
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use crate::kind::{self, Call, Host};
use crate::layers::size::{Size, check_share};
use crate::layers::visible::{self, Per};
use crate::rng::Key;

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Share of the patches that is hidden.
    pub ratio: f64,
    /// Whether the share is hidden of every frame or of the clip as a whole.
    pub per: Per,
    /// Pixels per side of a patch.
    pub patch: usize,
    /// Frames per patch.
    pub tubelet: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { ratio: 0.8, per: Per::Clip, patch: Size::TINY.patch, tubelet: 1 }
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
        let (size, ratio) = (self.size(), self.ratio);
        let seen = match self.per {
            Per::Clip => format!("keep({},{ratio})", size.tokens()),
            Per::Frame => format!("({})*keep({},{ratio})", size.times(), size.places()),
        };
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
        let (groups, group) = match self.per {
            Per::Clip => (1, frames * rows * columns),
            Per::Frame => (frames, rows * columns),
        };
        Ok(visible::give_drawn(&inputs, call, frames * rows * columns, |rng| {
            let orders: Vec<_> = (0..groups).map(|_| rng.permutation(group)).collect();
            visible::first(&orders, keep(group, self.ratio))
        }))
    }
}

/// Kind `masks/random`.
pub const ENTRY: Entry = kind::host::<Config>(include_str!("random.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::frame::Frame;
    use schemas::node::At;

    #[test]
    fn every_frame_keeps_the_same_number() {
        let config = Config { ratio: 0.75, per: Per::Frame, patch: 2, tubelet: 1 };
        let key = Key::new(1, "mask");
        let dims = [("T", 3), ("H", 4), ("W", 4)].map(|(k, v)| (k.to_owned(), v));
        let mut state = config.open(&Dims::from(dims), &key).unwrap();
        let video = Frame::f32([2, 3, 3, 4, 4], vec![0.0; 288]);
        let call = Call::new(key, At::default());
        let inputs = Frames::from([("video".to_owned(), video)]);
        let given = config.forward(&mut state, inputs, &call).unwrap();
        let visible = &given.frames["visible"];
        assert_eq!(visible.shape(), [2, 3]);
        for (i, index) in visible.to_i64().into_iter().enumerate() {
            assert_eq!(index as usize / 4, i % 3);
        }
    }
}
