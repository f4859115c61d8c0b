//! Questions about clips and untrimmed videos, with choices.
//!
//! Answers that a question's own words give away would measure nothing. So what a yes/no question
//! claims is drawn like the truth, wrong motions come with their reversals, and a question that a
//! world's options leave only one answer to is not asked.

use serde::Serialize;

use super::Options;
use super::phrases::{BEAT_CLAIMS, BEATS, Facts, PHRASES, ask, fill};
use super::sound::{PITCHES, TIMBRES};
use super::world::{Appearance, COLOURS, MOTIONS, SHAPES, reversal};
use crate::rng::Rng;

/// One question.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Question {
    /// `appearance`, `appearance_yes_no`, `motion`, `motion_yes_no`, `count`, `state_change`,
    /// `order`, `before_after`; `sound` needs the sound, `sound_kind` follows from what is seen,
    /// `sound_and_motion` needs both.
    pub(super) about: &'static str,
    /// The question.
    pub(super) question: String,
    /// The answer in a few words.
    pub(super) answer: String,
    /// Two to four answers in drawn order; one of them is right.
    pub(super) choices: Vec<String>,
}

/// Most choices of a question.
const CHOICES: usize = 4;

/// Claims that are true and claims that are false of one, two and three beats, by place in
/// [`BEAT_CLAIMS`]. Drawn evenly, each claim is as often true as false.
const TRUE_CLAIMS: [[usize; 4]; 3] = [[0, 0, 0, 4], [1, 1, 3, 4], [2, 2, 2, 3]];
const FALSE_CLAIMS: [[usize; 4]; 3] = [[3, 3, 1, 2], [0, 0, 2, 2], [4, 4, 0, 1]];

/// Gathers questions; draws from one stream.
struct Asker<'a> {
    options: &'a Options,
    rng: &'a mut Rng,
    list: Vec<Question>,
}

impl Asker<'_> {
    /// Adds a question; takes as many wrong answers as there is room for, the first first.
    fn ask(&mut self, about: &'static str, question: &str, answer: &str, wrong: &[&str]) {
        let mut choices: Vec<String> =
            wrong.iter().take(CHOICES - 1).map(|text| (*text).to_owned()).collect();
        choices.push(answer.to_owned());
        let order = self.rng.permutation(choices.len());
        self.list.push(Question {
            about,
            question: question.to_owned(),
            answer: answer.to_owned(),
            choices: order.into_iter().map(|at| choices[at].clone()).collect(),
        });
    }

    /// Asks for one of several values, unless only one is possible.
    fn which(&mut self, about: &'static str, question: &str, answer: &str, all: &[&str]) {
        let wrong: Vec<&str> = all.iter().copied().filter(|text| *text != answer).collect();
        let order = self.rng.permutation(wrong.len());
        let wrong: Vec<&str> = order.into_iter().map(|at| wrong[at]).collect();
        if !wrong.is_empty() {
            self.ask(about, question, answer, &wrong);
        }
    }

    fn yes_or_no(&mut self, about: &'static str, question: &str, yes: bool) {
        let (answer, other) = if yes { ("yes", "no") } else { ("no", "yes") };
        self.ask(about, question, answer, &[other]);
    }

    /// A motion that is not this one; its reversal every second time.
    fn other_motion(&mut self, motion: usize) -> usize {
        if self.options.motions == 2 || self.rng.chance(0.5) {
            return reversal(motion);
        }
        let other = self.rng.below(self.options.motions - 2);
        if other < motion / 2 * 2 { other } else { other + 2 }
    }

    /// Motions of another pair, if there is one.
    fn other_pair(&mut self, motion: usize) -> Vec<usize> {
        let (pairs, own) = (self.options.motions / 2, motion / 2);
        if pairs < 2 {
            return Vec::new();
        }
        let pair = self.rng.below(pairs - 1);
        let pair = if pair < own { pair } else { pair + 1 };
        vec![2 * pair, 2 * pair + 1]
    }

    fn look(&mut self, look: &Appearance) {
        let labels = self.options.appearances;
        let shapes = &SHAPES[..labels.min(SHAPES.len())];
        let colours = labels.div_ceil(SHAPES.len());
        let colours: Vec<&str> = COLOURS[..colours].iter().map(|(name, _)| *name).collect();
        let (shape, colour) = (SHAPES[look.shape], COLOURS[look.colour].0);
        self.which("appearance", ask::SHAPE, shape, shapes);
        self.which("appearance", ask::COLOUR, colour, &colours);
        let of_shape = colours.len() == 1 || self.rng.chance(0.5);
        let (own, question) =
            if of_shape { (shape, ask::IS_SHAPE) } else { (colour, ask::IS_COLOUR) };
        let of = |label: usize| match of_shape {
            true => SHAPES[label % SHAPES.len()],
            false => COLOURS[label / SHAPES.len()].0,
        };
        let others: Vec<&str> = (0..labels).map(of).filter(|name| *name != own).collect();
        if !others.is_empty() {
            let yes = self.rng.chance(0.5);
            let value = if yes { own } else { others[self.rng.below(others.len())] };
            let question = fill(question, |_| value.to_owned());
            self.yes_or_no("appearance_yes_no", &question, yes);
        }
        if self.options.clutter {
            let count = look.dots.len().to_string();
            self.which("count", ask::DOTS, &count, &["0", "1", "2", "3"]);
        }
    }

    fn motion(&mut self, motion: usize) {
        let mut others = vec![reversal(motion)];
        others.extend(self.other_pair(motion));
        let others: Vec<&str> = others.into_iter().map(|other| PHRASES[other][0]).collect();
        self.ask("motion", ask::MOTION, PHRASES[motion][0], &others);
        let yes = self.rng.chance(0.5);
        let claimed = if yes { motion } else { self.other_motion(motion) };
        let question = fill(ask::IS_MOTION, |_| PHRASES[claimed][1].to_owned());
        self.yes_or_no("motion_yes_no", &question, yes);
        match MOTIONS[motion] {
            name @ ("grow" | "shrink") => {
                let sizes = ["larger", "smaller"];
                let answer = sizes[usize::from(name == "shrink")];
                self.which("state_change", ask::LARGER, answer, &sizes);
            }
            name @ ("pulse_then_jump" | "jump_then_pulse") => {
                let names = ["pulse", "jump"];
                let first = usize::from(name == "jump_then_pulse");
                let asked = self.rng.below(2);
                let question =
                    fill(ask::FIRST, |place| names[asked ^ usize::from(place == "other")].into());
                self.which("order", &question, names[first], &names);
                let asked = self.rng.below(2);
                let question = fill(ask::AFTER, |_| names[asked].to_owned());
                let after = [names[1 - asked], "nothing"];
                let answer = after[usize::from(asked != first)];
                self.which("before_after", &question, answer, &after);
            }
            name @ ("bounce_lower" | "bounce_higher") => {
                let ways = ["lower", "higher"];
                let answer = ways[usize::from(name == "bounce_higher")];
                self.which("before_after", ask::HOPS, answer, &ways);
            }
            _ => {}
        }
    }

    fn sound(&mut self, facts: &Facts<'_>) {
        let Some(tone) = facts.tone else { return };
        let numbers = BEATS.map(|names| names[0]);
        self.which("sound", ask::BEATS, numbers[tone.beats - 1], &numbers);
        let pitches = self.options.appearances.min(PITCHES.len());
        let pitches: Vec<&str> = PITCHES[..pitches].iter().map(|(name, _)| *name).collect();
        self.which("sound_kind", ask::PITCH, tone.pitch_name(), &pitches);
        let mut others = vec![reversal(tone.timbre)];
        others.extend(self.other_pair(tone.timbre));
        let others: Vec<&str> = others.into_iter().map(|other| TIMBRES[other].name).collect();
        self.ask("sound_kind", ask::TIMBRE, tone.timbre().name, &others);
        // A wrong claim is half the time wrong of the sound, half the time of the motion.
        let yes = self.rng.chance(0.5);
        let beats_hold = yes || self.rng.chance(0.5);
        let claims = if beats_hold { TRUE_CLAIMS } else { FALSE_CLAIMS }[tone.beats - 1];
        let claim = BEAT_CLAIMS[claims[self.rng.below(claims.len())]];
        let motion = facts.motion;
        let claimed = if yes || !beats_hold { motion } else { self.other_motion(motion) };
        let question = fill(ask::BEATS_AND_MOTION, |place| {
            if place == "one" { claim } else { PHRASES[claimed][0] }.to_owned()
        });
        self.yes_or_no("sound_and_motion", &question, yes);
    }
}

/// Questions about a clip.
pub(super) fn questions(facts: &Facts<'_>, options: &Options, rng: &mut Rng) -> Vec<Question> {
    let mut asker = Asker { options, rng, list: Vec::new() };
    asker.look(facts.look);
    asker.motion(facts.motion);
    asker.sound(facts);
    asker.list
}

/// Questions about an untrimmed video, whose events have different motions.
pub(super) fn event_questions(
    events: &[Facts<'_>],
    options: &Options,
    rng: &mut Rng,
) -> Vec<Question> {
    let mut asker = Asker { options, rng, list: Vec::new() };
    let plain = |event: usize| PHRASES[events[event].motion][0];
    let counts: Vec<String> = super::untrimmed::counts(options).map(|n| n.to_string()).collect();
    let counts: Vec<&str> = counts.iter().map(String::as_str).collect();
    asker.which("count", ask::EVENTS, &events.len().to_string(), &counts);
    let all: Vec<&str> = (0..events.len()).map(plain).collect();
    asker.which("order", ask::FIRST_EVENT, all[0], &all);
    let (one, other) = two(events.len(), asker.rng);
    let ing = |event: usize| PHRASES[events[event].motion][1];
    let question =
        fill(ask::EARLIER, |place| ing(if place == "one" { one } else { other }).to_owned());
    asker.which("order", &question, ing(one.min(other)), &[ing(one), ing(other)]);
    // With two motions the question would name the answer.
    for event in 0..if options.motions > 2 { events.len() - 1 } else { 0 } {
        let question = fill(ask::RIGHT_AFTER, |_| plain(event).to_owned());
        let others: Vec<&str> = (0..events.len()).filter(|at| *at != event).map(plain).collect();
        asker.which("before_after", &question, plain(event + 1), &others);
    }
    for (event, facts) in events.iter().enumerate() {
        if let Some(tone) = facts.tone {
            let question = fill(ask::BEATS_OF_EVENT, |_| plain(event).to_owned());
            let numbers = BEATS.map(|names| names[0]);
            asker.which("sound_and_motion", &question, numbers[tone.beats - 1], &numbers);
        }
    }
    asker.list
}

/// Two different numbers below `n`.
fn two(n: usize, rng: &mut Rng) -> (usize, usize) {
    let one = rng.below(n);
    (one, (one + 1 + rng.below(n - 1)) % n)
}

#[cfg(test)]
#[path = "question_tests.rs"]
mod tests;
