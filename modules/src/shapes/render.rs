//! Draws moving shapes into RGB pictures, antialiased, on a picture that wraps around.

use super::world::{Appearance, COLOURS, State};

/// Draws clips of one look.
pub struct Painter<'a> {
    look: &'a Appearance,
    height: usize,
    width: usize,
    background: Vec<[f32; 3]>,
}

/// The shape's pixels in one frame.
#[derive(Debug, Clone, PartialEq)]
pub struct Painted {
    /// RGB bytes, row by row.
    pub rgb: Vec<u8>,
    /// Whether a pixel belongs to the shape.
    pub mask: Vec<bool>,
}

impl<'a> Painter<'a> {
    /// A painter of `height` x `width` pictures.
    pub fn new(look: &'a Appearance, height: usize, width: usize) -> Self {
        let mut background = Vec::with_capacity(height * width);
        let side = height.min(width) as f64;
        for row in 0..height {
            for column in 0..width {
                let level = background_level(look, row as f64 / side, column as f64 / side);
                background.push(look.shade.map(|shade| f32::from(shade) + level));
            }
        }
        let mut painter = Self { look, height, width, background };
        for &[x, y] in &look.dots {
            painter.dot(x, y, 0.04 * side);
        }
        painter
    }

    /// Puts a small light dot on the background.
    fn dot(&mut self, x: f64, y: f64, radius: f64) {
        let (x, y) = (x * self.width as f64, y * self.height as f64);
        for row in 0..self.height {
            for column in 0..self.width {
                let (dx, dy) = (column as f64 + 0.5 - x, row as f64 + 0.5 - y);
                let cover = (radius - dx.hypot(dy) + 0.5).clamp(0.0, 1.0) as f32;
                let pixel = &mut self.background[row * self.width + column];
                *pixel = pixel.map(|value| value + cover * (235.0 - value));
            }
        }
    }

    /// Draws the shape in one state.
    pub fn paint(&self, state: &State) -> Painted {
        let side = self.height.min(self.width) as f64;
        let radius = self.look.radius * state.scale * side;
        let (sin, cos) = state.angle.sin_cos();
        let colour = COLOURS[self.look.colour].1.map(f32::from);
        let mut painted = Painted {
            rgb: Vec::with_capacity(self.height * self.width * 3),
            mask: Vec::with_capacity(self.height * self.width),
        };
        for row in 0..self.height {
            let dy = wrap(row as f64 + 0.5 - state.y * self.height as f64, self.height as f64);
            for column in 0..self.width {
                let dx = wrap(column as f64 + 0.5 - state.x * self.width as f64, self.width as f64);
                let mut pixel = self.background[row * self.width + column];
                let mut inside = false;
                // No outline reaches further than its radius times 1.2.
                if dx.abs().max(dy.abs()) < radius * 1.2 + 1.0 {
                    let (x, y) = ((dx * cos + dy * sin) / radius, (dy * cos - dx * sin) / radius);
                    let cover = (0.5 - outline(self.look.shape, x, y) * radius).clamp(0.0, 1.0);
                    inside = cover >= 0.5;
                    let light = surface(self.look.texture, x, y, radius);
                    for (value, colour) in pixel.iter_mut().zip(colour) {
                        *value += cover as f32 * (colour * light - *value);
                    }
                }
                painted.rgb.extend(pixel.map(|value| value.round().clamp(0.0, 255.0) as u8));
                painted.mask.push(inside);
            }
        }
        painted
    }
}

/// The shortest way around a circle of this length.
fn wrap(distance: f64, length: f64) -> f64 {
    (distance + length / 2.0).rem_euclid(length) - length / 2.0
}

/// Brightness added to the background at a place given in shares of the side.
fn background_level(look: &Appearance, y: f64, x: f64) -> f32 {
    let level = match look.background {
        1 => 40.0 * (x + y - 1.0),
        2 => {
            let odd = ((x * 8.0) as i64 + (y * 8.0) as i64) % 2 == 1;
            if odd { 14.0 } else { -14.0 }
        }
        3 => {
            let cell = ((x * 32.0) as u64) << 32 | (y * 32.0) as u64;
            let mut hash = (cell ^ look.grain).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            hash ^= hash >> 29;
            hash = hash.wrapping_mul(0xBF58_476D_1CE4_E5B9);
            ((hash >> 40) as f64 / f64::from(1 << 24) - 0.5) * 44.0
        }
        _ => 0.0,
    };
    level as f32
}

/// Signed distance to an outline of radius 1; negative inside.
fn outline(shape: usize, x: f64, y: f64) -> f64 {
    match shape {
        0 => x.hypot(y) - 1.0,
        1 => x.abs().max(y.abs()) - 0.85,
        2 => regular(x, y, 3, 1.0),
        _ => regular(x, y, 5, 0.42),
    }
}

/// Signed distance to a star with its tips at radius 1; `waist` 1 gives the regular polygon of its
/// tips, smaller values draw the edges in.
fn regular(x: f64, y: f64, tips: usize, waist: f64) -> f64 {
    let half = std::f64::consts::PI / tips as f64;
    let radius = x.hypot(y);
    // Measured from a tip pointing up, folded into half of one tip.
    let angle = x.atan2(-y).rem_euclid(2.0 * half);
    let angle = angle.min(2.0 * half - angle);
    let (px, py) = (radius * angle.cos(), radius * angle.sin());
    let (tip, inner) = match waist {
        1.0 => ((1.2, 0.0), 1.2 * half.cos()),
        waist => ((1.15, 0.0), 1.15 * waist),
    };
    let (ex, ey) = (inner * half.cos() - tip.0, inner * half.sin() - tip.1);
    let length = ex.hypot(ey);
    ((px - tip.0) * -ey + (py - tip.1) * ex) / -length
}

/// Brightness of a shape's surface at a place in its own coordinates.
fn surface(texture: usize, x: f64, y: f64, radius: f64) -> f32 {
    let bright = match texture {
        1 => (x * 3.0).rem_euclid(2.0) < 1.0,
        2 => ((x * 2.5).floor() + (y * 2.5).floor()).rem_euclid(2.0) < 1.0,
        _ => true,
    };
    let eye = ((0.22 - (x - 0.0).hypot(y + 0.4)) * radius + 0.5).clamp(0.0, 1.0) as f32;
    let light = if bright { 1.0 } else { 0.72 };
    light * (1.0 - eye) + 0.1 * eye
}

/// Boxes `[left, top, right, bottom]` in pixels around a mask, right and bottom exclusive; a shape
/// that wraps has one per part, up to four.
pub fn boxes(mask: &[bool], width: usize) -> Vec<[usize; 4]> {
    let rows: Vec<bool> = mask.chunks(width).map(|row| row.contains(&true)).collect();
    let mut found = Vec::new();
    for (top, bottom) in runs(&rows) {
        let part = &mask[top * width..bottom * width];
        let hit = |column: usize| part.iter().skip(column).step_by(width).any(|inside| *inside);
        let columns: Vec<bool> = (0..width).map(hit).collect();
        for (left, right) in runs(&columns) {
            // Where a shape lies on both sides of an edge, one side may have fewer rows.
            let on = |row: &usize| mask[row * width + left..row * width + right].contains(&true);
            let (first, last) = ((top..bottom).find(on), (top..bottom).rfind(on));
            let (first, last) = (first.unwrap_or(top), last.unwrap_or(top));
            found.push([left, first, right, last + 1]);
        }
    }
    found
}

/// Where a list is true, as half-open ranges.
fn runs(list: &[bool]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut begin = None;
    for (at, &on) in list.iter().chain([&false]).enumerate() {
        match (on, begin) {
            (true, None) => begin = Some(at),
            (false, Some(first)) => {
                found.push((first, at));
                begin = None;
            }
            _ => {}
        }
    }
    found
}

/// A mask as lengths of runs, row by row, beginning with a run of false.
pub fn run_lengths(mask: &[bool]) -> Vec<usize> {
    let mut lengths = vec![0];
    let mut value = false;
    for &inside in mask {
        if inside != value {
            lengths.push(0);
            value = inside;
        }
        *lengths.last_mut().expect("the list begins with one run") += 1;
    }
    lengths
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::Key;

    fn state(x: f64, y: f64) -> State {
        State { x, y, angle: 0.3, scale: 1.0 }
    }

    #[test]
    fn every_shape_covers_a_fair_part_of_the_picture_and_no_more() {
        for label in 0..4 {
            let look = Appearance::draw(label, &mut Key::new(1, "look").rng());
            let painted = Painter::new(&look, 64, 64).paint(&state(0.5, 0.5));
            let covered = painted.mask.iter().filter(|inside| **inside).count();
            assert!((200..900).contains(&covered), "shape {label}: {covered} pixels");
            assert_eq!(boxes(&painted.mask, 64).len(), 1);
            assert_eq!(run_lengths(&painted.mask).iter().sum::<usize>(), 64 * 64);
        }
    }

    #[test]
    fn a_shape_over_the_edge_comes_in_on_the_other_side() {
        let look = Appearance::draw(1, &mut Key::new(2, "look").rng());
        let painter = Painter::new(&look, 64, 64);
        let (whole, split) = (painter.paint(&state(0.5, 0.5)), painter.paint(&state(0.0, 0.5)));
        let count = |painted: &Painted| painted.mask.iter().filter(|inside| **inside).count();
        assert_eq!(count(&whole), count(&split));
        let found = boxes(&split.mask, 64);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0][0], found[1][2]), (0, 64));
    }

    /// Run lengths as a reader of the manifest takes them.
    fn mask_of(runs: &[usize]) -> Vec<bool> {
        let run = |(at, length): (usize, &usize)| std::iter::repeat_n(at % 2 == 1, *length);
        runs.iter().enumerate().flat_map(run).collect()
    }

    proptest! {
        #[test]
        fn boxes_hold_the_mask_and_each_side_of_a_box_touches_it(
            label in 0..4usize,
            (x, y, angle, scale) in (0.0..1.0, 0.0..1.0, 0.0..6.3, 0.6..1.6),
        ) {
            let look = Appearance::draw(label, &mut Key::new(3, "look").rng());
            let painted = Painter::new(&look, 32, 32).paint(&State { x, y, angle, scale });
            let mask = mask_of(&run_lengths(&painted.mask));
            prop_assert_eq!(&mask, &painted.mask);
            let found = boxes(&mask, 32);
            let inside = |row: usize, column: usize| {
                let holds = |[left, top, right, bottom]: &[usize; 4]| {
                    (*left..*right).contains(&column) && (*top..*bottom).contains(&row)
                };
                found.iter().filter(|one| holds(one)).count()
            };
            for (at, set) in mask.iter().enumerate() {
                let count = inside(at / 32, at % 32);
                prop_assert!(count <= 1 && (!set || count == 1), "pixel {}: {}", at, count);
            }
            let on = |row: usize, column: usize| mask[row * 32 + column];
            for [left, top, right, bottom] in found {
                prop_assert!((left..right).any(|column| on(top, column)));
                prop_assert!((left..right).any(|column| on(bottom - 1, column)));
                prop_assert!((top..bottom).any(|row| on(row, left)));
                prop_assert!((top..bottom).any(|row| on(row, right - 1)));
            }
        }

        #[test]
        fn a_mask_lies_where_the_shape_was_put(x in 0.3..0.7f64, y in 0.3..0.7f64, angle in 0.0..6.3) {
            let look = Appearance::draw(0, &mut Key::new(4, "look").rng());
            let painted = Painter::new(&look, 64, 64).paint(&State { x, y, angle, scale: 1.0 });
            let found = boxes(&painted.mask, 64);
            prop_assert_eq!(found.len(), 1);
            let [left, top, right, bottom] = found[0].map(|edge| edge as f64 / 64.0);
            prop_assert!(((left + right) / 2.0 - x).abs() < 0.02);
            prop_assert!(((top + bottom) / 2.0 - y).abs() < 0.02);
            prop_assert!(((right - left) / 2.0 - look.radius).abs() < 0.02);
        }
    }
}
