//! Which part of a picture is kept, at which size: one plan for all frames of a clip.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::resize::Region;
use crate::rng::Rng;
use crate::video::error::VideoError;

/// How a picture becomes a square of the wanted size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Crop {
    /// The whole picture, its aspect ratio not kept.
    Stretch,
    /// The shorter side is scaled to a length, then the centre is cut out.
    Centre {
        /// Length of the shorter side in pixels; the output size when absent.
        #[serde(default)]
        short: Option<usize>,
    },
    /// The shorter side is scaled to the output size; view 0, 1, 2 lie along the longer one.
    Three,
    /// A random part of random area and aspect ratio, scaled.
    RandomResized {
        /// Lowest and highest share of the area.
        scale: [f64; 2],
        /// Lowest and highest width / height.
        ratio: [f64; 2],
    },
    /// A random part at one of 13 fixed places, its sides drawn from shares of the shorter side.
    MultiScale {
        /// The shares, from large to small; width and height differ by at most one place.
        #[serde(default = "stage_1_scales")]
        scales: Vec<f64>,
    },
    /// The longer side is scaled to the output size; black fills the bottom or the right.
    Letterbox,
}

impl Crop {
    /// The multi-scale crop of InternVideo2 stage 1.
    pub fn multi_scale() -> Self {
        Self::MultiScale { scales: stage_1_scales() }
    }
}

impl Crop {
    /// What is wrong with the numbers, and what to write.
    pub fn problem(&self, size: usize) -> Option<(String, &'static str)> {
        match self {
            Self::Centre { short: Some(short) } if *short < size => Some((
                format!("`short` is {short}, less than `size` {size}"),
                "leave `short` out or raise it",
            )),
            Self::Centre { short: Some(short) } if *short > MAX_SHORT => {
                let hint = "leave `short` out or lower it";
                Some((format!("`short` is {short}, above {MAX_SHORT}"), hint))
            }
            Self::RandomResized { scale, .. } if !(ascends(*scale) && scale[1] <= 1.0) => Some((
                format!("`scale` is {scale:?}, not two shares with 0 < low <= high <= 1"),
                "write `scale: [0.08, 1.0]`",
            )),
            Self::RandomResized { ratio, .. } if !ascends(*ratio) => Some((
                format!("`ratio` is {ratio:?}, not two numbers with 0 < low <= high"),
                "write `ratio: [0.75, 1.3333]`",
            )),
            Self::MultiScale { scales } if scales.is_empty() || !scales.iter().all(is_share) => {
                let message = format!("`scales` is {scales:?}, not one or more shares in (0, 1]");
                Some((message, "leave `scales` out or write `scales: [1.0, 0.875, 0.75, 0.66]`"))
            }
            _ => None,
        }
    }
}

/// A frame's shorter side is not scaled beyond this.
const MAX_SHORT: usize = 16_384;

fn ascends([low, high]: [f64; 2]) -> bool {
    0.0 < low && low <= high && high.is_finite()
}

fn is_share(share: &f64) -> bool {
    0.0 < *share && *share <= 1.0
}

fn stage_1_scales() -> Vec<f64> {
    vec![1.0, 0.875, 0.75, 0.66]
}

/// What is done to every frame of a clip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// The part of the source that is scaled.
    pub source: Region,
    /// (Height, width) to which it is scaled.
    pub resize: (usize, usize),
    /// The part of the scaled picture that is kept.
    pub window: Region,
    /// (Height, width) of the result; black below and right of the window.
    pub canvas: (usize, usize),
    /// Whether left and right change places.
    pub flip: bool,
}

impl Plan {
    /// Scales a region to a size and keeps all of it.
    pub fn scale(source: Region, resize: (usize, usize)) -> Self {
        let window = Region::whole(resize.0, resize.1);
        Self { source, resize, window, canvas: resize, flip: false }
    }

    /// Draws what to do with pictures of `height` x `width`. `view` chooses among the crops of a
    /// test-time protocol, modulo their number.
    pub fn draw(
        crop: &Crop,
        size: usize,
        (height, width): (usize, usize),
        view: usize,
        rng: &mut Rng,
    ) -> Result<Self, VideoError> {
        let whole = Region::whole(height, width);
        let square = (size, size);
        Ok(match crop {
            Crop::Stretch => Self::scale(whole, square),
            Crop::Centre { short } => {
                let plan = Self::scale(whole, short_side(height, width, short.unwrap_or(size)));
                let window = centre(plan.resize, square)?;
                Self { window, canvas: square, ..plan }
            }
            Crop::Three => {
                let plan = Self::scale(whole, short_side(height, width, size));
                Self { window: third(plan.resize, size, view), canvas: square, ..plan }
            }
            Crop::RandomResized { scale, ratio } => {
                Self::scale(random_region((height, width), *scale, *ratio, rng), square)
            }
            Crop::MultiScale { scales } => {
                Self::scale(multi_scale_region((height, width), size, scales, rng), square)
            }
            Crop::Letterbox => {
                let plan = Self::scale(whole, long_side(height, width, size));
                Self { canvas: square, ..plan }
            }
        })
    }
}

/// (Height, width) after scaling the shorter side; the longer one is rounded down.
pub fn short_side(height: usize, width: usize, short: usize) -> (usize, usize) {
    if height <= width {
        (short, (short * width / height).max(short))
    } else {
        ((short * height / width).max(short), short)
    }
}

fn long_side(height: usize, width: usize, long: usize) -> (usize, usize) {
    if height >= width {
        (long, (long * width / height).max(1))
    } else {
        ((long * height / width).max(1), long)
    }
}

/// The middle of a picture; offsets are rounded half to even.
pub fn centre(from: (usize, usize), to: (usize, usize)) -> Result<Region, VideoError> {
    let ((from_height, from_width), (height, width)) = (from, to);
    if height > from_height || width > from_width {
        return Err(VideoError::Uncuttable { height, width, from_height, from_width });
    }
    let middle = |left_over: usize| {
        let half = left_over / 2;
        if left_over % 2 == 1 && half % 2 == 1 { half + 1 } else { half }
    };
    Ok(Region {
        top: middle(from_height - height),
        left: middle(from_width - width),
        height,
        width,
    })
}

/// View 0, 1 or 2 of a picture whose shorter side is `side`, evenly spaced along the longer one.
pub fn third((height, width): (usize, usize), side: usize, view: usize) -> Region {
    let view = view % 3;
    Region {
        top: view * (height - side) / 2,
        left: view * (width - side) / 2,
        height: side,
        width: side,
    }
}

/// torchvision's `RandomResizedCrop`: ten tries, then the centre at the nearest allowed ratio.
fn random_region(
    (height, width): (usize, usize),
    scale: [f64; 2],
    ratio: [f64; 2],
    rng: &mut Rng,
) -> Region {
    let area = (height * width) as f64;
    for _ in 0..10 {
        let target = area * rng.between(scale[0], scale[1]);
        let aspect = rng.between(ratio[0].ln(), ratio[1].ln()).exp();
        let columns = (target * aspect).sqrt().round_ties_even() as usize;
        let rows = (target / aspect).sqrt().round_ties_even() as usize;
        if (1..=width).contains(&columns) && (1..=height).contains(&rows) {
            let top = rng.below(height - rows + 1);
            let left = rng.below(width - columns + 1);
            return Region { top, left, height: rows, width: columns };
        }
    }
    let aspect = width as f64 / height as f64;
    let (rows, columns) = if aspect < ratio[0] {
        ((width as f64 / ratio[0]).round_ties_even() as usize, width)
    } else if aspect > ratio[1] {
        (height, (height as f64 * ratio[1]).round_ties_even() as usize)
    } else {
        (height, width)
    };
    let (rows, columns) = (rows.clamp(1, height), columns.clamp(1, width));
    let (top, left) = ((height - rows) / 2, (width - columns) / 2);
    Region { top, left, height: rows, width: columns }
}

/// TSN's `GroupMultiScaleCrop` with fixed places, as InternVideo2 stage 1 uses it.
fn multi_scale_region(
    (height, width): (usize, usize),
    size: usize,
    scales: &[f64],
    rng: &mut Rng,
) -> Region {
    let short = height.min(width);
    let sides: Vec<usize> = scales
        .iter()
        .map(|scale| ((short as f64 * scale) as usize).clamp(1, short))
        .map(|side| if side.abs_diff(size) < 3 && size <= short { size } else { side })
        .collect();
    let mut pairs = Vec::new();
    for (i, &rows) in sides.iter().enumerate() {
        for (j, &columns) in sides.iter().enumerate() {
            if i.abs_diff(j) <= 1 {
                pairs.push((rows, columns));
            }
        }
    }
    let (rows, columns) = *pairs.get(rng.below(pairs.len())).unwrap_or(&(short, short));
    let (down, right) = ((height - rows) / 4, (width - columns) / 4);
    let (y, x) = PLACES[rng.below(PLACES.len())];
    Region { top: y * down, left: x * right, height: rows, width: columns }
}

/// Quarter steps (down, right) of the 13 places: corners, centre, edge midpoints, quarter points.
const PLACES: [(usize, usize); 13] = [
    (0, 0),
    (0, 4),
    (4, 0),
    (4, 4),
    (2, 2),
    (2, 0),
    (2, 4),
    (4, 2),
    (0, 2),
    (1, 1),
    (1, 3),
    (3, 1),
    (3, 3),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Key;

    #[test]
    fn every_drawn_region_lies_inside_the_picture() {
        let crops = [
            Crop::Stretch,
            Crop::Centre { short: Some(40) },
            Crop::Three,
            Crop::RandomResized { scale: [0.08, 1.0], ratio: [0.75, 4.0 / 3.0] },
            Crop::multi_scale(),
            Crop::Letterbox,
        ];
        for crop in &crops {
            for size in [(1, 1), (32, 32), (37, 53), (200, 9), (33, 300)] {
                for draw in 0..50 {
                    let mut rng = Key::new(1, "crop").with_number(draw).rng();
                    let plan = Plan::draw(crop, 32, size, draw as usize, &mut rng).unwrap();
                    let Plan { source, window, resize, canvas, .. } = plan;
                    assert!(source.height >= 1 && source.width >= 1);
                    assert!(source.top + source.height <= size.0, "{crop:?} {plan:?}");
                    assert!(source.left + source.width <= size.1, "{crop:?} {plan:?}");
                    assert!(window.top + window.height <= resize.0, "{crop:?} {plan:?}");
                    assert!(window.left + window.width <= resize.1, "{crop:?} {plan:?}");
                    assert_eq!(canvas, (32, 32));
                }
            }
        }
    }

    #[test]
    fn a_multi_scale_side_near_the_output_size_is_snapped_to_it() {
        // 0.875 * 256 = 224; 0.66 * 340 = 224.4 is cut to 224; 0.875 * 258 = 225.75 is snapped.
        let mut sides = std::collections::BTreeSet::new();
        for draw in 0..400 {
            let mut rng = Key::new(2, "crop").with_number(draw).rng();
            let Crop::MultiScale { scales } = Crop::multi_scale() else { unreachable!() };
            let region = multi_scale_region((258, 400), 224, &scales, &mut rng);
            sides.extend([region.height, region.width]);
        }
        assert_eq!(sides.into_iter().collect::<Vec<_>>(), [170, 193, 224, 258]);
    }

    #[test]
    fn a_centre_larger_than_the_picture_is_refused() {
        assert!(centre((10, 10), (11, 3)).is_err());
        assert_eq!(centre((24, 34), (21, 21)).unwrap().left, 6);
        assert_eq!(centre((24, 34), (21, 21)).unwrap().top, 2);
    }
}
