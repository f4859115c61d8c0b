//! Ports and checks that all image towers have in common.

use schemas::dims::Dims;
use schemas::entry::OptionProblem;
use schemas::port::Ports;

use super::image_tower::{Input, TowerConfig};
use super::size::{SizeOptions, check_eps, check_share, check_taps, side};
use crate::kind::Names;
use crate::video::transform::Normalisation;

/// What transformers calls the outputs of a tower: its pooled vector is ours before it becomes a unit
/// vector.
pub const REFERENCE_NAMES: &[Names] = &[
    ("tokens", &["tokens", "last_hidden_state", "vision_last"]),
    ("features", &["features", "pooled", "pooler_output", "vision_pooled"]),
    ("pooled", &["image_embeds"]),
];

impl TowerConfig {
    /// Rows and columns of patches, as dims.
    fn grid(&self) -> [String; 2] {
        let p = self.size.patch;
        let of = |symbol: &str| match self.drops_rest {
            true => format!("floor({symbol},{p})"),
            false => format!("{symbol}/{p}"),
        };
        [of("H"), of("W")]
    }

    /// What the pixels of the input are, as the value of a tag.
    fn pixels(&self) -> &'static str {
        let colours = match self.input {
            Input::Imagenet => Normalisation::IMAGENET,
            Input::Own => self.colours,
        };
        colours.name().unwrap_or("own")
    }

    /// Ports for clips: `video` and all outputs.
    pub fn video_ports(&self) -> Ports {
        let [rows, columns] = self.grid();
        let (tokens, lattice) = (format!("T*({rows})*({columns})"), format!("T {rows} {columns}"));
        let ports = Ports::default()
            .input("video", "B 3 T H W")
            .tag("pixels", self.pixels())
            .about("RGB; the frames are read one by one");
        self.outputs_of(ports, &tokens, Some(&lattice))
            .plain("attention", format!("B T ({rows})*({columns})"))
            .lattice(lattice)
            .about("attention of what is read out to each patch, mean over heads")
    }

    /// Ports for pictures that are cut already: `M` patches of each, padded.
    pub fn packed_ports(&self) -> Ports {
        let voxels = self.size.voxels();
        let ports = Ports::default()
            .input("patches", format!("B M {voxels}"))
            .about("patches of a picture, row by row, padded; colours fastest")
            .stopped("shapes", "B 2")
            .int()
            .about("rows and columns of patches of each picture")
            .stopped("mask", "B M")
            .int()
            .optional()
            .about("1 = patch, 0 = padding; from `shapes` when absent");
        self.outputs_of(ports, "M", None)
            .plain("attention", "B 1 M")
            .about("attention of what is read out to each patch, mean over heads")
    }

    fn outputs_of(&self, ports: Ports, tokens: &str, lattice: Option<&str>) -> Ports {
        let (taps, width, pooled) = (self.taps, self.size.width, self.pooled());
        let rows = if self.front() == 1 { format!("1+{tokens}") } else { tokens.to_owned() };
        let cut = |ports: Ports| match lattice {
            Some(lattice) => ports.lattice(lattice),
            None => ports,
        };
        let ports = cut(ports.output("layers", format!("{taps} B {rows} {width}")))
            .tag("norm", "l2")
            .about("tapped blocks, ascending, unit vectors");
        let ports = cut(ports.output("tokens", format!("B {rows} {width}")))
            .about("last hidden state")
            .output("features", format!("B {width}"))
            .about("the vector before projection and norm, mean over frames")
            .output("pooled", format!("B {pooled}"));
        match self.mean_of_units {
            true => ports.about("unit vectors of the frames, averaged"),
            false => ports.tag("norm", "l2").about("mean over frames, unit vectors"),
        }
    }

    /// Problems of the numbers that all towers have.
    pub fn problems(&self, given: &SizeOptions, drop_path: f64, dims: &Dims) -> Vec<OptionProblem> {
        let size = &self.size;
        let mut problems = size.check(1);
        let mut refuse = |option: &str, message: String, hint: String| {
            problems.push(OptionProblem::new(option, message, hint));
        };
        if given.tubelet.is_some_and(|tubelet| tubelet != 1) {
            let message = "this tower reads single frames".to_owned();
            refuse("size.tubelet", message, "leave it out".to_owned());
        }
        if given.pool_heads.is_some_and(|heads| heads != size.heads) {
            let message = format!("the pooling has as many heads as a block, {}", size.heads);
            refuse("size.pool_heads", message, "leave it out, or set `heads`".to_owned());
        }
        if !self.projected && given.pooled.is_some_and(|pooled| pooled != size.width) {
            let message = format!("nothing is projected here, the width stays {}", size.width);
            refuse("size.pooled", message, format!("leave it out, or write {}", size.width));
        }
        if let Some(side) = self.table_side.filter(|side| !(1..=1 << 12).contains(side)) {
            let message = format!("`table_side` is {side}, not from 1 to 4096");
            refuse("table_side", message, "image size / patch is the published one".to_owned());
        }
        let sides = [("H", side(dims, "H")), ("W", side(dims, "W"))];
        for (name, pixels) in sides.into_iter().filter(|(_, n)| *n > 0 && *n < size.patch) {
            let message = format!("{name} = {pixels} pixels hold no patch of {}", size.patch);
            refuse("size.patch", message, "use smaller patches or larger pictures".to_owned());
        }
        problems.extend(check_taps(size.depth, self.taps, self.tap_interval));
        problems.extend(check_share("drop_path", drop_path));
        problems.extend(check_eps("eps", self.eps()));
        problems
    }

    /// Floating point operations for a clip.
    pub fn flops(&self, dims: &Dims) -> u64 {
        let [frames, rows, columns] = self.size.cut(dims);
        let patches = rows * columns;
        let pictures = (side(dims, "B") * frames.max(1)) as u64;
        let patches = if patches == 0 { side(dims, "M") } else { patches };
        pictures * self.size.flops(patches, self.front() + patches)
    }
}
