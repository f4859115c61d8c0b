//! What is said about a clip: captions with paraphrases, questions with answers.

use serde::Serialize;

use super::world::{Appearance, BACKGROUNDS, COLOURS, MOTIONS, SHAPES, TEXTURES};
use crate::rng::Rng;

/// Captions of one clip.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Captions {
    /// What is seen, several ways to say it; the first one is the plainest.
    pub video: Vec<String>,
    /// What is heard.
    pub audio: String,
    /// What a speaker would say; there is no voice in the sound track.
    pub speech: String,
    /// All of it in one sentence.
    pub fused: String,
}

/// One question about a clip.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Question {
    /// `appearance`, `motion`, `count`, `order`, `before_after` or `state_change`.
    pub about: &'static str,
    /// The question.
    pub question: String,
    /// The answer in a few words.
    pub answer: String,
}

/// Ways to say a motion: "it ...", and the -ing form.
fn phrases(motion: usize) -> [&'static str; 3] {
    match MOTIONS[motion] {
        "move_left" => ["moves left", "moving to the left", "slides toward the left side"],
        "move_right" => ["moves right", "moving to the right", "slides toward the right side"],
        "move_up" => ["moves up", "moving upwards", "rises toward the top"],
        "move_down" => ["moves down", "moving downwards", "sinks toward the bottom"],
        "rotate_clockwise" => ["rotates clockwise", "turning clockwise", "spins like a clock hand"],
        "rotate_counterclockwise" => {
            ["rotates counterclockwise", "turning counterclockwise", "spins against the clock"]
        }
        "grow" => ["grows", "getting larger", "swells up again and again"],
        "shrink" => ["shrinks", "getting smaller", "dwindles again and again"],
        "pulse_then_jump" => {
            ["pulses and then jumps", "pulsing before it jumps", "swells once, then hops"]
        }
        "jump_then_pulse" => {
            ["jumps and then pulses", "jumping before it pulses", "hops once, then swells"]
        }
        "orbit_clockwise" => ["orbits clockwise", "circling clockwise", "runs a clockwise round"],
        "orbit_counterclockwise" => [
            "orbits counterclockwise",
            "circling counterclockwise",
            "runs a round against the clock",
        ],
        "bounce_lower" => {
            ["bounces lower and lower", "bouncing ever lower", "loses height in hops"]
        }
        _ => ["bounces higher and higher", "bouncing ever higher", "gains height in hops"],
    }
}

/// Hertz of a colour's tone.
pub fn pitch(look: &Appearance) -> f64 {
    220.0 * 2f64.powf(look.colour as f64 / 3.0)
}

/// The tone of a film: steady, with soft ends.
pub fn sound(look: &Appearance, samples: usize, rate: usize) -> Vec<f32> {
    let ramp = rate as f64 / 50.0;
    let level = |at: usize| {
        let edge = (at.min(samples - at) as f64 / ramp).min(1.0);
        let turns = pitch(look) * at as f64 / rate as f64;
        (0.4 * edge * (turns * std::f64::consts::TAU).sin()) as f32
    };
    (0..samples).map(level).collect()
}

/// Captions of a clip; the order of the paraphrases is drawn.
pub fn captions(look: &Appearance, motion: usize, rng: &mut Rng) -> Captions {
    let name = look.name();
    let [plain, ing, other] = phrases(motion);
    let (texture, background) = (TEXTURES[look.texture], BACKGROUNDS[look.background]);
    let mut video = vec![
        format!("a {texture} {name} {ing} over a {background} background"),
        format!("the {name} {other}"),
        format!("there is a {name} that {plain}"),
        format!("on a {background} ground a {texture} {name} {plain}"),
    ];
    let order = rng.permutation(video.len());
    video = order.into_iter().map(|at| video[at].clone()).collect();
    video.insert(0, format!("a {name} {plain}"));
    let audio = format!("a steady tone of {:.0} hertz", pitch(look));
    Captions {
        fused: format!("a {name} {plain} while {audio} sounds"),
        speech: format!("look, the {name} {plain}"),
        video,
        audio,
    }
}

/// Questions about a clip, those of its motion last.
pub fn questions(look: &Appearance, motion: usize) -> Vec<Question> {
    let ask = |about, question: &str, answer: &str| Question {
        about,
        question: question.to_owned(),
        answer: answer.to_owned(),
    };
    let count = look.dots.len().to_string();
    let mut list = vec![
        ask("appearance", "what shape is moving?", SHAPES[look.shape]),
        ask("appearance", "what colour is the shape?", COLOURS[look.colour].0),
        ask("count", "how many small dots lie still in the corners?", &count),
        ask("motion", "what does the shape do?", phrases(motion)[0]),
    ];
    match MOTIONS[motion] {
        name @ ("grow" | "shrink") => {
            let answer = if name == "grow" { "larger" } else { "smaller" };
            list.push(ask("state_change", "does the shape get larger or smaller?", answer));
        }
        name @ ("pulse_then_jump" | "jump_then_pulse") => {
            let first = name == "pulse_then_jump";
            let (before, after) = if first { ("pulse", "jump") } else { ("jump", "pulse") };
            list.push(ask("order", "what happens first, the jump or the pulse?", before));
            list.push(ask("before_after", &format!("what happens after the {before}?"), after));
        }
        name @ ("bounce_lower" | "bounce_higher") => {
            let answer = if name == "bounce_lower" { "lower" } else { "higher" };
            list.push(ask("before_after", "is the next hop lower or higher?", answer));
        }
        _ => {}
    }
    list
}

/// Questions about the order of the events of an untrimmed video.
pub fn order_questions(motions: &[usize]) -> Vec<Question> {
    let mut list = vec![Question {
        about: "count",
        question: "how many events are there?".to_owned(),
        answer: motions.len().to_string(),
    }];
    for pair in motions.windows(2) {
        let unique = |motion: usize| motions.iter().filter(|&&other| other == motion).count() == 1;
        if unique(pair[0]) {
            list.push(Question {
                about: "before_after",
                question: format!("what does the shape do right after it {}?", phrases(pair[0])[0]),
                answer: phrases(pair[1])[0].to_owned(),
            });
        }
    }
    list
}

/// The plain phrase of a motion, such as `moves left`.
pub fn phrase(motion: usize) -> &'static str {
    phrases(motion)[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Key;

    #[test]
    fn a_caption_names_look_and_motion_and_differs_between_the_two_of_a_pair() {
        let look = Appearance::draw(7, &mut Key::new(1, "look").rng());
        for motion in (0..MOTIONS.len()).step_by(2) {
            let one = captions(&look, motion, &mut Key::new(2, "words").rng());
            let other = captions(&look, motion + 1, &mut Key::new(2, "words").rng());
            assert!(one.video[0].contains(&look.name()));
            for (a, b) in one.video.iter().zip(&other.video) {
                assert_ne!(a, b);
            }
        }
    }
}
