//! What can be seen in the world of moving shapes, and where everything is at every frame.
//!
//! Motions come in pairs that are each other's time reversal, and each pair's state is stationary:
//! position, angle and size begin at a uniformly drawn phase and wrap around. So a frame of one of
//! a pair is distributed like a frame of the other, and only the order of frames tells them apart.
//! The one pair that does not wrap, two events in either order, begins and ends at rest.

use serde::Serialize;

use crate::rng::Rng;

/// Outlines. All carry an off-centre dot, so that a turning disc is seen to turn.
pub const SHAPES: [&str; 4] = ["disc", "square", "triangle", "star"];

/// Names and RGB of the colours.
pub const COLOURS: [(&str, [u8; 3]); 6] = [
    ("red", [225, 50, 45]),
    ("blue", [50, 95, 230]),
    ("green", [50, 180, 75]),
    ("yellow", [235, 205, 50]),
    ("purple", [155, 70, 200]),
    ("orange", [240, 135, 35]),
];

/// Patterns on a shape.
pub const TEXTURES: [&str; 3] = ["plain", "striped", "checked"];

/// Patterns behind a shape.
pub const BACKGROUNDS: [&str; 4] = ["plain", "shaded", "tiled", "speckled"];

/// Motions; numbers 2k and 2k + 1 are each other's time reversal.
pub const MOTIONS: [&str; 14] = [
    "move_left",
    "move_right",
    "move_up",
    "move_down",
    "rotate_clockwise",
    "rotate_counterclockwise",
    "grow",
    "shrink",
    "pulse_then_jump",
    "jump_then_pulse",
    "orbit_clockwise",
    "orbit_counterclockwise",
    "bounce_lower",
    "bounce_higher",
];

/// Most appearance classes: every shape in every colour.
pub const APPEARANCES: usize = SHAPES.len() * COLOURS.len();

/// How a clip looks. Drawn independently of its motion.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Appearance {
    /// Class: shape plus four times colour.
    pub label: usize,
    /// Place in [`SHAPES`].
    pub shape: usize,
    /// Place in [`COLOURS`].
    pub colour: usize,
    /// Place in [`TEXTURES`].
    pub texture: usize,
    /// Place in [`BACKGROUNDS`].
    pub background: usize,
    /// Mean RGB of the background.
    pub shade: [u8; 3],
    /// Radius as a share of the picture's side.
    pub radius: f64,
    /// Centres of small still dots, as shares of the picture's side.
    pub dots: Vec<[f64; 2]>,
    /// Names the pattern of a speckled background.
    pub grain: u64,
}

impl Appearance {
    /// Draws a look of one class.
    pub fn draw(label: usize, rng: &mut Rng) -> Self {
        let level = rng.between(70.0, 150.0);
        let shade = [0; 3].map(|_: u8| (level + rng.between(-20.0, 20.0)) as u8);
        let dots = rng.below(4);
        Self {
            label,
            shape: label % SHAPES.len(),
            colour: label / SHAPES.len() % COLOURS.len(),
            texture: rng.below(TEXTURES.len()),
            background: rng.below(BACKGROUNDS.len()),
            shade,
            radius: rng.between(0.17, 0.22),
            dots: (0..dots).map(|at| dot(at, rng)).collect(),
            grain: rng.bits(),
        }
    }

    /// The same look in front of a plain grey background, without texture and still dots. The grey
    /// is near the mean that videos are normalised with, so that only the shape stands out.
    pub fn without_clutter(self) -> Self {
        let mean = [124u8, 116, 104];
        let shade = [0, 1, 2].map(|channel| mean[channel] - 6 + self.shade[channel] / 16);
        Self { texture: 0, background: 0, dots: Vec::new(), shade, ..self }
    }

    /// The name of its class, such as `red star`.
    pub fn name(&self) -> String {
        format!("{} {}", COLOURS[self.colour].0, SHAPES[self.shape])
    }
}

/// A place near one corner, so that dots do not cover each other.
fn dot(corner: usize, rng: &mut Rng) -> [f64; 2] {
    let near = |high: bool, rng: &mut Rng| {
        let inset = rng.between(0.06, 0.12);
        if high { 1.0 - inset } else { inset }
    };
    [near(corner % 2 == 1, rng), near(corner / 2 == 1, rng)]
}

/// Where the shape is in one frame. Lengths are shares of the picture's side.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct State {
    /// Column of the centre, in `[0, 1)`; the picture wraps around.
    pub x: f64,
    /// Row of the centre, downwards, in `[0, 1)`.
    pub y: f64,
    /// Turn in radians, clockwise on the screen.
    pub angle: f64,
    /// Factor on the radius.
    pub scale: f64,
}

/// A motion with everything that was drawn for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Motion {
    /// Class; place in [`MOTIONS`].
    pub label: usize,
    frames: usize,
    rest: State,
    /// Phase in `[0, 1)` at the first frame.
    phase: f64,
    /// Phase, or share of the side, per frame.
    speed: f64,
    /// Frame at which the first and the second event begin, and how long one takes.
    events: [f64; 3],
}

impl Motion {
    /// Draws a motion of one class over a number of frames.
    pub fn draw(label: usize, frames: usize, rng: &mut Rng) -> Self {
        let pair = label / 2;
        let inside = |rng: &mut Rng| rng.between(0.28, 0.72);
        let rest = State {
            x: if pair == 0 { rng.uniform() } else { inside(rng) },
            y: if pair == 1 { rng.uniform() } else { inside(rng) },
            angle: rng.between(0.0, std::f64::consts::TAU),
            scale: 1.0,
        };
        let speed = match pair {
            0 | 1 => rng.between(0.045, 0.07),
            2 => rng.between(0.03, 0.045),
            3 | 6 => rng.between(0.8, 1.2) / frames as f64,
            _ => rng.between(0.9, 1.3) / frames as f64,
        };
        let length = frames as f64 * rng.between(0.3, 0.38);
        let slack = (frames as f64 - 1.0 - 2.0 * length).max(0.0);
        let (early, between) = (rng.uniform() * slack / 2.0, rng.uniform() * slack / 2.0);
        let events = [early, early + length + between, length];
        Self { label, frames, rest, phase: rng.uniform(), speed, events }
    }

    /// Where the shape is at a frame.
    pub fn state(&self, frame: usize) -> State {
        let reversed = self.label % 2 == 1;
        let time = if reversed { self.frames.saturating_sub(frame + 1) } else { frame } as f64;
        let turn = self.phase + self.speed * time;
        let cycle = turn.rem_euclid(1.0);
        let wave = (turn * std::f64::consts::TAU).sin_cos();
        let rest = self.rest;
        match self.label / 2 {
            0 => State { x: (rest.x - self.speed * time).rem_euclid(1.0), ..rest },
            1 => State { y: (rest.y - self.speed * time).rem_euclid(1.0), ..rest },
            2 => State { angle: rest.angle + std::f64::consts::TAU * self.speed * time, ..rest },
            3 => State { scale: 0.6 * (1.5f64 / 0.6).powf(cycle), ..rest },
            4 => {
                let swell = |begin: f64| {
                    let share = ((time - begin) / self.events[2]).clamp(0.0, 1.0);
                    (share * std::f64::consts::PI).sin()
                };
                let (pulse, jump) = (swell(self.events[0]), swell(self.events[1]));
                State { scale: 1.0 + 0.6 * pulse, y: rest.y - 0.22 * jump, ..rest }
            }
            5 => State { x: 0.5 + 0.22 * wave.1, y: 0.5 + 0.22 * wave.0, ..rest },
            _ => {
                let hops = (cycle * 4.0 * std::f64::consts::PI).cos().abs();
                State { y: 0.75 - 0.5 * (1.0 - 0.75 * cycle) * hops, ..rest }
            }
        }
    }
}

/// The time reversal of a motion class.
pub fn reversal(label: usize) -> usize {
    label ^ 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Key;

    #[test]
    fn the_two_of_a_pair_are_each_others_time_reversal() {
        for label in (0..MOTIONS.len()).step_by(2) {
            let key = Key::new(5, "motion").with_number(label as u64);
            let one = Motion::draw(label, 16, &mut key.rng());
            let other = Motion::draw(reversal(label), 16, &mut key.rng());
            for frame in 0..16 {
                assert_eq!(one.state(frame), other.state(15 - frame), "{}", MOTIONS[label]);
            }
        }
    }

    /// Largest distance between two empirical distributions (Kolmogorov-Smirnov).
    fn distance(mut a: Vec<f64>, mut b: Vec<f64>) -> f64 {
        a.sort_by(f64::total_cmp);
        b.sort_by(f64::total_cmp);
        let share = |list: &[f64], at: f64| {
            list.partition_point(|value| *value <= at) as f64 / list.len() as f64
        };
        a.iter().chain(&b).map(|&at| (share(&a, at) - share(&b, at)).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn a_single_frame_does_not_tell_the_two_of_a_pair_apart() {
        let draws = 3000;
        let states = |label: usize, frame: usize| -> Vec<State> {
            let key = Key::new(6, "motion").with_number(label as u64);
            let draw = |at: u64| Motion::draw(label, 16, &mut key.with_number(at).rng());
            (0..draws).map(|at| draw(at).state(frame)).collect()
        };
        let parts: [fn(&State) -> f64; 4] = [|s| s.x, |s| s.y, |s| s.angle.sin(), |s| s.scale];
        // 1.95 sqrt(2 / n) is exceeded by chance once in a thousand.
        let bound = 1.95 * (2.0 / draws as f64).sqrt();
        for label in (0..MOTIONS.len()).step_by(2) {
            // Two events in a fixed order differ in the middle; they begin alike.
            let frames: &[usize] = if label == 8 { &[0] } else { &[0, 5, 15] };
            for &frame in frames {
                let (one, other) = (states(label, frame), states(label + 1, frame));
                for part in parts {
                    let gap =
                        distance(one.iter().map(part).collect(), other.iter().map(part).collect());
                    assert!(gap < bound, "{} frame {frame}: {gap}", MOTIONS[label]);
                }
            }
        }
    }

    #[test]
    fn motion_is_several_pixels_per_frame_at_the_default_size() {
        for draw in 0..20 {
            let mut rng = Key::new(7, "speed").with_number(draw).rng();
            let motion = Motion::draw(1, 16, &mut rng);
            let step = (motion.state(1).x - motion.state(0).x).rem_euclid(1.0) * 64.0;
            assert!((2.0..6.0).contains(&step), "{step}");
        }
    }
}
